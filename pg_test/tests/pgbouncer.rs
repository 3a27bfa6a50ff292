//! Promise: loaders behind PgBouncer in transaction mode record as others do, in one transaction or in
//! three, though each of these may come over another connection. Listeners connect directly.

use std::fs;
use std::process::{Child, Stdio};
use std::thread;

use fallible_iterator::FallibleIterator;
use pg_test::ClientProgram::{Jdbc, NodePostgres, Psycopg};
use pg_test::{
    Client, ClientProgram, Listener, Signal, Site, column, free_port, wait_for, write_half,
};
use postgres::types::Type;
use postgres::{Config, NoTls, SimpleQueryMessage};

/// PgBouncer before a cluster.
struct Pool {
    site: Site,
    server: Child,
    port: u16,
}

impl Pool {
    /// One that shares `size` connections among all clients.
    fn start(size: u32) -> Self {
        let site = Site::start();
        let port = free_port();
        let folder = site.cluster.directory();
        let (file, users) = (folder.join("pgbouncer.ini"), folder.join("users"));
        let settings = format!(
            "[databases]
             postgres = host={} port={} dbname=postgres
             [pgbouncer]
             listen_addr = 127.0.0.1
             listen_port = {port}
             unix_socket_dir =
             auth_type = trust
             auth_file = {}
             pool_mode = transaction
             default_pool_size = {size}
             server_round_robin = 1
             ignore_startup_parameters = extra_float_digits
            ",
            folder.display(),
            site.cluster.port(),
            users.display(),
        );
        fs::write(&users, "\"etl\" \"\"\n").unwrap();
        // The file has no indentation.
        let settings: Vec<_> = settings.lines().map(str::trim).collect();
        fs::write(&file, settings.join("\n")).unwrap();
        let mut command = site.cluster.server_program("pgbouncer");
        let server = command.arg(&file).stderr(Stdio::null()).spawn().expect("pgbouncer starts");
        let pool = Self { site, server, port };
        wait_for("PgBouncer to accept connections", || pool.config().connect(NoTls).is_ok());
        pool
    }

    fn config(&self) -> Config {
        let mut config = Config::new();
        config.host("127.0.0.1").port(self.port).user("etl").dbname("postgres");
        config
    }

    fn connect(&self) -> Client {
        self.config().connect(NoTls).unwrap()
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

/// The first column of the first row, by the simple protocol, which prepares nothing.
fn simple(client: &mut Client, query: &str) -> String {
    let messages = client.simple_query(query).unwrap();
    let row = messages.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(row.get(0).unwrap_or_default().to_owned()),
        _ => None,
    });
    row.expect("a row")
}

fn start(client: &mut Client) -> i64 {
    simple(client, "SELECT loader.record_execution_start(1)").parse().unwrap()
}

fn end(client: &mut Client, id: i64, outcome: &str) {
    simple(client, &format!("SELECT loader.record_execution_end({id}, {outcome})"));
}

/// The server's process behind a client's transaction.
fn backend(client: &mut Client) -> String {
    simple(client, "SELECT pg_backend_pid()")
}

#[test]
fn loads_in_one_transaction_and_in_three_over_changing_connections() {
    let mut pool = Pool::start(4);
    let changed: u32 = thread::scope(|scope| {
        let clients: Vec<_> = (0..12)
            .map(|number| {
                let mut client = pool.connect();
                scope.spawn(move || {
                    let mut changed = 0;
                    for round in 0..10 {
                        // One transaction.
                        client.batch_execute("BEGIN").unwrap();
                        let id = start(&mut client);
                        let key = format!("one {number} {round}");
                        let insert = format!(
                            "INSERT INTO planes VALUES ('{key}', 1, '', '', '', 1, 1, 1, '')"
                        );
                        client.batch_execute(&insert).unwrap();
                        end(&mut client, id, "'SUCCESS', 1");
                        client.batch_execute("COMMIT").unwrap();
                        // Three.
                        client.batch_execute("BEGIN").unwrap();
                        let (id, first) = (start(&mut client), backend(&mut client));
                        client.batch_execute("COMMIT; BEGIN").unwrap();
                        client.batch_execute(&insert.replace("one", "three")).unwrap();
                        client.batch_execute("COMMIT").unwrap();
                        client.batch_execute("BEGIN").unwrap();
                        end(&mut client, id, "'SUCCESS', 1");
                        changed += u32::from(backend(&mut client) != first);
                        client.batch_execute("COMMIT").unwrap();
                    }
                    changed
                })
            })
            .collect();
        clients.into_iter().map(|client| client.join().unwrap()).sum()
    });
    let query =
        "SELECT concat_ws(' ', status, record_count, count(*)) FROM loader.execution_history
                  GROUP BY status, record_count";
    assert_eq!(column::<String>(&mut pool.site.observer, query), ["SUCCESS 1 240"]);
    assert_eq!(pool.site.planes(), 240);
    assert!(changed > 20, "the connection changed in {changed} loads of 120");
    let count = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'etl'";
    assert!(column::<i64>(&mut pool.site.observer, count)[0] <= 4, "they shared connections");
}

