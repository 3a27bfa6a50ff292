//! What tests expect of PostgreSQL, where that differs between its major versions.

use std::process::Command;
use std::sync::LazyLock;

use crate::{bindir, run};

/// The major version of the server that is tested.
fn major() -> u32 {
    static MAJOR: LazyLock<u32> = LazyLock::new(|| {
        let version = run(Command::new(bindir().join("postgres")).arg("--version"));
        let number = version.split_whitespace().nth(2).and_then(|number| number.split('.').next());
        number.and_then(|number| number.parse().ok()).unwrap_or_else(|| panic!("{version}"))
    });
    *MAJOR
}

/// Whether a foreign key can be NOT ENFORCED.
pub fn has_unenforced_keys() -> bool {
    major() >= 18
}

/// Whether `pg_dump` says which publications have an extension's table.
pub fn dumps_publications_of_extension_tables() -> bool {
    major() >= 18
}

/// Whether a CHECK can be NOT ENFORCED.
pub fn has_unenforced_checks() -> bool {
    major() >= 18
}

/// Whether the queue of notifications can be made small.
pub fn has_small_notify_queues() -> bool {
    major() >= 17
}
