//! One provider of tokens while it is in use: its keys, fetched and kept up to date by a task of its own where they are not
//! configured.
//!
//! Keys are fetched through a cluster of the mesh and from nowhere else, redirections are not followed, and an answer is read
//! up to a limit. They are fetched anew when their time is over, sooner when a token names a key that is not there (but not
//! more often than every [`AGAIN`], whatever callers send), and later and later while that fails; what was fetched last counts
//! until it is [`STALE`] times as old as it may get. Source: Envoy `JwksAsyncFetcher`, Istio `jwks_resolver.go`.

use std::{
    future::Future,
    pin::Pin,
    sync::{Arc, Weak},
    time::Duration,
};

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::{Request, StatusCode, Uri, header};
use mesh_core::{
    config::{JwtKeys, JwtProvider, Name},
    jwt::{JwtError, Token},
};
use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep, timeout},
};

use super::keys::KeySet;
use crate::{side::SideCalls, source, upkeep::Owned};

/// The most that is read of a key set.
const SIZE: usize = 256 * 1024;
/// Between two attempts because of unknown keys.
const AGAIN: Duration = Duration::from_secs(10);
/// Between attempts after failures: from, to.
const BACK_OFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// Keys count no longer than so many times the time after which they are fetched anew.
const STALE: u32 = 6;

/// A provider in use.
#[derive(Debug)]
pub(super) struct Issuer {
    pub(super) config: Arc<JwtProvider>,
    keys: Arc<Keys>,
    /// Ends with the provider.
    _fetching: Option<Owned>,
}

/// Keys as they come.
#[derive(Debug)]
struct Keys {
    state: ArcSwap<State>,
    /// How many attempts have ended.
    attempts: watch::Sender<u64>,
    wanted: Notify,
    remote: bool,
}

#[derive(Debug, Default)]
struct State {
    set: Option<Arc<KeySet>>,
    /// Of sets, so that what was proven by one is proven again by the next.
    generation: u64,
    /// From when on unknown keys are a reason to look again.
    again: Option<Instant>,
}

impl Issuer {
    pub(super) fn start(name: &Name, config: &Arc<JwtProvider>, get: &Get) -> Self {
        let keys = |state, remote| {
            let (attempts, _) = watch::channel(0);
            Arc::new(Keys { state: ArcSwap::from_pointee(state), attempts, wanted: Notify::new(), remote })
        };
        let config = Arc::clone(config);
        match &config.keys {
            JwtKeys::Inline(text) => {
                let set = KeySet::parse(text, false).inspect_err(|error| {
                    tracing::warn!(target: "mesh::jwt", provider = %name, %error, "its key set cannot be used: its tokens are refused");
                });
                let state = State { set: set.ok().map(Arc::new), ..State::default() };
                Self { keys: keys(state, false), config, _fetching: None }
            }
            JwtKeys::Remote { uri, cluster, timeout, refresh } => {
                let keys = keys(State::default(), true);
                let fetch = Fetch {
                    name: Arc::clone(name),
                    uri: uri.clone(),
                    cluster: Arc::clone(cluster),
                    timeout: *timeout,
                    refresh: (*refresh).max(Duration::from_secs(1)),
                    get: Arc::clone(get),
                    keys: Arc::downgrade(&keys),
                };
                Self { keys, config, _fetching: Some(Owned::spawn(fetch.run())) }
            }
        }
    }

    /// Of the key set in force.
    pub(super) fn generation(&self) -> u64 {
        self.keys.state.load().generation
    }

    /// Has it signed the token? `patient` may wait for keys.
    pub(super) fn prove(&self, text: &str, token: &Token, patient: bool) -> Result<(), JwtError> {
        let state = self.keys.state.load();
        let Some(set) = &state.set else {
            return Err(match (self.keys.remote, patient && *self.keys.attempts.borrow() == 0) {
                (true, true) => JwtError::KeysPending,
                (true, false) => JwtError::KeysNotFetched,
                (false, _) => JwtError::NoKeys,
            });
        };
        match set.prove(text, token) {
            Err(JwtError::NoKeyMatches) if patient && self.keys.remote => {
                // A new key, or a made-up name. Only the first to ask makes it fetched again.
                if state.again.is_some_and(|again| again > source::instant()) {
                    return Err(JwtError::NoKeyMatches);
                }
                self.keys.wanted.notify_one();
                Err(JwtError::KeysPending)
            }
            proven => proven,
        }
    }

