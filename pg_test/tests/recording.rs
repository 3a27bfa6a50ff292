//! Promise: record_execution_start and record_execution_end record what a loader did.

use pg_test::cluster_with_extension;

#[test]
fn a_load_is_recorded() {
    let cluster = cluster_with_extension();
    let mut client = cluster.connect();
    let id: i64 = client.query_one("SELECT loader.record_execution_start(4)", &[]).unwrap().get(0);
    let seconds: i32 = client
        .query_one("SELECT loader.record_execution_end($1, 'SUCCESS', 1245)", &[&id])
        .unwrap()
        .get(0);
    assert_eq!(seconds, 0);
}
