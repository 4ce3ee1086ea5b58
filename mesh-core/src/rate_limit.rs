//! Rate limits of one process: which buckets a request takes a token from, and whether one is empty. Those that a service
//! counts for the whole mesh are in `global`.
//!
//! A bucket is one atomic: the moment at which it was empty, were it filled evenly since. Taking a token moves that moment
//! on; a bucket never holds more than its size because the moment is never further back than filling it takes. Source:
//! Envoy `LocalRateLimiterImpl`, `AtomicTokenBucketImpl`.

use std::{
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
};

use http::HeaderName;
use rand::RngCore;

use crate::{
    config::{LimitAction, LimitDescriptor, LocalRateLimit, RateLimit, TokenBucket},
    request::RequestView,
    route::{query_matches, view_matches},
    sync::{AtomicU64, Ordering::Relaxed},
    time::Time,
};

mod global;

pub use global::{
    Descriptor, GlobalLimit, GlobalLimits, LimitAnswer, LimitCodec, LimitQuestion, LimitStatus, LimitVerdict,
};

/// A rate limit and how the requests of one route get their descriptors.
#[derive(Clone, Debug)]
pub struct Limits {
    limiter: Arc<RateLimiter>,
    entries: Arc<[Entry]>,
}

/// Of the request, what it is counted by.
#[derive(Clone, Copy, Debug)]
pub struct Counted<'a> {
    /// The request.
    pub view: RequestView<'a>,
    /// What this process is part of; empty where that is not known.
    pub own: &'a str,
    /// Where it goes; empty for one that came in.
    pub cluster: &'a str,
    /// Who the caller proved to be.
    pub peer: Option<&'a str>,
}

/// A request over its limit, and how it is answered.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Limited {
    /// The HTTP status.
    pub status: u16,
    /// The gRPC status of an answer to a gRPC call, where it is not what the HTTP status amounts to.
    pub grpc: Option<u32>,
}

impl Limits {
    /// Of a limit, for requests with these descriptors where it has none of its own.
    pub(crate) fn new(limiter: &Arc<RateLimiter>, entries: &[RateLimit]) -> Self {
        let own = &limiter.config.limits;
        let entries = if own.is_empty() { entries } else { own };
        let stage = limiter.config.stage;
        let entries = entries.iter().filter(|entry| entry.stage == stage).map(Entry::compile).collect();
        Self { limiter: Arc::clone(limiter), entries }
    }

    /// The same with full buckets of its own: for a connection, where each is counted by itself.
    #[must_use]
    pub fn apart(&self) -> Self {
        let limiter = Arc::new(RateLimiter::new(&self.limiter.config));
        Self { limiter, entries: Arc::clone(&self.entries) }
    }

    /// The same counted in the buckets of another.
    #[must_use]
    pub fn counted_in(&self, buckets: &Self) -> Self {
        Self { limiter: Arc::clone(&buckets.limiter), entries: Arc::clone(&self.entries) }
    }

    /// Has each connection buckets of its own?
    pub fn is_per_connection(&self) -> bool {
        self.limiter.config.per_connection
    }

    /// Counts a request; `None` lets it pass.
    pub fn count(&self, request: &Counted<'_>, now: Time, rng: &mut impl RngCore) -> Option<Limited> {
        let config = &self.limiter.config;
        let (enabled, enforced) = (rng.next_u64(), rng.next_u64());
        if !config.enabled.hit(enabled) || self.takes(request, now) || !config.enforced.hit(enforced) {
            return None;
        }
        Some(Limited { status: config.status, grpc: config.resource_exhausted.then_some(8) })
    }

