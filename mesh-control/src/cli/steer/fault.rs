//! `meshctl fault`: requests to a host are delayed or answered with a failure, all of them or a user's.

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
  meshctl fault ratings --delay 7s --user jason
  meshctl fault ratings --abort 500 --percent 10
  meshctl fault ratings --undo")]
pub(in crate::cli) struct Fault {
    #[command(flatten)]
    steering: Steering,
    /// Hold requests for so long.
    #[arg(long, value_name = "DURATION", value_parser = values::duration)]
    delay: Option<Duration>,
    /// Answer requests with this HTTP status.
    #[arg(long, value_name = "STATUS", value_parser = clap::value_parser!(u16).range(200..600))]
    abort: Option<u16>,
    /// Answer calls with this gRPC status, such as UNAVAILABLE.
    #[arg(long, value_name = "STATUS", conflicts_with = "abort")]
    grpc_abort: Option<String>,
    /// How many of the requests.
    #[arg(long, default_value = "100", value_parser = values::percent)]
    percent: f64,
    /// Only requests of this user, by header end-user.
    #[arg(long)]
    user: Option<String>,
    /// Only requests with this header; may be repeated.
    #[arg(short = 'H', long = "header", value_name = "NAME:VALUE", value_parser = values::header)]
    headers: Vec<(String, String)>,
    /// Take all faults of the host back.
    #[arg(long, conflicts_with_all = ["delay", "abort", "grpc_abort", "user", "headers"])]
    undo: bool,
}

impl Fault {
    pub(in crate::cli) async fn run(self, server: &Server) -> Result<(), Failure> {
        let mut headers = self.headers;
        headers.extend(self.user.map(|user| ("end-user".to_owned(), user)));
        let wanted = change::Fault {
            delay: self.delay,
            abort: self.abort,
            grpc: self.grpc_abort,
            percent: self.percent,
            headers,
        };
        let is_none = wanted.delay.is_none() && wanted.abort.is_none() && wanted.grpc.is_none();
        if is_none && !self.undo {
            return Err(Failure::new(USAGE, "what is to go wrong? give --delay, --abort or --grpc-abort, or --undo"));
        }
        let mut rule = self.steering.rule(server).await?;
        let route = self.steering.route.as_deref();
        match self.undo {
            true => change::unfault(&mut rule.object, route),
            false => change::fault(&mut rule.object, route, &wanted),
        }
        .map_err(cannot)?;
        self.steering.apply(server, &rule).await
    }
}
