//! Where requests are counted when the recorder is ours: plain numbers, one page a thread, added up when somebody reads.
//!
//! A request touches nothing that another thread writes, takes no histogram sample that has to be sorted into its bucket
//! later, and allocates nothing. Threads share [`PAGES`] pages in turn; a page's lock is held for the few additions of
//! one request, and by a reader for one walk. What a book held when it is dropped stays in the text.

use std::{
    borrow::Cow,
    collections::{BTreeMap, btree_map::Entry},
    fmt::Write as _,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use hashbrown::HashMap;
use mesh_core::telemetry::BUCKETS;
use metrics::Label;
use serde_json::{Value, json};

use super::{
    Lookup, SeriesKey,
    changes::{Changes, METRICS},
};
use crate::{spread, telemetry::Event};

/// More threads than this share.
const PAGES: usize = spread::PLACES;

/// All requests of one mesh.
#[derive(Debug, Default)]
pub(super) struct Book {
    pages: [Page; PAGES],
}

/// Alone on its cache lines.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Page(Mutex<HashMap<SeriesKey, Tally>>);

/// The labels of a series.
#[derive(Debug)]
pub(super) struct Named {
    /// What tells it from others.
    key: Arc<str>,
    /// As they stand between the braces; kept once, since there may be thousands.
    text: Arc<str>,
    /// The same by metric, where the control plane changes them; `None` is not told.
    changed: Option<Box<[Option<Arc<str>>; METRICS.len()]>>,
    is_grpc: bool,
}

impl Named {
    /// The labels of a metric; `None` when it is not told.
    fn of(&self, metric: usize) -> Option<&Arc<str>> {
        match &self.changed {
            None => Some(&self.text),
            Some(changed) => changed.get(metric)?.as_ref(),
        }
    }
}

/// What is added up of one series.
#[derive(Clone, Debug)]
struct Tally {
    labels: Arc<Named>,
    requests: u64,
    duration: Buckets,
    request_bytes: Buckets,
    response_bytes: Buckets,
    request_messages: u64,
    response_messages: u64,
}

#[derive(Clone, Debug, Default)]
struct Buckets {
    /// By [`BUCKETS`], and what is above them.
    counts: [u64; BUCKETS.len() + 1],
    sum: f64,
}

type Totals = BTreeMap<Arc<str>, Tally>;

static BOOKS: Mutex<Vec<Weak<Book>>> = Mutex::new(Vec::new());
/// Of books that are gone.
static CLOSED: Mutex<Totals> = Mutex::new(BTreeMap::new());

impl Book {
    /// An empty one, which [`render`] reads.
    pub(super) fn open() -> Arc<Self> {
        let book = Arc::new(Self::default());
        let mut books = lock(&BOOKS);
        books.retain(|book| book.strong_count() > 0);
        books.push(Arc::downgrade(&book));
        book
    }

    /// Counts a request of a series that this thread's page knows; `false` when it does not.
    pub(super) fn add(&self, lookup: &Lookup<'_>, event: &Event<'_>) -> bool {
        match self.page().get_mut(lookup) {
            Some(tally) => {
                tally.add(event);
                true
            }
            None => false,
        }
    }

    /// Counts a request of any series.
    pub(super) fn add_new(&self, key: SeriesKey, labels: &Arc<Named>, event: &Event<'_>) {
        self.page().entry(key).or_insert_with(|| Tally::new(labels)).add(event);
    }

    /// Lets go of the series that do not stay.
    pub(super) fn retain(&self, stays: impl Fn(&SeriesKey) -> bool) {
        self.pages.iter().for_each(|page| lock(&page.0).retain(|key, _| stays(key)));
    }

    fn page(&self) -> MutexGuard<'_, HashMap<SeriesKey, Tally>> {
        lock(&self.pages[spread::thread() % PAGES].0)
    }

    fn add_to(&self, totals: &mut Totals) {
        for page in &self.pages {
            lock(&page.0).values().for_each(|tally| add(totals, tally));
        }
    }
}

