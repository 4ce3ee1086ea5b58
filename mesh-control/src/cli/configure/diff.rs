//! `meshctl diff -f`: what an apply would change, line by line. Exits with 0 where nothing would, with 1 where something would.

use mesh_control::{
    api::{ApplyRequest, Objects},
    kinds,
    store::{Action, Applied},
};
use serde_json::Value;

use crate::cli::{BAD_INPUT, Failure, USAGE, client::Server, input::Files, output};

/// Lines around a change that are printed with it.
const CONTEXT: usize = 3;

/// Objects of more lines are compared as a whole: the table of two would be too large.
const MAX_LINES: usize = 4_000;

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Diff {
    #[command(flatten)]
    files: Files,
}

impl Diff {
    pub(in crate::cli) async fn run(self, server: &Server) -> Result<(), Failure> {
        if self.files.is_empty() {
            return Err(Failure::new(USAGE, "nothing to compare: name a file, a directory or - with -f"));
        }
        let files = self.files.read()?;
        let request = ApplyRequest { files, dry_run: true };
        // An exit code of 1 says that there are differences, and only that.
        let not_one =
            |failure: Failure| Failure { code: if failure.code == 1 { BAD_INPUT } else { failure.code }, ..failure };
        let would: Applied = server.post("/apply", &request).await.map_err(not_one)?;
        let live: Objects = server.get("/objects").await.map_err(not_one)?;
        let mut text = String::new();
        let mut new = Vec::new();
        for file in &request.files {
            let parsed = kinds::parse(&file.name, &file.text).map(|parsed| parsed.objects).unwrap_or_default();
            new.extend(parsed);
        }
        for change in would.changes.iter().filter(|change| change.action != Action::Unchanged) {
            let Some(object) = new.iter().rfind(|object| object.key == change.key) else { continue };
            let before = live.items.iter().find(|item| item.key == change.key);
            let name = format!("{}/{}/{}", output::resource(&change.key), change.key.namespace, change.key.name);
            let lines = |value: Option<&Value>| -> Result<Vec<String>, Failure> {
                let Some(value) = value else { return Ok(Vec::new()) };
                Ok(output::yaml(value)?.lines().map(str::to_owned).collect())
            };
            let (old, new) = (lines(before.map(|item| &item.object))?, lines(Some(&object.raw))?);
            let from = if before.is_some() { format!("live/{name}") } else { "/dev/null".to_owned() };
            text += &format!("--- {from}\n+++ {}/{name}\n", object.source.file);
            text += &unified(&old, &new);
        }
        let differs = !text.is_empty();
        output::data(&text)?;
        if differs { Err(Failure::silent(1)) } else { Ok(()) }
    }
}

/// Hunks of a unified diff. By longest common subsequence; objects are short.
fn unified(old: &[String], new: &[String]) -> String {
    let steps = steps(old, new);
    let mut out = String::new();
    let mut from = 0;
    while let Some(first) = steps.iter().skip(from).position(|step| step.kind != ' ').map(|at| at + from) {
        let start = first.saturating_sub(CONTEXT).max(from);
        // A hunk goes on as long as the next change is near.
        let mut end = first + 1;
        while let Some(next) = steps.iter().skip(end).take(2 * CONTEXT + 1).position(|step| step.kind != ' ') {
            end += next + 1;
        }
        let stop = (end + CONTEXT).min(steps.len());
        let hunk = steps.get(start..stop).unwrap_or_default();
        let count = |without: char| hunk.iter().filter(|step| step.kind != without).count();
        let line = |side: usize, lines: usize| if lines == 0 { side } else { side + 1 };
        let (olds, news) = (count('+'), count('-'));
        let (old_at, new_at) = hunk.first().map_or((0, 0), |step| (step.old, step.new));
        out += &format!("@@ -{},{olds} +{},{news} @@\n", line(old_at, olds), line(new_at, news));
        for step in hunk {
            out.push(step.kind);
            out.push_str(step.text);
            out.push('\n');
        }
        from = stop;
    }
    out
}

/// A line that stays (` `), goes (`-`) or comes (`+`), and how many lines of each side are before it.
struct Step<'a> {
    kind: char,
    text: &'a str,
    old: usize,
    new: usize,
}

fn steps<'a>(old: &'a [String], new: &'a [String]) -> Vec<Step<'a>> {
    let whole = old.len() > MAX_LINES || new.len() > MAX_LINES;
    let width = new.len() + 1;
    // `common[i * width + j]`: how many lines old[i..] and new[j..] have in common.
    let mut common = vec![0u32; if whole { 0 } else { (old.len() + 1) * width }];
    let at = |common: &[u32], i: usize, j: usize| common.get(i * width + j).copied().unwrap_or_default();
    if !whole {
        for (i, left) in old.iter().enumerate().rev() {
            for (j, right) in new.iter().enumerate().rev() {
                let best = match left == right {
                    true => at(&common, i + 1, j + 1) + 1,
                    false => at(&common, i + 1, j).max(at(&common, i, j + 1)),
                };
                if let Some(cell) = common.get_mut(i * width + j) {
                    *cell = best;
                }
            }
        }
    }
    let (mut i, mut j) = (0, 0);
    let mut out = Vec::new();
    loop {
        let (kind, text) = match (old.get(i), new.get(j)) {
            (Some(left), Some(right)) if left == right && !whole => (' ', left),
            (Some(left), right) if right.is_none() || whole || at(&common, i + 1, j) >= at(&common, i, j + 1) => {
                ('-', left)
            }
            (_, Some(right)) => ('+', right),
            _ => return out,
        };
        out.push(Step { kind, text, old: i, new: j });
        i += usize::from(kind != '+');
        j += usize::from(kind != '-');
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use super::*;

    fn lines(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn differences_are_hunks() {
        let old = lines("a b c d e f g h i j k l m n");
        assert_eq!(unified(&old, &old), "");
        assert_eq!(unified(&[], &lines("a b")), "@@ -0,0 +1,2 @@\n+a\n+b\n");
        let new = lines("a b c D e f g h i j k l m n o");
        let expected = "@@ -1,7 +1,7 @@\n a\n b\n c\n-d\n+D\n e\n f\n g\n@@ -12,3 +12,4 @@\n l\n m\n n\n+o\n";
        assert_eq!(unified(&old, &new), expected);
    }
}
