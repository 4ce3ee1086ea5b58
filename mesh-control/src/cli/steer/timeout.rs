//! `meshctl timeout`: how long requests to a host may take.

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
  meshctl timeout reviews 500ms
  meshctl timeout reviews --undo")]
pub(in crate::cli) struct Timeout {
    #[command(flatten)]
    steering: Steering,
    /// How long a request may take, all tries together; 0s is for ever.
    #[arg(value_parser = values::duration)]
    duration: Option<Duration>,
    /// Take the limit back.
    #[arg(long, conflicts_with = "duration")]
    undo: bool,
}

impl Timeout {
    pub(in crate::cli) async fn run(self, server: &Server) -> Result<(), Failure> {
        if self.duration.is_none() && !self.undo {
            return Err(Failure::new(USAGE, "how long may requests take? give a duration such as 500ms, or --undo"));
        }
        let mut rule = self.steering.rule(server).await?;
        change::timeout(&mut rule.object, self.steering.route.as_deref(), self.duration).map_err(cannot)?;
        self.steering.apply(server, &rule).await
    }
}
