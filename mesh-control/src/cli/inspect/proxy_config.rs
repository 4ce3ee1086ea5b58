//! `meshctl proxy-config`: clusters, routes, endpoints, listeners and secrets of a workload, in istioctl's tables.
//!
//! Whatever it is asked about comes as a `config_dump` in Envoy's JSON form: from the control plane (what the workload has been
//! told), from a process's own admin port (`--admin`: what it has in force), or from a file (`-f`), be it of ours or of Envoy's.
//! `tables.rs` reads that form.

use std::{
    fs,
    io::{self, Read},
    path::PathBuf,
};

use clap::{Subcommand, ValueEnum};
use serde_json::Value;

use crate::cli::{BAD_INPUT, FAILURE, Failure, USAGE, client::Server, output};

mod secrets;
mod tables;

pub(in crate::cli) use secrets::time;

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct ProxyConfig {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Clusters: what can be called, and how.
    #[command(visible_aliases = ["clusters", "c"])]
    Cluster(Shown),
    /// Routes: which requests go where.
    #[command(visible_aliases = ["routes", "r"])]
    Route(Shown),
    /// Endpoints: who answers for a cluster.
    #[command(visible_aliases = ["endpoints", "ep"])]
    Endpoint(Shown),
    /// Listeners: what is listened for, and which routes hold there.
    #[command(visible_aliases = ["listeners", "l"])]
    Listener(Shown),
    /// Secrets: certificates, and until when they are good. No key is ever shown.
    #[command(visible_aliases = ["secrets", "s"])]
    Secret(Shown),
    /// All of them.
    #[command(visible_alias = "a")]
    All(Shown),
}

#[derive(Debug, clap::Args)]
struct Shown {
    /// The workload: an instance, a workload or its label app, perhaps with .NAMESPACE.
    proxy: Option<String>,
    /// Read a config_dump in Envoy's JSON form instead; - is standard input.
    #[arg(short, long, value_name = "FILE", conflicts_with_all = ["proxy", "admin"])]
    file: Option<PathBuf>,
    /// Ask a process itself, at its admin port.
    #[arg(long, value_name = "HOST:PORT", conflicts_with = "proxy")]
    admin: Option<String>,
    /// Only of this host.
    #[arg(long)]
    fqdn: Option<String>,
    /// Only of this port.
    #[arg(long)]
    port: Option<u16>,
    /// Only of this subset.
    #[arg(long)]
    subset: Option<String>,
    /// Only of this direction: outbound or inbound.
    #[arg(long)]
    direction: Option<String>,
    /// Only what has this name (a route configuration, a listener, a secret).
    #[arg(long)]
    name: Option<String>,
    /// Only endpoints of this cluster.
    #[arg(long)]
    cluster: Option<String>,
    /// Only at this address.
    #[arg(long)]
    address: Option<String>,
    /// Only endpoints of this status, such as healthy.
    #[arg(long)]
    status: Option<String>,
    /// How to print.
    #[arg(short, long, value_enum, default_value_t = Format::Short)]
    output: Format,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
enum Format {
    /// A table.
    Short,
    Json,
    Yaml,
}

impl ProxyConfig {
    pub(in crate::cli) async fn run(self, server: &Server) -> Result<(), Failure> {
        let (what, shown) = match self.what {
            What::Cluster(shown) => (vec![Part::Cluster], shown),
            What::Route(shown) => (vec![Part::Route], shown),
            What::Endpoint(shown) => (vec![Part::Endpoint], shown),
            What::Listener(shown) => (vec![Part::Listener], shown),
            What::Secret(shown) => (vec![Part::Secret], shown),
            What::All(shown) => (Part::ALL.to_vec(), shown),
        };
        let dump = shown.dump(server).await?;
        let found: Vec<(Part, Vec<Value>)> =
            what.into_iter().map(|part| (part, tables::select(&dump, part, &shown.filter()))).collect();
        match shown.output {
            Format::Short => {
                let tables: Vec<String> = found
                    .iter()
                    .filter(|(_, items)| !items.is_empty() || found.len() == 1)
                    .map(|(part, items)| {
                        let (header, rows) = part.table(items);
                        output::table(header, &rows)
                    })
                    .collect();
                output::data(&tables.join("\n"))
            }
            format => {
                let all: Vec<Value> = found.into_iter().flat_map(|(_, items)| items).collect();
                output::data(&if format == Format::Json { output::json(&all)? } else { output::yaml(&all)? })
            }
        }
    }
}

/// A section of a dump.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Part {
    Cluster,
    Listener,
    Route,
    Endpoint,
    Secret,
}

