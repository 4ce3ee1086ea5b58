//! `meshctl dashboard`: the console in the user's browser, or where it is when there is none.

use std::{
    io::IsTerminal,
    process::{Command, Stdio},
};

use mesh_control::api;

use super::{Failure, client::Server, output};

#[derive(Debug, clap::Args)]
pub(super) struct Dashboard {
    /// Only print the address.
    #[arg(long)]
    no_browser: bool,
}

impl Dashboard {
    pub(super) async fn run(self, server: &Server) -> Result<(), Failure> {
        // Somebody must be there: a browser's own message would not say what to start.
        server.get::<api::Version>("/version").await?;
        let url = server.url("/console/");
        output::data(&format!("{url}\n"))?;
        if !self.no_browser && std::io::stdout().is_terminal() {
            let program = if cfg!(target_os = "macos") { "open" } else { "xdg-open" };
            let quiet = Command::new(program).arg(&url).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
            if quiet.is_err() {
                output::note("no browser could be started; open the address above");
            }
        }
        Ok(())
    }
}
