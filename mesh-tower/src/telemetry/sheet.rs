//! Where the metrics of other conventions than Istio's are counted: rows of plain numbers, one page a thread, added up when
//! somebody reads; or, where the application has a recorder of its own, handles of it that are kept by row.
//!
//! What there is to count, and by which labels, is in `conventions.rs`. A row that is known costs one look at a table of this
//! thread's and allocates nothing. Rows are bounded, and so are names that callers write: past [`NAMES`] of them, and past
//! [`ROWS`] rows, what is told is told under the word that a convention has for others.

use std::{
    collections::{BTreeMap, HashSet},
    hash::{Hash, Hasher},
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak},
};

use hashbrown::{Equivalent, HashMap};
use mesh_core::config::Name;

use super::conventions::{CUSTOM, Instrument, Table};
use crate::spread;

mod text;

#[cfg(test)]
pub(super) use text::prometheus_name;
use text::{Handle, handles, label_text};

/// Names a process takes from callers: methods of gRPC, routes of applications.
pub(super) const NAMES: usize = 256;
/// Different sets of labels kept.
pub(super) const ROWS: usize = 4096;

/// A row to add to, without owning anything.
#[derive(Clone, Copy)]
pub(super) struct Line<'a> {
    pub(super) table: &'static Table,
    /// What tells it from others of its table. The first of an open table is a name that callers write.
    pub(super) texts: [&'a str; 3],
    pub(super) numbers: [u32; 3],
    /// A name that is not known yet may become so.
    pub(super) admits: bool,
    /// The service whose end is the row's end; `None` stays.
    pub(super) service: Option<&'a Name>,
    /// There is no room: all but the first number is left out.
    pub(super) is_over: bool,
}

#[derive(Clone, Debug, Eq, PartialEq)]
struct Key {
    table: &'static Table,
    texts: [Box<str>; 3],
    numbers: [u32; 3],
}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        hash(self.table, self.texts.each_ref().map(|text| &**text), self.numbers, state);
    }
}

impl Hash for Line<'_> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        hash(self.table, self.texts, self.numbers, state);
    }
}

fn hash<H: Hasher>(table: &Table, texts: [&str; 3], numbers: [u32; 3], state: &mut H) {
    state.write_u64(u64::from(numbers[0]) << 40 ^ u64::from(numbers[1]) << 20 ^ u64::from(numbers[2]));
    state.write_u8(table.id);
    texts.iter().for_each(|text| state.write(text.as_bytes()));
}

impl Equivalent<Key> for Line<'_> {
    fn equivalent(&self, key: &Key) -> bool {
        self.table == key.table
            && self.numbers == key.numbers
            && self.texts.iter().zip(&key.texts).all(|(one, other)| **one == **other)
    }
}

/// What a row is called.
#[derive(Debug)]
struct Named {
    table: &'static Table,
    /// As it stands between the braces.
    text: Arc<str>,
    service: Option<Name>,
    /// The application's recorder has the numbers.
    theirs: Option<Box<[Handle]>>,
}

/// What is added up of one row.
#[derive(Clone, Debug)]
struct Row {
    named: Arc<Named>,
    cells: Box<[Cell]>,
}

#[derive(Clone, Debug)]
enum Cell {
    Sum(f64),
    /// By the instrument's bounds, and what is above them.
    Buckets {
        counts: Box<[u64]>,
        sum: f64,
    },
}

/// All rows of one mesh.
#[derive(Debug)]
pub(super) struct Sheet {
    pages: [Page; spread::PLACES],
    known: RwLock<HashMap<Key, Arc<Named>>>,
    names: RwLock<HashSet<Box<str>>>,
    /// The application's recorder has the numbers.
    is_theirs: bool,
    cap: usize,
}

/// Alone on its cache lines.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Page(Mutex<HashMap<Key, Row>>);

/// Rows by table and labels.
type Totals = BTreeMap<(u8, Arc<str>), Row>;

static SHEETS: Mutex<Vec<Weak<Sheet>>> = Mutex::new(Vec::new());
/// Of sheets that are gone.
static CLOSED: Mutex<Totals> = Mutex::new(BTreeMap::new());

impl Sheet {
    /// An empty one, which [`render`] reads unless the numbers are the application's.
    pub(super) fn open(is_theirs: bool) -> Arc<Self> {
        Self::with_cap(is_theirs, ROWS)
    }

    pub(super) fn with_cap(is_theirs: bool, cap: usize) -> Arc<Self> {
        let (pages, known, names) = Default::default();
        let sheet = Arc::new(Self { pages, known, names, is_theirs, cap });
        let mut sheets = lock(&SHEETS);
        sheets.retain(|sheet| sheet.strong_count() > 0);
        sheets.push(Arc::downgrade(&sheet));
        sheet
    }

