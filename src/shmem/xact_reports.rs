//! Reports of backends to the worker of their database: a transaction, or a subtransaction, that
//! has started executions was rolled back, and by which error.
//!
//! A report only saves time and carries the error's text. The transaction's status decides, so a
//! report that finds no free place is dropped.

use pgrx::pg_sys;

use super::text::Text;
use crate::pg::segment::{Contents, Segment};

static REPORTS: Segment<Header, Report> = Segment::new(c"loader_history xact reports");

/// How many places are taken.
pub struct Header {
    used: usize,
}

/// A place, which is free if the database is invalid.
pub struct Report {
    database: pg_sys::Oid,
    xid: u64,
    subxid: u64,
    error: Text,
}

pub type Reports<'a> = Contents<'a, Header, Report>;

/// The report that a transaction or subtransaction was rolled back.
#[derive(Debug, PartialEq, Eq)]
pub struct XactReport {
    pub xid: u64,
    /// The subtransaction; 0 for the whole transaction.
    pub subxid: u64,
    /// The error; empty if there was none, or the server does not log errors.
    pub error: String,
}

pub fn request(count: usize) {
    REPORTS.request(count);
}

pub fn initialize(count: usize) {
    REPORTS.initialize(count, Header { used: 0 }, |_| Report::FREE);
}

/// Calls `work` with the reports, under the lock. Nothing of it can fail.
pub fn with<R: Default>(work: impl FnOnce(&mut Reports<'_>) -> R) -> R {
    REPORTS.with(work).unwrap_or_default()
}

impl Report {
    const FREE: Self = Self { database: pg_sys::InvalidOid, xid: 0, subxid: 0, error: Text::EMPTY };

    fn is_free(&self) -> bool {
        self.database == pg_sys::InvalidOid
    }
}

impl Reports<'_> {
    /// Posts a report to the worker of `database`; it is dropped if there is no free place.
    pub fn post(&mut self, database: pg_sys::Oid, xid: u64, subxid: u64, error: &[u8]) {
        // A database whose worker takes none leaves a quarter to other databases.
        let limit = self.entries.len() / 4 * 3;
        if self.header.used >= limit && self.count(database) >= limit {
            return;
        }
        if let Some(free) = self.entries.iter_mut().find(|report| report.is_free()) {
            free.database = database;
            free.xid = xid;
            free.subxid = subxid;
            free.error.set(error);
            self.header.used += 1;
        }
    }

    /// The used places. They lie in front, since the first free one is taken.
    fn used(&self) -> impl Iterator<Item = &Report> {
        self.entries.iter().filter(|report| !report.is_free()).take(self.header.used)
    }

    fn count(&self, database: pg_sys::Oid) -> usize {
        self.used().filter(|report| report.database == database).count()
    }

    /// Whether there are reports to the worker of `database`.
    pub fn is_any(&self, database: pg_sys::Oid) -> bool {
        self.count(database) > 0
    }

    /// Takes the reports to the workers of these databases.
    pub fn take(&mut self, is_wanted: impl Fn(pg_sys::Oid) -> bool) -> Vec<XactReport> {
        let used = self.entries.iter_mut().filter(|report| !report.is_free());
        let mut taken = Vec::new();
        for report in used.take(self.header.used) {
            if is_wanted(report.database) {
                let error = report.error.get();
                taken.push(XactReport { xid: report.xid, subxid: report.subxid, error });
                report.database = pg_sys::InvalidOid;
            }
        }
        self.header.used -= taken.len();
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_taken_once_by_its_worker() {
        let mut entries = [const { Report::FREE }; 8];
        let mut header = Header { used: 0 };
        let mut reports = Reports { header: &mut header, entries: &mut entries };
        let (mine, other) = (pg_sys::Oid::from(5), pg_sys::Oid::from(6));
        reports.post(mine, 1, 0, b"22012: division by zero");
        reports.post(other, 2, 3, b"");
        let expected =
            XactReport { xid: 1, subxid: 0, error: "22012: division by zero".to_owned() };
        assert_eq!(reports.take(|oid| oid == mine), [expected]);
        assert_eq!(reports.take(|oid| oid == mine), []);
        assert_eq!(reports.count(other), 1);
        assert_eq!(reports.take(|oid| oid != mine).len(), 1);
        assert_eq!(reports.header.used, 0);
    }

    #[test]
    fn a_database_leaves_a_quarter_to_others() {
        let mut entries = [const { Report::FREE }; 8];
        let mut header = Header { used: 0 };
        let mut reports = Reports { header: &mut header, entries: &mut entries };
        for xid in 0..10 {
            reports.post(pg_sys::Oid::from(5), xid, 0, b"");
        }
        reports.post(pg_sys::Oid::from(6), 10, 0, b"");
        assert_eq!(
            (reports.count(pg_sys::Oid::from(5)), reports.count(pg_sys::Oid::from(6))),
            (6, 1)
        );
    }
}
