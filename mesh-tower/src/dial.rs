//! Names that are dialled: where the control plane is asked for each destination by its name, what is asked for, and how long.
//!
//! A request names its destination by its authority; the first to one asks for the listener of that name, and waits for it.
//! What nobody has gone to for a while is asked for no longer, and so are those that a client was made for once all its clones
//! are gone. Reading is one look into an immutable map; only a new name takes the lock. Source: gRFC A27 (the `xds:` scheme).

use std::{
    any::Any,
    collections::HashMap,
    fmt,
    net::SocketAddr,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use mesh_core::{config::Name, time::Time};

use crate::server::Report;

/// Asks for the listener of a target (`xds:///HOST:PORT`, `xds://AUTHORITY/HOST:PORT`), or says why it cannot be.
pub(crate) type Opener = Box<dyn Fn(&str) -> Result<Dialled, String> + Send + Sync>;

/// Asks for the listener of a server by the address it listens on, or says why it cannot be.
pub(crate) type ServerOpener = Box<dyn Fn(SocketAddr) -> Result<Dialled, String> + Send + Sync>;

/// What is asked for as long as this value is there.
pub(crate) struct Dialled {
    listener: Name,
    _held: Box<dyn Any + Send + Sync>,
}

impl Dialled {
    /// The listener, and what keeps it asked for.
    #[cfg(any(feature = "xds", test))]
    pub(crate) fn new(listener: Name, held: impl Any + Send + Sync) -> Self {
        Self { listener, _held: Box::new(held) }
    }

    /// The name of the listener.
    pub(crate) fn listener(&self) -> &Name {
        &self.listener
    }
}

impl fmt::Debug for Dialled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Dialled").field(&self.listener).finish()
    }
}

/// A name in use.
#[derive(Debug)]
struct Known {
    dialled: Arc<Dialled>,
    used: AtomicU64,
}

/// The names in use.
pub(crate) struct Dialling {
    open: Opener,
    open_server: ServerOpener,
    report: OnceLock<Report>,
    known: ArcSwap<HashMap<Box<str>, Arc<Known>>>,
    writer: Mutex<()>,
}

impl Dialling {
    /// For so long a name that requests have gone to is remembered here; the client of the control plane remembers it for
    /// longer still.
    pub(crate) const IDLE: Duration = Duration::from_secs(60);

    /// Names that requests may go to at once: whoever passes on the authorities of others must not grow for ever.
    const MOST: usize = 10_000;

    pub(crate) fn new(open: Opener, open_server: ServerOpener) -> Self {
        Self { open, open_server, report: OnceLock::new(), known: ArcSwap::default(), writer: Mutex::default() }
    }

    /// Who is told of servers' states.
    pub(crate) fn report(&self) -> Option<&Report> {
        self.report.get()
    }

    /// Tells this one of servers' states, unless somebody is told already.
    pub(crate) fn report_to(&self, report: Report) {
        let _ = self.report.set(report);
    }

    /// Asks for the listener of a server.
    pub(crate) fn open_server(&self, address: SocketAddr) -> Result<Dialled, String> {
        (self.open_server)(address)
    }

    /// Asks for a target in the name of a client that is made for it.
    pub(crate) fn open(&self, target: &str) -> Result<Dialled, String> {
        (self.open)(target)
    }

    /// What is asked for when a request goes to `authority`, `host:port`.
    pub(crate) fn dial(&self, authority: &str, now: Time) -> Result<Arc<Dialled>, String> {
        if let Some(known) = self.known.load().get(authority) {
            known.used.store(now.as_nanos(), Ordering::Relaxed);
            return Ok(Arc::clone(&known.dialled));
        }
        let _writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = self.known.load().get(authority) {
            return Ok(Arc::clone(&known.dialled));
        }
        let mut next = HashMap::clone(&self.known.load());
        if next.len() >= Self::MOST {
            return Err(format!("more than {} names are dialled at once", Self::MOST));
        }
        let dialled = Arc::new((self.open)(&format!("xds:///{authority}"))?);
        let known = Known { dialled: Arc::clone(&dialled), used: AtomicU64::new(now.as_nanos()) };
        next.insert(authority.into(), Arc::new(known));
        self.known.store(Arc::new(next));
        Ok(dialled)
    }

