//! `meshctl retry`: how often requests to a host are tried again.

use std::time::Duration;

use crate::cli::{
    Failure, USAGE,
    client::Server,
    steer::{Steering, cannot, change},
    values,
};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  meshctl retry ratings --attempts 3 --per-try-timeout 2s --on 5xx,connect-failure
  meshctl retry ratings --attempts 0
  meshctl retry ratings --undo")]
pub(in crate::cli) struct Retry {
    #[command(flatten)]
    steering: Steering,
    /// How often, beyond the first try; 0 is never.
    #[arg(long, value_name = "N")]
    attempts: Option<u32>,
    /// How long each try may take.
    #[arg(long, value_name = "DURATION", value_parser = values::duration, requires = "attempts")]
    per_try_timeout: Option<Duration>,
    /// After what, as Envoy names it, by commas.
    #[arg(long, value_name = "CONDITIONS", requires = "attempts")]
    on: Option<String>,
    /// Take that back; what holds without a word is 2, as Istio has it.
    #[arg(long, conflicts_with = "attempts")]
    undo: bool,
}

impl Retry {
    pub(in crate::cli) async fn run(self, server: &Server) -> Result<(), Failure> {
        if self.attempts.is_none() && !self.undo {
            return Err(Failure::new(USAGE, "how often? give --attempts, or --undo"));
        }
        let retries =
            self.attempts.map(|attempts| change::Retries { attempts, per_try: self.per_try_timeout, on: self.on });
        let mut rule = self.steering.rule(server).await?;
        change::retry(&mut rule.object, self.steering.route.as_deref(), retries.as_ref()).map_err(cannot)?;
        self.steering.apply(server, &rule).await
    }
}
