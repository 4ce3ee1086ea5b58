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
    registry::Registered,
};

use crate::cli::{
    FAILURE, Failure,
    client::Server,
    output::{self, Printing, Table},
};

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Workload {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Print who runs where.
    List(Printing),
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
    pub(in crate::cli) async fn run(self, server: &Server) -> Result<(), Failure> {
        match self.verb {
            Verb::List(printing) => list(server, printing).await,
            Verb::Token(token) => token.run(server.namespace()),
        }
    }
}

async fn list(server: &Server, printing: Printing) -> Result<(), Failure> {
    let Workloads { items } = server.get("/workloads").await?;
    let name = |it: &Registered| format!("workload/{}.{}", it.name, it.namespace);
    printing.list(&items, "No workload runs.", |wide| table(&items, wide), name)
}

fn table(items: &[Registered], wide: bool) -> Table {
    let or_none = |text: String| if text.is_empty() { "<none>".to_owned() } else { text };
    let mut header = vec!["NAMESPACE", "NAME", "ADDRESS", "PORTS", "SERVICE ACCOUNT", "LABELS", "STATE", "AGE"];
    if wide {
        header.extend(["WORKLOAD", "LOCALITY", "ADMIN PORT"]);
    }
    let rows = items.iter().map(|it| {
        let ports: Vec<String> = it.ports.iter().map(|port| port.number.to_string()).collect();
        let labels: Vec<String> = it.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
        let state = match (&it.lost, &it.unhealthy) {
            (Some(_), _) => "lost",
            (_, Some(_)) => "unhealthy",
            _ => "connected",
        };
        let mut row = vec![
            it.namespace.clone(),
            it.name.clone(),
            it.address.to_string(),
            or_none(ports.join(",")),
            it.service_account.clone(),
            or_none(labels.join(",")),
            state.to_owned(),
            output::age(it.since),
        ];
        if wide {
            let place = [&it.locality.region, &it.locality.zone, &it.locality.sub_zone].map(|part| part.to_string());
            row.push(it.workload.clone());
            row.push(or_none(place.join("/").trim_matches('/').to_owned()));
            row.push(or_none(it.admin.map(|admin| admin.to_string()).unwrap_or_default()));
        }
        row
    });
    Table { header, rows: rows.collect(), figures: usize::MAX }
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
