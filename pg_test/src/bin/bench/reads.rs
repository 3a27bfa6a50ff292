//! What backends read, and how long it takes: at two lengths of the history in turns, against what
//! people write for the seed schema; while loaders record; and after a day's executions without vacuum.
//!
//! Every read is a prepared statement, repeated over a few loaders, so that what it needs is in memory.

use std::time::Instant;

use pg_test::Client;
use pg_test::measure::{Goal, Measured};
use postgres::Statement;
use postgres::types::ToSql;

use crate::background::while_recording;
use crate::charts::{Bars, Chart, number};
use crate::database::Database;
use crate::history::vacuum;
use crate::queries::{self, Parameter, Query};
use crate::report::{Report, Row};
use crate::scale::{Scale, rows};
use crate::variant::Variant;

/// A database whose history is read.
pub struct History<'a> {
    /// Where it is.
    pub database: Database<'a>,
    /// How many executions it has.
    pub executions: i64,
    /// Whether the seed schema has the same.
    pub has_seed: bool,
}

/// How many loaders, or executions, are read about in turn.
const DIFFERENT: i64 = 20;

/// A session that reads.
struct Reader {
    client: Client,
    queries: Vec<Query>,
    statements: Vec<Statement>,
    loaders: i64,
    executions: i64,
}

impl Reader {
    fn new(scale: &Scale, history: &History) -> Self {
        let queries = queries::all(&history.database, scale.far_page);
        let mut client = history.database.connect();
        let statements =
            queries.iter().map(|query| client.prepare(&query.sql).expect("a query")).collect();
        let (loaders, executions) = (history.database.loaders(), history.executions);
        Self { client, queries, statements, loaders, executions }
    }

    /// The value of $1 the `turn`th time.
    fn argument(&self, parameter: Parameter, turn: u32) -> Option<i64> {
        let turn = i64::from(turn) % DIFFERENT;
        match parameter {
            Parameter::None => None,
            Parameter::Loader => Some(turn * self.loaders / DIFFERENT + turn + 1),
            Parameter::Execution => Some(turn * self.executions / DIFFERENT + 1),
        }
    }

    /// Reads `times`, and says how long each took.
    fn read(&mut self, number: usize, times: u32) -> Measured {
        let statement = self.statements[number].clone();
        self.time(&statement, number, times)
    }

    /// Asks the same of the seed schema.
    fn read_naively(&mut self, number: usize, times: u32) -> Measured {
        let statement = self.client.prepare(&self.queries[number].naive).expect("a query");
        self.time(&statement, number, times)
    }

    fn time(&mut self, statement: &Statement, number: usize, times: u32) -> Measured {
        let latencies = (0..times)
            .map(|turn| {
                let argument = self.argument(self.queries[number].parameter, turn);
                let parameters: Vec<_> =
                    argument.iter().map(|id| id as &(dyn ToSql + Sync)).collect();
                let begun = Instant::now();
                self.client.query(statement, &parameters).expect("an answer");
                begun.elapsed()
            })
            .collect();
        Measured { latencies, rates: Vec::new() }
    }

    /// What is read is what the seed schema says, for each of a few arguments.
    fn assert_right(&mut self, number: usize, times: u32) {
        let query = &self.queries[number];
        for turn in 0..times {
            let argument = self.argument(query.parameter, turn);
            let parameters: Vec<_> = argument.iter().map(|id| id as &(dyn ToSql + Sync)).collect();
            let mut first_column = |sql: &str| -> Vec<i64> {
                let rows = self.client.query(sql, &parameters).expect("an answer");
                rows.iter().map(|row| row.get(0)).collect()
            };
            // What failed a day ago may leave the day between the two.
            let equal = (0..3).any(|_| first_column(&query.ids()) == first_column(&query.naive));
            assert!(equal, "{} ({argument:?}) is not what the seed schema says", query.name);
        }
    }
}

/// Compares the histories, from few executions to many. Returns the medians in ms of the reads of
/// each.
pub fn compare(
    scale: &Scale,
    histories: &[History],
    report: &mut Report,
) -> (Vec<Chart>, Vec<Vec<f64>>) {
    let mut readers: Vec<_> = histories.iter().map(|history| Reader::new(scale, history)).collect();
    let count = readers[0].queries.len();
    let mut medians = vec![Vec::new(); histories.len()];
    let mut naive = vec![Vec::new(); histories.len()];
    let mut p99 = vec![Vec::new(); histories.len()];
    for number in 0..count {
        let measured = take_turns(scale, &mut readers, number);
        for (place, mut measured) in measured.into_iter().enumerate() {
            medians[place].push(measured.quantile(0.5) * 1_000.0);
            p99[place].push(measured.quantile(0.99) * 1_000.0);
            let reader = &mut readers[place];
            naive[place].push(histories[place].has_seed.then(|| {
                reader.assert_right(number, scale.checked_reads);
                reader.read_naively(number, scale.naive_reads).quantile(0.5) * 1_000.0
            }));
        }
    }

    let mut charts = Vec::new();
    for (pair, file) in (1..histories.len()).zip(["reads", "reads-more"]) {
        let names = [pair - 1, pair].map(|place| rows(histories[place].executions));
        let [few, many] = &names;
        report.section(format!(
            "Reads in ms, median (p99), {many} executions against {few}, {} loaders",
            number(scale.loaders as f64)
        ));
        let mut groups = Vec::new();
        for (read, query) in readers[0].queries.iter().enumerate() {
            let [before, now] = [medians[pair - 1][read], medians[pair][read]];
            let naive = naive[pair][read];
            let seed = naive.map_or_else(String::new, |ms| format!("; seed schema {}", number(ms)));
            let row = Row::new(
                query.name.clone(),
                format!("{} ({})", number(now), number(p99[pair][read])),
            )
            .baseline(format!("{few} {}{seed}", number(before)))
            .ratio(now / before)
            .goal("median", limit(query), " ms", now);
            let flat = Goal::AtMost(1.3);
            report.add(if query.of_all_loaders {
                row
            } else {
                row.goal("ratio", flat, "", now / before)
            });
            groups.push((query.name.clone(), vec![Some(before), Some(now), naive]));
        }
        let ours = names.iter().map(|rows| format!("loader_history, {rows} executions"));
        charts.push(Chart::Bars(Bars {
            file,
            title: "Reads in ms, median (logarithmic)".to_owned(),
            logarithmic: true,
            series: ours.chain([format!("seed schema, {many} executions")]).collect(),
            groups,
        }));
    }
    (charts, medians)
}

