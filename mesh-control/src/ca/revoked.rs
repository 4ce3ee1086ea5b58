//! Who is let in no more, and what was issued to whom: both kept over restarts.
//!
//! A certificate is revoked by its serial number, and a workload by its SPIFFE id: then every certificate it holds is, and it gets
//! no other. The list of revoked certificates names serial numbers only, so what was issued to whom is remembered until it
//! expires.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::OpenOptions,
    io::Write,
    path::PathBuf,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use mesh_core::trust::without_leading_zeros;
use serde::{Deserialize, Serialize};

use super::{Ca, CaError, authority::hex, files};

/// Certificates remembered. A workload that renews twice a day has three at most. Of more the first to expire are forgotten, of the id
/// that has most, so that nobody gets those of others forgotten, and with them revoked in vain.
const MOST_ISSUED: usize = 100_000;

/// Lines beyond those that count, after which the file is written anew.
const SLACK: usize = 100_000;

/// Ids and serial numbers that may be denied at a time.
const MOST_DENIED: usize = 10_000;

/// What is denied.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub(super) struct Revoked {
    /// Of the last list signed; never goes back.
    number: u64,
    /// By SPIFFE id, since when (Unix seconds).
    #[serde(default)]
    ids: BTreeMap<String, u64>,
    /// By serial number in hexadecimal.
    #[serde(default)]
    serials: BTreeMap<String, Serial>,
    #[serde(skip)]
    path: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
struct Serial {
    since: u64,
    /// After this no certificate of that number can be valid, so that it need not be listed.
    until: u64,
}

/// A certificate that was issued. Times are in Unix seconds.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Issued {
    /// Its serial number, in hexadecimal.
    pub serial: String,
    /// For whom.
    pub id: String,
    /// By which authority: its name in [`CaStatus`](super::CaStatus).
    pub authority: String,
    /// Since when.
    pub not_before: u64,
    /// Until when.
    pub not_after: u64,
}

/// What was issued and has not expired.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    /// By expiry and serial number.
    issued: BTreeMap<(u64, String), Issued>,
    /// The same by id.
    by_id: BTreeMap<String, BTreeSet<(u64, String)>>,
    /// How many of each id.
    most: BTreeSet<(usize, String)>,
    path: Option<PathBuf>,
    /// In the file.
    lines: usize,
}

impl Revoked {
    pub(super) fn open(path: Option<PathBuf>) -> Result<Self, CaError> {
        let text = path.as_deref().map(files::read).transpose()?.flatten();
        let mut revoked: Self = match text {
            Some(text) => serde_json::from_str(&text).map_err(|error| {
                CaError::Root(format!("revocations.json is not one of this control plane: {error}"))
            })?,
            None => Self::default(),
        };
        revoked.path = path;
        Ok(revoked)
    }

    /// Adds or takes away; says whether anything is different.
    pub(super) fn change(&mut self, change: &RevokeRequest, ledger: &Ledger, now: u64) -> Result<bool, CaError> {
        let serials: Vec<String> = change.serials.iter().map(|text| serial(text)).collect::<Result<_, _>>()?;
        for id in &change.ids {
            id.parse::<mesh_core::identity::SpiffeId>()
                .map_err(|error| CaError::Revocation(format!("{id:?}: {error}")))?;
        }
        if !change.lift && self.ids.len() + self.serials.len() + serials.len() + change.ids.len() > MOST_DENIED {
            return Err(CaError::Revocation(format!("at most {MOST_DENIED} are denied at a time")));
        }
        let before = (self.ids.len(), self.serials.len());
        for id in &change.ids {
            match change.lift {
                true => drop(self.ids.remove(id)),
                false => drop(self.ids.entry(id.clone()).or_insert(now)),
            }
        }
        for serial in serials {
            let known = ledger.issued.values().find(|issued| issued.serial == serial).map(|issued| issued.not_after);
            let until = known.unwrap_or(now + Ca::MAX_TTL.as_secs());
            match change.lift {
                true => drop(self.serials.remove(&serial)),
                false => drop(self.serials.entry(serial).or_insert(Serial { since: now, until })),
            }
        }
        Ok(before != (self.ids.len(), self.serials.len()))
    }

    /// Forgets what expires by itself, takes the next number for a list, and writes all down.
    pub(super) fn next(&mut self, now: u64) -> Result<u64, CaError> {
        self.serials.retain(|_, serial| serial.until + 3_600 > now);
        self.number = (self.number + 1).max(now);
        if let Some(path) = &self.path {
            let text = serde_json::to_string_pretty(self).map_err(|error| CaError::Revocation(error.to_string()))?;
            files::write_public(path, &text)?;
        }
        Ok(self.number)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.ids.is_empty() && self.serials.is_empty()
    }

    pub(super) fn denies(&self, id: &str) -> bool {
        self.ids.contains_key(id)
    }

    pub(super) fn ids(&self) -> &BTreeMap<String, u64> {
        &self.ids
    }

