//! `meshctl shift`: which share of a host's requests each subset gets, at once or step by step.
//!
//! Step by step it looks at how the requests of each step end, as the callers count them, and puts back what was before when too
//! few succeed, when there are none to judge by, or when it is interrupted.

use std::time::Duration;

use mesh_control::api::{
    Objects,
    observed::{Live, UNKNOWN},
};
use tokio::time::{Instant, timeout_at};

use crate::cli::{
    FAILURE, Failure, INTERRUPTED, USAGE,
    client::Server,
    live::Moments,
    output,
    steer::{Rule, Steering, cannot, change},
    values,
};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  meshctl shift reviews v1=90 v2=10
  meshctl shift reviews v3
  meshctl shift reviews v2=100 --over 10m --steps 5 --success-rate 99
  meshctl shift reviews --undo")]
pub(in crate::cli) struct Shift {
    #[command(flatten)]
    steering: Steering,
    /// Subsets with their shares, which add up to 100; one alone gets all.
    #[arg(value_name = "SUBSET=PERCENT", value_parser = values::weight)]
    weights: Vec<(String, u32)>,
    /// Take so long about it, in steps.
    #[arg(long, value_name = "DURATION", value_parser = values::duration)]
    over: Option<Duration>,
    /// In so many steps.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100), requires = "over")]
    steps: u32,
    /// Step by step: go back when less than this of a step's requests succeed, in percent.
    #[arg(long, value_name = "PERCENT", default_value = "99", value_parser = values::percent, requires = "over")]
    success_rate: f64,
    /// Step by step: go back when a step had fewer requests to judge by.
    #[arg(long, value_name = "N", default_value_t = 1, requires = "over")]
    min_requests: u64,
    /// Put back what was before the last shift.
    #[arg(long, conflicts_with_all = ["weights", "over"])]
    undo: bool,
}

impl Shift {
    /// Whether an interrupt is its own affair: half way is no place to stay.
    pub(in crate::cli) fn ends_itself(&self) -> bool {
        self.over.is_some()
    }

    pub(in crate::cli) async fn run(self, server: &Server) -> Result<(), Failure> {
        if !self.undo {
            check(&self.weights).map_err(|message| Failure::new(USAGE, message))?;
        }
        let mut rule = self.steering.rule(server).await?;
        let route = self.steering.route.as_deref();
        if self.undo {
            change::unshift(&mut rule.object, route).map_err(cannot)?;
            return self.steering.apply(server, &rule).await;
        }
        if let Some(over) = self.over.filter(|_| !self.steering.dry_run) {
            return tokio::select! {
                done = self.step_by_step(server, rule.clone(), over) => done,
                _ = tokio::signal::ctrl_c() => {
                    self.back(server, rule).await?;
                    Err(Failure::new(INTERRUPTED, "interrupted; everything goes as before"))
                }
            };
        }
        change::shift(&mut rule.object, route, &self.weights, true).map_err(cannot)?;
        self.steering.apply(server, &rule).await
    }

    async fn step_by_step(&self, server: &Server, mut rule: Rule, over: Duration) -> Result<(), Failure> {
        let route = self.steering.route.as_deref();
        let (before, original) = (change::weights(&rule.object, route).map_err(cannot)?, rule.clone());
        if before.iter().any(|(subset, _)| subset.is_empty()) {
            return Err(Failure::new(
                FAILURE,
                "what goes where now has no weights to begin from; shift all to one subset first, as in `meshctl shift reviews v1`",
            ));
        }
        let growing: Vec<&str> = self
            .weights
            .iter()
            .filter(|(subset, weight)| *weight > share(&before, subset))
            .map(|(subset, _)| subset.as_str())
            .collect();
        let (host, versions) = (rule.host(), versions(server, &rule, &growing).await?);
        let mut moments = Moments::open(server).await?;
        let pause = over / self.steps;
        for step in 1..=self.steps {
            let weights = between(&before, &self.weights, step, self.steps);
            change::shift(&mut rule.object, route, &weights, step == 1).map_err(cannot)?;
            let applied = self.steering.put(server, &rule).await?;
            if step == 1 {
                output::diagnostics(&applied.diagnostics);
            }
            let judged = judge(&mut moments, &host, &versions, pause).await?;
            let told: Vec<String> = weights.iter().map(|(subset, weight)| format!("{subset}={weight}")).collect();
            let told = format!("step {step} of {}: {}, {judged}", self.steps, told.join(" "));
            output::data(&format!("{told}\n"))?;
            let reason = if judged.requests < self.min_requests {
                format!("{} requests are too few to judge by (--min-requests {})", judged.requests, self.min_requests)
            } else if judged.success() * 100.0 < self.success_rate {
                format!("{:.2} % succeeded, less than {} %", judged.success() * 100.0, self.success_rate)
            } else {
                continue;
            };
            self.back(server, original).await?;
            return Err(Failure::new(FAILURE, format!("{reason}; everything goes as before")));
        }
        Ok(())
    }