    /// Takes a token from each bucket that counts; `false` when one is empty.
    fn takes(&self, request: &Counted<'_>, now: Time) -> bool {
        let limiter = &self.limiter;
        let mut any = false;
        if !limiter.buckets.is_empty() {
            for entry in self.entries.iter() {
                let Some(descriptor) = entry.descriptor(request) else { continue };
                for (config, buckets) in limiter.config.descriptors.iter().zip(&limiter.buckets) {
                    if !means(config, &descriptor) {
                        continue;
                    }
                    any = true;
                    if !buckets.take(config, &descriptor, limiter.config.most_values, now) {
                        return false;
                    }
                }
            }
        }
        match &limiter.default {
            Some(bucket) if !any || limiter.config.always_default => bucket.take(now),
            _ => true,
        }
    }
}

/// The buckets of one limit.
#[derive(Debug)]
pub(crate) struct RateLimiter {
    config: Arc<LocalRateLimit>,
    default: Option<Bucket>,
    buckets: Vec<Buckets>,
}

impl RateLimiter {
    /// All buckets full.
    pub(crate) fn new(config: &Arc<LocalRateLimit>) -> Self {
        Self {
            config: Arc::clone(config),
            default: config.bucket.map(Bucket::new),
            buckets: config.descriptors.iter().map(Buckets::new).collect(),
        }
    }
}

/// Of one configured descriptor: one bucket, or one a value where a value stands for any.
#[derive(Debug)]
enum Buckets {
    One(Bucket),
    /// The latest used last. Behind a lock that is never held over anything; there are few.
    Each(Mutex<Vec<(Vec<String>, Arc<Bucket>)>>),
}

impl Buckets {
    fn new(config: &LimitDescriptor) -> Self {
        match config.entries.iter().any(|(_, value)| value.is_empty()) {
            false => Self::One(Bucket::new(config.bucket)),
            true => Self::Each(Mutex::default()),
        }
    }

    fn take(&self, config: &LimitDescriptor, descriptor: &[(&str, String)], most: u32, now: Time) -> bool {
        let each = match self {
            Self::One(bucket) => return bucket.take(now),
            Self::Each(each) => each,
        };
        let mut each = each.lock().unwrap_or_else(PoisonError::into_inner);
        let is_it = |values: &[String]| values.iter().zip(descriptor).all(|(value, (_, found))| value == found);
        let known = match each.iter().position(|(values, _)| is_it(values)) {
            Some(at) => each.remove(at),
            None => {
                if each.len() >= most.max(1) as usize {
                    each.remove(0);
                }
                let values = descriptor.iter().map(|(_, value)| value.clone()).collect();
                (values, Arc::new(Bucket::new(config.bucket)))
            }
        };
        let allowed = known.1.take(now);
        each.push(known);
        allowed
    }
}

/// Is a request with this descriptor meant?
fn means(config: &LimitDescriptor, descriptor: &[(&str, String)]) -> bool {
    config.entries.len() == descriptor.len()
        && config
            .entries
            .iter()
            .zip(descriptor)
            .all(|((key, value), (found_key, found))| key == found_key && (value.is_empty() || value == found))
}

/// A token bucket.
#[derive(Debug)]
struct Bucket {
    /// When it was empty, in nanoseconds after [`Bucket::BEGIN`] before the beginning of time.
    empty_at: AtomicU64,
    /// Nanoseconds that a token takes to come.
    each: u64,
    /// Nanoseconds that filling it takes.
    full: u64,
}

impl Bucket {
    /// So that the moment may lie before the process began.
    const BEGIN: u64 = 1 << 62;

    fn new(config: TokenBucket) -> Self {
        let every = u64::try_from(config.every.as_nanos()).unwrap_or(u64::MAX);
        let each = (every / u64::from(config.per_fill.max(1))).max(1);
        let full = each.saturating_mul(u64::from(config.max)).min(Self::BEGIN);
        Self { empty_at: AtomicU64::new(0), each, full }
    }

    fn take(&self, now: Time) -> bool {
        let now = Self::BEGIN.saturating_add(now.as_nanos());
        let taken = |empty_at: u64| {
            let after = empty_at.max(now - self.full.min(now)).saturating_add(self.each);
            (after <= now).then_some(after)
        };
        self.empty_at.fetch_update(Relaxed, Relaxed, taken).is_ok()
    }
}