    /// Forgets what no request has gone to for a while.
    pub(crate) fn sweep(&self, now: Time) {
        let is_idle = |known: &Known| Time::from_nanos(known.used.load(Ordering::Relaxed)) + Self::IDLE <= now;
        if !self.known.load().values().any(|known| is_idle(known)) {
            return;
        }
        let _writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let mut next = HashMap::clone(&self.known.load());
        next.retain(|_, known| !is_idle(known));
        self.known.store(Arc::new(next));
    }
}

impl fmt::Debug for Dialling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dialling").field("known", &self.known.load().len()).finish_non_exhaustive()
    }
}

/// What a target of a gRPC client means: the authority of its requests, and the target itself if it is one of the scheme `xds`.
pub(crate) fn split(target: &str) -> Result<(&str, Option<&str>), String> {
    let Some(rest) = target.strip_prefix("xds:").filter(|rest| rest.parse::<u16>().is_err()) else {
        return Ok((target, None));
    };
    let endpoint = match rest.strip_prefix("//") {
        Some(rest) => rest.split_once('/').map_or("", |(_, endpoint)| endpoint),
        None => rest.trim_start_matches('/'),
    };
    match endpoint {
        "" => Err(format!("{target:?} names no endpoint: it is written xds:///HOST:PORT")),
        endpoint => Ok((endpoint, Some(target))),
    }
}

/// The authority that a target of the scheme `xds` is to be found at; empty when it names none.
pub(crate) fn authority_of(target: &str) -> &str {
    let rest = target.strip_prefix("xds://").unwrap_or("/");
    rest.split_once('/').map_or(rest, |(authority, _)| authority)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use super::*;

    /// NR1: targets have the scheme `xds`, or are authorities as ever.
    #[test]
    fn targets_are_told_from_authorities() {
        let cases = [
            ("reviews:9080", Ok(("reviews:9080", None)), ""),
            ("reviews", Ok(("reviews", None)), ""),
            ("xds:9080", Ok(("xds:9080", None)), ""),
            ("xds:///reviews:9080", Ok(("reviews:9080", Some("xds:///reviews:9080"))), ""),
            ("xds:reviews:9080", Ok(("reviews:9080", Some("xds:reviews:9080"))), ""),
            ("xds://east/reviews:9080", Ok(("reviews:9080", Some("xds://east/reviews:9080"))), "east"),
        ];
        for (target, expected, authority) in cases {
            assert_eq!(split(target), expected, "{target}");
            assert_eq!(authority_of(target), authority, "{target}");
        }
        assert!(split("xds:///").is_err() && split("xds://east").is_err());
    }

    /// XD34: a name is asked for once, for as long as it is used and a while after.
    #[test]
    fn names_are_asked_for_while_they_are_used() {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let held = Arc::new(());
        let (log, hold) = (Arc::clone(&asked), Arc::clone(&held));
        let open: Opener = Box::new(move |target| {
            log.lock().unwrap().push(target.to_owned());
            match target {
                "xds:///nowhere" => Err("nowhere".to_owned()),
                _ => Ok(Dialled::new(target.into(), Arc::clone(&hold))),
            }
        });
        let dialling = Dialling::new(open, Box::new(|address| Err(address.to_string())));
        let at = |seconds| Time::ZERO + Duration::from_secs(seconds);
        assert_eq!(&**dialling.dial("a:1", at(0)).unwrap().listener(), "xds:///a:1");
        dialling.dial("a:1", at(50)).unwrap();
        dialling.dial("b:1", at(0)).unwrap();
        assert!(dialling.dial("nowhere", at(0)).is_err());
        assert_eq!(*asked.lock().unwrap(), ["xds:///a:1", "xds:///b:1", "xds:///nowhere"]);
        assert_eq!(Arc::strong_count(&held), 4, "two names, the opener, and this");
        dialling.sweep(at(60));
        assert_eq!(Arc::strong_count(&held), 3);
        assert!(dialling.known.load().contains_key("a:1"));
        dialling.sweep(at(110));
        assert_eq!(Arc::strong_count(&held), 2);
    }
}