    pub(super) fn serials(&self) -> BTreeMap<String, u64> {
        self.serials.iter().map(|(serial, about)| (serial.clone(), about.since)).collect()
    }

    /// Every serial number that is denied, with those of denied ids, and since when.
    pub(super) fn all(&self, ledger: &Ledger) -> Vec<(Vec<u8>, SystemTime)> {
        let of_ids = ledger.issued.values().filter_map(|issued| Some((&issued.serial, *self.ids.get(&issued.id)?)));
        let all: BTreeMap<&String, u64> =
            self.serials.iter().map(|(serial, about)| (serial, about.since)).chain(of_ids).collect();
        let at = |since| UNIX_EPOCH + Duration::from_secs(since);
        all.into_iter().map(|(serial, since)| (bytes(serial), at(since))).collect()
    }

    /// The serial numbers that are denied by themselves, as [`mesh_core::trust::Trust`] has them.
    pub(super) fn denied_serials(&self) -> BTreeSet<Vec<u8>> {
        self.serials.keys().map(|serial| bytes(serial)).collect()
    }
}

impl Ledger {
    pub(super) fn open(path: Option<PathBuf>, now: u64) -> Result<Self, CaError> {
        let text = path.as_deref().map(files::read).transpose()?.flatten().unwrap_or_default();
        let mut ledger = Self { path, ..Self::default() };
        // A line that was cut off by a crash says nothing; the others still count.
        for issued in text.lines().filter_map(|line| serde_json::from_str::<Issued>(line).ok()) {
            if issued.not_after > now {
                ledger.keep(issued, MOST_ISSUED);
            }
        }
        ledger.write()?;
        Ok(ledger)
    }

    fn write(&mut self) -> Result<(), CaError> {
        let Some(path) = &self.path else { return Ok(()) };
        let lines: Vec<String> = self.issued.values().filter_map(|it| serde_json::to_string(it).ok()).collect();
        self.lines = lines.len();
        files::write_public(path, &(lines.join("\n") + "\n"))
    }

    /// Remembers one. A file that cannot be written is told of and stops nobody from working.
    pub(super) fn add(&mut self, issued: Issued, now: u64) {
        let line = serde_json::to_string(&issued).unwrap_or_default() + "\n";
        self.keep(issued, MOST_ISSUED);
        while let Some(key) =
            self.issued.first_key_value().map(|(key, _)| key.clone()).filter(|(until, _)| *until <= now)
        {
            self.forget(&key);
        }
        let Some(path) = &self.path else { return };
        let written = match self.lines < self.issued.len() + SLACK {
            true => {
                self.lines += 1;
                let opened = OpenOptions::new().create(true).append(true).open(path);
                opened.and_then(|mut file| file.write_all(line.as_bytes())).map_err(|error| error.to_string())
            }
            false => self.write().map_err(|error| error.to_string()),
        };
        if let Err(error) = written {
            tracing::error!(%error, "what was issued could not be written down");
        }
    }

    fn keep(&mut self, issued: Issued, most: usize) {
        let key = (issued.not_after, issued.serial.clone());
        let of_id = self.by_id.entry(issued.id.clone()).or_default();
        let before = of_id.len();
        of_id.insert(key.clone());
        self.most.remove(&(before, issued.id.clone()));
        self.most.insert((of_id.len(), issued.id.clone()));
        self.issued.insert(key, issued);
        if self.issued.len() > most
            && let Some((_, id)) = self.most.last()
            && let Some(first) = self.by_id.get(id).and_then(BTreeSet::first).cloned()
        {
            self.forget(&first);
        }
    }

    fn forget(&mut self, key: &(u64, String)) {
        let Some(issued) = self.issued.remove(key) else { return };
        let Some(of_id) = self.by_id.get_mut(&issued.id) else { return };
        self.most.remove(&(of_id.len(), issued.id.clone()));
        of_id.remove(key);
        match of_id.len() {
            0 => drop(self.by_id.remove(&issued.id)),
            left => drop(self.most.insert((left, issued.id))),
        }
    }

    /// Those that are good at `now`, of one id or of all.
    pub(super) fn good(&self, id: Option<&str>, now: u64) -> Vec<Issued> {
        let of_id = |issued: &&Issued| issued.not_after > now && id.is_none_or(|id| issued.id == id);
        self.issued.values().filter(of_id).cloned().collect()
    }
}

/// What to revoke, or to let in again.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct RevokeRequest {
    /// SPIFFE ids.
    #[serde(default)]
    pub ids: Vec<String>,
    /// Serial numbers, in hexadecimal, with or without colons.
    #[serde(default)]
    pub serials: Vec<String>,
    /// Takes them off the list instead.
    #[serde(default)]
    pub lift: bool,
}

/// Reads a serial number as people write it: `0A:1b`, `0x0a1b`, `a1b`.
fn serial(text: &str) -> Result<String, CaError> {
    let digits: String = text.trim().trim_start_matches("0x").chars().filter(|c| *c != ':').collect();
    let digits = if digits.len().is_multiple_of(2) { digits } else { format!("0{digits}") };
    let wrong = || CaError::Revocation(format!("{text:?} is no serial number: up to 20 bytes in hexadecimal"));
    if digits.is_empty() || digits.len() > 40 || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(wrong());
    }
    let text = hex(&bytes(&digits));
    if text.is_empty() { Err(wrong()) } else { Ok(text) }
}

