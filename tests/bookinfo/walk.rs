//! `docs/tutorial.md`, walked: its commands are run as they stand, one after the other, and each must come to say what the
//! document says it does.
//!
//! In a block marked `console` (`console prometheus`, `console openssl`: where that program is here), a line that begins with `$ ` is a command (it goes on over lines that end in `\` and up to the end of
//! a here-document); the lines below it are what it says. `…` stands for anything: within a line, or for lines left out. A command
//! is run again until it says that, for ten seconds (thirty in a build for debugging), because what is in force changes a moment after `apply` returns. Blocks of
//! other kinds are not run.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::front::Front;
use crate::harness::{Bookinfo, shared};
use crate::peers::{self, istio};
use crate::programs::{Ran, is_running, program, signal_process};
use crate::steps::Configured;

/// How long a command may take to come to say what it should.
const PATIENCE: Duration = Duration::from_secs(if cfg!(debug_assertions) { 30 } else { 10 });

/// A command of the document, and what it is to say.
struct Step {
    line: usize,
    /// The program without which it is not run; empty is none.
    needs: String,
    command: String,
    expected: Vec<String>,
}

/// XD39: every command of the tutorial, as it stands, with the files of the sample as they are.
#[tokio::test(flavor = "multi_thread")]
async fn the_tutorial_works_as_it_stands() {
    let Some(samples) = istio("networking") else { return };
    let samples = samples.parent().unwrap().canonicalize().unwrap();
    let bookinfo = shared().await;
    bookinfo.reset().await;
    let document = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/tutorial.md");
    let steps = steps(&std::fs::read_to_string(document).unwrap());
    assert!(steps.len() >= 25, "{} commands", steps.len());
    let dir = tempfile::tempdir().unwrap();
    let _started = Started(dir.path());
    for step in &steps {
        if !step.needs.is_empty() && peers::on_path(&step.needs).is_none() {
            peers::missing(&format!("docs/tutorial.md:{}: no `{}` on the path", step.line, step.needs));
            continue;
        }
        let until = Instant::now() + PATIENCE;
        loop {
            let ran = run(&bookinfo, step, &samples, dir.path());
            let said = format!("{}{}", ran.out, ran.err);
            if says(&said, &step.expected) {
                eprintln!("line {}: {}", step.line, step.command.lines().next().unwrap());
                break;
            }
            let expected = step.expected.join("\n");
            assert!(
                Instant::now() < until,
                "docs/tutorial.md:{}: $ {}\nsays (exit {})\n{said}\nand not\n{expected}",
                step.line,
                step.command,
                ran.code
            );
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    bookinfo.reset().await;
}

/// What commands started and left running: they write the numbers of such processes into files.
struct Started<'d>(&'d std::path::Path);

impl Drop for Started<'_> {
    fn drop(&mut self) {
        for file in ["prometheus.pid", "gateway.pid"] {
            let number =
                std::fs::read_to_string(self.0.join(file)).ok().and_then(|text| text.trim().parse::<u32>().ok());
            if let Some(number) = number.filter(|number| is_running(*number)) {
                signal_process(number, Signal::TERM);
            }
        }
    }
}

/// Runs a command in a shell, where `meshctl` and `$SAMPLES` are what the document makes them, with the addresses of this run.
fn run(bookinfo: &Bookinfo, step: &Step, samples: &std::path::Path, dir: &std::path::Path) -> Ran {
    let mut command = step
        .command
        .replace("127.0.0.1:9080", &bookinfo.gateway().to_string())
        .replace("127.0.0.1:15014", &bookinfo.server())
        .replace("127.0.0.1:9090", &bookinfo.at(8, 9090).to_string())
        .replace("127.0.0.1 --map 443=8443", &format!("{} --map 443=8443", bookinfo.at(8, 0).ip()))
        .replace("127.0.0.1:8443", &bookinfo.at(8, 8443).to_string())
        .replace("target/release/examples/gateway", program("examples/gateway").to_str().unwrap())
        .replace("127.0.0.11:9080", &bookinfo.workload("productpage-v1").to_string());
    for last in 10..=16 {
        command = command.replace(&format!("127.0.0.{last}:15000"), &bookinfo.at(last, 15000).to_string());
    }
    let programs = program("meshctl").parent().unwrap().to_owned();
    let path = std::env::var("PATH").unwrap_or_default();
    let output = Command::new("bash")
        .args(["-c", &command])
        .current_dir(dir)
        .env("PATH", format!("{}:{path}", programs.display()))
        .env("MESHCTL_SERVER", bookinfo.server())
        .env("MESHCTL_STATE_DIR", bookinfo.dir().join("state"))
        .env("NO_COLOR", "1")
        .env("SAMPLES", samples)
        .output()
        .expect("bash runs");
    output.into()
}

