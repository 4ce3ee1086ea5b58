//! `meshctl status`: the mesh in a few lines.

use std::collections::BTreeMap;

use mesh_control::{
    api::{Objects, SyncState, Version, observed::Live},
    ca::CaStatus,
};
use serde_json::{Value, json};

use crate::cli::{
    Failure,
    client::Server,
    live::{Moments, millis, rate, success},
    output::Printing,
    watching::{self, Watching},
};

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Status {
    #[command(flatten)]
    printing: Printing,
    #[command(flatten)]
    watching: Watching,
}

impl Status {
    pub(in crate::cli) async fn run(self, server: &Server) -> Result<(), Failure> {
        let mut moments = Moments::open(server).await?;
        let mut is_first = true;
        loop {
            let live = moments.next().await?;
            let version: Version = server.get("/version").await?;
            let ca: CaStatus = server.get("/ca").await?;
            let objects: Objects = server.get("/objects").await?;
            let value = value(&version, &ca, &objects, &live);
            if !self.watching.watch {
                return self.printing.one(&value, "mesh", || text(&value, &live));
            }
            watching::look(&text(&value, &live), is_first)?;
            is_first = false;
        }
    }
}

fn value(version: &Version, ca: &CaStatus, objects: &Objects, live: &Live) -> Value {
    let mut kinds: BTreeMap<String, usize> = BTreeMap::new();
    for item in &objects.items {
        *kinds.entry(item.key.kind.plural()).or_default() += 1;
    }
    let mut sync: BTreeMap<&str, usize> = BTreeMap::new();
    for proxy in &live.proxies {
        let states: Vec<SyncState> = proxy.types.values().map(|of| of.state).collect();
        let word = match () {
            () if states.contains(&SyncState::Error) => "error",
            () if states.contains(&SyncState::Stale) => "stale",
            () => "synced",
        };
        *sync.entry(word).or_default() += 1;
    }
    let connected = live.workloads.iter().filter(|it| it.workload.lost.is_none()).count();
    json!({
        "control_plane": {"version": version.version, "xds": version.xds},
        "trust_domain": ca.trust_domain,
        "certificates": ca.issued,
        "workloads": {"connected": connected, "lost": live.workloads.len() - connected},
        "configuration": sync,
        "objects": kinds,
        "requests": {"rps": live.total.rate, "success": 1.0 - live.total.errors, "p50": live.total.p50, "p95": live.total.p95,
            "p99": live.total.p99},
    })
}

fn text(value: &Value, live: &Live) -> String {
    let at = |pointer: &str| value.pointer(pointer).map(crate::cli::rules::plain).unwrap_or_default();
    let counts = |pointer: &str| {
        let fields = value.pointer(pointer).and_then(Value::as_object).into_iter().flatten();
        let words: Vec<String> = fields.map(|(name, count)| format!("{count} {name}")).collect();
        if words.is_empty() { "none".to_owned() } else { words.join(", ") }
    };
    let lost = live.workloads.iter().filter(|it| it.workload.lost.is_some()).count();
    let lost = if lost > 0 { format!(", {lost} lost") } else { String::new() };
    let total = live.total;
    let mut requests = format!("{}/s, {} succeed", rate(total.rate), success(&total));
    if total.rate > 0.0 {
        requests += &format!(", p50 {}, p95 {}, p99 {}", millis(total.p50), millis(total.p95), millis(total.p99));
    } else {
        requests = "none in the last ten seconds".to_owned();
    }
    format!(
        "Control plane:  {}, workloads connect to {}\nWorkloads:      {} connected{lost}\nConfiguration:  {}\nObjects:        {}\n\
         Certificates:   {} good ones, of trust domain {}\nRequests:       {requests}\n",
        at("/control_plane/version"),
        at("/control_plane/xds"),
        at("/workloads/connected"),
        counts("/configuration"),
        counts("/objects"),
        at("/certificates"),
        at("/trust_domain"),
    )
}