    /// How many attempts to fetch keys have ended.
    pub(super) fn attempts(&self) -> watch::Receiver<u64> {
        self.keys.attempts.subscribe()
    }

    /// How long that takes at most.
    pub(super) fn patience(&self) -> Duration {
        match &self.config.keys {
            JwtKeys::Inline(_) => Duration::ZERO,
            JwtKeys::Remote { timeout, .. } => *timeout,
        }
    }
}

/// The task that keeps keys.
struct Fetch {
    name: Name,
    uri: String,
    cluster: Name,
    timeout: Duration,
    refresh: Duration,
    get: Get,
    keys: Weak<Keys>,
}

impl Fetch {
    async fn run(self) {
        let mut failures = 0_u32;
        let mut fetched: Option<Instant> = None;
        loop {
            let got = self.fetch().await;
            let Some(keys) = self.keys.upgrade() else { return };
            let now = source::instant();
            let (before, again) = (keys.state.load_full(), Some(now + AGAIN));
            let state = match got {
                Ok(set) => {
                    (failures, fetched) = (0, Some(now));
                    State { set: Some(Arc::new(set)), generation: before.generation + 1, again }
                }
                Err(error) => {
                    failures = failures.saturating_add(1);
                    tracing::warn!(target: "mesh::jwt", provider = %self.name, uri = %self.uri, %error, "keys cannot be fetched");
                    let is_old = fetched.is_none_or(|at| now.saturating_duration_since(at) > self.refresh * STALE);
                    match &before.set {
                        Some(set) if !is_old => {
                            State { set: Some(Arc::clone(set)), generation: before.generation, again }
                        }
                        _ => State { set: None, generation: before.generation + 1, again },
                    }
                }
            };
            keys.state.store(Arc::new(state));
            keys.attempts.send_modify(|count| *count += 1);
            let wait = match failures {
                0 => self.refresh,
                n => (BACK_OFF.0 * 2_u32.saturating_pow(n.min(16) - 1)).min(BACK_OFF.1),
            };
            // A tenth more or less, so that processes started together do not ask together.
            let spread = 0.9 + 0.2 * (source::random_u64() as f64 / u64::MAX as f64);
            let due = now + wait.mul_f64(spread);
            sleep(AGAIN.min(wait)).await;
            let _ = timeout(due.saturating_duration_since(source::instant()), keys.wanted.notified()).await;
        }
    }

    async fn fetch(&self) -> Result<KeySet, String> {
        match timeout(self.timeout, (self.get)(self.uri.clone(), Arc::clone(&self.cluster), self.timeout)).await {
            Ok(text) => KeySet::parse(&text?, true),
            Err(_) => Err(format!("no answer within {:?}", self.timeout)),
        }
    }
}

/// Gets what is at an address, through a cluster, within a time.
pub(super) type Get =
    Arc<dyn Fn(String, Name, Duration) -> Pin<Box<dyn Future<Output = Result<String, String>> + Send>> + Send + Sync>;

/// Over the mesh.
pub(super) fn over(side: SideCalls) -> Get {
    Arc::new(move |uri, cluster, timeout| {
        let side = side.clone();
        Box::pin(async move { get(&side, &uri, &cluster, timeout).await })
    })
}

async fn get(side: &SideCalls, uri: &str, cluster: &str, timeout: Duration) -> Result<String, String> {
    let uri: Uri = uri.parse().map_err(|error| format!("the address cannot be used: {error}"))?;
    let authority = uri.authority().ok_or("the address has no host")?.as_str();
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    // Whether the wire is encrypted is said by the cluster.
    let request = Request::get(format!("http://{authority}{path}"))
        .header(header::ACCEPT, "application/json")
        .body(Bytes::new())
        .map_err(|error| error.to_string())?;
    let answer = side.http(cluster, request, timeout, SIZE).await.map_err(|error| error.to_string())?;
    if answer.status() != StatusCode::OK {
        return Err(format!("it answered {}", answer.status()));
    }
    String::from_utf8(answer.into_body().to_vec()).map_err(|_| "it is no text".to_owned())
}