impl Drop for Book {
    fn drop(&mut self) {
        self.add_to(&mut lock(&CLOSED));
    }
}

impl Tally {
    fn new(labels: &Arc<Named>) -> Self {
        let none = Buckets::default();
        Self {
            labels: Arc::clone(labels),
            requests: 0,
            duration: none.clone(),
            request_bytes: none.clone(),
            response_bytes: none,
            request_messages: 0,
            response_messages: 0,
        }
    }

    fn add(&mut self, event: &Event<'_>) {
        self.requests += 1;
        self.duration.add(event.duration.as_secs_f64() * 1e3);
        self.request_bytes.add(event.request_bytes as f64);
        self.response_bytes.add(event.response_bytes as f64);
        self.request_messages += event.request_messages;
        self.response_messages += event.response_messages;
    }

    fn merge(&mut self, other: &Self) {
        self.requests += other.requests;
        self.duration.merge(&other.duration);
        self.request_bytes.merge(&other.request_bytes);
        self.response_bytes.merge(&other.response_bytes);
        self.request_messages += other.request_messages;
        self.response_messages += other.response_messages;
    }
}

impl Buckets {
    fn add(&mut self, value: f64) {
        self.sum += value;
        let bucket = BUCKETS.partition_point(|bound| *bound < value);
        if let Some(count) = self.counts.get_mut(bucket) {
            *count += 1;
        }
    }

    fn merge(&mut self, other: &Self) {
        self.sum += other.sum;
        self.counts.iter_mut().zip(other.counts).for_each(|(count, other)| *count += other);
    }
}

fn add(totals: &mut Totals, tally: &Tally) {
    let total = totals.entry(Arc::clone(&tally.labels.key)).or_insert_with(|| Tally::new(&tally.labels));
    total.merge(tally);
}

/// All books added up, in the order of their labels.
fn totals() -> Totals {
    let books: Vec<Arc<Book>> = lock(&BOOKS).iter().filter_map(Weak::upgrade).collect();
    let mut totals = lock(&CLOSED).clone();
    books.iter().for_each(|book| book.add_to(&mut totals));
    totals
}

/// Requests and durations of all series, for a reader of JSON. The counts are of each bucket by itself, not cumulative.
pub(super) fn traffic() -> Value {
    let series = totals().into_values().map(|tally| {
        json!({
            "labels": labels_of(&tally.labels.text),
            "requests": tally.requests,
            "duration": { "sum": tally.duration.sum, "counts": tally.duration.counts },
        })
    });
    json!({ "bounds": BUCKETS, "series": series.collect::<Vec<_>>() })
}

/// Prometheus text of all books, in the order of their labels. Format: Prometheus text exposition 0.0.4.
pub(super) fn render() -> String {
    let totals = totals();
    let mut text = String::new();
    if totals.is_empty() {
        return text;
    }
    counter(&mut text, 0, &lines(&totals, 0), |tally| tally.requests);
    histogram(&mut text, 1, &lines(&totals, 1), |tally| &tally.duration);
    histogram(&mut text, 2, &lines(&totals, 2), |tally| &tally.request_bytes);
    histogram(&mut text, 3, &lines(&totals, 3), |tally| &tally.response_bytes);
    counter(&mut text, 4, &lines(&totals, 4), |tally| tally.request_messages);
    counter(&mut text, 5, &lines(&totals, 5), |tally| tally.response_messages);
    text
}

type Lines<'a> = BTreeMap<&'a str, Cow<'a, Tally>>;

/// What is told of one metric, by its labels: where labels are left out, several series are one.
fn lines(totals: &Totals, metric: usize) -> Lines<'_> {
    let mut lines = Lines::new();
    let is_told = |tally: &&Tally| tally.labels.is_grpc || metric < 4;
    for tally in totals.values().filter(is_told) {
        let Some(labels) = tally.labels.of(metric) else { continue };
        match lines.entry(labels) {
            Entry::Vacant(place) => drop(place.insert(Cow::Borrowed(tally))),
            Entry::Occupied(mut place) => place.get_mut().to_mut().merge(tally),
        }
    }
    lines
}