/// Of hexadecimal digits, without leading zeros.
fn bytes(digits: &str) -> Vec<u8> {
    let pairs = digits.as_bytes().chunks(2).filter_map(|pair| std::str::from_utf8(pair).ok());
    let bytes: Vec<u8> = pairs.filter_map(|pair| u8::from_str_radix(pair, 16).ok()).collect();
    without_leading_zeros(&bytes).to_vec()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use super::*;

    #[test]
    fn serial_numbers_are_read_as_people_write_them() {
        for text in ["0a1b", "A1B", "0x0a1b", "0A:1B", "00:0a:1b", " a1b "] {
            assert_eq!(serial(text).unwrap(), "0a1b", "{text}");
        }
        for text in ["", "0", "00", "xyz", "-1", &"1".repeat(41)] {
            assert!(serial(text).is_err(), "{text}");
        }
    }

    /// CT8: whoever asks for very many certificates gets none of others' forgotten, nor the file ever longer.
    #[test]
    fn those_who_have_most_are_forgotten_first() {
        let dir = tempfile::tempdir().unwrap();
        let mut ledger = Ledger::open(Some(dir.path().join("issued.jsonl")), 0).unwrap();
        let issued = |n: usize, id: &str, not_after| Issued {
            serial: format!("{n:04x}"),
            id: id.to_owned(),
            authority: String::new(),
            not_before: 0,
            not_after,
        };
        ledger.keep(issued(1, "quiet", 100), 10);
        ledger.keep(issued(2, "quiet", 200), 10);
        (0..50).for_each(|n| ledger.keep(issued(100 + n, "greedy", 1_000 + n as u64), 10));
        assert_eq!(ledger.good(Some("quiet"), 0).len(), 2);
        let kept: Vec<u64> = ledger.good(Some("greedy"), 0).iter().map(|it| it.not_after).collect();
        assert_eq!(kept, (1_042..1_050).collect::<Vec<_>>(), "the last of its own");
        // What expired is gone everywhere, and the file is written anew when most of it is of no use.
        ledger.lines = SLACK + 100;
        ledger.add(issued(3, "quiet", 5_000), 2_000);
        assert_eq!((ledger.issued.len(), ledger.by_id.len(), ledger.most.len(), ledger.lines), (1, 1, 1, 1));
        let text = std::fs::read_to_string(dir.path().join("issued.jsonl")).unwrap();
        assert_eq!(text.lines().count(), 1);
    }

    /// CT8: what is revoked outlives a restart, what has expired is forgotten, and numbers of lists only grow.
    #[test]
    fn revocations_outlive_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| Some(dir.path().join(name));
        let mut ledger = Ledger::open(path("issued.jsonl"), 100).unwrap();
        let issued = |serial: &str, id: &str, not_after| Issued {
            serial: serial.to_owned(),
            id: id.to_owned(),
            authority: String::new(),
            not_before: 0,
            not_after,
        };
        ledger.add(issued("0a", "spiffe://a/ns/x/sa/bad", 1_000), 100);
        ledger.add(issued("0b", "spiffe://a/ns/x/sa/good", 2_000), 100);
        let mut revoked = Revoked::open(path("revocations.json")).unwrap();
        let request =
            RevokeRequest { ids: vec!["spiffe://a/ns/x/sa/bad".into()], serials: vec!["0c".into()], lift: false };
        assert!(revoked.change(&request, &ledger, 100).unwrap() && !revoked.change(&request, &ledger, 101).unwrap());
        let first = revoked.next(100).unwrap();

        let ledger = Ledger::open(path("issued.jsonl"), 500).unwrap();
        let mut revoked = Revoked::open(path("revocations.json")).unwrap();
        let all: Vec<_> = revoked.all(&ledger).into_iter().map(|(serial, _)| serial).collect();
        assert_eq!(all, [vec![0x0a], vec![0x0c]], "those of the id, and the serial itself");
        assert!(revoked.denies("spiffe://a/ns/x/sa/bad") && !revoked.denies("spiffe://a/ns/x/sa/good"));
        assert_eq!(revoked.denied_serials(), [vec![0x0c]].into());
        assert!(revoked.next(90).unwrap() > first, "even when the clock went back");
        assert_eq!(Ledger::open(path("issued.jsonl"), 1_500).unwrap().good(None, 1_500).len(), 1);

        let lift = RevokeRequest { lift: true, ..request };
        assert!(revoked.change(&lift, &ledger, 600).unwrap() && revoked.is_empty());
        for bad in [vec!["https://a".to_owned()], vec![String::new()]] {
            let request = RevokeRequest { ids: bad, ..RevokeRequest::default() };
            assert!(revoked.change(&request, &ledger, 600).is_err());
        }
    }
}
