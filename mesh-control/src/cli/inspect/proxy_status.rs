//! `meshctl proxy-status`: which workloads are connected, and whether they use what was sent to them.

use mesh_control::api::{Protection, Proxies, ProxyStatus as Status};

use crate::cli::{
    Failure,
    client::Server,
    output::{self, Format, Printing, Table},
};

/// The types told of, in istioctl's order.
const TYPES: [&str; 4] = ["CDS", "LDS", "EDS", "RDS"];

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct ProxyStatus {
    /// Only this one, as NAME.NAMESPACE.
    name: Option<String>,
    #[command(flatten)]
    printing: Printing,
}

impl ProxyStatus {
    pub(in crate::cli) async fn run(self, server: &Server) -> Result<(), Failure> {
        let Proxies { mut items } = server.get("/proxies").await?;
        items.retain(|proxy| self.name.as_ref().is_none_or(|name| proxy.name == *name));
        if let (Some(name), true) = (&self.name, items.is_empty()) {
            return Err(Failure::new(crate::cli::FAILURE, format!("no workload is connected as {name:?}")));
        }
        let name = |proxy: &Status| format!("workload/{}", proxy.name);
        self.printing.list(&items, "No workload is connected.", |wide| table(&items, wide), name)?;
        if matches!(self.printing.output, Format::Table | Format::Wide) {
            for proxy in &items {
                for (kind, status) in &proxy.types {
                    if let Some(error) = &status.error {
                        output::note(&format!("{} refused {kind}: {error}", proxy.name));
                    }
                }
            }
        }
        Ok(())
    }
}

fn table(items: &[Status], wide: bool) -> Table {
    let mut header = vec!["NAME"];
    header.extend(TYPES);
    header.extend(["POLICIES", "VERSION", "CONNECTED"]);
    if wide {
        header.extend(["PROGRAM", "REVISION", "SENT", "REFUSALS"]);
    }
    let rows = items.iter().map(|proxy| {
        let mut row = vec![proxy.name.clone()];
        row.extend(TYPES.map(|kind| proxy.types.get(kind).map(|of| of.state).unwrap_or_default().to_string()));
        row.extend([policies(&proxy.protection), proxy.version.clone(), output::age(proxy.connected)]);
        if wide {
            let or_dash = |text: &str| if text.is_empty() { "-".to_owned() } else { text.to_owned() };
            row.extend([or_dash(&proxy.program), or_dash(&proxy.revision)]);
            let sent = proxy.types.iter().filter_map(|(kind, of)| Some(format!("{kind} {}", of.sent.as_ref()?)));
            row.push(sent.collect::<Vec<_>>().join(", "));
            row.push(proxy.types.values().map(|of| of.refusals).sum::<u64>().to_string());
        }
        row
    });
    Table { header, rows: rows.collect(), figures: usize::MAX }
}

/// Whether policies about a workload are enforced, in a word, and where they are not.
fn policies(protection: &Protection) -> String {
    match protection {
        Protection::None => "none".to_owned(),
        Protection::Enforced => "enforced".to_owned(),
        Protection::Unknown => "unknown".to_owned(),
        Protection::Unprotected(ports) => {
            format!("unprotected:{}", ports.iter().map(u16::to_string).collect::<Vec<_>>().join(","))
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use serde_json::json;

    use super::*;
    use crate::cli::tests::snapshot;

    /// OP1: each type has its state, and what was never sent says so.
    #[test]
    fn states_are_columns() {
        let of = |state: &str| json!({"state": state, "sent": "7", "refusals": 1});
        let types = json!({"CDS": of("SYNCED"), "LDS": of("STALE"), "RDS": of("ERROR")});
        let items = json!([{"name": "reviews-v1.default", "version": "1.29.6", "connected": 0, "types": types, "program": "0.1.0", "revision": "canary"}]);
        let items: Vec<Status> = serde_json::from_value(items).unwrap();
        let age = output::age(0);
        snapshot("proxy-status", &table(&items, false).text(false).replace(&age, "AGE"));
        snapshot("proxy-status-wide", &table(&items, true).text(false).replace(&format!("{age:<9}"), "AGE      "));
    }
}
