//! What an execution is. No file here depends on PostgreSQL, but for the conversion of an error
//! into an ErrorReport.

use std::ffi::CStr;

pub mod cursor;
pub mod error;
pub mod event;
pub mod execution;
pub mod fallback;
pub mod timestamp;

pub const EXTENSION: &CStr = c"loader_history";