    /// Adds a value to each instrument of the line's table, NaN to none; `false` if its name is not known and may not become so.
    pub(super) fn add(
        &self,
        line: &Line<'_>,
        values: &[f64],
        spell: impl Fn(&Line<'_>) -> Vec<String>,
        or_other: bool,
    ) -> bool {
        if let Some(row) = self.page().get_mut(line) {
            row.add(values);
            return true;
        }
        self.add_new(line, values, &spell, or_other)
    }

    #[cold]
    fn add_new(
        &self,
        line: &Line<'_>,
        values: &[f64],
        spell: &dyn Fn(&Line<'_>) -> Vec<String>,
        or_other: bool,
    ) -> bool {
        let mut line = *line;
        if line.table.is_open && !line.texts[0].is_empty() && !self.admit(line.texts[0], line.admits) {
            if !or_other {
                return false;
            }
            line.texts[0] = line.table.other;
        }
        let is_labelled = line.table.labels.contains(&CUSTOM) && !line.texts[2].is_empty();
        if is_labelled && !self.admit(line.texts[2], true) {
            line.texts[2] = line.table.other;
        }
        let named = match self.named(&line, spell, self.cap) {
            Some(named) => named,
            None => {
                super::metrics::count_dropped();
                let other = line.table.other;
                let (texts, numbers) = ([other; 3], [line.numbers[0], 0, 0]);
                line = Line { texts, numbers, is_over: true, service: None, ..line };
                match self.named(&line, spell, usize::MAX) {
                    Some(named) => named,
                    None => return false,
                }
            }
        };
        let mut page = self.page();
        page.entry(line.key()).or_insert_with(|| Row::new(&named)).add(values);
        true
    }

    /// Is a name that callers wrote known, or may it become so?
    fn admit(&self, name: &str, may: bool) -> bool {
        let known = self.names.read().unwrap_or_else(PoisonError::into_inner);
        if known.contains(name) {
            return true;
        }
        if !may || known.len() >= NAMES {
            return false;
        }
        drop(known);
        let mut known = self.names.write().unwrap_or_else(PoisonError::into_inner);
        if known.len() < NAMES {
            known.insert(name.into());
        }
        known.contains(name)
    }

    fn named(&self, line: &Line<'_>, spell: &dyn Fn(&Line<'_>) -> Vec<String>, cap: usize) -> Option<Arc<Named>> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(named) = known.get(line) {
            return Some(Arc::clone(named));
        }
        if known.len() >= cap {
            return None;
        }
        drop(known);
        let labels = spell(line);
        let theirs = self.is_theirs.then(|| handles(line.table, &labels));
        let text = label_text(line.table.labels, &labels);
        let named = Named { table: line.table, text, service: line.service.cloned(), theirs };
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        Some(Arc::clone(known.entry(line.key()).or_insert_with(|| Arc::new(named))))
    }

    /// Lets go of the rows of services that do not stay.
    pub(super) fn retain(&self, stays: impl Fn(&Name) -> bool) {
        let stays = |named: &Named| named.service.as_ref().is_none_or(&stays);
        self.known.write().unwrap_or_else(PoisonError::into_inner).retain(|_, named| stays(named));
        self.pages.iter().for_each(|page| lock(&page.0).retain(|_, row| stays(&row.named)));
    }

    /// The services that rows are kept for.
    pub(super) fn services(&self, each: impl FnMut(&Name)) {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        known.values().filter_map(|named| named.service.as_ref()).for_each(each);
    }

    fn page(&self) -> MutexGuard<'_, HashMap<Key, Row>> {
        lock(&self.pages[spread::thread() % spread::PLACES].0)
    }

    fn add_to(&self, totals: &mut Totals) {
        if self.is_theirs {
            return;
        }
        for page in &self.pages {
            for row in lock(&page.0).values() {
                let key = (row.named.table.id, Arc::clone(&row.named.text));
                totals.entry(key).or_insert_with(|| Row::new(&row.named)).merge(row);
            }
        }
    }
}

impl Drop for Sheet {
    fn drop(&mut self) {
        self.add_to(&mut lock(&CLOSED));
    }
}

impl Line<'_> {
    fn key(&self) -> Key {
        Key { table: self.table, texts: self.texts.map(Into::into), numbers: self.numbers }
    }
}

impl Row {
    fn new(named: &Arc<Named>) -> Self {
        let cell = |instrument: &Instrument| match instrument.kind.bounds() {
            None => Cell::Sum(0.0),
            Some(bounds) => Cell::Buckets { counts: vec![0; bounds.len() + 1].into(), sum: 0.0 },
        };
        let cells = match named.theirs {
            None => named.table.instruments.iter().map(cell).collect(),
            Some(_) => Box::default(),
        };
        Self { named: Arc::clone(named), cells }
    }

    fn add(&mut self, values: &[f64]) {
        if let Some(theirs) = &self.named.theirs {
            theirs.iter().zip(values).filter(|(_, value)| !value.is_nan()).for_each(|(it, value)| it.add(*value));
            return;
        }
        for ((cell, instrument), value) in self.cells.iter_mut().zip(self.named.table.instruments).zip(values) {
            if !value.is_nan() {
                cell.add(instrument, *value);
            }
        }
    }

    fn merge(&mut self, other: &Self) {
        self.cells.iter_mut().zip(&other.cells).for_each(|(cell, other)| cell.merge(other));
    }
}

