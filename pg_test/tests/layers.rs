//! Promise: the sources are laid out in layers that import downwards only, in files and blocks of a size that can be
//! read at once; and pg_test/README.md lists every test file.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

const PROJECT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// The layers, from the lowest to the highest. A module imports from its own layer and from those below. `gucs`
/// and the ordered list of SQL files have layers of their own.
const LAYERS: [&[&str]; 8] = [
    &["model"],
    &["gucs"],
    &["pg"],
    &["shmem"],
    &["history"],
    &["session", "worker"],
    &["schema"],
    &["lib"],
];

/// Two of the same layer that don't import each other.
const SIBLINGS: [&str; 2] = ["session", "worker"];

/// Lines of a file.
const FILE_LINES: usize = 450;
/// Lines of an impl block.
const IMPL_LINES: usize = 250;
/// Lines of all files.
const ALL_LINES: usize = 8_750;
/// Lines with the keyword `unsafe`.
const UNSAFE_LINES: usize = 130;

/// A word or a punctuation character of Rust, outside comments and literals, and its line, from 1.
#[derive(Debug, Clone, PartialEq)]
struct Token {
    text: String,
    line: usize,
}

/// The tokens of a file; `::` is one.
fn tokens(source: &str) -> Vec<Token> {
    let characters: Vec<_> = source.chars().collect();
    let at = |place: usize| characters.get(place).copied().unwrap_or('\n');
    let is_word = |character: char| character.is_alphanumeric() || character == '_';
    let (mut tokens, mut place, mut line) = (Vec::new(), 0, 1);
    while place < characters.len() {
        let begin = place;
        let mut text = String::new();
        match (at(place), at(place + 1)) {
            ('/', '/') => {
                while place < characters.len() && at(place) != '\n' {
                    place += 1;
                }
            }
            ('/', '*') => {
                let mut depth = 0;
                while place < characters.len() {
                    match (at(place), at(place + 1)) {
                        ('/', '*') => (depth, place) = (depth + 1, place + 2),
                        ('*', '/') => (depth, place) = (depth - 1, place + 2),
                        _ => place += 1,
                    }
                    if depth == 0 {
                        break;
                    }
                }
            }
            ('"', _) => place = after_string(&characters, place + 1),
            ('r', '"' | '#') if raw_string(&characters, place).is_some() => {
                place = raw_string(&characters, place).expect("a raw string");
            }
            // A character, not a lifetime.
            ('\'', '\\') => {
                place += 3;
                while place < characters.len() && at(place - 1) != '\'' {
                    place += 1;
                }
            }
            ('\'', _) if at(place + 2) == '\'' => place += 3,
            (':', ':') => {
                text.push_str("::");
                place += 2;
            }
            (character, _) if is_word(character) => {
                while is_word(at(place)) {
                    text.push(at(place));
                    place += 1;
                }
            }
            (character, _) => {
                if !character.is_whitespace() {
                    text.push(character);
                }
                place += 1;
            }
        }
        if !text.is_empty() {
            tokens.push(Token { text, line });
        }
        line += characters[begin..place].iter().filter(|&&character| character == '\n').count();
    }
    tokens
}

/// Where a string that begins at `place` ends.
fn after_string(characters: &[char], mut place: usize) -> usize {
    while let Some(character) = characters.get(place) {
        match character {
            '"' => return place + 1,
            '\\' => place += 2,
            _ => place += 1,
        }
    }
    characters.len()
}

/// Where a raw string that begins at `place` ends, if one does.
fn raw_string(characters: &[char], place: usize) -> Option<usize> {
    let hashes = characters[place + 1..].iter().take_while(|&&character| character == '#').count();
    let begin = place + 1 + hashes;
    if characters.get(begin) != Some(&'"') {
        return None;
    }
    let end = |from: &usize| {
        characters[*from] == '"'
            && (characters[from + 1..].iter().take(hashes).filter(|&&it| it == '#').count()
                == hashes)
    };
    (begin + 1..characters.len()).find(end).map(|quote| quote + 1 + hashes)
}

/// The module of a file below src: `a/b.rs` is a::b, and so is `a/b/mod.rs`.
fn module_of(file: &Path) -> Vec<String> {
    let mut module: Vec<_> = file
        .with_extension("")
        .iter()
        .map(|part| part.to_str().expect("a name").to_owned())
        .collect();
    if module.last().is_some_and(|last| ["mod", "lib"].contains(&last.as_str())) {
        module.pop();
    }
    module
}

