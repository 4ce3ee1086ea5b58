//! `meshctl bootstrap`: what `run` gives a program, for programs that are started by somebody else.

use std::path::PathBuf;

use clap::ValueEnum;

use crate::cli::{Failure, client::Server, joining::Member, output};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
The token is good for twelve hours and is not renewed; `meshctl run` renews it.

Examples:
  meshctl bootstrap reviews --version v2 > bootstrap.json
  env $(meshctl bootstrap reviews --version v2 -o env) ./reviews")]
pub(in crate::cli) struct Bootstrap {
    #[command(flatten)]
    member: Member,
    /// Where to write the root, the token and the bootstrap; without, below the state directory.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// How to print.
    #[arg(short, long, value_enum, default_value_t = Format::Json)]
    output: Format,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
enum Format {
    /// What GRPC_XDS_BOOTSTRAP_CONFIG may hold, or the file that GRPC_XDS_BOOTSTRAP names.
    Json,
    Yaml,
    /// NAME=VALUE, a line each.
    Env,
}

impl Bootstrap {
    pub(in crate::cli) async fn run(self, server: &Server) -> Result<(), Failure> {
        let dir = match self.dir {
            Some(dir) => dir,
            None => self.member.state_dir(server)?.join("workloads"),
        };
        let joined = self.member.join(server, &dir).await?;
        output::data(&match self.output {
            Format::Json => output::json(&joined.joining.bootstrap)?,
            Format::Yaml => output::yaml(&joined.joining.bootstrap)?,
            Format::Env => joined.environment.iter().map(|(name, value)| format!("{name}={value}\n")).collect(),
        })
    }
}
