//! Rules about the documents: short, without dead links, and without anything of the machine they were written on.

use std::{fs, process::Command};

use crate::{SourceFile, collect, report, root};

#[test]
fn the_readme_and_the_map_are_short() {
    for (file, limit) in [("README.md", 150), ("ARCHITECTURE.md", 200)] {
        let lines = fs::read_to_string(root().join(file)).unwrap().lines().count();
        assert!(lines <= limit, "{file} has {lines} lines, at most {limit} are read");
    }
}

#[test]
fn links_lead_somewhere() {
    let mut files = Vec::new();
    collect(&root(), "md", &mut files);
    let mut bad = Vec::new();
    for SourceFile { path, text } in &files {
        let folder = root().join(path).parent().unwrap().to_path_buf();
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let target = target.split('#').next().unwrap_or_default();
            if !target.is_empty() && !target.contains("://") && !folder.join(target).exists() {
                bad.push(format!("{path}: {target}"));
            }
        }
    }
    report("links within the repository lead to a file", &bad);
}

#[test]
fn the_map_names_what_is_there() {
    let text = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let mut bad = Vec::new();
    for word in text.split('`').skip(1).step_by(2) {
        let is_path = word.contains('/') && (word.ends_with(".rs") || word.ends_with('/'));
        if is_path && word.starts_with("mesh-") && !word.contains('*') && !root().join(word).exists() {
            bad.push(word.to_owned());
        }
    }
    report("ARCHITECTURE.md names files that exist", &bad);
}

/// Every test target has its word in the map.
#[test]
fn the_map_has_every_test() {
    let text = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let mut bad = Vec::new();
    for entry in fs::read_dir(root().join("tests")).unwrap() {
        let path = entry.unwrap().path();
        let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap().to_owned();
        if path.extension().is_some_and(|end| end == "rs") && !text.contains(&format!("`{stem}`")) {
            bad.push(stem);
        }
    }
    report("ARCHITECTURE.md names every test target", &bad);
}

/// Comments that name a file of code name one that is there.
#[test]
fn comments_name_files_that_are_there() {
    let mut files = Vec::new();
    collect(&root(), "rs", &mut files);
    let names: std::collections::BTreeSet<String> =
        files.iter().filter_map(|file| file.path.rsplit('/').next().map(str::to_owned)).collect();
    let mut bad = Vec::new();
    for file in &files {
        for line in file.text.lines().filter(|line| line.trim_start().starts_with("//")) {
            for word in line.split('`').skip(1).step_by(2).filter(|word| word.ends_with(".rs") && !word.contains('*')) {
                let is_path = word.chars().all(|c| c.is_ascii_alphanumeric() || "_-./".contains(c));
                if is_path && !names.contains(word.rsplit('/').next().unwrap_or_default()) {
                    bad.push(format!("{}: {word}", file.path));
                }
            }
        }
    }
    report("comments name files that exist", &bad);
}

#[test]
fn nothing_of_a_machine_is_in_the_tree() {
    let words = [concat!("/wo", "rk/"), concat!("/fa", "rm/"), concat!("/ro", "ot/"), concat!("/home", "/")];
    let output = Command::new("git").args(["ls-files", "-z"]).current_dir(root()).output();
    let Some(output) = output.ok().filter(|output| output.status.success()) else {
        println!("skipped: this is not a git checkout, or git is not installed");
        return;
    };
    let listed = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut bad = Vec::new();
    for path in listed.split('\0').filter(|path| !path.is_empty() && !path.ends_with(".lock")) {
        let Ok(text) = fs::read_to_string(root().join(path)) else { continue };
        for word in words.iter().filter(|word| text.contains(**word)) {
            bad.push(format!("{path}: {word}"));
        }
    }
    report("no machine's paths in the tree", &bad);
}