#[test]
fn failures_and_lost_clients_are_found() {
    let mut pool = Pool::start(2);
    let mut client = pool.connect();

    client.batch_execute("BEGIN").unwrap();
    let id = start(&mut client);
    assert_eq!(pool.site.newest(), "RUNNING");
    client.batch_execute("SELECT 1 / 0").unwrap_err();
    client.batch_execute("ROLLBACK").unwrap();
    wait_for("the failure", || pool.site.newest() == "FAILED 22012: division by zero");
    // The catch block comes over any connection.
    end(&mut client, id, "'FAILED', NULL, 'no such file'");
    assert_eq!(pool.site.newest(), "FAILED no such file\nserver: 22012: division by zero");

    // A client that goes away in a transaction: PgBouncer closes its server connection.
    client.batch_execute("BEGIN").unwrap();
    start(&mut client);
    assert_eq!(pool.site.newest(), "RUNNING");
    drop(client);
    wait_for("the failure", || pool.site.newest() != "RUNNING");
    let gone = "FAILED The transaction that started the execution was rolled back.";
    assert_eq!(pool.site.newest(), gone);

    // One that goes away between its transactions is not seen: the start is committed.
    let mut client = pool.connect();
    let id = start(&mut client);
    drop(client);
    let mut other = pool.connect();
    end(&mut other, id, "'FAILED', NULL, 'found dead'");
    assert_eq!(pool.site.newest(), "FAILED found dead");
}

#[test]
fn events_reach_those_who_listen_directly() {
    let pool = Pool::start(1);
    let mut direct = Listener::new(&pool.site.cluster);
    let mut pooled = pool.connect();
    pooled.batch_execute("LISTEN loader_execution").unwrap();
    let mut bystander = pool.connect();
    bystander.batch_execute("BEGIN").unwrap();
    let mut loader = pool.site.cluster.connect_to("postgres", "etl");
    let id = start(&mut loader);
    end(&mut loader, id, "'SUCCESS', 5");
    direct.receive_until("the end", |event| event["event_type"] == "EXECUTION_SUCCESS");
    assert_eq!(direct.by_execution()[&id], ["STARTED", "SUCCESS"]);
    // The worker tells listeners one after another: when it records again, it has told all.
    loader
        .batch_execute("SET loader_history.notify = off; SELECT loader.record_execution_start(2)")
        .unwrap();

    // The LISTEN is the shared connection's, and what that hears goes to whoever has it just then.
    bystander.batch_execute("COMMIT").unwrap();
    simple(&mut pooled, "SELECT 1");
    assert_eq!(bystander.notifications().iter().count().unwrap(), 2);
    assert_eq!(pooled.notifications().iter().count().unwrap(), 0);
}

#[test]
fn a_setting_of_the_session_is_that_of_whoever_comes_next() {
    let mut pool = Pool::start(1);
    let (mut one, mut other) = (pool.connect(), pool.connect());
    one.batch_execute("SET loader_history.autonomous_start = off").unwrap();
    other.batch_execute("BEGIN").unwrap();
    start(&mut other);
    assert_eq!(pool.site.newest(), "", "the other's start is transactional");
    other.batch_execute("ROLLBACK").unwrap();
    one.batch_execute("RESET loader_history.autonomous_start").unwrap();

    // That of a transaction is not.
    one.batch_execute("BEGIN; SET LOCAL loader_history.autonomous_start = off").unwrap();
    start(&mut one);
    assert_eq!(pool.site.newest(), "");
    one.batch_execute("ROLLBACK; BEGIN").unwrap();
    start(&mut one);
    assert_eq!(pool.site.newest(), "RUNNING");
    one.batch_execute("COMMIT").unwrap();
}

/// Loads by a loader's program, the second one a failure, and a third that is killed.
fn loads(program: ClientProgram) {
    let mut pool = Pool::start(2);
    let planes = Site::data("planes.csv");
    program.load(pool.port, &planes).succeed();
    assert_eq!(pool.site.newest(), "SUCCESS 3322");
    program.load(pool.port, &planes).fail();
    let failed = pool.site.newest();
    assert!(failed.starts_with("FAILED ") && failed.contains("planes_pkey"), "{failed}");
    pool.site.observer.batch_execute("TRUNCATE planes").unwrap();
    let pipe = pool.site.pipe();
    let mut loader = program.load(pool.port, &pipe);
    let mut file = loader.open(&pipe);
    write_half(&mut file, &planes);
    assert_eq!(pool.site.newest(), "RUNNING");
    loader.signal(Signal::SIGKILL);
    wait_for("the failure", || pool.site.newest() != "RUNNING");
    let found = pool.site.newest();
    println!("{program:?}: {found}");
    // Of class 08: PgBouncer closes the server's connection, and may say so first.
    assert!(found.starts_with("FAILED 08006: ") || found.starts_with("FAILED 08P01: "), "{found}");
    assert_eq!(pool.site.planes(), 0);
}

#[test]
fn psycopg_loads() {
    loads(Psycopg);
}

#[test]
fn node_postgres_loads() {
    loads(NodePostgres);
}

#[test]
fn jdbc_loads() {
    loads(Jdbc);
}

#[test]
fn statements_that_are_prepared_for_later_are_gone_and_others_are_not() {
    let mut pool = Pool::start(2);
    let mut client = pool.connect();
    let call = "SELECT loader.record_execution_start($1)";
    let prepared = client.prepare(call).unwrap();
    let mut other = pool.connect();
    other.batch_execute("BEGIN").unwrap();
    let another = (0..4).find_map(|_| client.query_one(&prepared, &[&1_i64]).err());
    let error = another.expect("a connection that has not prepared it");
    assert_eq!(error.code().unwrap().code(), "26000", "{error:?}");
    // Not by name, with its types.
    for _ in 0..4 {
        client.query_typed(call, &[(&1_i64, Type::INT8)]).unwrap();
        assert_eq!(pool.site.newest(), "RUNNING");
    }
}
