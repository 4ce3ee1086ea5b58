//! Turns at the cryptography of handshakes, which costs more than anything else that a stranger may ask for: so many at once, and
//! of one source fewer, so that nobody takes them all.
//!
//! Whoever has connected and says nothing has no turn yet: the first bytes are waited for before ([`begun`]).

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex, PoisonError},
};

use bytes::BytesMut;
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    sync::{OwnedSemaphorePermit, Semaphore},
};

use super::Rewound;

/// Handshakes under way at once.
const ALL: usize = 256;
/// Of one source.
const EACH: usize = 32;
/// As much of the first bytes as is read at once.
const FIRST: usize = 1024;

/// Of one server. Clones share them.
#[derive(Clone, Debug)]
pub(crate) struct Turns {
    all: Arc<Semaphore>,
    sources: Arc<Mutex<HashMap<IpAddr, Source>>>,
}

/// The turns of one source, there as long as anybody has one or waits for one.
#[derive(Debug)]
struct Source {
    turns: Arc<Semaphore>,
    users: usize,
}

/// It lasts as long as this.
#[derive(Debug)]
pub(crate) struct Turn {
    _all: OwnedSemaphorePermit,
    _each: OwnedSemaphorePermit,
    _user: User,
}

/// Somebody of a source.
#[derive(Debug)]
struct User {
    of: Turns,
    source: IpAddr,
}

impl Drop for User {
    fn drop(&mut self) {
        let mut sources = self.of.sources.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(source) = sources.get_mut(&self.source) {
            source.users -= 1;
            if source.users == 0 {
                sources.remove(&self.source);
            }
        }
    }
}

impl Default for Turns {
    fn default() -> Self {
        Self { all: Arc::new(Semaphore::new(ALL)), sources: Arc::default() }
    }
}

impl Turns {
    /// Waits for a turn.
    pub(crate) async fn take(&self, address: IpAddr) -> Option<Turn> {
        let source = source_of(address);
        let (user, turns) = self.enter(source);
        // Neither is ever closed.
        let each = turns.acquire_owned().await.ok()?;
        let all = Arc::clone(&self.all).acquire_owned().await.ok()?;
        Some(Turn { _all: all, _each: each, _user: user })
    }

    fn enter(&self, source: IpAddr) -> (User, Arc<Semaphore>) {
        let mut sources = self.sources.lock().unwrap_or_else(PoisonError::into_inner);
        let of = sources.entry(source).or_insert_with(|| Source { turns: Arc::new(Semaphore::new(EACH)), users: 0 });
        of.users += 1;
        (User { of: self.clone(), source }, Arc::clone(&of.turns))
    }
}

/// Whose turns count together: an address, and of IPv6 the network that one customer gets.
fn source_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & !(u128::from(u64::MAX)))),
        address => address,
    }
}

/// The connection once something has been said on it; `None` when it ended without a word.
pub(crate) async fn begun<I: AsyncRead + Unpin>(mut io: I) -> io::Result<Option<Rewound<I>>> {
    let mut first = BytesMut::with_capacity(FIRST);
    let read = io.read_buf(&mut first).await?;
    Ok((read > 0).then(|| Rewound { first: first.freeze(), io }))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use futures_util::FutureExt;

    use super::*;

    /// SV8: one source has some of the turns and never all of them; nothing is kept of who has none.
    #[test]
    fn a_source_has_some_turns() {
        let turns = Turns::default();
        let address = |n: u8| IpAddr::from([10, 0, 0, n]);
        let mut held = Vec::new();
        for _ in 0..EACH {
            held.push(turns.take(address(1)).now_or_never().unwrap().unwrap());
        }
        assert!(turns.take(address(1)).now_or_never().is_none(), "it waits");
        for n in 0..(ALL - EACH) {
            let source = u8::try_from(2 + n / EACH).unwrap();
            held.push(turns.take(address(source)).now_or_never().unwrap().unwrap());
        }
        assert!(turns.take(address(99)).now_or_never().is_none(), "there are no more");
        held.remove(0);
        assert!(turns.take(address(99)).now_or_never().is_some());
        held.clear();
        assert!(turns.sources.lock().unwrap().is_empty());
        let six = |text: &str| source_of(text.parse().unwrap());
        assert_eq!(six("2001:db8::1"), six("2001:db8::ffff:0:0:2"));
        assert_ne!(six("2001:db8::1"), six("2001:db8:0:1::1"));
        assert_eq!(six("::ffff:10.0.0.1"), address(1));
    }
}
