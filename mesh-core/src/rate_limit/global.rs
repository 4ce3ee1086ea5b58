//! Limits that a service counts for the whole mesh (RL3): what it is asked about a request, and what its answer means.
//!
//! One question a request, with all its descriptors; without a descriptor there is none. Source: Envoy
//! `extensions/filters/http/ratelimit`, `envoy.service.ratelimit.v3`.

use std::{fmt::Write as _, sync::Arc, time::Duration};

use http::{HeaderMap, HeaderName, HeaderValue};
use rand::RngCore;

use super::{Counted, Entry, Limited};
use crate::{
    config::{GlobalOverride, GlobalRateLimit, LimitedRequests, RateLimit},
    outcome::Flags,
};

const RATELIMITED: HeaderName = HeaderName::from_static("x-envoy-ratelimited");
const INTERNAL: HeaderName = HeaderName::from_static("x-envoy-internal");
const LIMIT: HeaderName = HeaderName::from_static("x-ratelimit-limit");
const REMAINING: HeaderName = HeaderName::from_static("x-ratelimit-remaining");
const RESET: HeaderName = HeaderName::from_static("x-ratelimit-reset");

/// gRPC's `RESOURCE_EXHAUSTED`.
const RESOURCE_EXHAUSTED: u32 = 8;

/// The services that are asked about the requests of one route, in order.
#[derive(Clone, Debug)]
pub struct GlobalLimits(Arc<[GlobalLimit]>);

impl GlobalLimits {
    /// Of a port's services, with the descriptors of a route and what it says of them; `None` is nobody to ask.
    pub(crate) fn new(
        services: &[Arc<GlobalRateLimit>],
        entries: &[RateLimit],
        own: Option<&GlobalOverride>,
    ) -> Option<Self> {
        if own.is_some_and(|own| own.disabled) {
            return None;
        }
        let limits: Vec<_> = services.iter().map(|service| GlobalLimit::new(service, entries, own)).collect();
        (!limits.is_empty()).then(|| Self(limits.into()))
    }

    /// They, in order.
    pub fn iter(&self) -> impl Iterator<Item = &GlobalLimit> {
        self.0.iter()
    }

    /// The one at this place.
    pub fn get(&self, at: usize) -> Option<&GlobalLimit> {
        self.0.get(at)
    }
}

/// One service, and how requests are described to it.
#[derive(Debug)]
pub struct GlobalLimit {
    config: Arc<GlobalRateLimit>,
    domain: String,
    entries: Vec<(Entry, Option<u64>)>,
}

/// What a service is asked.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LimitQuestion {
    /// Whose limits are meant.
    pub domain: String,
    /// What the request is counted by; never empty.
    pub descriptors: Vec<Descriptor>,
}

/// One thing that a request is counted by.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Descriptor {
    /// Keys and values, in order.
    pub entries: Vec<(String, String)>,
    /// So many requests at once; `None` is one.
    pub hits: Option<u64>,
}

/// What a service says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LimitAnswer {
    /// The request is one too many.
    pub over: bool,
    /// Of each descriptor, how far its limit is used up.
    pub statuses: Vec<LimitStatus>,
    /// Headers of the response, whoever gives it.
    pub response_headers: Vec<(String, String)>,
    /// Headers of a request that passes.
    pub request_headers: Vec<(String, String)>,
    /// The text of a refusal.
    pub body: Vec<u8>,
}

/// How far a limit is used up.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LimitStatus {
    /// Its name, how many requests it lets through, and in how many seconds; `None` where there is no limit.
    pub limit: Option<(String, u32, u64)>,
    /// How many are left.
    pub remaining: u32,
    /// Until it begins anew.
    pub reset: Duration,
}

/// How a question is written down for a service, and its answer read. The reading says why it is none.
#[derive(Clone, Copy, Debug)]
pub struct LimitCodec {
    /// The message of `envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit`.
    pub encode: fn(&LimitQuestion) -> Vec<u8>,
    /// Its answer's message.
    pub decode: fn(&[u8]) -> Result<LimitAnswer, String>,
}

/// What becomes of a request.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LimitVerdict {
    /// How it is refused, if it is.
    pub refused: Option<Limited>,
    /// Why, in Envoy's short word.
    pub flags: Flags,
    /// Envoy `%RESPONSE_CODE_DETAILS%`.
    pub details: &'static str,
    /// The text of the refusal.
    pub body: String,
    /// Headers added to a request that passes.
    pub request_headers: HeaderMap,
    /// Headers added to the answer, whoever gives it.
    pub response_headers: HeaderMap,
    /// Of these, the ones that take the place of others of their name.
    pub replaced: HeaderMap,
}