    /// As it was, to the letter.
    async fn back(&self, server: &Server, original: Rule) -> Result<(), Failure> {
        self.steering.apply(server, &original).await
    }
}

/// How the requests of a step ended.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
struct Judged {
    requests: u64,
    failures: u64,
}

impl Judged {
    fn success(self) -> f64 {
        if self.requests == 0 { 1.0 } else { 1.0 - self.failures as f64 / self.requests as f64 }
    }

    /// All requests so far to the host's growing versions, and those that reached nobody.
    fn of(live: &Live, host: &str, versions: &[String]) -> Self {
        let mut out = Self::default();
        let is_it =
            |version: &str| versions.is_empty() || version == UNKNOWN || versions.iter().any(|it| it == version);
        for edge in live.edges.iter().filter(|edge| edge.host == host && is_it(&edge.to.version)) {
            for (outcome, count) in &edge.outcomes {
                out.requests += count;
                out.failures += if outcome.is_failure() { *count } else { 0 };
            }
        }
        out
    }

    fn since(self, before: Self) -> Self {
        Self {
            requests: self.requests.saturating_sub(before.requests),
            failures: self.failures.saturating_sub(before.failures),
        }
    }
}

impl std::fmt::Display for Judged {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.requests {
            0 => f.write_str("no requests"),
            requests => write!(f, "{:.2} % of {requests} requests succeeded", self.success() * 100.0),
        }
    }
}

/// Looks for so long at how requests end.
async fn judge(moments: &mut Moments, host: &str, versions: &[String], time: Duration) -> Result<Judged, Failure> {
    let end = Instant::now() + time;
    let (mut first, mut last) = (None, Judged::default());
    while let Ok(live) = timeout_at(end, moments.next()).await {
        last = Judged::of(&live?, host, versions);
        first.get_or_insert(last);
    }
    Ok(last.since(first.unwrap_or_default()))
}

/// The versions that metrics tell growing subsets by; without a label `version` on each, all of the host count.
async fn versions(server: &Server, rule: &Rule, growing: &[&str]) -> Result<Vec<String>, Failure> {
    let path = format!("/objects?kind=dr&namespace={}", crate::cli::client::escape(server.namespace()));
    let items = server.get::<Objects>(&path).await?.items;
    let host = rule.host();
    let mut found = Vec::new();
    for item in items {
        let of = item.object.pointer("/spec/host").and_then(serde_json::Value::as_str).unwrap_or_default();
        if values::full_host(of, &item.key.namespace) != host {
            continue;
        }
        for subset in item.object.pointer("/spec/subsets").and_then(serde_json::Value::as_array).into_iter().flatten() {
            let text = |pointer: &str| subset.pointer(pointer).and_then(serde_json::Value::as_str);
            if text("/name").is_some_and(|name| growing.contains(&name)) {
                found.extend(text("/labels/version").map(str::to_owned));
            }
        }
    }
    Ok(if found.len() == growing.len() { found } else { Vec::new() })
}

fn share(of: &[(String, u32)], subset: &str) -> u32 {
    of.iter().find(|(name, _)| name == subset).map_or(0, |(_, weight)| *weight)
}

