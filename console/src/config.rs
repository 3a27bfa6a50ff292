//! The options of the console.

use std::env;
use std::net::SocketAddr;
use std::str::FromStr;
use std::time::Duration;

use clap::Parser;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions, PgSslMode};
use sqlx::{ConnectOptions, PgPool};

/// Console of loader_history: executions of loaders as pages, as JSON and as a stream of events.
///
/// The database is that of --database-url, or of the usual variables PGHOST, PGPORT, PGDATABASE,
/// PGUSER, PGPASSWORD, PGPASSFILE, PGSSLMODE, PGSSLROOTCERT. The login needs no more than
/// loader_history.grant_reader() gives.
#[derive(Debug, Parser)]
#[command(name = "loader-history-console", version)]
pub struct Config {
    /// Address and port to listen on.
    #[arg(long, env = "CONSOLE_LISTEN", default_value = "127.0.0.1:8700")]
    pub listen: SocketAddr,

    /// postgresql:// URL of the database; without it the PG* variables. Others on the machine see arguments: a password
    /// belongs into PGPASSFILE or the variable.
    #[arg(long, env = "DATABASE_URL", hide_env_values = true)]
    pub database_url: Option<String>,

    /// Connections to the database for pages and the API; one more listens for events.
    #[arg(long, env = "CONSOLE_CONNECTIONS", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..))]
    pub connections: u32,

    /// Streams of events that may be open at the same time.
    #[arg(long, env = "CONSOLE_MAX_STREAMS", default_value_t = 500)]
    pub max_streams: usize,

    /// Names by which it is asked, with commas between them, beside localhost and addresses.
    #[arg(long, env = "CONSOLE_ALLOWED_HOSTS", value_delimiter = ',')]
    pub allowed_hosts: Vec<String>,
}

/// How long a statement of the console may take.
const STATEMENT_TIMEOUT: &str = "10s";

impl Config {
    /// How the console connects to the database.
    ///
    /// # Errors
    /// Where the URL is none, or a variable is wrong. The error does not repeat it: there may be a password in it.
    pub fn connect_options(&self) -> Result<PgConnectOptions, NoDatabase> {
        // sqlx would take what is usual in their place: no verification, for one.
        let is = |name, check: fn(&str) -> bool| match env::var(name) {
            Ok(value) if !value.is_empty() && !check(&value) => Err(NoDatabase::Variable(name)),
            _ => Ok(()),
        };
        is("PGSSLMODE", |mode| PgSslMode::from_str(mode).is_ok())?;
        is("PGPORT", |port| port.parse::<u16>().is_ok())?;
        let options = match &self.database_url {
            // Which schemes there are the parser does not check.
            Some(url)
                if !["postgres://", "postgresql://"]
                    .iter()
                    .any(|scheme| url.starts_with(scheme)) =>
            {
                return Err(NoDatabase::Url);
            }
            Some(url) => {
                check_parameters(url)?;
                PgConnectOptions::from_str(url).map_err(|_| NoDatabase::Url)?
            }
            None => PgConnectOptions::new(),
        };
        let session =
            [("default_transaction_read_only", "on"), ("statement_timeout", STATEMENT_TIMEOUT)];
        Ok(options
            .application_name("loader_history_console")
            .options(session)
            .disable_statement_logging())
    }

    /// The connections of pages and the API, opened when they are needed.
    pub fn pool(&self, options: PgConnectOptions) -> PgPool {
        PgPoolOptions::new()
            .max_connections(self.connections)
            .acquire_timeout(Duration::from_secs(5))
            .connect_lazy_with(options)
    }
}

/// The parameters of a URL that sqlx knows, beside `options[...]`.
const PARAMETERS: [&str; 18] = [
    "application_name",
    "dbname",
    "host",
    "hostaddr",
    "options",
    "password",
    "port",
    "ssl-ca",
    "ssl-cert",
    "ssl-key",
    "ssl-mode",
    "ssl-root-cert",
    "sslcert",
    "sslkey",
    "sslmode",
    "sslrootcert",
    "statement-cache-capacity",
    "user",
];

/// Refuses parameters that sqlx does not know, as libpq does: sqlx would write their values to the log, and go on
/// without them.
fn check_parameters(url: &str) -> Result<(), NoDatabase> {
    let query = url.split('#').next().and_then(|url| url.split_once('?'));
    for (name, _) in form_urlencoded::parse(query.map_or("", |(_, query)| query).as_bytes()) {
        if PARAMETERS.contains(&&*name) || name.starts_with("options[") {
            continue;
        }
        // What is no name may be a part of a password that is not written as it should be.
        let is_name = name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
        return Err(if is_name {
            NoDatabase::Parameter(name.into_owned())
        } else {
            NoDatabase::Url
        });
    }
    Ok(())
}

/// The address of the database is not valid.
#[derive(Debug, thiserror::Error)]
pub enum NoDatabase {
    /// The URL is none.
    #[error("the database's URL is not of the form postgresql://user@host:port/database")]
    Url,
    /// The URL has a parameter that is not known.
    #[error("the database's URL has a parameter that the console does not know: {0}")]
    Parameter(String),
    /// A variable has no value of those that it may have.
    #[error("{0} has a value that it cannot have")]
    Variable(&'static str),
}
