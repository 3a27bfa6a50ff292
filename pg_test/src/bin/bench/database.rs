//! Databases with the application's table, the extension, and what it is compared with.

use pg_test::{Client, Cluster, Warnings, wait_for, wait_for_worker};

use crate::variant::Variant;

/// The version of the extension, and what it calls the setting of autonomous starts.
const FACTS: &str = "
    SELECT extversion,
           (SELECT name FROM pg_settings
             WHERE name IN ('loader_history.autonomous_start', 'loader_history.durable'))
      FROM pg_extension WHERE extname = 'loader_history'";

/// A database of the cluster.
pub struct Database<'a> {
    cluster: &'a Cluster,
    warnings: &'a Warnings,
    name: String,
    loaders: i64,
    version: String,
    autonomous_start: String,
}

impl<'a> Database<'a> {
    /// Creates it, with as many loaders and no history. Warnings that its recorders get are counted in
    /// `warnings`.
    pub fn create(
        cluster: &'a Cluster,
        warnings: &'a Warnings,
        name: String,
        loaders: i64,
    ) -> Self {
        let mut database = Self {
            cluster,
            warnings,
            name,
            loaders,
            version: String::new(),
            autonomous_start: String::new(),
        };
        let statement = format!("CREATE DATABASE {}", database.name);
        cluster.connect().batch_execute(&statement).expect("a database");
        let mut client = database.connect();
        let plain = include_str!("seed.sql").replace("{schema}", "plain");
        let notifying = concat!(include_str!("seed.sql"), include_str!("seed_notify.sql"))
            .replace("{schema}", "notifying");
        for sql in [
            "CREATE SCHEMA loader;
             CREATE TABLE loader.loader (id bigint PRIMARY KEY, loader_code varchar(64) NOT NULL);",
            &format!(
                "INSERT INTO loader.loader SELECT n, 'LOADER_' || n FROM generate_series(1, {loaders}) AS n"
            ),
            "VACUUM ANALYZE loader.loader",
            "CREATE EXTENSION loader_history",
            &plain,
            &notifying,
            include_str!("bare.sql"),
        ] {
            client.batch_execute(sql).expect("the schema");
        }
        wait_for_worker(&mut client);
        let row = client.query_one(FACTS, &[]).expect("the facts");
        (database.version, database.autonomous_start) = (row.get(0), row.get(1));
        database
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The version of the extension.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// What a session must set for `variant`.
    pub fn settings(&self, variant: Variant) -> Option<String> {
        variant.settings(&self.autonomous_start)
    }

    /// How many loaders there are, of ids from 1.
    pub fn loaders(&self) -> i64 {
        self.loaders
    }

    /// A client.
    pub fn connect(&self) -> Client {
        self.cluster.connect_to(&self.name, "postgres")
    }

    /// A client whose warnings are counted: starts that fall back to transactional ones.
    pub fn connect_counted(&self) -> Client {
        self.warnings.connect_to(self.cluster, &self.name)
    }

    /// Executions that are in the table of `variant`.
    pub fn count(&self, variant: Variant) -> u64 {
        self.count_where(variant, "true")
    }

    /// Executions of them that have succeeded.
    pub fn count_successes(&self, variant: Variant) -> u64 {
        self.count_where(variant, "status = 'SUCCESS'")
    }

    /// Rows that were deleted from the extension's table, as far as the server has counted.
    pub fn deletions(&self) -> u64 {
        let query = "SELECT pg_stat_get_tuples_deleted('loader.execution_history'::regclass)";
        let count: i64 = self.connect().query_one(query, &[]).expect("a count").get(0);
        count.cast_unsigned()
    }

    fn count_where(&self, variant: Variant, condition: &str) -> u64 {
        let query = format!("SELECT count(*) FROM {} WHERE {condition}", variant.table());
        let count: i64 = self.connect().query_one(&query, &[]).expect("a count").get(0);
        count.cast_unsigned()
    }

    /// Whether the extension's table and its indexes are larger than the server's buffers.
    pub fn exceeds_buffers(&self) -> bool {
        let query = "SELECT pg_total_relation_size('loader.execution_history') \
                          > pg_size_bytes(current_setting('shared_buffers'))";
        self.connect().query_one(query, &[]).expect("sizes").get(0)
    }

    /// Gives a setting of the server another value, waits until it has it, and returns the one before.
    pub fn set(&self, setting: &str, value: &str) -> String {
        let shown = |client: &mut Client| -> String {
            client.query_one(&format!("SHOW {setting}"), &[]).expect("the setting").get(0)
        };
        let mut client = self.connect();
        let before = shown(&mut client);
        let statement = format!("ALTER SYSTEM SET {setting} = '{value}'");
        client.batch_execute(&statement).expect("a setting");
        client.batch_execute("SELECT pg_reload_conf()").expect("a reload");
        wait_for(setting, || shown(&mut self.connect()) == value);
        before
    }
}
