//! `docs/features.md` tells the truth: every row of the survey is there once, every named test exists, carries the row's
//! id and ran.
//!
//! A test is named `path/to/file.rs: function`. That it ran is read from the test run's own output when `MESH_TEST_LOG`
//! names a file with it (the continuous integration does that after the run); otherwise existence is what is checked.

use std::{collections::BTreeMap, env, fs};

use crate::{report, root};

/// How many rows the survey of peers has; a row is never dropped, only answered.
const ROWS: usize = 350;

struct Row {
    id: String,
    status: String,
    tests: Vec<(String, String)>,
    line: usize,
}

#[test]
fn every_row_is_answered() {
    let rows = rows();
    let mut seen = BTreeMap::new();
    for row in &rows {
        *seen.entry(row.id.as_str()).or_insert(0) += 1;
    }
    assert_eq!(seen.len(), ROWS, "rows of docs/features.md");
    let mut bad: Vec<_> = seen.iter().filter(|(_, count)| **count > 1).map(|(id, _)| format!("{id} twice")).collect();
    for row in &rows {
        match row.status.as_str() {
            "done" | "refused" if row.tests.is_empty() => {
                bad.push(format!("{}: {} without a test", row.id, row.status))
            }
            "done" | "refused" | "not yet" => {}
            other => bad.push(format!("line {}: status {other:?}", row.line)),
        }
    }
    report("each row is done, refused or not yet; the first two name a test", &bad);
}

#[test]
fn every_named_test_exists_and_carries_the_row() {
    let mut bad = Vec::new();
    for row in rows() {
        for (file, function) in &row.tests {
            let Ok(text) = fs::read_to_string(root().join(file)) else {
                bad.push(format!("{}: no file {file}", row.id));
                continue;
            };
            match attributes_above(&text, function) {
                None => bad.push(format!("{}: no function {function} in {file}", row.id)),
                Some(above) => {
                    if !above.contains("test]") && !above.contains("test(") {
                        bad.push(format!("{}: {file}: {function} is not a test", row.id));
                    }
                    if !ids(&above).any(|id| id == row.id) {
                        bad.push(format!("{}: {file}: {function} does not carry the id", row.id));
                    }
                }
            }
        }
    }
    report("a row's test exists and says which row it shows", &bad);
}

#[test]
fn every_named_test_ran() {
    let Some(log) = env::var_os("MESH_TEST_LOG") else {
        println!("skipped: MESH_TEST_LOG is not set, so there is no test run to look at");
        return;
    };
    let log = fs::read_to_string(log).unwrap();
    let mut bad = Vec::new();
    for row in rows() {
        for (file, function) in &row.tests {
            let ran = log.lines().filter_map(|line| line.strip_prefix("test ")?.strip_suffix(" ... ok")).any(|name| {
                let name = name.strip_suffix(" - should panic").unwrap_or(name);
                let mut modules = name.split("::").collect::<Vec<_>>();
                modules.pop() == Some(function) && module_of(file).is_none_or(|module| modules.contains(&module))
            });
            if !ran {
                bad.push(format!("{}: {file}: {function}", row.id));
            }
        }
    }
    report("a row's test ran and passed", &bad);
}

fn rows() -> Vec<Row> {
    let text = fs::read_to_string(root().join("docs/features.md")).unwrap();
    let mut rows = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let cells: Vec<_> = line.split('|').map(str::trim).collect();
        let [_, id, _, status, tests, _] = cells[..] else { continue };
        if id == "id" || id.starts_with('-') {
            continue;
        }
        let tests = tests
            .split(';')
            .filter_map(|test| test.trim().trim_matches('`').split_once(": "))
            .map(|(file, function)| (file.trim().to_owned(), function.trim().to_owned()))
            .collect();
        rows.push(Row { id: id.to_owned(), status: status.to_owned(), tests, line: number + 1 });
    }
    rows
}

/// The module a file is, as the name of its tests has it; a crate's root is none, nor is the root of an integration test.
fn module_of(file: &str) -> Option<&str> {
    let path = file.strip_suffix(".rs")?;
    let (directory, stem) = path.rsplit_once('/')?;
    let is_root = matches!(stem, "lib" | "main") || directory.ends_with("/tests") || directory == "tests";
    (!is_root && stem != "tests").then_some(stem)
}

/// The comment and attribute lines directly above `fn name(`.
fn attributes_above(text: &str, name: &str) -> Option<String> {
    let lines: Vec<_> = text.lines().collect();
    let needle = format!("fn {name}(");
    let at = lines.iter().position(|line| line.contains(&needle))?;
    let above = lines[..at].iter().rev().take_while(|line| {
        let line = line.trim_start();
        line.starts_with("//") || line.starts_with("#[") || line.starts_with(')') || line.starts_with("test")
    });
    Some(above.copied().collect::<Vec<_>>().join("\n"))
}

/// Everything in the text that looks like a row id.
fn ids(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| {
        word.len() >= 3 && word[..2].chars().all(|c| c.is_ascii_uppercase()) && word[2..].parse::<u8>().is_ok()
    })
}