fn name_of(metric: usize) -> String {
    format!("istio_{}", METRICS.get(metric).copied().unwrap_or_default())
}

fn counter(text: &mut String, metric: usize, lines: &Lines<'_>, of: fn(&Tally) -> u64) {
    if lines.is_empty() {
        return;
    }
    let name = name_of(metric);
    let _ = writeln!(text, "\n# TYPE {name} counter");
    for (labels, tally) in lines {
        let _ = writeln!(text, "{name}{{{labels}}} {}", of(tally));
    }
}

fn histogram(text: &mut String, metric: usize, lines: &Lines<'_>, of: fn(&Tally) -> &Buckets) {
    if lines.is_empty() {
        return;
    }
    let name = name_of(metric);
    let _ = writeln!(text, "\n# TYPE {name} histogram");
    for (labels, tally) in lines {
        let buckets = of(tally);
        let mut count = 0;
        for (within, bound) in buckets.counts.iter().zip(BUCKETS) {
            count += within;
            let _ = writeln!(text, "{name}_bucket{{{labels},le=\"{bound}\"}} {count}");
        }
        let _ = writeln!(text, "{name}_bucket{{{labels},le=\"+Inf\"}} {}", tally.requests);
        let _ = writeln!(text, "{name}_sum{{{labels}}} {}", buckets.sum);
        let _ = writeln!(text, "{name}_count{{{labels}}} {}", tally.requests);
    }
}

/// Labels of a series that is counted here.
pub(super) fn named(labels: &[Label], is_grpc: bool, changes: Option<&Arc<Changes>>) -> Arc<Named> {
    let text = label_text(labels);
    let changed = changes.map(|changes| {
        let of = |metric| changes.apply(metric, labels).map(|labels| label_text(&labels));
        Box::new(METRICS.map(of))
    });
    let key = match &changed {
        None => Arc::clone(&text),
        Some(changed) => format!("{text}{changed:?}").into(),
    };
    Arc::new(Named { key, text, changed, is_grpc })
}

/// Labels back from the text between the braces.
fn labels_of(text: &str) -> serde_json::Map<String, Value> {
    let (mut labels, mut rest) = (serde_json::Map::new(), text.chars());
    loop {
        let name: String = rest.by_ref().take_while(|c| *c != '=').collect();
        // The quote that opens the value.
        if rest.next().is_none() {
            return labels;
        }
        let mut value = String::new();
        while let Some(c) = rest.next() {
            match c {
                '"' => break,
                '\\' => value.extend(rest.next().map(|c| if c == 'n' { '\n' } else { c })),
                c => value.push(c),
            }
        }
        labels.insert(name, value.into());
        // The comma.
        rest.next();
    }
}

/// Labels as they stand between the braces.
fn label_text(labels: &[Label]) -> Arc<str> {
    let mut text = String::with_capacity(1024);
    for label in labels {
        if !text.is_empty() {
            text.push(',');
        }
        let _ = write!(text, "{}=\"", label.key());
        for c in label.value().chars() {
            match c {
                '"' | '\\' => text.extend(['\\', c]),
                '\n' => text.push_str("\\n"),
                c => text.push(c),
            }
        }
        text.push('"');
    }
    text.into()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_at_a_bound_is_within_it() {
        let mut buckets = Buckets::default();
        [0.5, 0.6, 1.0, 3_600_000.0, 4e6].into_iter().for_each(|value| buckets.add(value));
        assert_eq!((buckets.counts[0], buckets.counts[1], buckets.counts[18], buckets.counts[19]), (1, 2, 1, 1));
    }

    #[test]
    fn labels_cannot_break_out_of_their_quotes() {
        let text = label_text(&[Label::new("a", "x\"\\\n"), Label::new("b", "")]);
        assert_eq!(&*text, r#"a="x\"\\\n",b="""#);
        assert_eq!(Value::from(labels_of(&text)), json!({ "a": "x\"\\\n", "b": "" }));
    }
}
