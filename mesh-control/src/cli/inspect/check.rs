//! `meshctl check`: whether the mesh is well, a line for each thing looked at, as `linkerd check` shows it.

use std::time::Duration;

use mesh_control::{
    api::{AnalyzeRequest, Analyzed, Proxies, Skew, SyncState, Version, observed::Live},
    ca::CaStatus,
};
use serde::Serialize;
use tokio::time::{Instant, sleep};

use crate::cli::{
    FAILURE, Failure, TOO_LATE,
    cert::date,
    client::Server,
    live::Moments,
    output::{self, Format, Printing},
    values,
};

/// Certificates of the authority that end so soon are warned of, in seconds: 30 days.
const SOON: u64 = 30 * 24 * 3600;
/// Between two tries of `--wait`.
const INTERVAL: Duration = Duration::from_millis(500);

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Check {
    /// Try again until all is well.
    #[arg(long)]
    wait: bool,
    /// With --wait: give up after so long, with 124.
    #[arg(long, default_value = "60s", value_parser = values::duration, requires = "wait")]
    timeout: Duration,
    /// With --wait: that so many workloads are connected.
    #[arg(long, default_value_t = 0, value_name = "N")]
    workloads: usize,
    #[command(flatten)]
    printing: Printing,
}

/// How something is.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Outcome {
    Ok,
    Warning,
    Failed,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Looked {
    section: &'static str,
    what: String,
    outcome: Outcome,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<String>,
}

/// All that is looked at.
#[derive(Debug)]
struct Facts {
    version: Version,
    ca: CaStatus,
    proxies: Proxies,
    live: Live,
    analyzed: Analyzed,
    /// Unix seconds.
    now: u64,
}

impl Check {
    pub(in crate::cli) async fn run(self, server: &Server) -> Result<(), Failure> {
        let end = Instant::now() + self.timeout;
        loop {
            let looked = match facts(server).await {
                Ok(facts) => look(&facts, self.workloads),
                Err(failure) if self.wait && failure.code == crate::cli::UNREACHABLE && Instant::now() < end => {
                    sleep(INTERVAL).await;
                    continue;
                }
                Err(failure) => return Err(failure),
            };
            let is_well = looked.iter().all(|it| it.outcome != Outcome::Failed);
            let is_late = Instant::now() >= end;
            if self.wait && !is_well && !is_late {
                sleep(INTERVAL).await;
                continue;
            }
            match self.printing.output {
                Format::Json => output::data(&output::json(&looked)?)?,
                Format::Yaml => output::data(&output::yaml(&looked)?)?,
                _ => output::data(&text(&looked))?,
            }
            return match is_well {
                true => Ok(()),
                false if self.wait => Err(Failure::new(TOO_LATE, "not all was well in time")),
                false => Err(Failure::new(FAILURE, "not all is well")),
            };
        }
    }
}

async fn facts(server: &Server) -> Result<Facts, Failure> {
    Ok(Facts {
        version: server.get("/version").await?,
        ca: server.get("/ca").await?,
        proxies: server.get("/proxies").await?,
        live: Moments::open(server).await?.next().await?,
        analyzed: server.post("/analyze", &AnalyzeRequest::default()).await?,
        now: u64::try_from(crate::cli::cert::seconds_now()).unwrap_or_default(),
    })
}

