//! What is compared: the ways to record an execution.

/// A way to record an execution.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Variant {
    /// INSERT and UPDATE from the client, on a table with a primary key.
    Bare,
    /// The same on a table with all indexes and constraints of the extension's.
    BareIndexed,
    /// The seed schema: PL/pgSQL functions, a primary key and a foreign key, no events. The baseline
    /// that goals are against.
    Plain,
    /// The seed schema with a trigger that calls `pg_notify`.
    Notifying,
    /// The extension with transactional starts and without events.
    Silent,
    /// The same with events.
    Transactional,
    /// The extension with autonomous starts, which the worker commits.
    Autonomous,
}

/// All of them.
pub const ALL: [Variant; 7] = [
    Variant::Bare,
    Variant::BareIndexed,
    Variant::Plain,
    Variant::Notifying,
    Variant::Silent,
    Variant::Transactional,
    Variant::Autonomous,
];

/// Those of the extension.
pub const OURS: [Variant; 3] = [Variant::Silent, Variant::Transactional, Variant::Autonomous];

impl Variant {
    /// What people call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bare => "INSERT + UPDATE",
            Self::BareIndexed => "INSERT + UPDATE, same indexes",
            Self::Plain => "PL/pgSQL, no events",
            Self::Notifying => "PL/pgSQL + pg_notify",
            Self::Silent => "loader_history, transactional start, notify off",
            Self::Transactional => "loader_history, transactional start",
            Self::Autonomous => "loader_history, autonomous start",
        }
    }

    /// Where it records.
    pub fn table(self) -> &'static str {
        match self {
            Self::Bare => "public.bare",
            Self::BareIndexed => "public.bare_indexed",
            Self::Plain => "plain.execution_history",
            Self::Notifying => "notifying.execution_history",
            Self::Silent | Self::Transactional | Self::Autonomous => "loader.execution_history",
        }
    }

    /// The channel of its events.
    pub fn channel(self) -> Option<&'static str> {
        match self {
            Self::Bare | Self::BareIndexed | Self::Plain | Self::Silent => None,
            Self::Notifying => Some("notifying_execution"),
            Self::Transactional | Self::Autonomous => Some("loader_execution"),
        }
    }

    /// The statement that starts an execution of loader $1 and returns its id.
    pub fn start(self) -> String {
        match self {
            Self::Bare | Self::BareIndexed => format!(
                "INSERT INTO {} (loader_id, execution_start, status)
                 VALUES ($1, clock_timestamp(), 'RUNNING') RETURNING id",
                self.table()
            ),
            _ => format!("SELECT {}.record_execution_start($1)", self.schema()),
        }
    }

    /// The statement that ends execution $1.
    pub fn end(self) -> String {
        match self {
            Self::Bare | Self::BareIndexed => format!(
                "UPDATE {} SET execution_end = clock_timestamp(), status = 'SUCCESS', record_count = 1,
                        duration_seconds = floor(extract(epoch FROM clock_timestamp() - execution_start))
                  WHERE id = $1",
                self.table()
            ),
            _ => format!("SELECT {}.record_execution_end($1, 'SUCCESS', 1)", self.schema()),
        }
    }

    /// What a session must set for it, where `autonomous_start` is the name of that setting.
    pub fn settings(self, autonomous_start: &str) -> Option<String> {
        let [starts, events] = match self {
            Self::Silent => ["off", "off"],
            Self::Transactional => ["off", "on"],
            Self::Autonomous => ["on", "on"],
            Self::Bare | Self::BareIndexed | Self::Plain | Self::Notifying => return None,
        };
        Some(format!("SET {autonomous_start} = {starts}; SET loader_history.notify = {events}"))
    }

    fn schema(self) -> &'static str {
        self.table().split('.').next().unwrap_or_default()
    }
}
