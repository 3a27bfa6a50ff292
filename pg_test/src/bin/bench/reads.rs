//! What backends read, and how long it takes: at two lengths of the history in turns, against what
//! people write for the seed schema; while loaders record; and after a day's executions without vacuum.
//!
//! Every read is a prepared statement, repeated over a few loaders, so that what it needs is in memory. Turns
//! are short and many and go there and back: the ratio is the median of theirs, so that a moment in which
//! the machine does something else decides nothing. Two sessions that read the same tell how much is noise,
//! and the pages that a read touches are the same in every run. The slow reads of the seed schema come last.

use std::time::{Duration, Instant};

use pg_test::Client;
use pg_test::measure::{Goal, Measured, median};
use postgres::Statement;
use postgres::types::ToSql;
use serde_json::Value;

use crate::background::while_recording;
use crate::charts::{Bars, Chart, number};
use crate::database::Database;
use crate::history::{often_failing, vacuum};
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
    /// What is read of it: found out when it is made, since that looks at pages, too.
    queries: Vec<Query>,
}

/// How many loaders, or executions, are read about in turn.
const DIFFERENT: u32 = 20;

/// Reads before those that are timed: each loader once, and more than the five for which PostgreSQL
/// makes custom plans.
const WARM_UP: u32 = DIFFERENT;

/// What is read by two sessions of the same history, the shortest read and a page.
const CONTROLS: [&str; 2] = ["details of an execution", "page of a loader"];

impl<'a> History<'a> {
    /// A database that has been filled.
    pub fn new(scale: &Scale, database: Database<'a>, executions: i64, has_seed: bool) -> Self {
        let queries = queries::all(&database, scale.far_page);
        Self { database, executions, has_seed, queries }
    }

    /// The value of $1 of a query the `turn`th time.
    fn argument(&self, number: usize, turn: u32) -> Option<i64> {
        let (turn, different) = (i64::from(turn % DIFFERENT), i64::from(DIFFERENT));
        let loaders = self.database.loaders();
        match self.queries[number].parameter {
            Parameter::None => None,
            Parameter::Loader => Some((turn * loaders / different + turn) % loaders + 1),
            Parameter::FailingLoader => Some(often_failing(turn, loaders)),
            Parameter::GoodLoader => Some(often_failing(turn, loaders) + 1),
            Parameter::Execution => Some(turn * self.executions / different + 1),
        }
    }

    /// How many values that has.
    fn arguments(&self, number: usize) -> u32 {
        if self.queries[number].parameter == Parameter::None { 1 } else { DIFFERENT }
    }

    /// How long the first read of a session takes, in ms.
    fn first_read(&self, number: usize) -> f64 {
        let mut client = self.database.connect();
        let argument = self.argument(number, 0);
        let begun = Instant::now();
        client.query(&self.queries[number].sql, &parameters(&argument)).expect("an answer");
        begun.elapsed().as_secs_f64() * 1_000.0
    }

    fn first_reads(&self) -> Vec<f64> {
        (0..self.queries.len()).map(|number| self.first_read(number)).collect()
    }
}

fn parameters(argument: &Option<i64>) -> Vec<&(dyn ToSql + Sync)> {
    argument.iter().map(|id| id as &(dyn ToSql + Sync)).collect()
}

/// A session that reads.
struct Reader<'a> {
    client: Client,
    history: &'a History<'a>,
    statements: Vec<Statement>,
}

impl<'a> Reader<'a> {
    fn new(history: &'a History<'a>) -> Self {
        let mut client = history.database.connect();
        let queries = history.queries.iter();
        let statements =
            queries.map(|query| client.prepare(&query.sql).expect("a query")).collect();
        Self { client, history, statements }
    }

    /// Reads before what is timed.
    fn warm_up(&mut self, number: usize) {
        for turn in 0..WARM_UP {
            self.read_once(number, turn);
        }
    }

    /// Reads for as long as `length`, once at least, and says how long each took.
    fn read(&mut self, number: usize, length: Duration) -> Measured {
        let begun = Instant::now();
        let mut latencies = Vec::new();
        while latencies.is_empty() || begun.elapsed() < length {
            let turn = u32::try_from(latencies.len()).expect("not so many");
            latencies.push(self.read_once(number, turn));
        }
        Measured { latencies, rates: Vec::new() }
    }

    fn read_once(&mut self, number: usize, turn: u32) -> Duration {
        let argument = self.history.argument(number, turn);
        let begun = Instant::now();
        let rows = self.client.query(&self.statements[number], &parameters(&argument));
        rows.expect("an answer");
        begun.elapsed()
    }

