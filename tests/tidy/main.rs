//! The repository's own rules, as tests: what a reviewer would otherwise have to look for each time.
//!
//! `layout.rs` holds rules about files, `walls.rs` rules about which crate may know which, `features.rs` that
//! `docs/features.md` tells the truth, `prose.rs` that the documents do, `reference.rs`
//! that their tables are the code's. Nothing here runs the mesh.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod features;
mod layout;
mod prose;
mod reference;
mod walls;

use std::{
    fs,
    path::{Path, PathBuf},
};

/// The workspace's root.
fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// A file of the repository with its path relative to the root.
struct SourceFile {
    path: String,
    text: String,
}

impl SourceFile {
    /// The part before the unit tests at the file's end; `mod tests;` near the top ends nothing.
    fn code(&self) -> &str {
        let starts = self.text.match_indices("\n#[cfg(test)]\nmod ");
        let inline = |at: &usize| self.text[at + 1..].lines().nth(1).is_some_and(|line| line.ends_with('{'));
        let end = starts.map(|(at, _)| at).find(inline);
        &self.text[..end.unwrap_or(self.text.len())]
    }

    fn is_generated(&self) -> bool {
        self.path.contains("/generated/")
    }

    /// In a library or binary of ours, not in tests, examples or benches.
    fn is_product(&self) -> bool {
        self.path.starts_with("mesh-") && self.path.contains("/src/")
    }
}

/// Every Rust file of the repository outside build output.
fn rust_files() -> Vec<SourceFile> {
    let mut files = Vec::new();
    collect(&root(), "rs", &mut files);
    assert!(files.len() > 50, "found only {} Rust files: is the walk broken?", files.len());
    files
}

fn collect(dir: &Path, extension: &str, files: &mut Vec<SourceFile>) {
    let mut entries: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    for path in entries {
        let name = path.file_name().unwrap().to_string_lossy();
        if path.is_dir() {
            if name != "target" && name != "node_modules" && !name.starts_with('.') {
                collect(&path, extension, files);
            }
        } else if path.extension().is_some_and(|e| e == extension) {
            let relative = path.strip_prefix(root()).unwrap().to_string_lossy().replace('\\', "/");
            files.push(SourceFile { path: relative, text: fs::read_to_string(&path).unwrap() });
        }
    }
}

/// Fails with all violations at once, each with the rule's reason.
fn report(rule: &str, violations: &[String]) {
    assert!(violations.is_empty(), "{rule}\n  {}", violations.join("\n  "));
}
