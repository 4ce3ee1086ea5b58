//! `meshctl workload`: who runs where, and the token by which a workload joins.
//!
//! A token is signed here, with the key in the state directory, and not asked for over the API: whoever may read that file
//! may be any workload, and nobody else.

use std::{
    path::PathBuf,
    time::{Duration, SystemTime},
};

use clap::Subcommand;
use mesh_control::{
    api::Workloads,
    ca::{Ca, CaError, ServiceAccount, Tokens},
    compile::MeshSettings,
};

use super::{FAILURE, Failure, client::Server, output};

#[derive(Debug, clap::Args)]
pub(super) struct Workload {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Print who runs where.
    List,
    /// Print a token for a service account.
    Token(Token),
}

#[derive(Debug, clap::Args)]
struct Token {
    /// The service account, such as bookinfo-reviews.
    service_account: String,
    /// The state directory of the control plane, whose key signs.
    #[arg(long, value_name = "DIR")]
    state_dir: PathBuf,
    /// How long it is good for.
    #[arg(long, default_value_t = Tokens::DEFAULT_TTL.as_secs(), value_name = "SECONDS")]
    ttl: u64,
}

impl Workload {
    pub(super) async fn run(self, server: &Server) -> Result<(), Failure> {
        match self.verb {
            Verb::List => list(server).await,
            Verb::Token(token) => token.run(server.namespace()),
        }
    }
}

async fn list(server: &Server) -> Result<(), Failure> {
    let workloads: Workloads = server.get("/workloads").await?;
    if workloads.items.is_empty() {
        output::note("No workload runs.");
        return Ok(());
    }
    let or_none = |text: String| if text.is_empty() { "<none>".to_owned() } else { text };
    let mut rows = Vec::new();
    for workload in workloads.items {
        let ports: Vec<String> = workload.ports.iter().map(|port| port.number.to_string()).collect();
        let labels: Vec<String> = workload.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
        rows.push(vec![
            workload.namespace,
            workload.name,
            workload.address.to_string(),
            or_none(ports.join(",")),
            workload.service_account,
            or_none(labels.join(",")),
            if workload.lost.is_some() { "lost" } else { "connected" }.to_owned(),
            output::age(workload.since),
        ]);
    }
    let header = ["NAMESPACE", "NAME", "ADDRESS", "PORTS", "SERVICE ACCOUNT", "LABELS", "STATE", "AGE"];
    output::data(&output::table(&header, &rows))
}

impl Token {
    fn run(self, namespace: &str) -> Result<(), Failure> {
        let failure = |error: CaError| Failure::new(FAILURE, error.to_string());
        if !self.state_dir.join("token-key.pem").exists() {
            let message = format!(
                "{} is not the state directory of a control plane; give the one of `meshctl dev --state-dir DIR`",
                self.state_dir.display()
            );
            return Err(Failure::new(FAILURE, message));
        }
        let account = ServiceAccount::new(namespace, &self.service_account).map_err(failure)?;
        let ca = Ca::open(&self.state_dir, &MeshSettings::default().trust_domain).map_err(failure)?;
        let token = ca.tokens().issue(&account, Duration::from_secs(self.ttl), SystemTime::now()).map_err(failure)?;
        output::data(&(token + "\n"))
    }
}
