//! Reads the reports of backends about transactions that were rolled back.

use super::{Context, Part};
use crate::shmem::xact_reports;

pub struct ReportReader;

impl Part for ReportReader {
    fn run(&mut self, context: &mut Context) -> bool {
        let reports =
            xact_reports::with(|reports| reports.take(|database| database == context.database));
        let any = !reports.is_empty();
        reports.into_iter().for_each(|report| context.watched.add_report(report));
        any
    }
}
