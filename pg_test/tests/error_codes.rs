//! Promise: every bad call gets the SQLSTATE of the contract and a HINT, and changes nothing.

use pg_test::{Client, HasError, cluster_with_extension};
use postgres::error::DbError;

#[track_caller]
fn fails(client: &mut Client, call: &str, sqlstate: &str) -> DbError {
    let is_applications = ["record_", "get_"].iter().any(|name| call.starts_with(name));
    let schema = if is_applications { "loader" } else { "loader_history" };
    let error = client.query(&format!("SELECT {schema}.{call}"), &[]).error(sqlstate);
    assert!(error.hint().is_some_and(|hint| !hint.is_empty()), "{call}: {error:?}");
    error
}

fn rows(client: &mut Client) -> String {
    client
        .query_one("SELECT coalesce(string_agg(h::text, ';' ORDER BY id), '') FROM loader.execution_history AS h", &[])
        .unwrap()
        .get(0)
}

#[test]
fn bad_calls_say_what_is_wrong_and_what_to_do() {
    let cluster = cluster_with_extension();
    let mut client = cluster.connect();
    client.batch_execute("SELECT loader.record_execution_start(1)").unwrap();
    let before = rows(&mut client);

    for (call, sqlstate) in [
        ("record_execution_start(NULL)", "22004"),
        ("record_execution_start(11)", "23503"),
        ("record_execution_start(-9223372036854775808)", "23503"),
        ("record_execution_end(NULL, 'SUCCESS')", "22004"),
        ("record_execution_end(1, NULL)", "22004"),
        ("record_execution_end(17, 'SUCCESS')", "P0002"),
        ("record_execution_end(-1, 'FAILED')", "P0002"),
        ("record_execution_end(1, 'RUNNING')", "22023"),
        ("record_execution_end(1, 'success')", "22023"),
        ("record_execution_end(1, '')", "22023"),
        ("record_execution_end(1, repeat('😀', 1000000))", "22023"),
        ("record_execution_end(1, 'SUCCESS', -1)", "22023"),
        ("record_execution_end(1, 'SUCCESS', -9223372036854775808)", "22023"),
        ("get_execution_history(page_size => 0)", "22023"),
        ("get_execution_history(page_size => 1001)", "22023"),
        ("get_execution_history(page_size => -2147483648)", "22023"),
        ("get_execution_history(page_size => NULL)", "22004"),
        ("get_execution_history(\"cursor\" => '')", "22023"),
        ("get_execution_history(\"cursor\" => '1')", "22023"),
        ("get_execution_history(\"cursor\" => '1_2_3')", "22023"),
        ("get_execution_history(\"cursor\" => '9223372036854775807_1')", "22023"),
        ("get_execution_history(\"cursor\" => repeat('9', 3000000))", "22023"),
        ("get_execution_history(status => 'STOPPED')", "22023"),
        ("get_execution_history(status => '')", "22023"),
        ("purge_execution_history(NULL)", "22004"),
        ("purge_execution_history('1 day', NULL)", "22004"),
        ("purge_execution_history('-1 second')", "22023"),
        ("purge_execution_history('1 month -40 days')", "22023"),
        ("purge_execution_history('1 day', -1)", "22023"),
        ("grant_recorder(NULL)", "22004"),
        ("grant_reader(NULL)", "22004"),
        ("grant_reader(4294967295::oid)", "42704"),
    ] {
        let error = fails(&mut client, call, sqlstate);
        assert!(error.message().len() < 400, "a message does not repeat megabytes: {call}");
    }
    assert_eq!(rows(&mut client), before);
}

#[test]
fn an_unknown_loader_is_named_with_the_constraint() {
    let cluster = cluster_with_extension();
    let mut client = cluster.connect();
    let error = fails(&mut client, "record_execution_start(11)", "23503");
    assert_eq!(error.constraint(), Some("execution_history_loader_id_fkey"));
    assert_eq!(error.table(), Some("execution_history"));
    assert_eq!(error.schema(), Some("loader"));
    assert_eq!(error.detail(), Some("Key (loader_id)=(11) is not present in table \"loader\"."));
    // Nothing of the hint lingers: another foreign key's violation is PostgreSQL's own.
    client.batch_execute("CREATE TABLE child (id bigint REFERENCES loader.loader)").unwrap();
    assert_eq!(client.execute("INSERT INTO child VALUES (11)", &[]).error("23503").hint(), None);
}

#[test]
fn the_first_outcome_stands() {
    let cluster = cluster_with_extension();
    let mut client = cluster.connect();
    client
        .batch_execute(
            "SELECT loader.record_execution_start(1);
             SELECT loader.record_execution_end(1, 'SUCCESS', 5);",
        )
        .unwrap();
    let before = rows(&mut client);
    for outcome in ["SUCCESS", "FAILED"] {
        let error =
            fails(&mut client, &format!("record_execution_end(1, '{outcome}', 9, 'x')"), "55000");
        let detail = error.detail().unwrap();
        assert!(detail.contains("SUCCESS") && detail.contains(" at 20"), "{detail}");
    }
    assert_eq!(rows(&mut client), before);
}

#[test]
fn a_transaction_that_cannot_write_is_told_so() {
    let cluster = cluster_with_extension();
    let mut client = cluster.connect();
    client.batch_execute("SELECT loader.record_execution_start(1)").unwrap();
    client.batch_execute("SET default_transaction_read_only = on").unwrap();
    for call in [
        "record_execution_start(1)",
        "record_execution_end(1, 'SUCCESS')",
        "purge_execution_history('1 day')",
        "attach_foreign_key()",
        "grant_reader('postgres')",
        "grant_recorder('postgres')",
    ] {
        fails(&mut client, call, "25006");
    }
    client
        .batch_execute("SELECT loader.get_execution_history(); SELECT loader.recorder_status()")
        .unwrap();
}

#[test]
fn a_trigger_that_suppresses_the_row_is_an_error_and_no_endless_loop() {
    let cluster = cluster_with_extension();
    let mut client = cluster.connect();
    client
        .batch_execute(
            "SELECT loader.record_execution_start(1);
             CREATE FUNCTION nothing() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
             CREATE TRIGGER nothing BEFORE INSERT OR UPDATE ON loader.execution_history
                 FOR EACH ROW EXECUTE FUNCTION nothing();",
        )
        .unwrap();
    fails(&mut client, "record_execution_start(1)", "09000");
    fails(&mut client, "record_execution_end(1, 'SUCCESS')", "09000");
}

#[test]
fn what_plain_sql_raises_stays_as_it_is() {
    let cluster = cluster_with_extension();
    let mut client = cluster.connect();
    client.batch_execute("SELECT loader.record_execution_start(1)").unwrap();
    let mut other = cluster.connect();
    let mut holder = other.transaction().unwrap();
    holder.batch_execute("SELECT FROM loader.execution_history WHERE id = 1 FOR UPDATE").unwrap();
    client.batch_execute("SET lock_timeout = '20ms'").unwrap();
    client.query("SELECT loader.record_execution_end(1, 'SUCCESS')", &[]).error("55P03");
    client.batch_execute("SET lock_timeout = 0; SET statement_timeout = '20ms'").unwrap();
    client.query("SELECT loader.record_execution_end(1, 'SUCCESS')", &[]).error("57014");
}
