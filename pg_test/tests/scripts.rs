//! Promise: the scripts run nothing that another user may have put there, find the tools of a machine where nothing
//! was done by hand, and do not fail over the warnings of a newer Rust. `make all` and `make install` only build and
//! install: they say what is missing, download nothing and never become root.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use nix::unistd::geteuid;
use pg_test::say_left_out;

const PROJECT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// A folder that is gone with the test.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let folder = std::env::temp_dir()
            .join(format!("loader_history_scripts.{}.{name}", std::process::id()));
        fs::create_dir(&folder).unwrap();
        // What is below is only the user's own.
        fs::set_permissions(&folder, Permissions::from_mode(0o700)).unwrap();
        Self(folder)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Writes a program.
fn program(file: &Path, text: &str) {
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    fs::write(file, text).unwrap();
    fs::set_permissions(file, Permissions::from_mode(0o755)).unwrap();
}

/// Runs shell commands in `project` after its scripts/environment.
fn with_environment(project: &Path, commands: &str) -> Command {
    let mut shell = Command::new("/bin/sh");
    shell.current_dir(project).args(["-euc", &format!(". scripts/environment; {commands}")]);
    shell
}

fn said(output: &Output) -> String {
    let [out, error] = [&output.stdout, &output.stderr].map(|it| String::from_utf8_lossy(it));
    format!("{}{out}{error}", output.status)
}

#[test]
fn a_stage_that_somebody_else_may_have_made_is_not_run() {
    if !geteuid().is_root() {
        return say_left_out("another user's stage, which only root can make here");
    }
    // As with a checkout below /root: the stage is in /var/tmp, where everybody can make it.
    let project = Folder::new("stage");
    for script in ["environment", "stage"] {
        let to = project.0.join("scripts").join(script);
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(Path::new(PROJECT).join("scripts").join(script), to).unwrap();
    }
    let bindir = project.0.join("server/bin");
    let pg_config = project.0.join("pg_config");
    program(&pg_config, &format!("#!/bin/sh\necho {}\n", bindir.display()));
    program(&bindir.join("postgres"), "#!/bin/sh\necho 'postgres (PostgreSQL) 15.99'\n");
    let stage = with_environment(&project.0, "printf %s \"$STAGE\"").output().unwrap();
    let stage = PathBuf::from(String::from_utf8(stage.stdout).unwrap());
    assert!(stage.starts_with("/var/tmp"), "{stage:?}");
    let folder = stage.parent().unwrap().to_owned();
    let trap = project.0.join("was_run");
    let elsewhere = project.0.join("elsewhere");
    for kind in ["another's", "everybody's", "a link", "one's own"] {
        let made = if kind == "a link" { &elsewhere } else { &folder };
        let copy = made.join(stage.file_name().unwrap());
        let postgres = copy.join(bindir.strip_prefix("/").unwrap()).join("postgres");
        program(
            &postgres,
            &format!("#!/bin/sh\ntouch {}\necho 'postgres (PostgreSQL) 15.99'\n", trap.display()),
        );
        fs::set_permissions(made, Permissions::from_mode(0o755)).unwrap();
        match kind {
            "another's" => chown(&folder, Some(65_534), None).unwrap(),
            "everybody's" => fs::set_permissions(&folder, Permissions::from_mode(0o777)).unwrap(),
            "a link" => symlink(&elsewhere, &folder).unwrap(),
            _ => {}
        }
        let output = Command::new(project.0.join("scripts/stage"))
            .env("PG_CONFIG", &pg_config)
            // There is nothing to build.
            .env("PATH", "/usr/bin:/bin")
            .env("CARGO_HOME", &elsewhere)
            .output()
            .unwrap();
        let said = said(&output);
        assert!(!output.status.success(), "{kind}: {said}");
        let is_ours = kind == "one's own";
        assert_eq!(trap.exists(), is_ours, "{kind}: {said}");
        let refused = format!("{} is not a folder that belongs to this user", folder.display());
        assert_eq!(said.contains(&refused), !is_ours, "{kind}: {said}");
        if kind == "a link" {
            fs::remove_file(&folder).unwrap();
        } else {
            fs::remove_dir_all(&folder).unwrap();
        }
    }
}