/// The module of the crate's root that a path begins with, of all the paths that begin with `crate` or `super`, and
/// their lines. An item of the root itself is one of `lib`.
fn imports(tokens: &[Token], module: &[String], modules: &[String]) -> Vec<(String, usize)> {
    let mut found = Vec::new();
    let (mut depth, mut inline) = (0_usize, Vec::new());
    let text = |place: usize| tokens.get(place).map_or("", |token| token.text.as_str());
    for place in 0..tokens.len() {
        match text(place) {
            "{" => depth += 1,
            "}" => {
                depth = depth.saturating_sub(1);
                if inline.last() == Some(&depth) {
                    inline.pop();
                }
            }
            "mod" if text(place + 2) == "{" => inline.push(depth),
            start @ ("crate" | "super")
                if text(place + 1) == "::" && (place == 0 || text(place - 1) != "::") =>
            {
                let mut supers = usize::from(start == "super");
                let mut next = place + 2;
                while text(next) == "super" && text(next + 1) == "::" {
                    (supers, next) = (supers + 1, next + 2);
                }
                // What `super` leaves of the file's module, an inline module being one more.
                let left = (module.len() + inline.len()).saturating_sub(supers);
                if start == "super" && left > 0 {
                    // An item of an inline module's file, or of the folder that the file is in.
                    found.extend(module.first().map(|first| (first.clone(), tokens[place].line)));
                    continue;
                }
                let names = heads(tokens, next)
                    .into_iter()
                    .map(|name| if modules.contains(&name) { name } else { "lib".to_owned() });
                found.extend(names.map(|name| (name, tokens[place].line)));
            }
            _ => {}
        }
    }
    found
}

/// The first names of the import tree at `place`: `a::b` has one, `{a::b, c::{d, e}}` has a and c.
fn heads(tokens: &[Token], place: usize) -> Vec<String> {
    let text = |place: usize| tokens.get(place).map_or("", |token| token.text.as_str());
    if text(place) != "{" {
        return vec![text(place).to_owned()];
    }
    let (mut heads, mut depth, mut is_first) = (Vec::new(), 0, true);
    for token in &tokens[place..] {
        match token.text.as_str() {
            "{" => depth += 1,
            "}" => depth -= 1,
            "," if depth == 1 => is_first = true,
            name if depth == 1 && is_first => {
                heads.push(name.to_owned());
                is_first = false;
            }
            _ => {}
        }
        if depth == 0 {
            break;
        }
    }
    heads
}

fn layer(module: &str) -> Option<usize> {
    LAYERS.iter().position(|layer| layer.contains(&module))
}

/// What is wrong with the import of `to` in a file of `from`, if anything is.
fn fault(from: &str, to: &str) -> Option<String> {
    let unknown = |module: &str| format!("{module} belongs to no layer");
    match (layer(from), layer(to)) {
        (None, _) => Some(unknown(from)),
        (_, None) => Some(unknown(to)),
        (Some(own), Some(other)) if other > own => {
            Some(format!("{from} imports from {to}, a layer above it"))
        }
        _ if from != to && SIBLINGS.contains(&from) && SIBLINGS.contains(&to) => {
            Some(format!("{from} imports from {to}, its sibling"))
        }
        _ => None,
    }
}

/// The lines that impl blocks begin at, and how many lines each has.
fn impl_blocks(tokens: &[Token]) -> Vec<(usize, usize)> {
    let begins_item = |place: usize| {
        place == 0 || ["}", ";", "{", "]", "unsafe"].contains(&tokens[place - 1].text.as_str())
    };
    let blocks =
        (0..tokens.len()).filter(|&place| tokens[place].text == "impl" && begins_item(place));
    blocks
        .map(|place| {
            let (mut depth, begin) = (0, tokens[place].line);
            let end = tokens[place..].iter().find(|token| {
                depth += i32::from(token.text == "{") - i32::from(token.text == "}");
                token.text == "}" && depth == 0
            });
            (begin, end.map_or(begin, |token| token.line) + 1 - begin)
        })
        .collect()
}

/// How many lines have the keyword `unsafe`.
fn unsafe_lines(tokens: &[Token]) -> usize {
    let mut lines: Vec<_> =
        tokens.iter().filter(|token| token.text == "unsafe").map(|token| token.line).collect();
    lines.dedup();
    lines.len()
}