fn look(facts: &Facts, least: usize) -> Vec<Looked> {
    let mut looked = Vec::new();
    let mut add = |section, what: String, outcome, hint: Option<String>| {
        looked.push(Looked { section, what, outcome, hint });
    };
    let own = env!("CARGO_PKG_VERSION");
    add("control plane", format!("it answers, and workloads connect to {}", facts.version.xds), Outcome::Ok, None);
    match facts.version.version == own {
        true => add("control plane", format!("its version is {own}, as this command's"), Outcome::Ok, None),
        false => {
            let what = format!("its version is {}, this command's is {own}", facts.version.version);
            add("control plane", what, Outcome::Warning, Some("use the meshctl of the control plane".to_owned()));
        }
    }
    for authority in &facts.ca.authorities {
        let left = authority.not_after.saturating_sub(facts.now);
        let until = date(i64::try_from(authority.not_after).unwrap_or(i64::MAX));
        let what = format!("authority {} is good until {until}", authority.id);
        let outcome = match left {
            0 => Outcome::Failed,
            left if left < SOON => Outcome::Warning,
            _ => Outcome::Ok,
        };
        let hint = (outcome != Outcome::Ok).then(|| "change it with `meshctl cert rotate --all`".to_owned());
        add("certificates", what, outcome, hint);
    }
    let running = facts.live.workloads.iter().filter(|it| it.workload.lost.is_none()).count();
    let enough = if running >= least { Outcome::Ok } else { Outcome::Failed };
    let wanted = if least > 0 { format!(" of {least}") } else { String::new() };
    add("workloads", format!("{running}{wanted} are connected"), enough, None);
    for lost in facts.live.workloads.iter().filter(|it| it.workload.lost.is_some()) {
        let what = format!("{}.{} lost its connection", lost.workload.name, lost.workload.namespace);
        add(
            "workloads",
            what,
            Outcome::Warning,
            Some("it is forgotten after a while, unless it comes back".to_owned()),
        );
    }
    let blind = facts.live.workloads.iter().filter(|it| it.workload.lost.is_none() && it.process.is_none()).count();
    if blind > 0 {
        let hint = "those of other machines, and with MESH_ADMIN_ADDR=off, are seen through others only".to_owned();
        add("workloads", format!("the console cannot look at {blind} of them"), Outcome::Warning, Some(hint));
    }
    for proxy in &facts.proxies.items {
        let (name, program, plane) = (&proxy.name, &proxy.program, &facts.version.version);
        let hint = match proxy.skew(plane) {
            Skew::Fine => None,
            Skew::Ahead => Some("update the control plane first"),
            Skew::Behind => Some("members may be one minor version behind; build it with a newer one"),
        };
        if let Some(hint) = hint {
            let what = format!("{name} is of version {program}, the control plane of {plane}");
            add("workloads", what, Outcome::Warning, Some(hint.to_owned()));
        }
        let revision = &facts.version.revision;
        if !proxy.revision.is_empty() && proxy.revision != *revision {
            let what = format!("{name} is for revision {}, and is told by revision {revision}", proxy.revision);
            let hint = "start it with the bootstrap of that control plane, or change its label istio.io/rev";
            add("workloads", what, Outcome::Warning, Some(hint.to_owned()));
        }
    }
    let mut synced = true;
    for proxy in &facts.proxies.items {
        for (kind, status) in &proxy.types {
            let (outcome, word) = match status.state {
                SyncState::Error => (Outcome::Failed, "refused"),
                SyncState::Stale => (Outcome::Warning, "has not confirmed"),
                SyncState::Synced | SyncState::NotSent => continue,
            };
            synced = false;
            add("configuration", format!("{} {word} {kind}", proxy.name), outcome, status.error.clone());
        }
    }
    if synced {
        add("configuration", "every connected workload uses what it was sent".to_owned(), Outcome::Ok, None);
    }
    let count = |level| facts.analyzed.diagnostics.iter().filter(|it| it.level == level).count();
    let errors = count(mesh_control::diagnostic::Level::Error);
    let warnings = count(mesh_control::diagnostic::Level::Warning);
    let hint = || Some("see `meshctl analyze`".to_owned());
    match (errors, warnings) {
        (0, 0) => add("configuration", "nothing in it is wrong or seldom meant".to_owned(), Outcome::Ok, None),
        (0, warnings) => add("configuration", format!("{warnings} warnings about it"), Outcome::Warning, hint()),
        (errors, _) => add("configuration", format!("{errors} errors in it"), Outcome::Failed, hint()),
    }
    looked
}

fn text(looked: &[Looked]) -> String {
    let mut text = String::new();
    let mut section = "";
    for it in looked {
        if it.section != section {
            section = it.section;
            let line = "-".repeat(section.len());
            text += &format!("{}{section}\n{line}\n", if text.is_empty() { "" } else { "\n" });
        }
        let mark = match it.outcome {
            Outcome::Ok => "\u{1b}[32m√\u{1b}[0m",
            Outcome::Warning => "\u{1b}[33m‼\u{1b}[0m",
            Outcome::Failed => "\u{1b}[31m×\u{1b}[0m",
        };
        text += &format!("{mark} {}\n", it.what);
        if let Some(hint) = &it.hint {
            text += &format!("    {hint}\n");
        }
    }
    let status = if looked.iter().any(|it| it.outcome == Outcome::Failed) { "×" } else { "√" };
    text + &format!("\nStatus check results are {status}\n")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use serde_json::json;

    use super::*;
    use crate::cli::tests::snapshot;

    /// OP3: what is well, what may not be and what is not, each with what to do.
    #[test]
    fn each_thing_has_a_line_and_a_hint() {
        let authority = json!({"id": "a1", "role": "active", "subject": "O=cluster.local", "serial": "01", "not_before": 0,
            "not_after": 2_000_000_000_u64, "intermediates": 0, "issued": 2});
        let ca = json!({"trust_domain": "cluster.local", "authorities": [authority], "next": "add", "denied_ids": {},
            "denied_serials": {}, "crl": "", "issued": 2});
        let workload = json!({"name": "reviews-v1", "namespace": "default", "workload": "reviews-v1", "process": 7,
            "service_account": "default", "address": "127.0.0.14", "ports": [], "labels": {}, "gateway": false, "since": 0,
            "locality": {"region": "", "zone": "", "sub_zone": ""}, "lost": null});
        let mut facts = Facts {
            version: Version {
                version: env!("CARGO_PKG_VERSION").to_owned(),
                xds: "127.0.0.1:15012".parse().unwrap(),
                revision: "default".to_owned(),
            },
            ca: serde_json::from_value(ca).unwrap(),
            proxies: Proxies::default(),
            live: serde_json::from_value(json!({"workloads": [workload]})).unwrap(),
            analyzed: Analyzed::default(),
            now: 1_900_000_000,
        };
        let strip = |text: String| anstream::adapter::strip_str(&text).to_string();
        snapshot("check", &strip(text(&look(&facts, 0))).replace(env!("CARGO_PKG_VERSION"), "VERSION"));
        facts.now = 1_999_999_999;
        facts.version.version = "0.0.1".to_owned();
        let refused = json!({"state": "ERROR", "error": "no such cluster"});
        let proxy = json!({"name": "reviews-v1.default", "version": "1", "connected": 0, "types": {"CDS": refused}});
        facts.proxies = serde_json::from_value(json!({"items": [proxy]})).unwrap();
        snapshot("check-failed", &strip(text(&look(&facts, 2))).replace(env!("CARGO_PKG_VERSION"), "VERSION"));
    }
}
