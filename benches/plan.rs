//! What does deciding a request cost, and does it grow with the number of rules?
//!
//! Question: CPU per `Snapshot::plan` with 10, 1,000 and 10,000 rules in one virtual host, for requests that the last
//! rule takes: rules by exact path, by path prefix, by a header alone, and a mix of the three; and how many heap
//! allocations that takes. All sizes run in every round, in rotated order. Answers are kept in `RESULTS.md`.
//!
//! `cargo bench --bench plan` (`-- --rounds 9 --plans 200000` to change the size).
#![allow(missing_docs, clippy::unwrap_used)]

use std::sync::Arc;

use cpu_time::ThreadTime;
use mesh_core::{
    config::{Config, HeaderMatch, HeaderMatcher, PathMatch, Route, RouteMatch, RouteTable, StringMatch, VirtualHost},
    request::RequestView,
    rng::RequestRng,
    snapshot::Snapshot,
};

use common::{Policy, argument, cluster, forward, median, spread};

mod common;

const SIZES: [usize; 3] = [10, 1_000, 10_000];
const KINDS: [&str; 4] = ["exact", "prefix", "header", "mixed"];

fn main() {
    let rounds = argument("--rounds").unwrap_or(7);
    let plans = argument("--plans").unwrap_or(50_000);
    println!("{plans} plans a round, {rounds} rounds; CPU ns a plan.\n");
    println!("| rules by | 10 | 1,000 | 10,000 | 10,000 x 10 | allocations |");
    println!("|---|---|---|---|---|---|");
    for kind in KINDS {
        let beds: Vec<_> = SIZES.iter().map(|size| bed(kind, *size)).collect();
        let mut times: Vec<Vec<f64>> = vec![Vec::new(); SIZES.len()];
        for round in 0..=rounds {
            for step in 0..SIZES.len() {
                let at = (round + step) % SIZES.len();
                let time = run(&beds[at], plans);
                if round > 0 {
                    times[at].push(time);
                }
            }
        }
        let allocated = allocation_counter::measure(|| {
            run(&beds[2], 1_000);
        });
        let ratio = times[2].iter().zip(&times[0]).map(|(many, few)| many / few).collect();
        let cells: Vec<_> = times.iter().map(|times| format!("{:.0}", median(times.clone()))).collect();
        println!("| {kind} | {} | {} | {} |", cells.join(" | "), spread(ratio), allocated.count_total);
    }
}

/// A snapshot and the request that its last rule takes.
fn bed(kind: &str, rules: usize) -> (Snapshot, http::request::Parts) {
    let routes: Vec<Route> = (0..rules).map(|at| rule(kind_of(kind, at), at)).collect();
    let last = rules - 1;
    let (path, header) = match kind_of(kind, last) {
        "exact" => (format!("/exact/{last}"), None),
        "prefix" => (format!("/prefix/{last}/rest"), None),
        _ => ("/other".to_owned(), Some(format!("user-{last}"))),
    };
    let host = VirtualHost { name: "echo".into(), domains: vec!["echo".into()], routes, ..Default::default() };
    let table = RouteTable { virtual_hosts: vec![Arc::new(host)], ignore_port: true, ..Default::default() };
    let cluster = Arc::new(cluster("echo", ["127.0.0.1:9".parse().unwrap()]));
    let config = Config {
        outbound: [(80, Arc::new(table))].into(),
        clusters: [("echo".into(), cluster)].into(),
        ..Default::default()
    };
    let mut request = http::Request::get(format!("http://echo{path}")).header("user-agent", "bench");
    if let Some(user) = header {
        request = request.header("end-user", user);
    }
    (Snapshot::compile(&config, None).unwrap(), request.body(()).unwrap().into_parts().0)
}

fn kind_of(kind: &str, at: usize) -> &str {
    if kind == "mixed" { KINDS[at % 3] } else { kind }
}

fn rule(kind: &str, at: usize) -> Route {
    let path = match kind {
        "exact" => PathMatch::Exact { value: format!("/exact/{at}"), ignore_case: false },
        "prefix" => PathMatch::Prefix { value: format!("/prefix/{at}/"), ignore_case: false },
        _ => PathMatch::any(),
    };
    let user = StringMatch::Exact { value: format!("user-{at}"), ignore_case: false };
    let user = HeaderMatch {
        name: "end-user".into(),
        matcher: HeaderMatcher::Value(user),
        invert: false,
        missing_as_empty: false,
    };
    let headers = if kind == "header" { vec![user] } else { Vec::new() };
    let matches = RouteMatch { path, headers, ..RouteMatch::default() };
    common::route(&format!("rule-{at}"), matches, forward("echo", Policy::Usual))
}

/// CPU nanoseconds a plan.
fn run((snapshot, parts): &(Snapshot, http::request::Parts), plans: usize) -> f64 {
    let start = ThreadTime::now();
    for n in 0..plans {
        let view = RequestView::of(parts, None);
        let plan = snapshot.plan(&view, &mut RequestRng::new(1, n as u64)).unwrap();
        assert!(std::hint::black_box(plan).cluster().is_some());
    }
    start.elapsed().as_secs_f64() * 1e9 / plans as f64
}