/// How a request gets a descriptor, with names ready to be looked up.
#[derive(Debug)]
struct Entry(Vec<(LimitAction, Option<HeaderName>)>);

impl Entry {
    fn compile(config: &RateLimit) -> Self {
        let name = |action: &LimitAction| match action {
            LimitAction::RequestHeader { name, .. } => HeaderName::from_bytes(name.as_bytes()).ok(),
            _ => None,
        };
        Self(config.actions.iter().map(|action| (action.clone(), name(action))).collect())
    }

    /// `None` where an action yields nothing.
    fn descriptor(&self, request: &Counted<'_>) -> Option<Vec<(&str, String)>> {
        let view = &request.view;
        let mut found = Vec::with_capacity(self.0.len());
        for (action, name) in &self.0 {
            let (key, value, skip): (&str, Option<String>, bool) = match action {
                LimitAction::SourceCluster => {
                    ("source_cluster", Some(request.own.to_owned()).filter(|it| !it.is_empty()), false)
                }
                LimitAction::DestinationCluster => {
                    ("destination_cluster", Some(request.cluster.to_owned()).filter(|it| !it.is_empty()), false)
                }
                LimitAction::RequestHeader { name: wanted, key, skip_if_absent } => {
                    let value = match &**wanted {
                        ":path" => Some(view.path),
                        ":method" => Some(view.method.as_str()),
                        ":authority" | "host" => Some(view.authority).filter(|it| !it.is_empty()),
                        ":scheme" => Some(view.scheme),
                        _ => name.as_ref().and_then(|name| view.headers.get(name)?.to_str().ok()),
                    };
                    (key, value.map(str::to_owned), *skip_if_absent)
                }
                LimitAction::Query { name, key, skip_if_absent } => {
                    let pairs = view.query().unwrap_or("").split('&');
                    let mut pairs = pairs.map(|pair| pair.split_once('=').unwrap_or((pair, "")));
                    let value = pairs.find(|(found, _)| found == name).map(|(_, value)| value.to_owned());
                    (key, value, *skip_if_absent)
                }
                LimitAction::RemoteAddress => ("remote_address", view.source.map(|it| it.to_string()), false),
                LimitAction::MaskedRemoteAddress { v4, v6 } => {
                    ("masked_remote_address", view.source.map(|address| masked(address, *v4, *v6)), false)
                }
                LimitAction::GenericKey { key, value } => (key, Some(value.clone()), false),
                LimitAction::HeaderMatch { key, value, expect, headers } => {
                    let meets = headers.iter().all(|wanted| view_matches(wanted, view));
                    (key, (meets == *expect).then(|| value.clone()), false)
                }
                LimitAction::QueryMatch { key, value, expect, query } => {
                    let meets = query.iter().all(|wanted| query_matches(wanted, view.query()));
                    (key, (meets == *expect).then(|| value.clone()), false)
                }
                LimitAction::Peer { key } => (key, request.peer.map(str::to_owned), false),
            };
            match value {
                Some(value) => found.push((key, value)),
                None if skip => {}
                None => return None,
            }
        }
        (!found.is_empty()).then_some(found)
    }
}

