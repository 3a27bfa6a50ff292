//! Promise: scripts/release-check finds whatever in a release does not agree, and every edit of a
//! released script; META.json is what PGXN asks for.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

const PROJECT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// What the check reads.
const FILES: [&str; 10] = [
    "CHANGELOG.md",
    "Cargo.lock",
    "Cargo.toml",
    "META.json",
    "README.md",
    "console/Cargo.toml",
    "console/openapi.yaml",
    "loader_history.control",
    "scripts/environment",
    "scripts/release-check",
];

/// A copy of what the check reads, which may be spoilt.
struct Copy(PathBuf);

impl Copy {
    fn new(name: &str) -> Self {
        let copy = std::env::temp_dir()
            .join(format!("loader_history_release.{}.{name}", std::process::id()));
        for folder in ["console", "scripts", "sql", "pg_test/released"] {
            fs::create_dir_all(copy.join(folder)).unwrap();
        }
        let project = Path::new(PROJECT);
        for file in FILES {
            fs::copy(project.join(file), copy.join(file)).unwrap();
        }
        for folder in ["sql", "pg_test/released"] {
            for entry in fs::read_dir(project.join(folder)).unwrap() {
                let entry = entry.unwrap();
                fs::copy(entry.path(), copy.join(folder).join(entry.file_name())).unwrap();
            }
        }
        Self(copy)
    }

    /// Whether the check passes, and what it says.
    fn check(&self, arguments: &[&str]) -> (bool, String) {
        let output =
            Command::new(self.0.join("scripts/release-check")).args(arguments).output().unwrap();
        (output.status.success(), String::from_utf8(output.stderr).unwrap())
    }

    fn replace(&self, file: &str, from: &str, to: &str) {
        let text = fs::read_to_string(self.0.join(file)).unwrap();
        assert!(text.contains(from), "{file} holds no {from}");
        fs::write(self.0.join(file), text.replacen(from, to, 1)).unwrap();
    }

