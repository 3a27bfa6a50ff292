//! What backends read: with the extension, and as people write it for the seed schema.

use pg_test::Client;
use serde_json::Value;

use crate::database::Database;
use crate::history::ONCE_FAILED;

/// What the parameter $1 of a query is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Parameter {
    /// There is none.
    None,
    /// The id of a loader.
    Loader,
    /// The id of a loader that fails often.
    FailingLoader,
    /// The id of a loader that does not.
    GoodLoader,
    /// The id of an execution.
    Execution,
}

/// Something that is read.
pub struct Query {
    /// What people call it.
    pub name: String,
    /// What is asked of the extension.
    pub sql: String,
    /// The same question to the seed schema; its first column is an id, or a number.
    pub naive: String,
    /// What $1 of both is.
    pub parameter: Parameter,
    /// Whether it looks at every loader.
    pub of_all_loaders: bool,
}

impl Query {
    /// A query whose only column is what the first column of `naive` is.
    pub fn ids(&self) -> String {
        if self.sql.contains("get_execution_history(") {
            format!(
                "SELECT (execution ->> 'id')::bigint FROM jsonb_array_elements(({}) -> 'executions') AS execution",
                self.sql
            )
        } else if self.of_all_loaders {
            "SELECT unnest(ARRAY[failed_loaders, failed_loaders_24h]) FROM loader.failed_loader_counts".to_owned()
        } else {
            self.sql.clone()
        }
    }
}

/// All that is read, of a database; the page far back is the one of this number.
pub fn all(database: &Database, far_page: i64) -> Vec<Query> {
    let mut client = database.connect();
    let cursor = cursor_before(&mut client, far_page);
    let (from, before) = an_hour(&mut client);
    let range = format!("started_from => '{from}', started_before => '{before}'");
    let in_range = format!("execution_start >= '{from}' AND execution_start < '{before}'");
    let back = (far_page - 1) * 50;
    let page = |name: &str, arguments: &str, condition: &str, offset: i64| Query {
        name: name.to_owned(),
        sql: format!("SELECT loader.get_execution_history({arguments})"),
        naive: format!(
            "SELECT * FROM plain.execution_history WHERE {condition} \
             ORDER BY execution_start DESC, id DESC LIMIT 50 OFFSET {offset}"
        ),
        parameter: match arguments {
            _ if !arguments.contains("$1") => Parameter::None,
            _ if arguments.contains("FAILED") => Parameter::FailingLoader,
            _ if arguments.contains("SUCCESS") => Parameter::GoodLoader,
            _ => Parameter::Loader,
        },
        of_all_loaders: false,
    };
    let mut queries = vec![
        feed(),
        page("page, all loaders", "", "true", 0),
        page(&format!("page {far_page}"), &format!("\"cursor\" => '{cursor}'"), "true", back),
        page("page of a loader", "$1", "loader_id = $1", 0),
        page(
            "page of a loader, SUCCESS",
            "$1, status => 'SUCCESS'",
            "loader_id = $1 AND status = 'SUCCESS'",
            0,
        ),
        page(
            "page of a loader, FAILED",
            "$1, status => 'FAILED'",
            "loader_id = $1 AND status = 'FAILED'",
            0,
        ),
        page(
            "the same, failed once long ago",
            &format!("{ONCE_FAILED}, status => 'FAILED'"),
            &format!("loader_id = {ONCE_FAILED} AND status = 'FAILED'"),
            0,
        ),
    ];
    for status in ["SUCCESS", "FAILED", "RUNNING"] {
        queries.push(page(
            &format!("page, {status}{}", if status == "RUNNING" { " (rare)" } else { "" }),
            &format!("status => '{status}'"),
            &format!("status = '{status}'"),
            0,
        ));
    }
    queries.extend([
        page("page, an hour long ago", &range, &in_range, 0),
        page(
            "page, the same hour, FAILED",
            &format!("status => 'FAILED', {range}"),
            &format!("status = 'FAILED' AND {in_range}"),
            0,
        ),
        page(
            "page of a loader, the same hour",
            &format!("$1, {range}"),
            &format!("loader_id = $1 AND {in_range}"),
            0,
        ),
    ]);
    queries.extend(views());
    queries
}

