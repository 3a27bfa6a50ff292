//! Sessions that record executions.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use pg_test::Client;
use pg_test::measure::Worker;
use postgres::Statement;

use crate::database::Database;
use crate::variant::Variant;

/// How the two calls are committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Calls {
    /// Each in a transaction of its own.
    Separate,
    /// Both in one.
    Together,
}

impl Calls {
    /// Both ways.
    pub const ALL: [Self; 2] = [Self::Separate, Self::Together];

    /// What people call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Separate => "each call a transaction",
            Self::Together => "both calls in one transaction",
        }
    }
}

/// A session that records executions, of a share of the loaders: loads of one loader at the same time are
/// rare.
pub struct Recorder {
    client: Client,
    statements: BTreeMap<Variant, (Statement, Statement)>,
    settings: BTreeMap<Variant, String>,
    loaders: i64,
    loader: i64,
    step: i64,
    done: BTreeMap<Variant, u64>,
}

impl Recorder {
    /// The session of this `number`, from 0, among `sessions`.
    pub fn new(database: &Database, number: i64, sessions: i64, variants: &[Variant]) -> Self {
        let mut client = database.connect_counted();
        let statements = variants
            .iter()
            .map(|variant| {
                let start = client.prepare(&variant.start()).expect("a start");
                let end = client.prepare(&variant.end()).expect("an end");
                (*variant, (start, end))
            })
            .collect();
        let settings = variants
            .iter()
            .filter_map(|&variant| Some((variant, database.settings(variant)?)))
            .collect();
        let (loaders, done) = (database.loaders(), BTreeMap::new());
        Self { client, statements, settings, loaders, loader: number, step: sessions, done }
    }

    /// As many sessions.
    pub fn several(database: &Database, sessions: usize, variants: &[Variant]) -> Vec<Self> {
        let sessions = i64::try_from(sessions).expect("a few");
        (0..sessions).map(|number| Self::new(database, number, sessions, variants)).collect()
    }

    /// How many executions it has recorded.
    pub fn done(&self, variant: Variant) -> u64 {
        self.done.get(&variant).copied().unwrap_or_default()
    }

    /// Sets what `variant` needs.
    pub fn set(&mut self, variant: Variant) {
        if let Some(settings) = self.settings.get(&variant) {
            self.client.batch_execute(settings).expect("settings");
        }
    }

    /// Starts an execution of its next loader.
    pub fn start(&mut self, variant: Variant) -> i64 {
        self.loader = (self.loader + self.step) % self.loaders;
        let (start, _) = &self.statements[&variant];
        self.client.query_one(start, &[&(self.loader + 1)]).expect("a start").get(0)
    }

    /// Ends an execution.
    pub fn end(&mut self, variant: Variant, execution_id: i64) {
        let (_, end) = &self.statements[&variant];
        self.client.execute(end, &[&execution_id]).expect("an end");
        *self.done.entry(variant).or_default() += 1;
    }

    /// Starts an execution in a transaction that is rolled back.
    pub fn fail(&mut self, variant: Variant) {
        self.command("BEGIN");
        self.start(variant);
        self.command("ROLLBACK");
        *self.done.entry(variant).or_default() += 1;
    }

    /// Makes the server's counts of what this session has read complete.
    pub fn flush_statistics(&mut self) {
        self.client.execute("SELECT pg_stat_force_next_flush()", &[]).expect("a flush");
    }

    fn command(&mut self, command: &str) {
        self.client.batch_execute(command).expect("a transaction");
    }
}

impl Worker for Recorder {
    type Work = (Variant, Calls);

    fn prepare(&mut self, (variant, _): Self::Work) {
        self.set(variant);
    }

    fn work(&mut self, (variant, calls): Self::Work) -> Duration {
        let timer = Instant::now();
        match calls {
            Calls::Separate => {
                let execution_id = self.start(variant);
                self.end(variant, execution_id);
            }
            Calls::Together => {
                self.command("BEGIN");
                let execution_id = self.start(variant);
                self.end(variant, execution_id);
                self.command("COMMIT");
            }
        }
        timer.elapsed()
    }
}

/// How many executions `recorders` have recorded.
pub fn done(recorders: &[Recorder], variant: Variant) -> u64 {
    recorders.iter().map(|recorder| recorder.done(variant)).sum()
}