/// The network an address is of: `10.1.0.0/16`.
fn masked(address: IpAddr, v4: u8, v6: u8) -> String {
    let bits = if address.is_ipv4() { v4.min(32) } else { v6.min(128) };
    ipnet::IpNet::new(address, bits).map_or_else(|_| address.to_string(), |network| network.trunc().to_string())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::time::Duration;

    use super::*;
    use crate::{
        config::{Fraction, HeaderMatch, HeaderMatcher},
        rng::RequestRng,
    };

    const fn bucket(max: u32, per_fill: u32, seconds: u64) -> TokenBucket {
        TokenBucket { max, per_fill, every: Duration::from_secs(seconds) }
    }

    fn limit(max: u32) -> LocalRateLimit {
        LocalRateLimit {
            bucket: Some(bucket(max, 1, 1)),
            enabled: Fraction::ALL,
            enforced: Fraction::ALL,
            ..LocalRateLimit::default()
        }
    }

    fn limits(config: LocalRateLimit, entries: &[RateLimit]) -> Limits {
        Limits::new(&Arc::new(RateLimiter::new(&Arc::new(config))), entries)
    }

    /// How many of so many requests pass.
    fn passed(limits: &Limits, uri: &str, headers: &[(&str, &str)], now: Time, requests: u64) -> usize {
        let mut request = http::Request::get(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let (parts, ()) = request.body(()).unwrap().into_parts();
        let mut view = RequestView::of(&parts, None);
        view.source = Some([10, 1, 2, 3].into());
        let counted = Counted { view, own: "mine", cluster: "reviews", peer: Some("spiffe://td/ns/a/sa/b") };
        (0..requests).filter(|n| limits.count(&counted, now, &mut RequestRng::new(1, *n)).is_none()).count()
    }

    fn get(limits: &Limits, now: Time, requests: u64) -> usize {
        passed(limits, "http://reviews/", &[], now, requests)
    }

    /// RL1: a bucket starts full, is filled evenly, and never holds more than its size.
    #[test]
    fn a_bucket_is_filled_evenly() {
        let at = |millis| Time::ZERO + Duration::from_millis(millis);
        let limits = limits(LocalRateLimit { bucket: Some(bucket(10, 5, 1)), ..limit(0) }, &[]);
        for (millis, expected) in [(0, 10), (100, 0), (200, 1), (399, 0), (1_000, 4), (60_000, 10), (60_000, 0)] {
            assert_eq!(get(&limits, at(millis), 20), expected, "{millis}");
        }
    }

    /// RL1: without shares a limit counts nothing and refuses nothing; gRPC calls may be told another status.
    #[test]
    fn a_limit_without_shares_is_inert() {
        for (enabled, enforced, expected) in
            [(Fraction::NONE, Fraction::ALL, 9), (Fraction::ALL, Fraction::NONE, 9), (Fraction::ALL, Fraction::ALL, 2)]
        {
            let limits = limits(LocalRateLimit { enabled, enforced, ..limit(2) }, &[]);
            assert_eq!(get(&limits, Time::ZERO, 9), expected);
        }
        let none = limits(LocalRateLimit { status: 503, resource_exhausted: true, ..limit(0) }, &[]);
        let (parts, ()) = http::Request::new(()).into_parts();
        let counted = Counted { view: RequestView::of(&parts, None), own: "", cluster: "", peer: None };
        let limited = none.count(&counted, Time::ZERO, &mut RequestRng::new(1, 1));
        assert_eq!(limited, Some(Limited { status: 503, grpc: Some(8) }));
    }

    /// RL2: each action yields its value; one without any is no descriptor, unless it may be skipped.
    #[test]
    fn actions_make_descriptors() {
        let header =
            |skip| LimitAction::RequestHeader { name: "end-user".into(), key: "u".into(), skip_if_absent: skip };
        let query = LimitAction::Query { name: "q".into(), key: "q".into(), skip_if_absent: false };
        let matched = |expect| LimitAction::HeaderMatch {
            key: "header_match".into(),
            value: "yes".into(),
            expect,
            headers: vec![HeaderMatch {
                name: "end-user".into(),
                matcher: HeaderMatcher::Present(true),
                invert: false,
                missing_as_empty: false,
            }],
        };
        let generic = LimitAction::GenericKey { key: "generic_key".into(), value: "g".into() };
        let jason = [("end-user", "jason")];
        let named =
            |name: &str| LimitAction::RequestHeader { name: name.into(), key: "h".into(), skip_if_absent: false };
        let uri = "http://reviews/?p=1&q=2";
        for (actions, headers, expected) in [
            (vec![header(false)], &jason[..], Some("u=jason")),
            (vec![header(false)], &[], None),
            (vec![header(true), generic.clone()], &[], Some("generic_key=g")),
            (vec![generic, header(false)], &jason, Some("generic_key=g,u=jason")),
            (vec![named(":path")], &[], Some("h=/?p=1&q=2")),
            (vec![named(":method"), named(":scheme")], &[], Some("h=GET,h=http")),
            (vec![named(":authority"), named("host")], &[], Some("h=reviews,h=reviews")),
            (vec![query], &[], Some("q=2")),
            (vec![matched(true)], &jason, Some("header_match=yes")),
            (vec![matched(true)], &[], None),
            (vec![matched(false)], &[], Some("header_match=yes")),
            (vec![LimitAction::SourceCluster], &[], Some("source_cluster=mine")),
            (vec![LimitAction::DestinationCluster], &[], Some("destination_cluster=reviews")),
            (vec![LimitAction::RemoteAddress], &[], Some("remote_address=10.1.2.3")),
            (vec![LimitAction::MaskedRemoteAddress { v4: 16, v6: 64 }], &[], Some("masked_remote_address=10.1.0.0/16")),
            (vec![LimitAction::Peer { key: "p".into() }], &[], Some("p=spiffe://td/ns/a/sa/b")),
        ] {
            // Whoever has the expected descriptor finds its bucket empty, all others one that is full.
            let entries = expected.unwrap_or("none=none").split(',').map(|entry| entry.split_once('=').unwrap());
            let entries = entries.map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
            let descriptors = vec![LimitDescriptor { entries, bucket: bucket(0, 1, 1) }];
            let config = LocalRateLimit { descriptors, ..limit(100) };
            let limits = limits(config, &[RateLimit { stage: 0, actions: actions.clone(), hits: None }]);
            let found = passed(&limits, uri, headers, Time::ZERO, 1) == 0;
            assert_eq!(found, expected.is_some(), "{actions:?} {headers:?}");
        }
    }

    /// RL2: descriptors have buckets of their own, a value that stands for any one each; the default's is taken from as well.
    #[test]
    fn descriptors_have_their_own_buckets() {
        let actions =
            vec![LimitAction::RequestHeader { name: "end-user".into(), key: "u".into(), skip_if_absent: false }];
        let descriptor = |value: &str, max| LimitDescriptor {
            entries: vec![("u".to_owned(), value.to_owned())],
            bucket: bucket(max, 1, 1),
        };
        let entry = RateLimit { stage: 0, actions, hits: None };
        let ask =
            |limits: &Limits, user: &str| passed(limits, "http://reviews/", &[("end-user", user)], Time::ZERO, 20);
        let named = LocalRateLimit { descriptors: vec![descriptor("jason", 3)], always_default: false, ..limit(5) };
        let by_name = limits(named.clone(), std::slice::from_ref(&entry));
        assert_eq!((ask(&by_name, "jason"), ask(&by_name, "other")), (3, 5));
        let always = limits(LocalRateLimit { always_default: true, ..named.clone() }, std::slice::from_ref(&entry));
        assert_eq!((ask(&always, "jason"), ask(&always, "other")), (3, 2));
        let each = LocalRateLimit { descriptors: vec![descriptor("", 2)], most_values: 2, ..named.clone() };
        let each = limits(each, std::slice::from_ref(&entry));
        assert_eq!(["a", "b", "a", "c", "b"].map(|user| ask(&each, user)), [2, 2, 0, 2, 2], "b made room for c");
        let staged = limits(LocalRateLimit { stage: 1, ..named }, &[entry]);
        assert_eq!(ask(&staged, "jason"), 5, "an entry of another stage counts for nothing");
    }

    /// RL5: what is counted by connection has buckets apart.
    #[test]
    fn connections_are_counted_apart() {
        let limits = limits(LocalRateLimit { per_connection: true, ..limit(2) }, &[]);
        assert!(limits.is_per_connection());
        let (one, other) = (limits.apart(), limits.apart());
        assert_eq!((get(&one, Time::ZERO, 5), get(&other, Time::ZERO, 5)), (2, 2));
    }
}
