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
    /// The extension, whose starts are in the caller's transaction, without events.
    Silent,
    /// The same with events.
    Transactional,
    /// The extension, whose starts are committed by the worker.
    Durable,
}

/// All of them.
pub const ALL: [Variant; 7] = [
    Variant::Bare,
    Variant::BareIndexed,
    Variant::Plain,
    Variant::Notifying,
    Variant::Silent,
    Variant::Transactional,
    Variant::Durable,
];

/// Those of the extension.
pub const OURS: [Variant; 3] = [Variant::Silent, Variant::Transactional, Variant::Durable];

impl Variant {
    /// What people call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bare => "INSERT + UPDATE",
            Self::BareIndexed => "INSERT + UPDATE, same indexes",
            Self::Plain => "PL/pgSQL, no events",
            Self::Notifying => "PL/pgSQL + pg_notify",
            Self::Silent => "loader_history, durable and notify off",
            Self::Transactional => "loader_history, durable off",
            Self::Durable => "loader_history, durable on",
        }
    }

    /// Where it records.
    pub fn table(self) -> &'static str {
        match self {
            Self::Bare => "public.bare",
            Self::BareIndexed => "public.bare_indexed",
            Self::Plain => "plain.execution_history",
            Self::Notifying => "notifying.execution_history",
            Self::Silent | Self::Transactional | Self::Durable => "loader.execution_history",
        }
    }

    /// The channel of its events.
    pub fn channel(self) -> Option<&'static str> {
        match self {
            Self::Bare | Self::BareIndexed | Self::Plain | Self::Silent => None,
            Self::Notifying => Some("notifying_execution"),
            Self::Transactional | Self::Durable => Some("loader_execution"),
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

    /// What a session must set for it.
    pub fn settings(self) -> Option<&'static str> {
        match self {
            Self::Silent => {
                Some("SET loader_history.autonomous_start = off; SET loader_history.notify = off")
            }
            Self::Transactional => {
                Some("SET loader_history.autonomous_start = off; SET loader_history.notify = on")
            }
            Self::Durable => {
                Some("SET loader_history.autonomous_start = on; SET loader_history.notify = on")
            }
            Self::Bare | Self::BareIndexed | Self::Plain | Self::Notifying => None,
        }
    }

    fn schema(self) -> &'static str {
        self.table().split('.').next().unwrap_or_default()
    }
}