    fn remove(&self, file: &str) {
        fs::remove_file(self.0.join(file)).unwrap();
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn version() -> String {
    let manifest = fs::read_to_string(Path::new(PROJECT).join("Cargo.toml")).unwrap();
    manifest.split("version = \"").nth(1).unwrap().split('"').next().unwrap().to_owned()
}

fn meta() -> Value {
    serde_json::from_str(&fs::read_to_string(Path::new(PROJECT).join("META.json")).unwrap())
        .unwrap()
}

#[test]
fn this_release_is_in_order() {
    let (passes, says) = Copy::new("as_it_is").check(&[]);
    assert!(passes, "{says}");
}

#[test]
fn a_file_that_names_another_version_is_found() {
    let version = version();
    for (file, from) in [
        ("Cargo.toml", format!("version = \"{version}\"")),
        ("Cargo.lock", format!("name = \"loader_history\"\nversion = \"{version}\"")),
        ("CHANGELOG.md", format!("## [{version}]")),
        ("README.md", format!("Version {version} is tested")),
        ("README.md", format!("loader-history_{version}-1_amd64.deb")),
        ("META.json", format!("\"version\": \"{version}\"")),
        ("META.json", format!("\"README.md\",\n            \"version\": \"{version}\"")),
        ("console/Cargo.toml", format!("version = \"{version}\"")),
        ("console/openapi.yaml", format!("version: {version}")),
        ("loader_history.control", "'@CARGO_VERSION@'".to_owned()),
    ] {
        let copy = Copy::new("version");
        let to = from.replace(&version, "9.8.7").replace("@CARGO_VERSION@", "9.8.7");
        copy.replace(file, &from, &to);
        let (passes, says) = copy.check(&[]);
        assert!(!passes, "{from} in {file} became {to}: {says}");
        let names_it = file == "Cargo.toml" || says.contains(&format!("error: {file}"));
        assert!(names_it, "{file}: {says}");
    }
}

#[test]
fn a_released_script_cannot_be_edited_nor_a_missing_one_go_unnoticed() {
    let version = version();
    let script = "pg_test/released/loader_history--1.5.0.sql";
    let copy = Copy::new("edited");
    copy.replace(script, "\n", " \n");
    let (passes, says) = copy.check(&[]);
    assert!(!passes && says.contains("a released script was edited"), "{script}: {says}");
    copy.remove(script);
    assert!(!copy.check(&[]).0, "{script} is gone");
    // Nor its checksum along with it.
    copy.replace("pg_test/released/SHA256SUMS", &format!("  {script}"), "  README.md");
    let (passes, says) = copy.check(&[]);
    assert!(!passes && says.contains(script), "{says}");
    // Nor can it be edited where the checksum is gone.
    let copy = Copy::new("unsealed");
    copy.replace(script, "\n", " \n");
    let seals = copy.0.join("pg_test/released/SHA256SUMS");
    let others: String = fs::read_to_string(&seals)
        .unwrap()
        .lines()
        .filter(|line| !line.ends_with(script))
        .map(|line| format!("{line}\n"))
        .collect();
    fs::write(seals, others).unwrap();
    let (passes, says) = copy.check(&[]);
    assert!(!passes && says.contains(&format!("{script} not sealed")), "{script}: {says}");
    // Another way to a released version is a script of its own.
    let copy = Copy::new("another_way");
    let way = "sql/loader_history--1.4.0--1.5.0.sql";
    fs::write(copy.0.join(way), "SELECT 1;\n").unwrap();
    let (passes, says) = copy.check(&[]);
    assert!(!passes && says.contains(way), "{says}");
    let frozen = format!("pg_test/released/loader_history--{version}.sql");
    let copy = Copy::new("missing");
    copy.remove(&frozen);
    assert!(copy.check(&[]).1.contains(&frozen));
}

#[test]
fn a_version_is_sealed_on_the_day_of_its_release() {
    let copy = Copy::new("sealed");
    let version = version();
    let unreleased = format!("## [{version}] - unreleased");
    let released = format!("## [{version}] - 2027-01-31");
    if fs::read_to_string(copy.0.join("CHANGELOG.md")).unwrap().contains(&unreleased) {
        copy.replace("CHANGELOG.md", &unreleased, &released);
        let (sealed, says) = copy.check(&["--seal"]);
        assert!(sealed, "{says}");
    }
    assert!(!copy.check(&["--seal"]).0, "a version is sealed once");

    // The version after it.
    for file in [
        "Cargo.toml",
        "Cargo.lock",
        "META.json",
        "README.md",
        "console/Cargo.toml",
        "console/openapi.yaml",
    ] {
        let text = fs::read_to_string(copy.0.join(file)).unwrap();
        let name = [
            "version = \"{}\"",
            "\"version\": \"{}\"",
            "version: {}",
            "Version {} is",
            "history_{}-1_",
        ];
        let next = name.into_iter().fold(text, |text, name| {
            text.replace(&name.replace("{}", &version), &name.replace("{}", "9.8.7"))
        });
        fs::write(copy.0.join(file), next).unwrap();
    }
    let entry = format!("## [{version}]");
    copy.replace("CHANGELOG.md", &entry, &format!("## [9.8.7] - unreleased\n\n{entry}"));
    let install = "pg_test/released/loader_history--9.8.7.sql".to_owned();
    let update = format!("sql/loader_history--{version}--9.8.7.sql");
    for script in [&install, &update] {
        let (passes, says) = copy.check(&[]);
        assert!(!passes && says.contains(script), "{script} is missing: {says}");
        fs::write(copy.0.join(script), "SELECT 1;\n").unwrap();
    }
    let (passes, says) = copy.check(&[]);
    assert!(passes, "{says}");

    let (sealed, says) = copy.check(&["--seal"]);
    assert!(!sealed && says.contains("its date in CHANGELOG.md"), "{says}");
    copy.replace("CHANGELOG.md", "[9.8.7] - unreleased", "[9.8.7] - 2027-02-28");
    let (passes, says) = copy.check(&[]);
    assert!(!passes && says.contains("not sealed"), "{says}");
    let (sealed, says) = copy.check(&["--seal"]);
    assert!(sealed, "{says}");
    for script in [&install, &update] {
        copy.replace(script, "SELECT 1", "SELECT 2");
        assert!(!copy.check(&[]).0, "{script} was edited");
        copy.replace(script, "SELECT 2", "SELECT 1");
    }
    assert!(copy.check(&[]).0);
    // What is sealed has users, whatever the changelog says.
    copy.replace("CHANGELOG.md", "[9.8.7] - 2027-02-28", "[9.8.7] - unreleased");
    let (passes, says) = copy.check(&[]);
    assert!(!passes && says.contains("calls unreleased"), "{says}");
    for script in [&install, &update] {
        assert!(says.contains(script.as_str()), "{script}: {says}");
    }
}

/// What the PGXN Meta Spec 1.0.0 requires, as far as this file uses it.
#[test]
fn meta_json_is_what_pgxn_asks_for() {
    let meta = meta();
    let text = |value: &Value| {
        let text = value.as_str().unwrap_or_else(|| panic!("{value} is no text")).to_owned();
        assert!(!text.is_empty());
        text
    };
    let known = [
        "abstract",
        "description",
        "generated_by",
        "license",
        "maintainer",
        "meta-spec",
        "name",
        "prereqs",
        "provides",
        "tags",
        "version",
    ];
    for key in meta.as_object().unwrap().keys() {
        assert!(known.contains(&key.as_str()), "{key}");
    }
    assert_eq!(text(&meta["name"]), "loader_history");
    assert_eq!(text(&meta["meta-spec"]["version"]), "1.0.0");
    assert_eq!(text(&meta["version"]), version());
    assert!(!meta["maintainer"].as_array().unwrap().is_empty());
    let manifest = fs::read_to_string(Path::new(PROJECT).join("Cargo.toml")).unwrap();
    assert!(manifest.contains(&format!("description = \"{}\"", text(&meta["abstract"]))));
    // PGXN's word for the licence that Cargo calls PostgreSQL.
    assert_eq!(text(&meta["license"]), "postgresql");
    assert!(manifest.contains("license = \"PostgreSQL\""));

    let provides = meta["provides"].as_object().unwrap();
    assert_eq!(provides.keys().collect::<Vec<_>>(), ["loader_history"]);
    let extension = &provides["loader_history"];
    assert_eq!(text(&extension["version"]), version());
    for file in ["file", "docfile"] {
        let file = text(&extension[file]);
        assert!(Path::new(PROJECT).join(&file).is_file(), "there is no {file}");
    }
    let control = fs::read_to_string(Path::new(PROJECT).join("loader_history.control")).unwrap();
    let comment = control.split('\'').nth(1).unwrap();
    assert_eq!(text(&extension["abstract"]).to_lowercase(), comment);

    // The oldest major version that there is a build feature for.
    let oldest = (10..).find(|major| manifest.contains(&format!("\npg{major} = "))).unwrap();
    let requires = meta["prereqs"]["runtime"]["requires"].as_object().unwrap();
    assert_eq!(text(&requires["PostgreSQL"]), format!("{oldest}.0.0"));
    for tag in meta["tags"].as_array().unwrap() {
        let tag = text(tag);
        assert!(tag.len() <= 256 && !tag.contains(['/', '\\']), "{tag}");
    }
}
