//! `meshctl tap`: requests as they end, a line each, in the words of `linkerd viz tap`.

use std::time::Duration;

use crate::cli::{
    Failure,
    client::Server,
    output,
    spans::{Call, Calls},
    values,
};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  meshctl tap
  meshctl tap reviews --from productpage --method GET --path /reviews
  meshctl tap --errors -o json")]
pub(in crate::cli) struct Tap {
    #[command(flatten)]
    wanted: Wanted,
    /// No more lines a second than these; the rest is counted.
    #[arg(long, default_value_t = 100, value_name = "N")]
    max_rps: u32,
    /// End after so many lines.
    #[arg(long, value_name = "N")]
    count: Option<u64>,
    /// A JSON object a line.
    #[arg(short, long, value_parser = ["json"])]
    output: Option<String>,
}

/// Which requests.
#[derive(Clone, Debug, clap::Args)]
pub(in crate::cli) struct Wanted {
    /// Only requests to this service.
    service: Option<String>,
    /// Only requests of this service.
    #[arg(long, value_name = "SERVICE")]
    from: Option<String>,
    /// Only requests with this method.
    #[arg(long)]
    method: Option<String>,
    /// Only requests whose path begins so.
    #[arg(long)]
    path: Option<String>,
    /// Only requests that failed.
    #[arg(long)]
    errors: bool,
}

impl Wanted {
    pub(in crate::cli) fn takes(&self, call: &Call) -> bool {
        let host = call.destination.split([':', '.']).next();
        self.service.as_ref().is_none_or(|to| call.destination == *to || host == Some(to))
            && self.from.as_ref().is_none_or(|from| call.source.as_ref() == Some(from))
            && self.method.as_ref().is_none_or(|method| call.method.eq_ignore_ascii_case(method))
            && self.path.as_ref().is_none_or(|path| call.path.starts_with(path.as_str()))
            && (call.is_error || !self.errors)
    }
}

impl Tap {
    pub(in crate::cli) async fn run(self, server: &Server) -> Result<(), Failure> {
        let mut calls = Calls::begin(server).await?;
        let mut left = self.count.unwrap_or(u64::MAX);
        // Two looks a second.
        let most = usize::try_from(self.max_rps.div_ceil(2)).unwrap_or(usize::MAX);
        loop {
            let mut new = calls.next().await?;
            new.retain(|call| self.wanted.takes(call));
            let beyond = new.len().saturating_sub(most);
            for call in new.iter().take(most) {
                match self.output {
                    Some(_) => {
                        let text = serde_json::to_string(call);
                        output::data(
                            &(text.map_err(|error| Failure::new(crate::cli::FAILURE, error.to_string()))? + "\n"),
                        )?;
                    }
                    None => output::data(&line(call))?,
                }
                left -= 1;
                if left == 0 {
                    return Ok(());
                }
            }
            if beyond > 0 {
                output::note(&format!("{beyond} more are left out (--max-rps {})", self.max_rps));
            }
        }
    }
}

/// `rsp src=productpage dst=reviews :method=GET :authority=reviews:9080 :path=/reviews/0 :status=200 latency=3.12ms`
fn line(call: &Call) -> String {
    let or_dash = |text: &str| if text.is_empty() { "-".to_owned() } else { text.to_owned() };
    let mut text = format!(
        "rsp src={} dst={} :method={} :authority={} :path={} :status={} latency={}",
        call.source.as_deref().unwrap_or("outside"),
        or_dash(&call.destination),
        or_dash(&call.method),
        or_dash(&call.authority),
        or_dash(&call.path),
        call.status.as_deref().unwrap_or("-"),
        values::for_people(Duration::from_micros(call.duration)),
    );
    if !call.flags.is_empty() {
        text += &format!(" flags={}", call.flags);
    }
    format!("{text} trace={}\n", call.trace)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use super::*;
    use crate::cli::{spans, tests::snapshot};

    /// TE19: a line for each request, with whom, what, how it ended and how long it took; and only those that are wanted.
    #[test]
    fn requests_are_lines_and_can_be_chosen() {
        let calls = spans::calls("4bf92f3577b34da6a3ce929d0e0e4736", &spans::tests::page());
        snapshot("tap", &calls.iter().map(line).collect::<String>());
        let all = Wanted { service: None, from: None, method: None, path: None, errors: false };
        let some = |text: &str| Some(text.to_owned());
        for (wanted, count) in [
            (all.clone(), 3),
            (Wanted { service: some("reviews"), ..all.clone() }, 2),
            (Wanted { from: some("productpage"), ..all.clone() }, 2),
            (Wanted { path: some("/product"), ..all.clone() }, 1),
            (Wanted { method: some("post"), ..all.clone() }, 0),
            (Wanted { errors: true, ..all }, 1),
        ] {
            assert_eq!(calls.iter().filter(|call| wanted.takes(call)).count(), count, "{wanted:?}");
        }
    }
}