impl Part {
    /// In istioctl's order.
    const ALL: [Self; 5] = [Self::Cluster, Self::Listener, Self::Route, Self::Endpoint, Self::Secret];

    fn table(self, items: &[Value]) -> (&'static [&'static str], Vec<Vec<String>>) {
        match self {
            Self::Cluster => (
                &["SERVICE FQDN", "PORT", "SUBSET", "DIRECTION", "TYPE", "DESTINATION RULE"],
                items.iter().map(tables::cluster).collect(),
            ),
            Self::Listener => {
                (&["ADDRESSES", "PORT", "MATCH", "DESTINATION"], items.iter().flat_map(tables::listener).collect())
            }
            Self::Route => (
                &["NAME", "VHOST NAME", "DOMAINS", "MATCH", "VIRTUAL SERVICE"],
                items.iter().flat_map(tables::routes).collect(),
            ),
            Self::Endpoint => (
                &["ENDPOINT", "STATUS", "OUTLIER CHECK", "CLUSTER"],
                items.iter().flat_map(tables::endpoints).collect(),
            ),
            Self::Secret => (
                &["RESOURCE NAME", "TYPE", "STATUS", "VALID CERT", "SERIAL NUMBER", "NOT AFTER", "NOT BEFORE"],
                items.iter().flat_map(secrets::secret).collect(),
            ),
        }
    }
}

/// What is to be seen of a section.
#[derive(Clone, Debug, Default)]
struct Filter {
    fqdn: Option<String>,
    port: Option<u16>,
    subset: Option<String>,
    direction: Option<String>,
    name: Option<String>,
    cluster: Option<String>,
    address: Option<String>,
    status: Option<String>,
}

impl Shown {
    fn filter(&self) -> Filter {
        Filter {
            fqdn: self.fqdn.clone(),
            port: self.port,
            subset: self.subset.clone(),
            direction: self.direction.clone(),
            name: self.name.clone(),
            cluster: self.cluster.clone(),
            address: self.address.clone(),
            status: self.status.clone(),
        }
    }

    async fn dump(&self, server: &Server) -> Result<Value, Failure> {
        if let Some(file) = &self.file {
            let mut text = String::new();
            if file.as_os_str() == "-" {
                io::stdin().read_to_string(&mut text).map(drop)
            } else {
                fs::read_to_string(file).map(|read| text = read)
            }
            .map_err(|error| Failure::new(BAD_INPUT, format!("{} cannot be read: {error}", file.display())))?;
            let dump: Value = serde_json::from_str(&text).map_err(|error| {
                let (line, column) = (error.line(), error.column());
                Failure::new(BAD_INPUT, format!("{}:{line}:{column}: this is not JSON: {error}", file.display()))
            })?;
            return match dump.get("configs") {
                Some(Value::Array(_)) => Ok(dump),
                _ => Err(Failure::new(BAD_INPUT, format!("{}: a config_dump has `configs`", file.display()))),
            };
        }
        if let Some(admin) = &self.admin {
            let dump: Value = Server::new(admin).get("/config_dump").await.map_err(|failure| Failure {
                message: format!("no process answers at its admin port {admin}: {}", failure.message),
                ..failure
            })?;
            return match dump.get("configs") {
                Some(Value::Array(_)) => Ok(dump),
                _ => Err(Failure::new(FAILURE, format!("{admin} has no config_dump in Envoy's form"))),
            };
        }
        let Some(proxy) = &self.proxy else {
            return Err(Failure::new(USAGE, "of which workload? name it, or use --admin HOST:PORT or -f FILE"));
        };
        let plain = |c: char| c.is_ascii_alphanumeric() || "-._~".contains(c);
        if !proxy.chars().all(plain) {
            return Err(Failure::new(USAGE, format!("{proxy:?} is no name of a workload")));
        }
        server.get(&format!("/config_dump?proxy={proxy}")).await
    }
}
