//! `meshctl version`: of this command, of the control plane, and of the workloads that are connected to it.

use std::collections::BTreeMap;

use clap::ValueEnum;
use mesh_control::api::{self, Proxies};
use serde_json::json;

use crate::cli::{Failure, client::Server, output};

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Version {
    /// Of this command only; asks nobody.
    #[arg(long)]
    client: bool,
    /// How to print.
    #[arg(short, long, value_enum, default_value_t = Format::Text)]
    output: Format,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
enum Format {
    Text,
    Json,
    Yaml,
}

impl Version {
    pub(in crate::cli) async fn run(self, server: &Server) -> Result<(), Failure> {
        let own = env!("CARGO_PKG_VERSION");
        if self.output == Format::Text {
            output::data(&format!("meshctl {own}\n"))?;
        }
        let mut told = json!({ "client": { "version": own } });
        if !self.client {
            let plane: api::Version = server.get("/version").await?;
            if self.output == Format::Text {
                output::data(&format!(
                    "control plane {} (revision {}), workloads connect to {}\n",
                    plane.version, plane.revision, plane.xds
                ))?;
            }
            let proxies: Proxies = server.get("/proxies").await?;
            let mut workloads: BTreeMap<String, usize> = BTreeMap::new();
            for proxy in proxies.items {
                let other = format!("{} (another's)", proxy.version);
                *workloads.entry(if proxy.program.is_empty() { other } else { proxy.program }).or_default() += 1;
            }
            if self.output == Format::Text && !workloads.is_empty() {
                let words: Vec<String> =
                    workloads.iter().map(|(version, count)| format!("{version} ({count})")).collect();
                output::data(&format!("workloads {}\n", words.join(", ")))?;
            }
            if let Some(told) = told.as_object_mut() {
                told.insert("workloads".to_owned(), json!(workloads));
                told.insert(
                    "control_plane".to_owned(),
                    json!({ "version": plane.version, "xds": plane.xds, "revision": plane.revision }),
                );
            }
        }
        match self.output {
            Format::Text => Ok(()),
            Format::Json => output::data(&output::json(&told)?),
            Format::Yaml => output::data(&output::yaml(&told)?),
        }
    }
}