/// The commands of a document.
fn steps(document: &str) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    let mut lines = document.lines().enumerate();
    while let Some((_, line)) = lines.next() {
        let needs = match line.strip_prefix("```console") {
            Some("") => String::new(),
            Some(needs) if needs.starts_with(' ') => needs.trim().to_owned(),
            _ => continue,
        };
        while let Some((number, line)) = lines.next().filter(|(_, line)| *line != "```") {
            let Some(command) = line.strip_prefix("$ ") else {
                let step = steps.last_mut().unwrap_or_else(|| panic!("line {} belongs to no command", number + 1));
                step.expected.push(line.to_owned());
                continue;
            };
            let mut command = command.to_owned();
            let here = command.contains("<<'EOF'") || command.contains("<<EOF");
            while (here && !command.ends_with("\nEOF")) || command.ends_with('\\') {
                let (_, more) = lines.next().expect("the command ends");
                command = format!("{command}\n{more}");
            }
            steps.push(Step { line: number + 1, needs: needs.clone(), command, expected: Vec::new() });
        }
    }
    steps
}

/// Whether the lines of `said` are those expected, in their order, with `…` for what is left out.
fn says(said: &str, expected: &[String]) -> bool {
    let said: Vec<&str> = said.lines().collect();
    let mut at = 0;
    let mut skipping = false;
    for line in expected {
        if line.trim() == "…" {
            skipping = true;
            continue;
        }
        let found = said[at..].iter().position(|said| is(said, line));
        match found {
            Some(0) => at += 1,
            Some(further) if skipping => at += further + 1,
            _ => return false,
        }
        skipping = false;
    }
    skipping || at == said.len()
}

/// Whether a line is the one expected; runs of spaces count as one, since columns are as wide as what is in them.
fn is(said: &str, expected: &str) -> bool {
    let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let (said, expected) = (words(said), words(expected));
    let mut parts = expected.split('…');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = said.strip_prefix(first) else { return false };
    let mut parts = parts.peekable();
    if parts.peek().is_none() {
        return rest.is_empty();
    }
    while let Some(part) = parts.next() {
        if parts.peek().is_none() {
            return rest.ends_with(part);
        }
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    true
}

#[test]
fn what_is_left_out_may_be_anything() {
    let expected = |lines: &[&str]| lines.iter().map(|line| (*line).to_owned()).collect::<Vec<_>>();
    for (said, lines, means) in [
        ("a\nb\n", &["a", "b"][..], true),
        ("a\nb\n", &["a"], false),
        ("a\nb\n", &["a", "…"], true),
        ("a\nb\nc\n", &["…", "c"], true),
        ("a\nb\nc\n", &["…", "b"], false),
        ("  50   reviews-v1\n", &["… reviews-v1"], true),
        ("50 reviews-v1 x\n", &["… reviews-v1"], false),
        ("HTTP/1.1 200 OK\n", &["HTTP/1.1 2…0 OK"], true),
        ("", &[], true),
        ("a\n", &[], false),
    ] {
        assert_eq!(says(said, &expected(lines)), means, "{said:?} {lines:?}");
    }
}

#[test]
fn commands_may_go_on_over_lines() {
    let found = steps("x\n```console\n$ one \\\n  two\nsaid\n$ cat <<'EOF'\n$ a\nEOF\n```\n```text\n$ not run\n```\n");
    let found: Vec<_> = found.iter().map(|step| (step.line, step.command.as_str(), step.expected.len())).collect();
    assert_eq!(found, [(3, "one \\\n  two", 1), (6, "cat <<'EOF'\n$ a\nEOF", 0)]);
}
