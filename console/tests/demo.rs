//! Promise: the demo says where the console is and, where it is not on a terminal, ends by itself, and well.

use std::path::Path;
use std::process::{Command, Stdio};

#[test]
fn the_demo_says_where_the_console_is_and_ends() {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/demo");
    let demo = Command::new(script).stdin(Stdio::null()).output().unwrap();
    let (said, errors) = (
        String::from_utf8_lossy(&demo.stdout).into_owned(),
        String::from_utf8_lossy(&demo.stderr).into_owned(),
    );
    assert!(demo.status.success(), "{said}{errors}");
    let address = said.lines().skip_while(|line| *line != "The console").nth(1);
    assert!(address.is_some_and(|line| line.contains("http://127.0.0.1:")), "{said}");
    assert!(said.contains("this is no terminal"), "{said}");
}
