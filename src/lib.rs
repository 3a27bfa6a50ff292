//! `loader_history`: a PostgreSQL extension that records every execution of a data loader.
//!
//! The SQL that users see stands in `sql/*.sql`; this library holds what SQL is the wrong tool for.

mod cursor;
mod error;
mod event;
mod execution;
mod history;
mod local_settings;
mod lookup;
mod lost_ids;
mod notify;
mod purge;
mod record;
mod recorded_loader;
mod recorder;
mod rights;
mod schema;
mod settings;
mod statement;
mod time;
mod triggers;
mod version;

pgrx::pg_module_magic!(name, version);

/// Called by PostgreSQL when it loads the library.
#[pgrx::pg_guard]
pub extern "C-unwind" fn _PG_init() {
    let preloaded = recorder::is_preloading();
    settings::define(preloaded);
    if preloaded {
        recorder::install();
    }
}