impl LimitVerdict {
    /// Writes what it says on the headers of the answer.
    pub fn tell(&self, headers: &mut HeaderMap) {
        for (name, value) in &self.replaced {
            headers.insert(name, value.clone());
        }
        for (name, value) in &self.response_headers {
            headers.append(name, value.clone());
        }
    }

    /// Has it nothing to write on answers?
    pub fn is_silent(&self) -> bool {
        self.replaced.is_empty() && self.response_headers.is_empty()
    }
}

impl GlobalLimit {
    fn new(config: &Arc<GlobalRateLimit>, entries: &[RateLimit], own: Option<&GlobalOverride>) -> Self {
        // The most specific that says anything: the route's word for services, the service's own, the route's for all limits.
        let entries = match own.and_then(|own| own.limits.as_deref()) {
            Some(own) => own,
            None if !config.limits.is_empty() => &config.limits,
            None => entries,
        };
        let entries = entries.iter().filter(|entry| entry.stage == config.stage);
        let domain = own.map_or("", |own| own.domain.as_str());
        Self {
            config: Arc::clone(config),
            domain: if domain.is_empty() { config.domain.clone() } else { domain.to_owned() },
            entries: entries.map(|entry| (Entry::compile(entry), entry.hits)).collect(),
        }
    }

    /// One with its own descriptors alone.
    pub fn of(config: &Arc<GlobalRateLimit>) -> Self {
        Self::new(config, &[], None)
    }

    /// What it was made of.
    pub fn config(&self) -> &GlobalRateLimit {
        &self.config
    }

    /// What the service is asked about a request; `None` lets it pass unasked.
    pub fn question(&self, request: &Counted<'_>, rng: &mut impl RngCore) -> Option<LimitQuestion> {
        let config = &self.config;
        let is_internal = || request.view.headers.get(INTERNAL).is_some_and(|value| value == "true");
        let is_meant = match config.requests {
            LimitedRequests::All => true,
            LimitedRequests::Internal => is_internal(),
            LimitedRequests::External => !is_internal(),
        };
        if self.entries.is_empty() || !is_meant || !config.enabled.hit(rng.next_u64()) {
            return None;
        }
        let descriptor = |(entry, hits): &(Entry, Option<u64>)| {
            let entries = entry.descriptor(request)?;
            let entries = entries.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
            Some(Descriptor { entries, hits: *hits })
        };
        let descriptors: Vec<_> = self.entries.iter().filter_map(descriptor).collect();
        (!descriptors.is_empty()).then(|| LimitQuestion { domain: self.domain.clone(), descriptors })
    }

    /// What an answer means, or that there is none.
    pub fn judge(&self, answer: Option<LimitAnswer>, rng: &mut impl RngCore) -> LimitVerdict {
        let config = &self.config;
        let grpc = config.resource_exhausted.then_some(RESOURCE_EXHAUSTED);
        let Some(answer) = answer else {
            let mut verdict = LimitVerdict::default();
            if config.failure_denies.hit(rng.next_u64()) {
                verdict.refused = Some(Limited { status: config.status_on_error, grpc: None });
                (verdict.flags, verdict.details) = (Flags::RLSE, "rate_limiter_error");
            }
            return verdict;
        };
        let mut verdict = LimitVerdict { response_headers: map(&answer.response_headers), ..LimitVerdict::default() };
        if config.tells_limits {
            tell_limits(&answer.statuses, &mut verdict.replaced);
        }
        if !answer.over {
            verdict.request_headers = map(&answer.request_headers);
            return verdict;
        }
        if !config.enforced.hit(rng.next_u64()) {
            return verdict;
        }
        if config.tells_refusal {
            verdict.replaced.insert(RATELIMITED, HeaderValue::from_static("true"));
        }
        for (name, value, beside) in &config.refused_headers {
            if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_str(value)) {
                match beside {
                    true => verdict.response_headers.append(name, value),
                    false => verdict.replaced.insert(name, value).is_some(),
                };
            }
        }
        verdict.refused = Some(Limited { status: config.status, grpc });
        (verdict.flags, verdict.details) = (Flags::RL, "request_rate_limited");
        verdict.body = String::from_utf8_lossy(&answer.body).into_owned();
        verdict
    }
}

/// What is no header is left out, and what would speak for the connection or name another host.
fn map(headers: &[(String, String)]) -> HeaderMap {
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) else { continue };
        let of_message = [http::header::HOST, http::header::CONTENT_LENGTH, http::header::TRANSFER_ENCODING];
        if !of_message.contains(&name) && name != http::header::CONNECTION {
            map.append(name, value);
        }
    }
    map
}

