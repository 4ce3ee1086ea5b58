//! `meshctl version`: of this command, and of the control plane.

use clap::ValueEnum;
use mesh_control::api;
use serde_json::json;

use super::{Failure, client::Server, output};

#[derive(Debug, clap::Args)]
pub(super) struct Version {
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
    pub(super) async fn run(self, server: &Server) -> Result<(), Failure> {
        let own = env!("CARGO_PKG_VERSION");
        if self.output == Format::Text {
            output::data(&format!("meshctl {own}\n"))?;
        }
        let mut told = json!({ "client": { "version": own } });
        if !self.client {
            let plane: api::Version = server.get("/version").await?;
            if self.output == Format::Text {
                output::data(&format!("control plane {}, workloads connect to {}\n", plane.version, plane.xds))?;
            }
            if let Some(told) = told.as_object_mut() {
                told.insert("control_plane".to_owned(), json!({ "version": plane.version, "xds": plane.xds }));
            }
        }
        match self.output {
            Format::Text => Ok(()),
            Format::Json => output::data(&output::json(&told)?),
            Format::Yaml => output::data(&output::yaml(&told)?),
        }
    }
}