    /// Asks the same of the seed schema; the median in ms.
    fn read_naively(&mut self, number: usize, times: u32) -> f64 {
        let naive = &self.history.queries[number].naive;
        let statement = self.client.prepare(naive).expect("a query");
        let mut taken: Vec<_> = (0..times)
            .map(|turn| {
                let argument = self.history.argument(number, turn);
                let begun = Instant::now();
                self.client.query(&statement, &parameters(&argument)).expect("an answer");
                begun.elapsed().as_secs_f64() * 1_000.0
            })
            .collect();
        median(&mut taken)
    }

    fn first_column(&mut self, sql: &str, argument: Option<i64>) -> Vec<i64> {
        let rows = self.client.query(sql, &parameters(&argument)).expect("an answer");
        rows.iter().map(|row| row.get(0)).collect()
    }

    /// What is read is what the seed schema says, for each of a few arguments.
    fn assert_right(&mut self, number: usize, times: u32) {
        let query = &self.history.queries[number];
        for turn in 0..times {
            let argument = self.history.argument(number, turn);
            // What failed a day ago may leave the day between the two.
            let equal = (0..3).any(|_| {
                self.first_column(&query.ids(), argument)
                    == self.first_column(&query.naive, argument)
            });
            assert!(equal, "{} ({argument:?}) is not what the seed schema says", query.name);
        }
    }

    /// How many rows are read for each argument.
    fn row_counts(&mut self, number: usize) -> Vec<usize> {
        let history = self.history;
        let ids = history.queries[number].ids();
        let turns = 0..history.arguments(number);
        turns.map(|turn| self.first_column(&ids, history.argument(number, turn)).len()).collect()
    }

    /// The pages that a read touches in the buffers, on average over all arguments.
    fn pages(&mut self, number: usize) -> f64 {
        let history = self.history;
        let arguments = history.arguments(number);
        let pages = |turn| {
            let argument = history.argument(number, turn).unwrap_or_default().to_string();
            let sql = history.queries[number].sql.replace("$1", &argument);
            let explain = format!("EXPLAIN (ANALYZE, BUFFERS, TIMING OFF, FORMAT JSON) {sql}");
            let plan: Value = self.client.query_one(&explain, &[]).expect("a plan").get(0);
            ["Shared Hit Blocks", "Shared Read Blocks"]
                .map(|blocks| plan[0]["Plan"][blocks].as_f64().expect("a number"))
                .iter()
                .sum::<f64>()
        };
        (0..arguments).map(pages).sum::<f64>() / f64::from(arguments)
    }
}

/// What a read of several sessions came to.
struct Turns {
    /// How long it took each.
    measured: Vec<Measured>,
    /// How much longer it took each than the one before: the median of the turns.
    ratios: Vec<f64>,
}

/// Has each session read the same in turns.
fn take_turns(scale: &Scale, readers: &mut [Reader], number: usize) -> Turns {
    readers.iter_mut().for_each(|reader| reader.warm_up(number));
    let mut measured: Vec<_> = readers.iter().map(|_| Measured::default()).collect();
    let mut ratios = vec![Vec::new(); readers.len() - 1];
    for turn in 0..scale.read_turns {
        // There and back.
        let mut order: Vec<_> = (0..readers.len()).collect();
        if turn % 2 == 1 {
            order.reverse();
        }
        let mut medians = vec![0.0; readers.len()];
        for place in order {
            let mut slice = readers[place].read(number, scale.read_slice);
            medians[place] = slice.quantile(0.5);
            measured[place].add(slice);
        }
        for (ratios, pair) in ratios.iter_mut().zip(medians.windows(2)) {
            ratios.push(pair[1] / pair[0]);
        }
    }
    let ratios = ratios.iter_mut().map(|ratios| median(ratios)).collect();
    Turns { measured, ratios }
}

/// A median and the 99th percentile, in ms.
fn milliseconds(measured: &mut Measured) -> [f64; 2] {
    [0.5, 0.99].map(|part| measured.quantile(part) * 1_000.0)
}

/// What all histories came to at one query.
struct Compared {
    /// Median and 99th percentile of each history.
    milliseconds: Vec<[f64; 2]>,
    /// The ratio to the history before, of each but the first.
    ratios: Vec<f64>,
    /// Pages of each history.
    pages: Vec<f64>,
    /// What the seed schema takes, where it has the same history.
    naive: Vec<Option<f64>>,
}

