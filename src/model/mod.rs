//! What an execution is, in Rust alone: no file here knows PostgreSQL, but for the edge where an error becomes an
//! ErrorReport.

use std::ffi::CStr;

pub mod cursor;
pub mod error;
pub mod event;
pub mod execution;
pub mod fallback;
pub mod timestamp;

pub const EXTENSION: &CStr = c"loader_history";
