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

/// Certificates remembered; the first to expire are forgotten first. A workload that renews twice a day has three at most.
const MOST_ISSUED: usize = 100_000;

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
    path: Option<PathBuf>,
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
        let mut ledger = Self { issued: BTreeMap::new(), path };
        // A line that was cut off by a crash says nothing; the others still count.
        for issued in text.lines().filter_map(|line| serde_json::from_str::<Issued>(line).ok()) {
            if issued.not_after > now {
                ledger.keep(issued);
            }
        }
        if let Some(path) = &ledger.path {
            let lines: Vec<String> = ledger.issued.values().filter_map(|it| serde_json::to_string(it).ok()).collect();
            files::write_public(path, &(lines.join("\n") + "\n"))?;
        }
        Ok(ledger)
    }

    /// Remembers one. A file that cannot be written is told of and stops nobody from working.
    pub(super) fn add(&mut self, issued: Issued, now: u64) {
        if let Some(path) = &self.path {
            let line = serde_json::to_string(&issued).unwrap_or_default() + "\n";
            let written = OpenOptions::new().create(true).append(true).open(path);
            if let Err(error) = written.and_then(|mut file| file.write_all(line.as_bytes())) {
                tracing::error!(path = %path.display(), %error, "what was issued could not be written down");
            }
        }
        self.keep(issued);
        while self.issued.first_key_value().is_some_and(|((until, _), _)| *until <= now) {
            self.issued.pop_first();
        }
    }

    fn keep(&mut self, issued: Issued) {
        self.issued.insert((issued.not_after, issued.serial.clone()), issued);
        if self.issued.len() > MOST_ISSUED {
            self.issued.pop_first();
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