#[test]
fn cargo_is_found_where_rustup_puts_it() {
    let home = Folder::new("cargo");
    let tools = home.0.join("tools");
    fs::create_dir(&tools).unwrap();
    for tool in ["cksum", "cut", "id", "setpriv"] {
        symlink(Path::new("/usr/bin").join(tool), tools.join(tool)).unwrap();
    }
    // As rustup's installer leaves it, with its default answers.
    let bin = home.0.join(".cargo/bin");
    for tool in ["cargo", "rustc"] {
        program(&bin.join(tool), "#!/bin/sh\necho 'rustc 1.95.0 (a date)'\n");
    }
    let env = "case \":${PATH}:\" in
    *:\"$HOME/.cargo/bin\":*) ;;
    *) export PATH=\"$HOME/.cargo/bin:$PATH\" ;;
esac
";
    fs::write(home.0.join(".cargo/env"), env).unwrap();
    let find = |cargo_home: Option<&str>| {
        let mut shell = with_environment(
            Path::new(PROJECT),
            "command -v cargo || echo none; echo \"$IGNORE_RUST_VERSION\"",
        );
        shell.env_clear().env("HOME", &home.0).env("PATH", &tools);
        if let Some(folder) = cargo_home {
            shell.env("CARGO_HOME", folder);
        }
        let output = shell.output().unwrap();
        assert!(output.status.success(), "{}", said(&output));
        String::from_utf8(output.stdout).unwrap()
    };
    let found = format!("{}\n--ignore-rust-version\n", bin.join("cargo").display());
    assert_eq!(find(None), found);
    assert_eq!(find(Some(&format!("{}/.cargo", home.0.display()))), found);
    assert_eq!(find(Some("/nowhere")), "none\n\n");
}

#[test]
fn only_a_compiler_that_was_tried_fails_over_a_warning() {
    for (version, denies) in [
        ("1.88.0", true),
        ("1.95.2", true),
        ("1.96.0", false),
        ("1.100.0", false),
        ("2.0.0", false),
    ] {
        let folder = Folder::new(version);
        program(&folder.0.join("rustc"), &format!("#!/bin/sh\necho 'rustc {version} (a date)'\n"));
        let path = format!("{}:{}", folder.0.display(), std::env::var("PATH").unwrap());
        let output = with_environment(Path::new(PROJECT), "printf %s \"$DENY_WARNINGS\"")
            .env("PATH", path)
            .output()
            .unwrap();
        let expected = if denies { "-D warnings" } else { "" };
        assert_eq!(String::from_utf8(output.stdout).unwrap(), expected, "{version}");
    }
}

/// What PGXN's client unpacks and then runs make in.
#[test]
fn the_archive_for_pgxn_holds_what_make_needs() {
    let project = Path::new(PROJECT);
    if !project.join(".git").exists() {
        return say_left_out("the archive for PGXN, which is packed of what git knows");
    }
    let folder = Folder::new("dist");
    // As it is packed, without what this checkout has not committed.
    let packed = Command::new(project.join("scripts/dist")).output().unwrap();
    assert!(packed.status.success(), "{}", said(&packed));
    let archive = String::from_utf8(packed.stdout).unwrap();
    let archive = archive.trim();
    let name = Path::new(archive).file_stem().unwrap().to_str().unwrap();
    // unzip keeps modes, and is not on every machine.
    let unpack = "import os, sys, zipfile
archive = zipfile.ZipFile(sys.argv[1])
for entry in archive.infolist():
    path = archive.extract(entry, sys.argv[2])
    mode = entry.external_attr >> 16
    if mode and not entry.is_dir():
        os.chmod(path, mode & 0o777)";
    let unpacked =
        Command::new("python3").args(["-c", unpack, archive]).arg(&folder.0).output().unwrap();
    assert!(unpacked.status.success(), "{}", said(&unpacked));
    let unpacked = folder.0.join(name);
    let files = Command::new("git")
        .current_dir(project)
        .args(["ls-tree", "-r", "-z", "--name-only", "HEAD"])
        .output()
        .unwrap();
    let files = String::from_utf8(files.stdout).unwrap();
    for file in files.split_terminator('\0') {
        let [here, there] = [project, &unpacked].map(|folder| folder.join(file));
        assert!(there.is_file(), "{file}");
        if let Ok(here) = here.metadata() {
            let runs = |mode: u32| mode & 0o100 != 0;
            let there = there.metadata().unwrap().permissions().mode();
            assert_eq!(runs(here.permissions().mode()), runs(there), "{file}");
        }
    }
    assert!(unpacked.join("META.json").is_file());
    // Without git around: what is to be built is what the checkout says.
    let checked = Command::new(unpacked.join("scripts/release-check")).output().unwrap();
    assert!(checked.status.success(), "{}", said(&checked));
    builds_and_installs(&folder.0, &unpacked);
}

