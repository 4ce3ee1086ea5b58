//! Rules about files: each says what it holds, stays small, and leaves nothing unfinished behind.

use crate::{SourceFile, report, rust_files};

/// Lines of code a file may have before a second subject in it deserves its own room.
const HARD_STOP: usize = 500;

#[test]
fn every_file_says_what_it_holds() {
    let bad: Vec<_> = rust_files()
        .iter()
        .filter(|file| !file.is_generated() && !file.text.starts_with("//! "))
        .map(|file| file.path.clone())
        .collect();
    report("each file opens with `//!`: the idea in a paragraph", &bad);
}

#[test]
fn files_stay_small() {
    let files = rust_files();
    let sizes = |file: &&SourceFile| file.code().lines().count();
    let product: Vec<_> = files.iter().filter(|file| file.is_product() && !file.is_generated()).collect();
    let bad: Vec<_> = files
        .iter()
        .filter(|file| !file.is_generated())
        .filter(|file| sizes(file) > HARD_STOP)
        .map(|file| format!("{} has {} lines before its tests", file.path, sizes(&file)))
        .collect();
    report("a file stops at 500 lines of code; a second subject gets its own", &bad);

    let mut all: Vec<_> = product.iter().map(sizes).collect();
    all.sort_unstable();
    let median = all[all.len() / 2];
    assert!(median <= 200, "the median file has {median} lines: about 150 is what a stranger reads in one go");
}

#[test]
fn no_mod_rs() {
    let bad: Vec<_> = rust_files()
        .iter()
        .filter(|file| file.path.ends_with("/mod.rs") && !file.is_generated())
        .map(|file| file.path.clone())
        .collect();
    report("`foo.rs` is the index of `foo/`", &bad);
}

#[test]
fn nothing_is_left_unfinished() {
    let words = [concat!("to", "do!("), concat!("unimpl", "emented!("), concat!("FIX", "ME"), concat!("#[ign", "ore")];
    let bad: Vec<_> = rust_files()
        .iter()
        .flat_map(|file| {
            words.iter().filter(|word| file.text.contains(**word)).map(|word| format!("{}: {word}", file.path))
        })
        .collect();
    report("no stub and no ignored test", &bad);
}

#[test]
fn tests_do_not_sleep_to_synchronise() {
    // A paused clock is fine: it sleeps nobody. A bounded poll for another process is written `wait_until`.
    let words = [concat!("thread::", "sleep(")];
    let bad: Vec<_> = rust_files()
        .iter()
        .filter(|file| !file.text.contains("fn wait_until"))
        .flat_map(|file| {
            words.iter().filter(|word| file.text.contains(**word)).map(|word| format!("{}: {word}", file.path))
        })
        .collect();
    report("waiting is for an event, by a bounded poll named wait_until where the event is in another process", &bad);
}
