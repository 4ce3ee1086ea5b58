//! Names to addresses by the system's resolver or one of your own, off the request's path once a name is known.
//!
//! The system's resolver tells no time to live, so an answer is fresh for a few seconds; older ones are still used while
//! a new one is fetched beside the request, and kept when the resolver fails. The number of names kept is bounded.

use std::{
    collections::HashMap,
    fmt,
    future::Future,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use mesh_core::time::Time;
use tokio::{net::lookup_host, task::AbortHandle};

use crate::source::Source;

/// How long an answer is used without asking again.
const FRESH: Duration = Duration::from_secs(5);
/// How long a failing resolver's last answer is used.
const STALE: Duration = Duration::from_secs(300);
/// Names kept.
const CAP: usize = 1024;

/// Addresses on their way.
pub type Resolving<'a> = Pin<Box<dyn Future<Output = io::Result<Vec<SocketAddr>>> + Send + 'a>>;

/// Finds the addresses of names; see [`Builder::resolver`](crate::Builder::resolver).
pub trait Resolve: Send + Sync + 'static {
    /// All addresses of a host, with this port.
    ///
    /// # Errors
    ///
    /// They could not be found out; those found before stay in use.
    fn resolve<'a>(&'a self, host: &'a str, port: u16) -> Resolving<'a>;
}

/// The operating system's resolver.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SystemResolver;

impl Resolve for SystemResolver {
    fn resolve<'a>(&'a self, host: &'a str, port: u16) -> Resolving<'a> {
        Box::pin(async move { Ok(lookup_host((host, port)).await?.collect()) })
    }
}

/// A resolver with a small memory; clones share it.
#[derive(Clone)]
pub(crate) struct Resolver {
    shared: Arc<Shared>,
    source: Source,
    resolve: Arc<dyn Resolve>,
}

impl fmt::Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resolver").field("shared", &self.shared).finish_non_exhaustive()
    }
}

#[derive(Debug, Default)]
struct Shared {
    names: Mutex<HashMap<(String, u16), Answer>>,
}

#[derive(Debug)]
struct Answer {
    addresses: Arc<[SocketAddr]>,
    at: Time,
    refresh: Option<AbortHandle>,
}

impl Resolver {
    /// Knowing nothing yet.
    pub(crate) fn new(source: Source) -> Self {
        Self::with(source, Arc::new(SystemResolver))
    }

    /// Over a resolver of one's own.
    pub(crate) fn with(source: Source, resolve: Arc<dyn Resolve>) -> Self {
        Self { shared: Arc::default(), source, resolve }
    }

    /// The addresses of a name, IPv6 and IPv4 in turn.
    ///
    /// # Errors
    ///
    /// The resolver's, when nothing usable is remembered; or that it named no address.
    pub(crate) async fn resolve(&self, host: &str, port: u16) -> io::Result<Arc<[SocketAddr]>> {
        let now = self.source.now();
        if let Some(known) = self.recall(host, port, now) {
            return Ok(known);
        }
        let addresses = look_up(&*self.resolve, host, port).await?;
        self.shared.remember(host, port, &addresses, now);
        Ok(addresses)
    }

    fn recall(&self, host: &str, port: u16, now: Time) -> Option<Arc<[SocketAddr]>> {
        let mut names = self.shared.names.lock().unwrap_or_else(PoisonError::into_inner);
        let answer = names.get_mut(&(host.to_owned(), port))?;
        let age = now.saturating_since(answer.at);
        if age > STALE {
            return None;
        }
        let refreshing = answer.refresh.as_ref().is_some_and(|task| !task.is_finished());
        if age > FRESH && !refreshing {
            let (shared, source, host) = (Arc::downgrade(&self.shared), self.source.clone(), host.to_owned());
            let resolve = Arc::clone(&self.resolve);
            let task = tokio::spawn(async move {
                let fresh = look_up(&*resolve, &host, port).await;
                if let (Some(shared), Ok(addresses)) = (shared.upgrade(), fresh) {
                    shared.remember(&host, port, &addresses, source.now());
                }
            });
            answer.refresh = Some(task.abort_handle());
        }
        Some(Arc::clone(&answer.addresses))
    }
}

impl Shared {
    fn remember(&self, host: &str, port: u16, addresses: &Arc<[SocketAddr]>, at: Time) {
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        if names.len() >= CAP {
            names.retain(|_, answer| at.saturating_since(answer.at) <= FRESH);
        }
        if names.len() < CAP {
            names.insert((host.to_owned(), port), Answer { addresses: Arc::clone(addresses), at, refresh: None });
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        for answer in self.names.get_mut().unwrap_or_else(PoisonError::into_inner).values() {
            if let Some(task) = &answer.refresh {
                task.abort();
            }
        }
    }
}

async fn look_up(resolve: &dyn Resolve, host: &str, port: u16) -> io::Result<Arc<[SocketAddr]>> {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let addresses = interleave(resolve.resolve(host, port).await?);
    if addresses.is_empty() {
        return Err(io::Error::new(io::ErrorKind::NotFound, format!("{host} has no address")));
    }
    Ok(addresses.into())
}

/// IPv6 and IPv4 in turn, beginning with what the resolver put first. Source: RFC 8305, 4.
fn interleave(addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let first_is_ipv6 = addresses.first().is_some_and(SocketAddr::is_ipv6);
    let (one, other): (Vec<_>, Vec<_>) = addresses.into_iter().partition(|a| a.is_ipv6() == first_is_ipv6);
    let (mut one, mut other) = (one.into_iter(), other.into_iter());
    let mut out = Vec::new();
    loop {
        let (a, b) = (one.next(), other.next());
        if a.is_none() && b.is_none() {
            return out;
        }
        out.extend(a);
        out.extend(b);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn families_take_turns() {
        let parse = |list: &[&str]| list.iter().map(|a| a.parse().unwrap()).collect::<Vec<SocketAddr>>();
        let all = parse(&["[::1]:1", "[::2]:1", "127.0.0.1:1", "[::3]:1", "127.0.0.2:1"]);
        assert_eq!(interleave(all), parse(&["[::1]:1", "127.0.0.1:1", "[::2]:1", "127.0.0.2:1", "[::3]:1"]));
    }

    #[tokio::test]
    async fn a_known_name_is_not_asked_again_at_once() {
        let resolver = Resolver::new(Source::seeded(1));
        let first = resolver.resolve("127.0.0.1", 80).await.unwrap();
        let second = resolver.resolve("127.0.0.1", 80).await.unwrap();
        assert!(Arc::ptr_eq(&first, &second));
        assert_eq!(first[0].to_string(), "127.0.0.1:80");
    }
}
