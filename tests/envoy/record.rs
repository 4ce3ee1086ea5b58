//! All that arrives, by pair and side: how many tries of a request there were, and which copies of it.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use tokio::time::sleep;

use crate::{
    compare::{Difference, PAIR, told},
    upstream::{Arrived, Upstream, answer, echo},
};

/// All that arrived, by pair and side.
pub(crate) type Record = Arc<Mutex<BTreeMap<String, Vec<Arrived>>>>;
/// How long copies may take to arrive.
const COPIES: Duration = Duration::from_secs(2);
/// Longer than the limits that are meant to be reached, and shorter than the others.
const STALL: Duration = Duration::from_secs(2);

/// An upstream that does what requests ask of it (`x-stall`, and by try `x-answers`), and says what arrived.
pub(crate) async fn recording(name: &'static str, record: &Record) -> Upstream {
    let record = Arc::clone(record);
    let answer = move |arrived: Arrived| {
        let record = Arc::clone(&record);
        async move {
            let of = |name| arrived.all(name).next().map(str::to_owned);
            let before = {
                let mut record = record.lock().unwrap();
                let pair = record.entry(of(PAIR).unwrap_or_default()).or_default();
                pair.push(arrived.clone());
                pair.iter().filter(|one| one.upstream == arrived.upstream).count() - 1
            };
            if is_copy(&arrived) {
                return Some(echo(&arrived));
            }
            if of("x-stall").is_some() {
                sleep(STALL).await;
            }
            let answers = of("x-answers").unwrap_or_default();
            let word = answers.split(',').nth(before).or_else(|| answers.split(',').next_back()).unwrap_or_default();
            if let Some(code) = word.strip_prefix('g') {
                return Some(answer(200, &[("content-type", "application/grpc"), ("grpc-status", code)], ""));
            }
            let mut response = echo(&arrived);
            if let Ok(status) = word.parse() {
                *response.status_mut() = status;
            }
            Some(response)
        }
    };
    Upstream::start(name, answer).await
}

fn is_copy(arrived: &Arrived) -> bool {
    arrived.upstream.ends_with("mirror")
}

/// Waits until the copies that are expected of each pair have arrived on both sides.
pub(crate) async fn arrive(record: &Record, expected: &[(String, usize)]) {
    let until = Instant::now() + COPIES;
    let missing = || {
        let record = record.lock().unwrap();
        let copies = |key: &String| record.get(key).map_or(0, |all| all.iter().filter(|one| is_copy(one)).count());
        expected.iter().any(|(pair, count)| ['e', 'o'].iter().any(|side| copies(&format!("{pair} {side}")) < *count))
    };
    while missing() && Instant::now() < until {
        sleep(Duration::from_millis(10)).await;
    }
    // What nobody expects has had its time as well.
    sleep(Duration::from_millis(30)).await;
}

/// What arrived for one side of a pair.
pub(crate) struct Arrivals {
    /// Requests, copies aside.
    pub(crate) tries: usize,
    /// What copies said.
    pub(crate) copies: Vec<String>,
}

impl Arrivals {
    /// Of one pair, through one side.
    pub(crate) fn of(record: &BTreeMap<String, Vec<Arrived>>, slot: usize, n: usize, side: char) -> Self {
        let mut all = ["", " again"].iter().filter_map(|turn| record.get(&format!("{slot}-{n}{turn} {side}")));
        // Of a pair that was asked again the second time counts.
        let all: &[Arrived] = all.next_back().map_or(&[], Vec::as_slice);
        let mut copies: Vec<_> = all.iter().filter(|one| is_copy(one)).map(told).collect();
        copies.sort();
        Self { tries: all.len() - copies.len(), copies }
    }

    /// What is not the same through both.
    pub(crate) fn differences(&self, ours: &Self, all: &mut Vec<Difference>) {
        if self.tries != ours.tries {
            let (envoy, ours) = (self.tries.to_string(), ours.tries.to_string());
            all.push(Difference { what: "tries".to_owned(), envoy, ours });
        }
        if self.copies != ours.copies {
            let (envoy, ours) = (format!("{:?}", self.copies), format!("{:?}", ours.copies));
            all.push(Difference { what: "copies".to_owned(), envoy, ours });
        }
    }
}
