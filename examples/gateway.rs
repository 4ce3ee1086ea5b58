//! A gateway for any mesh: what its control plane says of listeners, certificates and routes is all there is to it.
//!
//! `GRPC_XDS_BOOTSTRAP` names the bootstrap of a workload whose node is a `router`; `meshctl bootstrap --gateway` writes one.
//! Ports are those of the `Gateway` objects; `--map 80=8080,443=8443` listens at others instead.

use std::{net::IpAddr, process::ExitCode};

use clap::Parser;
use mesh_tower::{Mesh, PortMap};
use tracing_subscriber::EnvFilter;

/// Lets requests into the mesh, or out of it, as its Gateway objects say.
#[derive(Debug, Parser)]
#[command(name = "mesh-gateway")]
struct Options {
    /// The address to listen at
    #[arg(long, default_value = "0.0.0.0")]
    address: IpAddr,
    /// Where to listen instead of the ports declared: DECLARED=OWN, several with commas between
    #[arg(long, value_name = "PORTS", default_value = "")]
    map: PortMap,
}

#[tokio::main]
async fn main() -> ExitCode {
    let options = Options::parse();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    match Mesh::from_env().await {
        Ok(mesh) => {
            mesh.gateways(options.address, &options.map).await;
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
