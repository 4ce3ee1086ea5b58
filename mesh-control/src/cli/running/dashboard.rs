//! `meshctl dashboard`: the console in the user's browser, or where it is when there is none. Where no control plane runs, one does from then on.

use std::{
    io::IsTerminal,
    net::{SocketAddr, TcpListener},
    process::{Command, Stdio},
};

use mesh_control::api;

use crate::cli::{Failure, UNREACHABLE, client::Server, dev::Dev, output};

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Dashboard {
    /// Only print the address.
    #[arg(long)]
    no_browser: bool,
    /// Fail where no control plane answers, instead of running one, as `meshctl dev` does, until interrupted.
    #[arg(long)]
    no_start: bool,
}

impl Dashboard {
    pub(in crate::cli) async fn run(self, server: &Server) -> Result<(), Failure> {
        let found: Result<api::Version, Failure> = server.get("/version").await;
        let start = match (found, server.address().parse::<SocketAddr>()) {
            (Ok(_), _) => None,
            // Nothing listens there, and it is this machine's: a port that something else has fails by itself.
            (Err(failure), Ok(address))
                if failure.code == UNREACHABLE && address.ip().is_loopback() && !self.no_start =>
            {
                Some(address)
            }
            (Err(failure), _) => return Err(failure),
        };
        let Some(address) = start else { return self.open(&server.url("/console/")) };
        output::note(&format!("No control plane answers at {address}; one is started here."));
        let dev = Dev::at(address, xds());
        dev.run_and(|plane| self.open(&format!("http://{}/console/", plane.api_address()))).await
    }

    fn open(&self, url: &str) -> Result<(), Failure> {
        output::data(&format!("{url}\n"))?;
        if !self.no_browser && std::io::stdout().is_terminal() {
            let program = if cfg!(target_os = "macos") { "open" } else { "xdg-open" };
            let quiet = Command::new(program).arg(url).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
            if quiet.is_err() {
                output::note("no browser could be started; open the address above");
            }
        }
        Ok(())
    }
}

/// Where workloads are to connect: the usual port, or any other if somebody has it.
fn xds() -> SocketAddr {
    let usual = SocketAddr::from(([127, 0, 0, 1], mesh_control::Builder::XDS_PORT));
    if TcpListener::bind(usual).is_ok() { usual } else { SocketAddr::from(([127, 0, 0, 1], 0)) }
}
