//! `meshctl version`: of this command, and of the control plane.

use mesh_control::api;

use super::{Failure, client::Server, output};

#[derive(Debug, clap::Args)]
pub(super) struct Version {
    /// Of this command only; asks nobody.
    #[arg(long)]
    client: bool,
}

impl Version {
    pub(super) async fn run(self, server: &Server) -> Result<(), Failure> {
        output::data(&format!("meshctl {}\n", env!("CARGO_PKG_VERSION")))?;
        if self.client {
            return Ok(());
        }
        let version: api::Version = server.get("/version").await?;
        output::data(&format!("control plane {}, workloads connect to {}\n", version.version, version.xds))
    }
}