/// Compares the histories, from few executions to many. Returns the medians in ms of the reads of
/// each.
pub fn compare(
    scale: &Scale,
    histories: &[History],
    report: &mut Report,
) -> (Vec<Chart>, Vec<Vec<f64>>) {
    let mut readers: Vec<_> = histories.iter().map(Reader::new).collect();
    let queries = &histories[0].queries;
    let mut compared: Vec<_> = (0..queries.len())
        .map(|number| {
            let counts = readers.iter_mut().map(|reader| reader.row_counts(number));
            let counts: Vec<_> = counts.collect();
            let name = &queries[number].name;
            assert!(counts.windows(2).all(|pair| pair[0] == pair[1]), "{name}: {counts:?}");
            let mut turns = take_turns(scale, &mut readers, number);
            Compared {
                milliseconds: turns.measured.iter_mut().map(milliseconds).collect(),
                ratios: turns.ratios,
                pages: readers.iter_mut().map(|reader| reader.pages(number)).collect(),
                naive: Vec::new(),
            }
        })
        .collect();
    let mut controls = [&histories[1], &histories[1]].map(Reader::new);
    let controls = CONTROLS.map(|name| {
        let number = queries.iter().position(|query| query.name == name).expect("a query");
        (name, take_turns(scale, &mut controls, number))
    });
    for (number, compared) in compared.iter_mut().enumerate() {
        for reader in &mut readers {
            compared.naive.push(reader.history.has_seed.then(|| {
                reader.assert_right(number, scale.checked_reads);
                reader.read_naively(number, scale.naive_reads)
            }));
        }
    }

    let charts = (1..histories.len()).zip(["reads", "reads-more"]);
    let charts = charts.map(|(place, file)| add_pair(histories, &compared, place, file, report));
    let charts = charts.collect();
    add_pages(histories, &compared, report);
    report.section("Control: the same read by two sessions of the same history");
    for (name, mut turns) in controls {
        let [[before, _], [now, p99]] =
            [0, 1].map(|session| milliseconds(&mut turns.measured[session]));
        report.add(
            Row::new(name, format!("{} ({})", number(now), number(p99)))
                .baseline(number(before))
                .ratio(turns.ratios[0]),
        );
    }
    let medians = |place: usize| {
        compared.iter().map(move |compared| compared.milliseconds[place][0]).collect()
    };
    (charts, (0..histories.len()).map(medians).collect())
}

/// Compares what is read of the same history in two releases.
pub fn compare_releases(scale: &Scale, baseline: &History, current: &History, report: &mut Report) {
    let mut readers = [baseline, current].map(Reader::new);
    for (number_of_query, query) in current.queries.iter().enumerate() {
        let mut turns = take_turns(scale, &mut readers, number_of_query);
        let [[before, _], [now, p99]] =
            [0, 1].map(|release| milliseconds(&mut turns.measured[release]));
        report.add(
            Row::new(query.name.clone(), format!("{} ({})", number(now), number(p99)))
                .baseline(format!("{} {}", baseline.database.version(), number(before)))
                .ratio(turns.ratios[0]),
        );
    }
}

/// Compares the history at `place` with the one before.
fn add_pair(
    histories: &[History],
    compared: &[Compared],
    place: usize,
    file: &'static str,
    report: &mut Report,
) -> Chart {
    let names = [place - 1, place].map(|place| rows(histories[place].executions));
    let [few, many] = &names;
    let database = &histories[place].database;
    report.section(format!(
        "Reads in ms, median (p99), {many} executions{} against {few}, {} loaders",
        if database.exceeds_buffers() { ", which are more than the buffers hold," } else { "" },
        number(database.loaders() as f64)
    ));
    let mut groups = Vec::new();
    for (query, compared) in histories[place].queries.iter().zip(compared) {
        let [[before, _], [now, p99]] =
            [place - 1, place].map(|place| compared.milliseconds[place]);
        let (ratio, naive) = (compared.ratios[place - 1], compared.naive[place]);
        let seed = naive.map_or_else(String::new, |ms| format!("; seed schema {}", number(ms)));
        // The goal of the ratio is for what people have, up to ten million.
        let flat = (place == 1 && !query.of_all_loaders).then_some(Goal::AtMost(1.3));
        report.add(
            median_goal(
                Row::new(query.name.clone(), format!("{} ({})", number(now), number(p99))),
                query,
                now,
            )
            .baseline(format!("{few} {}{seed}", number(before)))
            .ratio(ratio)
            .goal_if_any("ratio", flat, "", ratio),
        );
        groups.push((query.name.clone(), vec![Some(before), Some(now), naive]));
    }
    let ours = names.iter().map(|rows| format!("loader_history, {rows} executions"));
    Chart::Bars(Bars {
        file: file.to_owned(),
        title: "Reads in ms, median (logarithmic)".to_owned(),
        logarithmic: true,
        series: ours.chain([format!("seed schema, {many} executions")]).collect(),
        groups,
    })
}