impl Cell {
    fn add(&mut self, instrument: &Instrument, value: f64) {
        match self {
            Self::Sum(sum) => *sum += value,
            Self::Buckets { counts, sum } => {
                *sum += value;
                let bounds = instrument.kind.bounds().unwrap_or_default();
                if let Some(count) = counts.get_mut(bounds.partition_point(|bound| *bound < value)) {
                    *count += 1;
                }
            }
        }
    }

    fn merge(&mut self, other: &Self) {
        match (self, other) {
            (Self::Sum(sum), Self::Sum(other)) => *sum += other,
            (Self::Buckets { counts, sum }, Self::Buckets { counts: more, sum: other }) => {
                *sum += other;
                counts.iter_mut().zip(more).for_each(|(count, more)| *count += more);
            }
            _ => {}
        }
    }
}

/// Prometheus text of all sheets, in the order of their tables and labels.
pub(super) fn render() -> String {
    let totals = totals();
    let mut text = String::new();
    let mut rows: Vec<(&Arc<str>, &Row)> = Vec::new();
    let mut table: Option<&'static Table> = None;
    for ((_, labels), row) in &totals {
        if table.is_some_and(|table| table != row.named.table) {
            text::write(&mut text, &rows);
            rows.clear();
        }
        table = Some(row.named.table);
        rows.push((labels, row));
    }
    text::write(&mut text, &rows);
    text
}

/// All sheets added up.
fn totals() -> Totals {
    let sheets: Vec<Arc<Sheet>> = lock(&SHEETS).iter().filter_map(Weak::upgrade).collect();
    let mut totals = lock(&CLOSED).clone();
    sheets.iter().for_each(|sheet| sheet.add_to(&mut totals));
    totals
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::conventions::{GRPC_AGAIN, GRPC_SERVED};

    fn line<'a>(method: &'a str, status: u32) -> Line<'a> {
        Line {
            table: &GRPC_SERVED,
            texts: [method, "", ""],
            numbers: [status, 0, 0],
            admits: status != 12,
            service: None,
            is_over: false,
        }
    }

    fn spell(line: &Line<'_>) -> Vec<String> {
        vec![line.texts[0].to_owned(), line.numbers[0].to_string()]
    }

    fn text_of(sheet: &Sheet) -> String {
        let mut totals = Totals::new();
        sheet.add_to(&mut totals);
        let mut text = String::new();
        text::write(&mut text, &totals.iter().map(|((_, labels), row)| (labels, row)).collect::<Vec<_>>());
        text
    }

    /// TE2: of names that callers write so many are kept and no more, and those alone of which a server knows something.
    #[test]
    fn names_of_callers_are_bounded() {
        let sheet = Sheet::with_cap(false, ROWS);
        assert!(sheet.add(&line("a.B/C", 0), &[0.1, 1.0, 1.0], spell, true));
        assert!(!sheet.add(&line("a.B/None", 12), &[0.1, 1.0, 1.0], spell, false));
        assert!(sheet.add(&line("a.B/None", 12), &[0.1, 1.0, 1.0], spell, true));
        for n in 0..1_000 {
            sheet.add(&line(&format!("a.B/M{n}"), 0), &[0.1, 1.0, 1.0], spell, true);
        }
        let text = text_of(&sheet);
        let counts = text.lines().filter(|line| line.starts_with("grpc_server_call_duration_seconds_count{"));
        assert_eq!(counts.clone().count(), NAMES + 2, "and the others, with two statuses");
        let other = counts.clone().find(|line| line.contains("\"other\"") && line.contains("grpc_status=\"0\""));
        assert!(other.is_some_and(|line| line.ends_with(&format!(" {}", 1_000 - (NAMES - 1)))), "{other:?}");
        assert!(!text.contains("None"));
    }

    /// TE2, TE3: past the cap, rows are one by the word that the convention has for others; and rows go with their service.
    #[test]
    fn rows_are_bounded_and_go() {
        let sheet = Sheet::with_cap(false, 10);
        let gone: Name = "gone".into();
        for n in 0..100 {
            let service = (n < 5).then_some(&gone);
            let cluster = format!("cluster-{n}");
            let texts = ["a.B/C", &cluster, ""];
            let numbers = [n, n, n];
            let line = Line { table: &GRPC_AGAIN, texts, numbers, admits: true, service, is_over: false };
            let spell = |line: &Line<'_>| vec![line.texts[0].to_owned(), line.texts[1].to_owned(), String::new()];
            assert!(sheet.add(&line, &[f64::NAN, 1.0, f64::NAN, 0.5], spell, true));
        }
        assert_eq!(sheet.known.read().map_or(0, |known| known.len()), 10 + 90, "one a first number, which is a status");
        let text = text_of(&sheet);
        assert!(!text.contains("grpc_client_call_retries_count"), "what was never told has no series\n{text}");
        assert_eq!(
            text.lines().filter(|line| line.starts_with("grpc_client_call_retry_delay_seconds_sum")).count(),
            11
        );
        sheet.retain(|service| *service != gone);
        let text = text_of(&sheet);
        assert!(!text.contains("cluster-4") && text.contains("cluster-5"), "{text}");
    }
}
