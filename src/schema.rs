//! The one ordered list of the SQL files that make up the install script.
//!
//! The functions written in Rust are declared there too (`AS 'MODULE_PATHNAME', '…_wrapper'`), so
//! that an object's definition, grants and comment are read in one place.

use pgrx::extension_sql_file;

extension_sql_file!("../sql/00_prelude.sql", name = "prelude", bootstrap);
extension_sql_file!("../sql/10_tables.sql", name = "tables", requires = ["prelude"]);
extension_sql_file!(
    "../sql/15_recorder_tables.sql",
    name = "recorder_tables",
    requires = ["tables"]
);
extension_sql_file!("../sql/20_recording.sql", name = "recording", requires = ["recorder_tables"]);
extension_sql_file!("../sql/30_views.sql", name = "views", requires = ["recording"]);
extension_sql_file!("../sql/40_history.sql", name = "history", requires = ["views"]);
extension_sql_file!("../sql/60_loader_key.sql", name = "loader_key", requires = ["history"]);
extension_sql_file!("../sql/65_guards.sql", name = "guards", requires = ["loader_key"]);
extension_sql_file!("../sql/70_status.sql", name = "status", requires = ["guards"]);
extension_sql_file!("../sql/80_grants.sql", name = "grants", requires = ["status"]);
extension_sql_file!("../sql/90_finalize.sql", name = "finalize", finalize);