fn feed() -> Query {
    Query {
        name: "feed of 50".to_owned(),
        sql: "SELECT execution_id, event_time, event_type, severity, loader_id, message \
                FROM loader.activity_feed ORDER BY event_time DESC, execution_id DESC LIMIT 50"
            .to_owned(),
        naive: "SELECT * FROM (
                    SELECT id, execution_start AS event_time, 'EXECUTION_STARTED' AS event_type, loader_id, \
                           NULL AS error_message FROM plain.execution_history
                    UNION ALL
                    SELECT id, execution_end, 'EXECUTION_' || status, loader_id, error_message
                      FROM plain.execution_history WHERE execution_end IS NOT NULL) AS event
                 ORDER BY event_time DESC, id DESC LIMIT 50"
            .to_owned(),
        parameter: Parameter::None,
        of_all_loaders: false,
    }
}

/// The other views.
fn views() -> [Query; 4] {
    let view = |name: &str, parameter, of_all_loaders, sql: &str, naive: &str| {
        let (name, sql, naive) = (name.to_owned(), sql.to_owned(), naive.to_owned());
        Query { name, sql, naive, parameter, of_all_loaders }
    };
    [
        view(
            "details of an execution",
            Parameter::Execution,
            false,
            "SELECT * FROM loader.execution_details WHERE id = $1",
            "SELECT * FROM plain.execution_history WHERE id = $1",
        ),
        view(
            "details, 50 of a loader",
            Parameter::Loader,
            false,
            "SELECT * FROM loader.execution_details WHERE loader_id = $1 \
              ORDER BY execution_start DESC, id DESC LIMIT 50",
            "SELECT * FROM plain.execution_history WHERE loader_id = $1 \
              ORDER BY execution_start DESC, id DESC LIMIT 50",
        ),
        view(
            "summary of a loader",
            Parameter::Loader,
            false,
            "SELECT last_execution_id, summary.* FROM loader.loader_summary AS summary WHERE loader_id = $1",
            "SELECT (array_agg(id ORDER BY execution_start DESC, id DESC))[1],
                    max(execution_end) FILTER (WHERE status = 'SUCCESS'),
                    max(execution_end) FILTER (WHERE status = 'FAILED'),
                    count(*) FILTER (WHERE status = 'RUNNING')
               FROM plain.execution_history WHERE loader_id = $1",
        ),
        view(
            "failed_loader_counts",
            Parameter::None,
            true,
            "SELECT * FROM loader.failed_loader_counts",
            "SELECT unnest(ARRAY[
                 (SELECT count(*) FROM (
                      SELECT DISTINCT ON (loader_id) status FROM plain.execution_history
                       WHERE execution_end IS NOT NULL
                       ORDER BY loader_id, execution_end DESC, id DESC) AS newest
                   WHERE status = 'FAILED'),
                 (SELECT count(DISTINCT loader_id) FROM plain.execution_history
                   WHERE status = 'FAILED'
                     AND execution_end >= statement_timestamp() - interval '24 hours')])",
        ),
    ]
}

/// The cursor of a page, found as a reader finds it: page by page.
fn cursor_before(client: &mut Client, page: i64) -> String {
    let sql = "SELECT loader.get_execution_history(\"cursor\" => $1)";
    let mut cursor: Option<String> = None;
    for _ in 1..page {
        let page: Value = client.query_one(sql, &[&cursor]).expect("a page").get(0);
        cursor = Some(page["next_cursor"].as_str().expect("a page after it").to_owned());
    }
    cursor.expect("a page that is not the first")
}

/// The beginning and the end of an hour, ten hours before the newest start.
fn an_hour(client: &mut Client) -> (String, String) {
    let query = "SELECT (max(execution_start) - interval '10 hours')::text, \
                        (max(execution_start) - interval '9 hours')::text FROM loader.execution_history";
    let row = client.query_one(query, &[]).expect("a time");
    (row.get(0), row.get(1))
}
