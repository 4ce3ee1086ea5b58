//! `meshctl fields`: what became of every field of every resource a process got: applied, ignored or refused.

use serde_json::Value;

use crate::cli::{
    Failure,
    client::{Server, escape},
    output,
};

const HEADER: [&str; 5] = ["TYPE", "RESOURCE", "STATE", "FIELD", ""];

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Fields {
    /// The workload, or the admin port of its process, as its log says it.
    #[arg(value_name = "WORKLOAD|HOST:PORT")]
    whose: String,
    /// Fields that are applied, too.
    #[arg(short, long)]
    all: bool,
}

impl Fields {
    pub(in crate::cli) async fn run(self, server: &Server) -> Result<(), Failure> {
        let resources: Vec<Value> = if self.whose.contains(':') {
            Server::new(&self.whose).get("/fields").await.map_err(|failure| Failure {
                message: format!(
                    "no process of the mesh answers at its admin port {}: {}",
                    self.whose, failure.message
                ),
                ..failure
            })?
        } else {
            let name = match self.whose.contains('.') {
                true => self.whose.clone(),
                false => format!("{}.{}", self.whose, server.namespace()),
            };
            server.get(&format!("/console/processes/{}/fields", escape(&name))).await?
        };
        let rows = rows(&resources, self.all);
        if rows.is_empty() {
            output::note("No field is ignored or refused.");
            return Ok(());
        }
        output::data(&output::table(&HEADER, &rows))
    }
}

fn rows(resources: &[Value], all: bool) -> Vec<Vec<String>> {
    let mut rows = Vec::new();
    for resource in resources {
        let text = |key: &str| resource[key].as_str().unwrap_or_default().to_owned();
        for (list, word) in [("refused", "refused"), ("ignored", "ignored"), ("applied", "applied")] {
            for path in resource[list].as_array().into_iter().flatten().filter(|_| all || list != "applied") {
                let path = path.as_str().unwrap_or_default().to_owned();
                rows.push(vec![text("kind"), text("name"), text("state"), path, word.to_owned()]);
            }
        }
    }
    rows
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::cli::tests::snapshot;

    /// C20: what is refused and ignored is listed by resource; what is applied on demand.
    #[test]
    fn fields_are_listed_by_resource() {
        let resources = [json!({
            "kind": "CDS", "name": "a", "state": "ACKED", "applied": ["name"], "ignored": ["alt_stat_name"],
        })];
        assert_eq!(rows(&resources, false), [["CDS", "a", "ACKED", "alt_stat_name", "ignored"]]);
        assert_eq!(rows(&resources, true).len(), 2);
        let refused = json!({"kind": "RDS", "name": "80", "state": "NACKED", "refused": ["virtual_hosts[0].domains"]});
        let table = output::table(&HEADER, &rows(&[resources[0].clone(), refused], true));
        snapshot("fields", &table);
    }
}
