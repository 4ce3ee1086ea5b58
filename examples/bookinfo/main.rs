//! Bookinfo on the mesh: one command starts a control plane, an ingress gateway and six workloads, each its own process.
//!
//! Without a subcommand this is the supervisor, which starts itself again once for each part: `control-plane`, `gateway`,
//! and one of the four services. The services are plain axum (`services.rs` and what it names); the mesh is in `workload.rs`.

mod control_plane;
mod layout;
#[path = "services.rs"]
mod services;
mod supervisor;
mod workload;

use std::io::IsTerminal;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use axum::BoxError;
use clap::{Parser, Subcommand};
use tracing_subscriber::EnvFilter;

use workload::Service;

/// Istio's Bookinfo on the mesh, on this machine, each part its own process.
#[derive(Debug, Parser)]
#[command(name = "bookinfo")]
struct Cli {
    #[command(flatten)]
    options: supervisor::Options,
    #[command(subcommand)]
    part: Option<Part>,
}

/// One process of the whole; the supervisor starts them, but each can be started by hand as well.
#[derive(Debug, Subcommand)]
enum Part {
    /// The control plane of a running Bookinfo.
    #[command(hide = true)]
    ControlPlane {
        /// The directory of this run.
        dir: PathBuf,
    },
    /// The ingress gateway: what arrives here enters the mesh by the routes of the `Gateway` server at this port.
    #[command(hide = true)]
    Gateway {
        /// Where to listen.
        addr: SocketAddr,
        /// The port that the `Gateway` resource names.
        port: u16,
    },
    /// The page.
    #[command(hide = true)]
    Productpage(Listen),
    /// What is printed in the book.
    #[command(hide = true)]
    Details(Listen),
    /// What readers wrote.
    #[command(hide = true)]
    Reviews(Listen),
    /// How many stars they gave.
    #[command(hide = true)]
    Ratings(Listen),
}

/// Where a service listens.
#[derive(Debug, clap::Args)]
struct Listen {
    /// An address and port.
    #[arg(default_value = "127.0.0.1:9080")]
    addr: SocketAddr,
}

#[tokio::main]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    let quiet = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn"));
    let colour = std::io::stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(quiet).with_writer(std::io::stderr).with_ansi(colour).init();
    match run(cli).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(cli: Cli) -> Result<(), BoxError> {
    let Some(part) = cli.part else {
        return supervisor::run(cli.options).await;
    };
    supervisor::end_with_the_supervisor();
    match part {
        Part::ControlPlane { dir } => control_plane::run(&dir).await,
        Part::Gateway { addr, port } => workload::gateway(addr, port).await,
        Part::Productpage(listen) => workload::serve(Service::Productpage, listen.addr).await,
        Part::Details(listen) => workload::serve(Service::Details, listen.addr).await,
        Part::Reviews(listen) => workload::serve(Service::Reviews, listen.addr).await,
        Part::Ratings(listen) => workload::serve(Service::Ratings, listen.addr).await,
    }
}
