//! `meshctl proxy-status`: which workloads are connected, and whether they use what was sent to them.

use clap::ValueEnum;
use mesh_control::api::Proxies;

use super::{Failure, client::Server, output};

#[derive(Debug, clap::Args)]
pub(super) struct ProxyStatus {
    /// How to print.
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    output: Format,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
enum Format {
    Table,
    Json,
}

impl ProxyStatus {
    pub(super) async fn run(self, server: &Server) -> Result<(), Failure> {
        let proxies: Proxies = server.get("/proxies").await?;
        if self.output == Format::Json {
            return output::data(&output::json(&proxies)?);
        }
        if proxies.items.is_empty() {
            output::note("No workload is connected.");
            return Ok(());
        }
        let types = ["CDS", "LDS", "EDS", "RDS"];
        let mut header = vec!["NAME"];
        header.extend(types);
        header.extend(["VERSION", "CONNECTED"]);
        let mut rows = Vec::new();
        for proxy in &proxies.items {
            let mut row = vec![proxy.name.clone()];
            row.extend(types.map(|kind| proxy.types.get(kind).map(|of| of.state).unwrap_or_default().to_string()));
            row.extend([proxy.version.clone(), output::age(proxy.connected)]);
            rows.push(row);
        }
        output::data(&output::table(&header, &rows))?;
        for proxy in &proxies.items {
            for (kind, status) in &proxy.types {
                if let Some(error) = &status.error {
                    output::note(&format!("{} refused {kind}: {error}", proxy.name));
                }
            }
        }
        Ok(())
    }
}