/// One step of so many on the way: the last is the goal, and each adds up to what the goal does.
fn between(from: &[(String, u32)], to: &[(String, u32)], step: u32, steps: u32) -> Vec<(String, u32)> {
    let mut names: Vec<&String> = from.iter().chain(to).map(|(name, _)| name).collect();
    names.sort();
    names.dedup();
    let at = |name: &str| {
        let (from, to) = (u64::from(share(from, name)), u64::from(share(to, name)));
        // What shrinks is rounded up and what grows down, so that a version is not tried on more than asked for.
        let (step, steps) = (u64::from(step), u64::from(steps));
        let value = match to >= from {
            true => from + (to - from) * step / steps,
            false => from - (from - to) * step / steps,
        };
        u32::try_from(value).unwrap_or_default()
    };
    let mut weights: Vec<(String, u32)> = names.into_iter().map(|name| (name.clone(), at(name))).collect();
    let goal: u32 = to.iter().map(|(_, weight)| *weight).sum();
    let sum: u32 = weights.iter().map(|(_, weight)| *weight).sum();
    // Rounding leaves a few over or under: they are of the one that shrinks most, else of the largest.
    let shrinks = |(name, _): &&mut (String, u32)| i64::from(share(from, name)) - i64::from(share(to, name));
    if let Some((_, weight)) = weights.iter_mut().max_by_key(shrinks) {
        *weight = (*weight + goal).saturating_sub(sum);
    }
    weights
}

fn check(weights: &[(String, u32)]) -> Result<(), String> {
    let sum: u32 = weights.iter().map(|(_, weight)| weight).sum();
    let is_twice =
        |(index, (name, _)): (usize, &(String, u32))| weights.iter().take(index).any(|(other, _)| other == name);
    match () {
        () if weights.is_empty() => {
            Err("who is to get the requests? give subsets with shares, such as v1=90 v2=10".to_owned())
        }
        () if weights.iter().enumerate().any(is_twice) => Err("a subset is named twice".to_owned()),
        () if sum != 100 => Err(format!("the shares add up to {sum}, not to 100")),
        () => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use super::*;
    use crate::cli::live::tests::edge;

    fn shares(of: &[(&str, u32)]) -> Vec<(String, u32)> {
        of.iter().map(|(subset, weight)| ((*subset).to_owned(), *weight)).collect()
    }

    /// OP12: steps lead evenly from what is to what is wanted, and each adds up to 100.
    #[test]
    fn steps_lead_to_the_goal() {
        let (from, to) = (shares(&[("v1", 100)]), shares(&[("v2", 100)]));
        let steps: Vec<_> = (1..=3).map(|step| between(&from, &to, step, 3)).collect();
        assert_eq!(
            steps,
            [[("v1", 67), ("v2", 33)], [("v1", 34), ("v2", 66)], [("v1", 0), ("v2", 100)]].map(|of| shares(&of))
        );
        for (from, to) in [(shares(&[("a", 33), ("b", 33), ("c", 34)]), shares(&[("a", 10), ("d", 90)])), (to, from)] {
            for step in 1..=7 {
                let weights = between(&from, &to, step, 7);
                assert_eq!(weights.iter().map(|(_, weight)| weight).sum::<u32>(), 100, "{weights:?}");
            }
        }
    }

    /// OP12: a step is judged by the requests of the versions that grow, and by those that reached nobody.
    #[test]
    fn steps_are_judged_by_growing_versions() {
        let host = "reviews.default.svc.cluster.local";
        let edges = vec![
            edge("v1", 1.0, 0.0, &[("503", 50)]),
            edge("v2", 1.0, 0.0, &[("200", 90), ("404", 5), ("503", 3)]),
            edge(UNKNOWN, 1.0, 0.0, &[("503", 2)]),
        ];
        let live = Live { edges, ..Live::default() };
        let judged = Judged::of(&live, host, &["v2".to_owned()]);
        assert_eq!(judged, Judged { requests: 100, failures: 5 });
        assert_eq!(judged.to_string(), "95.00 % of 100 requests succeeded");
        assert_eq!(Judged::of(&live, host, &[]).failures, 55, "without versions, all of the host");
        assert_eq!(Judged::of(&live, "ratings", &[]), Judged::default());
        assert_eq!(judged.since(Judged { requests: 90, failures: 5 }), Judged { requests: 10, failures: 0 });
    }

    #[test]
    fn shares_add_up() {
        assert!(check(&shares(&[("v1", 90), ("v2", 10)])).is_ok());
        for wrong in [shares(&[]), shares(&[("v1", 90)]), shares(&[("v1", 50), ("v1", 50)])] {
            assert!(check(&wrong).is_err(), "{wrong:?}");
        }
    }
}