fn add_pages(histories: &[History], compared: &[Compared], report: &mut Report) {
    let last = histories.len() - 1;
    let names: Vec<_> = histories.iter().map(|history| rows(history.executions)).collect();
    report.section(format!("Pages that a read touches, {} executions", names[last]));
    for (query, compared) in histories[0].queries.iter().zip(compared) {
        let mut pages = names
            .iter()
            .zip(&compared.pages)
            .map(|(name, pages)| format!("{name} {}", number(*pages)));
        let before: Vec<_> = pages.by_ref().take(last).collect();
        report.add(
            Row::new(query.name.clone(), number(compared.pages[last]))
                .baseline(before.join(", "))
                .ratio(compared.pages[last] / compared.pages[0]),
        );
    }
}

fn median_goal(row: Row, query: &Query, median: f64) -> Row {
    if query.of_all_loaders {
        row.goal("median", Goal::AtMost(100.0), " ms (aim 60)", median)
    } else {
        row.goal("median", Goal::AtMost(1.0), " ms", median)
    }
}

/// Reads while as many sessions record as the machine bears.
pub fn while_others_record(scale: &Scale, history: &History, medians: &[f64], report: &mut Report) {
    report.section(format!(
        "Reads in ms, median (p99), {} executions, while {} clients record",
        rows(history.executions),
        scale.background_clients
    ));
    let (measured, recorded) =
        while_recording(&history.database, scale.background_clients, || read_all(scale, history));
    assert!(recorded > 0, "nothing was recorded meanwhile");
    for ((query, [median, p99]), before) in history.queries.iter().zip(measured).zip(medians) {
        report.add(
            Row::new(query.name.clone(), format!("{} ({})", number(median), number(p99)))
                .baseline(format!("at rest {}", number(*before)))
                .ratio(median / before),
        );
    }
}

/// Reads after as many executions as a day brings, and no vacuum. The first read of a session comes before
/// all others of its kind, which find index entries marked as dead.
pub fn after_a_day(scale: &Scale, history: &History, medians: &[f64], report: &mut Report) {
    let database = &history.database;
    let executions = scale.executions_a_day * database.loaders();
    report.section(format!(
        "Reads in ms, median (p99) and the first of a session, {} executions, after {} more without vacuum",
        rows(history.executions),
        number(executions as f64)
    ));
    let before = database.count(Variant::Transactional);
    vacuum(database, &[]);
    let first_before = history.first_reads();
    let mut client = database.connect();
    let settings = database.settings(Variant::Silent).expect("settings");
    for sql in [A_DAY, "SET synchronous_commit = off", &settings] {
        client.batch_execute(sql).expect("a procedure");
    }
    let call = format!("CALL public.a_day({}, {})", scale.executions_a_day, database.loaders());
    client.batch_execute(&call).expect("a day");

    let first = history.first_reads();
    let measured = read_all(scale, history);
    for (number_of_query, query) in history.queries.iter().enumerate() {
        let [median, p99] = measured[number_of_query];
        let before = medians[number_of_query];
        let [first_before, first] =
            [&first_before, &first].map(|first| number(first[number_of_query]));
        let row = Row::new(
            query.name.clone(),
            format!("{} ({}), first {first}", number(median), number(p99)),
        );
        report.add(
            median_goal(row, query, median)
                .baseline(format!("at rest {}, first {first_before}", number(before)))
                .ratio(median / before),
        );
    }
    let added = database.count(Variant::Transactional) - before;
    assert_eq!(added, executions.unsigned_abs(), "every execution of the day is there");
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

/// Reads everything in one session: medians and 99th percentiles in ms.
fn read_all(scale: &Scale, history: &History) -> Vec<[f64; 2]> {
    let mut reader = Reader::new(history);
    (0..history.queries.len())
        .map(|number| {
            reader.warm_up(number);
            milliseconds(&mut reader.read(number, scale.read_slice * scale.read_turns))
        })
        .collect()
}
