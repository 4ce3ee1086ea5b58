//! `meshctl explain METHOD URL`: where a request would go, which rule says so, and why.

use clap::ValueEnum;
use mesh_control::api::{ExplainRequest, Explained};

use crate::cli::{Failure, client::Server, output, values};

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Explain {
    /// Such as GET.
    method: String,
    /// Such as http://reviews:9080/reviews/0.
    url: String,
    /// A header of the request; may be repeated.
    #[arg(short = 'H', long = "header", value_name = "NAME:VALUE", value_parser = values::header)]
    headers: Vec<(String, String)>,
    /// The workload that would send it, by instance, workload or label app.
    #[arg(long, value_name = "WORKLOAD")]
    from: Option<String>,
    /// How to print.
    #[arg(short, long, value_enum, default_value_t = Format::Text)]
    output: Format,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
enum Format {
    Text,
    Json,
}

impl Explain {
    pub(in crate::cli) async fn run(self, server: &Server) -> Result<(), Failure> {
        let request = ExplainRequest { method: self.method, url: self.url, headers: self.headers, from: self.from };
        let explained: Explained = server.post("/explain", &request).await?;
        match self.output {
            Format::Text => {
                output::data(&format!("from {}\n{}\n", explained.from, explained.text.trim_end_matches('\n')))
            }
            Format::Json => output::data(&output::json(&explained.explanation)?),
        }
    }
}
