//! `docs/features.md` tells the truth: every row of the survey is there once, every named test exists, carries the row's
//! id and ran.
//!
//! A test is named `path/to/file.rs: function`. That it ran is read from the test run's own output when `MESH_TEST_LOG`
//! names a file with it (the continuous integration does that after the run); otherwise existence is what is checked.

use std::{collections::BTreeMap, env, fs};

use crate::{report, root};

/// How many rows the survey of peers has; a row is never dropped, only answered.
const ROWS: usize = 350;

/// The rows of traffic that no mesh goes without (P0 and P1 of the survey): shown through the public client.
const ESSENTIAL: &str = "
    RM1 RM2 RM3 RM6 RM7 RM8 RM9 RM10 RM11 RM12 RM13 RM14 RM15 RM16 RM17 RM18 RM19 RM20 RM23
    RA1 RA3 RA4 RA5 RA6 RA7 RA9 RA10 RA11 RA12 RA13 RA15 RA16 RA17 RA20
    MI1 MI2
    TO1 TO2 TO3 TO4 TO5 TO7 TO8 TO9
    RT1 RT2 RT3 RT4 RT5 RT6 RT7 RT8 RT9 RT10 RT11 RT12 RT13 RT15 RT16 RT17 RT18 RT21
    FI1 FI2 FI4 FI5 FI7
    LB1 LB2 LB3 LB4 LB5 LB6 LB7 LB8 LB9 LB10 LB12 LB14 LB15 LB16 LB17 LB18 LB20 LB21 LB22 LB25 LB26 LB27 LB28
    LO1 LO2 LO3 LO4 LO5 LO6 LO8
    HC1 HC2 HC3 HC4 HC5
    CB1 CB2 CB3 CB6 CB9
    OD1 OD2 OD3 OD4 OD5 OD6 OD7 OD8 OD9 OD10 OD12 OD14
    CP1 CP3 CP4 CP5 CP6 CP7 CP9
    SA1 SA2 SA4
    RL1 RL2 RL3 RL5 RL8 RL9
";

/// What goes through it.
const PUBLIC: [&str; 3] = ["tests/traffic/", "tests/envoy/", "tests/simulation/"];

/// Essential rows that are shown otherwise: which policy is chosen is decided before there is a request.
const OTHERWISE: [(&str, &str); 1] = [("LB1", "tests/serving/")];

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
fn essential_rows_are_shown_through_the_public_client() {
    let (rows, mut bad) = (rows(), Vec::new());
    for id in ESSENTIAL.split_whitespace() {
        let Some(row) = rows.iter().find(|row| row.id == id) else {
            bad.push(format!("{id}: no such row"));
            continue;
        };
        let otherwise = OTHERWISE.iter().filter(|(other, _)| *other == id).map(|(_, folder)| *folder);
        let folders: Vec<_> = PUBLIC.into_iter().chain(otherwise).collect();
        let is_public = |file: &str| folders.iter().any(|folder| file.starts_with(folder));
        if row.status == "done" && !row.tests.iter().any(|(file, _)| is_public(file)) {
            bad.push(format!("{id}: no test in {}", folders.join(", ")));
        }
    }
    report("a row that no mesh goes without names a test through the public client", &bad);
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