/// The limit nearest to its end, and all limits as a policy. Source: Envoy `XRateLimitHeaderUtils`, draft 3 of the RFC.
fn tell_limits(statuses: &[LimitStatus], headers: &mut HeaderMap) {
    let limited = || statuses.iter().filter_map(|status| Some((status, status.limit.as_ref()?)));
    let Some((nearest, (_, requests, _))) = limited().min_by_key(|(status, _)| status.remaining) else { return };
    let mut policy = requests.to_string();
    for (_, (name, requests, seconds)) in limited().filter(|(_, (_, _, seconds))| *seconds > 0) {
        let _ = write!(policy, ", {requests};w={seconds}");
        if !name.is_empty() {
            let _ = write!(policy, ";name=\"{name}\"");
        }
    }
    if let Ok(policy) = HeaderValue::try_from(policy) {
        headers.insert(LIMIT, policy);
    }
    headers.insert(REMAINING, HeaderValue::from(nearest.remaining));
    headers.insert(RESET, HeaderValue::from(nearest.reset.as_secs()));
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::{
        config::{Fraction, LimitAction},
        request::RequestView,
        rng::RequestRng,
    };

    fn generic(key: &str, value: &str) -> LimitAction {
        LimitAction::GenericKey { key: key.into(), value: value.into() }
    }

    fn entry(stage: u32, actions: Vec<LimitAction>) -> RateLimit {
        RateLimit { stage, actions, hits: None }
    }

    fn limit(config: GlobalRateLimit, entries: &[RateLimit], own: Option<&GlobalOverride>) -> Option<GlobalLimits> {
        GlobalLimits::new(&[Arc::new(config)], entries, own)
    }

    fn ask(limits: &GlobalLimits, headers: &[(&str, &str)]) -> Option<LimitQuestion> {
        let mut request = http::Request::get("http://reviews/a?b=c");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let (parts, ()) = request.body(()).unwrap().into_parts();
        let view = RequestView { source: Some([10, 1, 2, 3].into()), ..RequestView::of(&parts, None) };
        let counted = Counted { view, own: "productpage.default", cluster: "reviews", peer: None };
        limits.get(0).unwrap().question(&counted, &mut RequestRng::new(1, 1))
    }

    /// RL3: a request is asked about once, with a descriptor for each entry that has all its values, in order.
    #[test]
    fn one_question_holds_all_descriptors() {
        let header = LimitAction::RequestHeader { name: "end-user".into(), key: "user".into(), skip_if_absent: false };
        let entries = [
            entry(0, vec![LimitAction::SourceCluster, LimitAction::DestinationCluster]),
            entry(0, vec![header, LimitAction::RemoteAddress]),
            entry(1, vec![generic("generic_key", "late")]),
            RateLimit { hits: Some(7), ..entry(0, vec![generic("generic_key", "all")]) },
        ];
        let config = GlobalRateLimit { domain: "d".into(), ..GlobalRateLimit::default() };
        let limits = limit(config.clone(), &entries, None).unwrap();
        let told = |question: Option<LimitQuestion>| {
            let descriptor = |it: &Descriptor| {
                let entries: Vec<_> = it.entries.iter().map(|(key, value)| format!("{key}={value}")).collect();
                format!("{}{}", entries.join(","), it.hits.map_or(String::new(), |hits| format!("*{hits}")))
            };
            question.map(|it| (it.domain.clone(), it.descriptors.iter().map(descriptor).collect::<Vec<_>>()))
        };
        let clusters = "source_cluster=productpage.default,destination_cluster=reviews";
        let expected = vec![clusters.to_owned(), "generic_key=all*7".to_owned()];
        assert_eq!(told(ask(&limits, &[])), Some(("d".to_owned(), expected)));
        let jason = told(ask(&limits, &[("end-user", "jason")])).unwrap().1;
        assert_eq!(jason[1], "user=jason,remote_address=10.1.2.3");
        let late = limit(GlobalRateLimit { stage: 1, ..config.clone() }, &entries, None).unwrap();
        assert_eq!(told(ask(&late, &[])).unwrap().1, ["generic_key=late"]);
        // Whose descriptors count: the route's word for services, the service's own, the route's.
        let own = GlobalRateLimit { limits: vec![entry(0, vec![generic("k", "service")])], ..config.clone() };
        assert_eq!(told(ask(&limit(own.clone(), &entries, None).unwrap(), &[])).unwrap().1, ["k=service"]);
        let route = GlobalOverride {
            domain: "other".into(),
            limits: Some(vec![entry(0, vec![generic("k", "route")])]),
            ..GlobalOverride::default()
        };
        let asked = told(ask(&limit(own, &entries, Some(&route)).unwrap(), &[])).unwrap();
        assert_eq!(asked, ("other".to_owned(), vec!["k=route".to_owned()]));
        // Who is not asked: no descriptor, a stage without any, switched off, not that kind of request, not that share.
        assert!(ask(&limit(config.clone(), &[], None).unwrap(), &[]).is_none());
        assert!(limit(config.clone(), &entries, Some(&GlobalOverride { disabled: true, ..route })).is_none());
        for (requests, internal) in
            [(LimitedRequests::Internal, true), (LimitedRequests::External, false), (LimitedRequests::All, true)]
        {
            let limits = limit(GlobalRateLimit { requests, ..config.clone() }, &entries, None).unwrap();
            assert_eq!(ask(&limits, &[("x-envoy-internal", "true")]).is_some(), internal, "{requests:?}");
            assert_eq!(ask(&limits, &[]).is_some(), requests != LimitedRequests::Internal, "{requests:?}");
        }
        let none = limit(GlobalRateLimit { enabled: Fraction::NONE, ..config }, &entries, None).unwrap();
        assert!(ask(&none, &[]).is_none());
    }

    /// RL3: an answer refuses or lets pass, and none does as configured; what limits are left is told where it is asked for.
    #[test]
    fn answers_are_judged() {
        let status = |name: &str, requests, seconds, remaining| LimitStatus {
            limit: Some((name.into(), requests, seconds)),
            remaining,
            reset: Duration::from_secs(9),
        };
        let over = LimitAnswer {
            over: true,
            statuses: vec![status("day", 100, 86_400, 50), status("", 10, 60, 0), LimitStatus::default()],
            response_headers: vec![("x-why".into(), "too many".into()), ("host".into(), "evil".into())],
            request_headers: vec![("x-left".into(), "1".into())],
            body: b"slow down".to_vec(),
        };
        let config = GlobalRateLimit { tells_limits: true, ..GlobalRateLimit::default() };
        let judge = |config: &GlobalRateLimit, answer: Option<LimitAnswer>| {
            let limits = limit(config.clone(), &[], None).unwrap();
            let verdict = limits.get(0).unwrap().judge(answer, &mut RequestRng::new(1, 1));
            let mut headers = HeaderMap::new();
            headers.insert("x-envoy-ratelimited", HeaderValue::from_static("false"));
            verdict.tell(&mut headers);
            (verdict, headers)
        };
        let (verdict, headers) = judge(&config, Some(over.clone()));
        assert_eq!(verdict.refused, Some(Limited { status: 429, grpc: None }));
        assert_eq!((verdict.flags, verdict.details, &*verdict.body), (Flags::RL, "request_rate_limited", "slow down"));
        assert_eq!(headers["x-ratelimit-limit"], "10, 100;w=86400;name=\"day\", 10;w=60");
        assert_eq!(
            (&headers["x-ratelimit-remaining"], &headers["x-ratelimit-reset"]),
            (&"0".parse().unwrap(), &"9".parse().unwrap())
        );
        assert_eq!(
            (&headers["x-why"], &headers["x-envoy-ratelimited"]),
            (&"too many".parse().unwrap(), &"true".parse().unwrap())
        );
        assert!(!headers.contains_key("host") && verdict.request_headers.is_empty());
        // In other words, and not enforced.
        let other = GlobalRateLimit {
            status: 503,
            resource_exhausted: true,
            tells_refusal: false,
            refused_headers: vec![("x-own".into(), "1".into(), false)],
            ..GlobalRateLimit::default()
        };
        let (verdict, headers) = judge(&other, Some(over.clone()));
        assert_eq!(verdict.refused, Some(Limited { status: 503, grpc: Some(8) }));
        assert!(
            headers["x-envoy-ratelimited"] == "false"
                && headers["x-own"] == "1"
                && !headers.contains_key("x-ratelimit-limit")
        );
        let (verdict, _) = judge(&GlobalRateLimit { enforced: Fraction::NONE, ..other }, Some(over.clone()));
        assert_eq!(verdict.refused, None);
        let (verdict, headers) = judge(&config, Some(LimitAnswer { over: false, ..over }));
        assert_eq!((verdict.refused, verdict.flags), (None, Flags::NONE));
        assert_eq!(
            (&verdict.request_headers["x-left"], &headers["x-why"]),
            (&"1".parse().unwrap(), &"too many".parse().unwrap())
        );
        // No answer.
        assert_eq!(judge(&config, None).0, LimitVerdict::default());
        let (verdict, _) = judge(&GlobalRateLimit { failure_denies: Fraction::ALL, ..config }, None);
        assert_eq!(verdict.refused, Some(Limited { status: 500, grpc: None }));
        assert_eq!((verdict.flags, verdict.details), (Flags::RLSE, "rate_limiter_error"));
    }
}
