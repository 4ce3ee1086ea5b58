//! `meshctl bug-report`: what somebody who is to help needs to see, in one directory. No key and no token is in it: none is ever told.

use std::{
    fs,
    path::{Path, PathBuf},
};

use mesh_control::{
    analyze,
    api::{AnalyzeRequest, Analyzed, Objects, Proxies},
};
use serde_json::Value;

use crate::cli::{FAILURE, Failure, client::Server, client::escape, output};

/// What the control plane tells of the whole.
const PAGES: [(&str, &str); 7] = [
    ("version.json", "/version"),
    ("workloads.json", "/workloads"),
    ("proxies.json", "/proxies"),
    ("authority.json", "/ca"),
    ("graph.json", "/graph.json"),
    ("chart.json", "/console/chart"),
    ("traces.json", "/console/traces"),
];
/// What it passes on of each process.
const OF_PROCESSES: [&str; 5] = ["clusters", "certs", "fields", "control_plane", "config_dump"];

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct BugReport {
    /// Where to write it; it is made.
    #[arg(long, value_name = "DIR", default_value = "meshctl-bug-report")]
    dir: PathBuf,
}

impl BugReport {
    pub(in crate::cli) async fn run(self, server: &Server) -> Result<(), Failure> {
        let dir = &self.dir;
        if dir.exists() {
            let message = format!("{} is there already; name another with --dir, or delete it", dir.display());
            return Err(Failure::new(FAILURE, message));
        }
        // Somebody must be there before a directory is made.
        let objects: Objects = server.get("/objects").await?;
        let analyzed: Analyzed = server.post("/analyze", &AnalyzeRequest::default()).await?;
        let proxies: Proxies = server.get("/proxies").await?;
        let documents: Result<Vec<_>, _> = objects.items.iter().map(|item| output::yaml(&item.object)).collect();
        write(dir, "meshctl.txt", &format!("meshctl {}\n", env!("CARGO_PKG_VERSION")))?;
        write(dir, "objects.yaml", &documents?.join("---\n"))?;
        write(
            dir,
            "findings.txt",
            &analyzed.diagnostics.iter().map(|it| analyze::line(it) + "\n").collect::<String>(),
        )?;
        let mut missing = String::new();
        for (file, path) in PAGES {
            page(server, dir, file, path, &mut missing).await?;
        }
        for proxy in &proxies.items {
            let (below, name) = (dir.join("workloads").join(plain(&proxy.name)), escape(&proxy.name));
            page(server, &below, "told.json", &format!("/config_dump?proxy={name}"), &mut missing).await?;
            for of in OF_PROCESSES {
                let path = format!("/console/processes/{name}/{of}");
                page(server, &below, &format!("{of}.json"), &path, &mut missing).await?;
            }
        }
        if !missing.is_empty() {
            write(dir, "missing.txt", &missing)?;
        }
        output::data(&format!("{}\n", dir.display()))
    }
}

/// One answer into one file; why there is none is part of the report.
async fn page(server: &Server, dir: &Path, file: &str, path: &str, missing: &mut String) -> Result<(), Failure> {
    match server.get::<Value>(path).await {
        Ok(value) => write(dir, file, &output::json(&value)?),
        Err(failure) => {
            *missing += &format!("{path}: {}\n", failure.message);
            Ok(())
        }
    }
}

fn write(dir: &Path, file: &str, text: &str) -> Result<(), Failure> {
    let path = dir.join(file);
    let written = fs::create_dir_all(dir).and_then(|()| fs::write(&path, text));
    written.map_err(|error| Failure::new(FAILURE, format!("{} cannot be written: {error}", path.display())))
}

/// A name that is a file's, whoever chose it.
fn plain(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' }).collect()
}