/// All files of Rust below `folder`, in order.
fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).expect("a folder").flatten() {
        let path = entry.path();
        if path.is_dir() {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files.sort();
    files
}

#[test]
fn sources_are_laid_out_in_layers() {
    let root = Path::new(PROJECT).join("src");
    let files = rust_files(&root);
    let module = |file: &Path| module_of(file.strip_prefix(&root).expect("a file of src"));
    let mut modules: Vec<_> =
        files.iter().filter_map(|file| module(file).first().cloned()).collect();
    modules.dedup();
    let mut faults = String::new();
    let (mut all_lines, mut all_unsafe) = (0, 0);
    for file in &files {
        let source = fs::read_to_string(file).expect("a file");
        let name = file.strip_prefix(PROJECT).expect("a file of the project").display();
        let (tokens, module) = (tokens(&source), module(file));
        let from = module.first().map_or("lib", String::as_str);
        for (to, line) in imports(&tokens, &module, &modules) {
            if let Some(fault) = fault(from, &to) {
                let _ = writeln!(faults, "{name}:{line}: {fault}");
            }
        }
        for (line, lines) in impl_blocks(&tokens) {
            if lines > IMPL_LINES {
                let _ =
                    writeln!(faults, "{name}:{line}: {lines} lines of an impl, over {IMPL_LINES}");
            }
        }
        let lines = source.lines().count();
        if lines > FILE_LINES {
            let _ = writeln!(faults, "{name}: {lines} lines, over {FILE_LINES}");
        }
        all_lines += lines;
        all_unsafe += unsafe_lines(&tokens);
    }
    if all_lines > ALL_LINES {
        let _ = writeln!(faults, "src: {all_lines} lines, over {ALL_LINES}");
    }
    if all_unsafe > UNSAFE_LINES {
        let _ = writeln!(faults, "src: {all_unsafe} lines with unsafe, over {UNSAFE_LINES}");
    }
    assert!(faults.is_empty(), "\n{faults}");
}

#[test]
fn imports_are_found_wherever_they_are_written() {
    let source = r##"
        //! Not in use crate::session::comment.
        use crate::pg::spi;
        use crate::{history::{starts, outcomes}, shmem, EXTENSION};
        use super::queue;
        /* Nor /* use crate::worker::nested */ here */
        pub(crate) fn f<'a>(text: &'a str) -> char {
            let _ = ("crate::session::text", r#"crate::worker::"raw"#, '"', '\'');
            crate::session::record()
        }
        mod tests {
            use super::f;
            use super::super::queue;
            use super::super::super::gucs;
        }
        use super::super::model;
    "##;
    let modules =
        ["pg", "history", "shmem", "session", "worker", "gucs", "model"].map(str::to_owned);
    let module = ["shmem", "queue"].map(str::to_owned);
    let found: Vec<_> =
        imports(&tokens(source), &module, &modules).into_iter().map(|(to, _)| to).collect();
    let expected =
        ["pg", "history", "shmem", "lib", "shmem", "session", "shmem", "shmem", "gucs", "model"];
    assert_eq!(found, expected);
    for (from, to, is_right) in [
        ("worker", "shmem", true),
        ("worker", "worker", true),
        ("worker", "session", false),
        ("session", "worker", false),
        ("pg", "shmem", false),
        ("pg", "gucs", true),
        ("model", "gucs", false),
        ("history", "lib", false),
        ("lib", "worker", true),
        ("pg", "unknown", false),
    ] {
        assert_eq!(fault(from, to).is_none(), is_right, "{from}, {to}");
    }
}

#[test]
fn blocks_and_unsafe_lines_are_counted() {
    let source = "
        impl Iterator for Rows {
            fn next(&mut self) -> impl Sized { unsafe { f() }; unsafe { g() } }
            // unsafe
        }
        #[allow(unsafe_code)]
        unsafe impl Send for Rows {}
    ";
    let tokens = tokens(source);
    assert_eq!(impl_blocks(&tokens), [(2, 4), (7, 1)]);
    assert_eq!(unsafe_lines(&tokens), 2);
}

#[test]
fn the_index_lists_every_test_file() {
    let index =
        fs::read_to_string(Path::new(PROJECT).join("pg_test/README.md")).expect("the index");
    for folder in ["pg_test/tests", "console/tests"] {
        let listed: Vec<_> = rust_files(&Path::new(PROJECT).join(folder))
            .into_iter()
            .filter(|file| file.parent().is_some_and(|parent| parent.ends_with("tests")))
            .map(|file| file.file_name().and_then(|name| name.to_str()).expect("a name").to_owned())
            .collect();
        for name in &listed {
            let link = format!("| [`{name}`](");
            assert!(index.contains(&link), "{folder}/{name} is not in pg_test/README.md");
        }
    }
    // Nor does it list others.
    for line in index.lines().filter(|line| line.starts_with("| [`")) {
        let path = line.split(['(', ')']).nth(1).expect("a link");
        assert!(Path::new(PROJECT).join("pg_test").join(path).is_file(), "{path} does not exist");
    }
}