fn limit(query: &Query) -> Goal {
    Goal::AtMost(if query.of_all_loaders { 100.0 } else { 1.0 })
}

/// Reads the same of each history in turns; the first turn warms up.
fn take_turns(scale: &Scale, readers: &mut [Reader], number: usize) -> Vec<Measured> {
    let mut measured: Vec<_> = readers.iter().map(|_| Measured::default()).collect();
    for turn in 0..=scale.read_turns {
        for (reader, side) in readers.iter_mut().zip(&mut measured) {
            let slice = reader.read(number, times(scale, &reader.queries[number]));
            if turn > 0 {
                side.add(slice);
            }
        }
    }
    measured
}

/// How often a query is asked in a turn.
fn times(scale: &Scale, query: &Query) -> u32 {
    if query.of_all_loaders { scale.reads.div_ceil(4) } else { scale.reads }
}

/// Reads while as many sessions record as the machine bears.
pub fn while_others_record(scale: &Scale, history: &History, medians: &[f64], report: &mut Report) {
    report.section(format!(
        "Reads in ms, median (p99), {} executions, while {} clients record",
        rows(history.executions),
        scale.background_clients
    ));
    let mut reader = Reader::new(scale, history);
    let (measured, recorded) = while_recording(&history.database, scale.background_clients, || {
        read_all(scale, &mut reader)
    });
    assert!(recorded > 0, "nothing was recorded meanwhile");
    add_rows(&reader, measured, medians, report, |row, _, _| row);
}

/// Reads after as many executions as a day brings, and no vacuum.
pub fn after_a_day(scale: &Scale, history: &History, medians: &[f64], report: &mut Report) {
    let database = &history.database;
    let executions = scale.executions_a_day * database.loaders();
    report.section(format!(
        "Reads in ms, median (p99), {} executions, after {} more without vacuum",
        rows(history.executions),
        number(executions as f64)
    ));
    vacuum(database, &[]);
    let before = database.count(Variant::Transactional);
    let mut client = database.connect();
    for sql in [A_DAY, SETTINGS_OF_A_DAY] {
        client.batch_execute(sql).expect("a procedure");
    }
    let call = format!("CALL public.a_day({}, {})", scale.executions_a_day, database.loaders());
    client.batch_execute(&call).expect("a day");
    let added = database.count(Variant::Transactional) - before;
    assert_eq!(added, executions.unsigned_abs(), "every execution of the day is there");

    let mut reader = Reader::new(scale, history);
    let measured = read_all(scale, &mut reader);
    add_rows(&reader, measured, medians, report, |row, query, median| {
        row.goal("median", limit(query), " ms", median)
    });
}

/// Every loader starts and ends an execution, over and over; one in fifty fails.
const A_DAY: &str = "
    CREATE PROCEDURE public.a_day(executions bigint, loaders bigint) LANGUAGE plpgsql AS $$
    DECLARE
        execution bigint;
    BEGIN
        FOR run IN 1..executions LOOP
            FOR which IN 1..loaders LOOP
                execution := loader.record_execution_start(which);
                COMMIT;
                PERFORM loader.record_execution_end(
                    execution, CASE (run * 31 + which) % 50 WHEN 0 THEN 'FAILED' ELSE 'SUCCESS' END, 1);
                COMMIT;
            END LOOP;
        END LOOP;
    END
    $$";

/// What only takes time here.
const SETTINGS_OF_A_DAY: &str = "
    SET synchronous_commit = off;
    SET loader_history.durable = off;
    SET loader_history.notify = off;
";

fn read_all(scale: &Scale, reader: &mut Reader) -> Vec<Measured> {
    (0..reader.queries.len())
        .map(|number| {
            // Once before, for its plan.
            reader.read(number, 1);
            reader.read(number, scale.read_turns * times(scale, &reader.queries[number]))
        })
        .collect()
}

fn add_rows(
    reader: &Reader,
    measured: Vec<Measured>,
    medians: &[f64],
    report: &mut Report,
    goal: impl Fn(Row, &Query, f64) -> Row,
) {
    for ((query, mut measured), before) in reader.queries.iter().zip(measured).zip(medians) {
        let [median, p99] = [0.5, 0.99].map(|part| measured.quantile(part) * 1_000.0);
        let row = Row::new(query.name.clone(), format!("{} ({})", number(median), number(p99)))
            .baseline(format!("at rest {}", number(*before)))
            .ratio(median / before);
        report.add(goal(row, query, median));
    }
}
