//! Every `--help` as a file, the reference made of them, and that no verb is without.
//!
//! `MESH_REGENERATE=1 cargo test -p mesh-control --bin meshctl` writes them anew.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{collections::BTreeMap, fs, path::Path};

use clap::Command;

use super::{GROUPS, command};

/// OP7: what each command says of itself is held in a file, and no file is of a command that is gone.
#[test]
fn every_help_is_as_written_down() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/cli/help");
    let expected = helps();
    if is_regenerating() {
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir).unwrap();
        expected.iter().for_each(|(name, text)| fs::write(dir.join(format!("{name}.txt")), text).unwrap());
        return;
    }
    for (name, text) in &expected {
        same(&dir.join(format!("{name}.txt")), text);
    }
    for entry in fs::read_dir(&dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap();
        assert!(expected.contains_key(name), "{} is of no command", path.display());
    }
}

/// OP7: `docs/meshctl.md` is what the code says of itself.
#[test]
fn the_reference_is_of_this_code() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/meshctl.md");
    let text = reference();
    if is_regenerating() {
        fs::write(path, text).unwrap();
        return;
    }
    same(&path, &text);
}

/// Every verb is in one group of `meshctl --help`, and every group names verbs that are.
#[test]
fn every_verb_is_in_a_group() {
    let mut command = command();
    command.build();
    let mut grouped: Vec<&str> = GROUPS.iter().flat_map(|(_, names)| *names).copied().collect();
    let shown = command.get_subcommands().filter(|verb| !verb.is_hide_set());
    let mut verbs: Vec<&str> = shown.map(Command::get_name).collect();
    grouped.sort_unstable();
    verbs.sort_unstable();
    assert_eq!(grouped, verbs);
}

#[test]
fn the_grammar_is_sound() {
    command().debug_assert();
}

/// By `proxy-config-cluster`; of all commands, those below verbs too.
fn helps() -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    let mut command = command();
    command.build();
    collect(&mut command, "meshctl".to_owned(), &mut all);
    all
}

fn collect(command: &mut Command, name: String, all: &mut BTreeMap<String, String>) {
    let help = command.render_long_help().to_string();
    let lines: Vec<&str> = help.lines().map(str::trim_end).collect();
    all.insert(name.clone(), lines.join("\n").trim_end().to_owned() + "\n");
    for verb in command.get_subcommands_mut().filter(|verb| verb.get_name() != "help" && !verb.is_hide_set()) {
        let name = format!("{name}-{}", verb.get_name());
        collect(verb, name, all);
    }
}

fn reference() -> String {
    let helps = helps();
    let mut text = "# The commands of meshctl\n\nMade from the code: `MESH_REGENERATE=1 cargo test -p mesh-control --bin meshctl` writes it \
                    anew.\n"
        .to_owned();
    for (name, help) in &helps {
        // `meshctl proxy-config cluster`, as its usage says.
        let usage = help.lines().find_map(|line| line.strip_prefix("Usage: ")).unwrap();
        let words: Vec<&str> = usage.split_whitespace().take_while(|word| !word.starts_with(['[', '<', '-'])).collect();
        assert_eq!(words.join("-"), *name);
        text += &format!("\n## {}\n\n```text\n{help}```\n", words.join(" "));
    }
    text
}

fn same(path: &Path, text: &str) {
    let found = fs::read_to_string(path).unwrap_or_default();
    assert_eq!(found, text, "{} is not of this code; run with MESH_REGENERATE=1", path.display());
}

fn is_regenerating() -> bool {
    std::env::var_os("MESH_REGENERATE").is_some()
}

/// A table or a text as it is written down in `testdata/cli/NAME.txt`.
pub(super) fn snapshot(name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("testdata/cli/{name}.txt"));
    if is_regenerating() {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
        return;
    }
    same(&path, text);
}