/// Runs `make all` and `make install` in `project`, with programs in `folder` that only write down that they
/// were run.
fn builds_and_installs(folder: &Path, project: &Path) {
    let [tools, server, ran] = ["tools", "server", "ran"].map(|name| folder.join(name));
    let [libdir, extension] = [server.join("lib"), server.join("share/extension")];
    fs::create_dir_all(&libdir).unwrap();
    fs::create_dir_all(&extension).unwrap();
    let pg_config = server.join("pg_config");
    let answers = format!(
        "#!/bin/sh
case $1 in
    --pkglibdir) echo {libdir} ;;
    --sharedir) echo {share} ;;
    *) echo PostgreSQL 15.99 ;;
esac
",
        libdir = libdir.display(),
        share = server.join("share").display()
    );
    program(&pg_config, &answers);
    program(&tools.join("rustc"), "#!/bin/sh\necho 'rustc 1.95.0 (a date)'\n");
    let writes_down = format!("#!/bin/sh\necho \"${{0##*/}} $*\" >>{}\n", ran.display());
    for name in ["apt-get", "sudo", "pip", "curl", "wget"] {
        program(&tools.join(name), &writes_down);
    }
    // As on a machine where cargo knows nothing of pgrx, and then as make setup leaves it.
    let cargo = tools.join("cargo");
    let lacks = format!("{writes_down}exit 1\n");
    let builds = format!(
        "{writes_down}case \"$*\" in
    'pgrx --version') echo cargo-pgrx 0.19.3 ;;
    'pgrx package '*)
        mkdir -p target/package-release{libdir} target/package-release{extension}
        touch target/package-release{libdir}/loader_history.so
        touch target/package-release{extension}/loader_history.control
        ;;
esac
",
        libdir = libdir.display(),
        extension = extension.display()
    );
    let make = |target: &str| {
        let path = format!("{}:/usr/bin:/bin", tools.display());
        let _ = fs::remove_file(&ran);
        let mut make = Command::new("make");
        make.current_dir(project).arg(target).env("PATH", path).env("PG_CONFIG", &pg_config);
        // That of the tests themselves.
        make.env_remove("PG");
        let output = make.env("CARGO_HOME", folder.join("nowhere")).output().unwrap();
        (output, fs::read_to_string(&ran).unwrap_or_default())
    };

    program(&cargo, &lacks);
    for target in ["all", "install"] {
        let (output, ran) = make(target);
        let (success, said) = (output.status.success(), said(&output));
        assert!(!success, "{target}: {said}");
        let setup = format!("\"make setup PG_CONFIG={}\" provides it.", pg_config.display());
        for missing in ["cargo-pgrx 0.19.3", "a crate of Cargo.lock"] {
            let sentence = format!("error: missing: {missing}; {setup}\n");
            assert!(said.contains(&sentence), "{target}: {said}");
        }
        let asked = ["cargo pgrx --version", "cargo fetch --quiet --locked --offline"];
        assert_eq!(ran.lines().collect::<Vec<_>>(), asked, "{target}");
    }

    program(&cargo, &builds);
    let installed = || {
        let files = [libdir.join("loader_history.so"), extension.join("loader_history.control")];
        files.iter().all(|file| file.is_file())
    };
    let has_built = |ran: &str| ran.contains("cargo pgrx package");
    let (output, ran) = make("all");
    assert!(output.status.success() && has_built(&ran) && !installed(), "{}", said(&output));
    // It installs what has been built, and builds again what has changed.
    for (changed, builds) in [(false, false), (true, true)] {
        if changed {
            fs::write(project.join("src/lib.rs"), "").unwrap();
        }
        let (output, ran) = make("install");
        assert!(output.status.success() && installed(), "{}", said(&output));
        assert_eq!(has_built(&ran), builds, "{ran}");
        assert!(ran.lines().all(|line| line.starts_with("cargo ")), "{ran}");
    }
}
