//! What a request's own headers change of its policy (RT19). Source: Envoy router filter, `x-envoy-retry-on` and siblings.
//!
//! They are the caller's word to its own client, so they are read and taken off; a gateway takes them off what comes from
//! outside before this sees it.

use std::time::Duration;

use http::{HeaderMap, HeaderName};

use crate::config::{GrpcRetry, HeaderMatch, HeaderMatcher, HedgePolicy, HttpRetry, RetryPolicy};

const RETRY_ON: HeaderName = HeaderName::from_static("x-envoy-retry-on");
const RETRY_GRPC_ON: HeaderName = HeaderName::from_static("x-envoy-retry-grpc-on");
const MAX_RETRIES: HeaderName = HeaderName::from_static("x-envoy-max-retries");
const STATUS_CODES: HeaderName = HeaderName::from_static("x-envoy-retriable-status-codes");
const HEADER_NAMES: HeaderName = HeaderName::from_static("x-envoy-retriable-header-names");
const PER_TRY: HeaderName = HeaderName::from_static("x-envoy-upstream-rq-per-try-timeout-ms");
const HEDGE: HeaderName = HeaderName::from_static("x-envoy-hedge-on-per-try-timeout");

/// What a request asks for itself, in place of its route's policy.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Overrides {
    /// The policy in place of the route's; `None` leaves it, or leaves there being none.
    pub retry: Option<RetryPolicy>,
    /// The hedging in place of the route's.
    pub hedge: Option<HedgePolicy>,
}

impl Overrides {
    /// Reads the headers of a request and takes them off. `None`, the common case, when there is none of them; then the
    /// names have been looked at once and nothing else.
    pub fn take(headers: &mut HeaderMap, policy: Option<&RetryPolicy>, hedge: Option<&HedgePolicy>) -> Option<Self> {
        headers.keys().any(|name| name.as_str().starts_with("x-envoy-")).then_some(())?;
        let mut take = |name: &HeaderName| {
            let value = headers.remove(name)?;
            value.to_str().ok().map(str::to_owned)
        };
        let words = |text: String| -> Vec<String> { text.split(',').map(|word| word.trim().to_owned()).collect() };
        let (on, grpc_on) = (take(&RETRY_ON), take(&RETRY_GRPC_ON));
        let (retries, codes) = (take(&MAX_RETRIES), take(&STATUS_CODES));
        let (names, per_try, hedged) = (take(&HEADER_NAMES), take(&PER_TRY), take(&HEDGE));

        let mut retry = policy.cloned();
        if on.is_some() || grpc_on.is_some() || per_try.is_some() {
            retry.get_or_insert_with(RetryPolicy::default);
        }
        if let Some(retry) = &mut retry {
            let add = |word: &String| HttpRetry::ALL.into_iter().find(|known| known.as_str() == word);
            retry.on.http.extend(on.map(words).unwrap_or_default().iter().filter_map(add));
            let add = |word: &String| GrpcRetry::ALL.into_iter().find(|known| known.as_str() == word);
            retry.on.grpc.extend(grpc_on.map(words).unwrap_or_default().iter().filter_map(add));
            let code = |word: &String| word.parse::<u16>().ok();
            retry.on.status_codes.extend(codes.map(words).unwrap_or_default().iter().filter_map(code));
            let present = |word: String| HeaderMatch {
                name: word.to_ascii_lowercase().into(),
                matcher: HeaderMatcher::Present(true),
                invert: false,
                missing_as_empty: false,
            };
            retry.on.headers.extend(names.map(words).unwrap_or_default().into_iter().map(present));
            if let Some(retries) = retries.and_then(|text| text.parse().ok()) {
                retry.retries = retries;
            }
            if let Some(limit) = per_try.and_then(|text| text.parse().ok()) {
                retry.per_try_timeout = Some(Duration::from_millis(limit)).filter(|limit| !limit.is_zero());
            }
        }
        let retry = retry.filter(|retry| policy != Some(retry));
        let hedge = match hedged.as_deref() {
            Some("true") => Some(HedgePolicy { on_per_try_timeout: true, ..hedge.cloned().unwrap_or_default() }),
            Some("false") => Some(HedgePolicy { on_per_try_timeout: false, ..hedge.cloned().unwrap_or_default() }),
            _ => None,
        };
        (retry.is_some() || hedge.is_some()).then_some(Self { retry, hedge })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn headers(of: &[(&'static str, &'static str)]) -> HeaderMap {
        of.iter().map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap())).collect()
    }

    /// RT19: words are added to the route's, numbers replace the route's, and nothing of it travels on.
    #[test]
    fn a_request_changes_its_own_policy() {
        let policy = RetryPolicy { retries: 3, ..RetryPolicy::default() };
        let mut asked = headers(&[
            ("x-envoy-retry-on", "gateway-error, nonsense,retriable-status-codes"),
            ("x-envoy-retry-grpc-on", "unavailable"),
            ("x-envoy-retriable-status-codes", "418,x"),
            ("x-envoy-retriable-header-names", "X-Again"),
            ("x-envoy-max-retries", "7"),
            ("x-envoy-upstream-rq-per-try-timeout-ms", "20"),
            ("x-envoy-hedge-on-per-try-timeout", "true"),
            ("x-other", "stays"),
        ]);
        let Overrides { retry, hedge } = Overrides::take(&mut asked, Some(&policy), None).unwrap();
        let retry = retry.unwrap();
        assert_eq!(retry.on.http, [HttpRetry::GatewayError, HttpRetry::RetriableStatusCodes]);
        assert_eq!((retry.on.grpc, retry.on.status_codes), (vec![GrpcRetry::Unavailable], vec![418]));
        assert_eq!((&*retry.on.headers[0].name, retry.retries), ("x-again", 7));
        assert_eq!(retry.per_try_timeout, Some(Duration::from_millis(20)));
        assert!(hedge.unwrap().on_per_try_timeout);
        assert_eq!(asked, headers(&[("x-other", "stays")]));
    }

    /// RT19: without a policy of the route the header's own words make one, with one retry; a number alone makes none.
    #[test]
    fn a_header_makes_a_policy_where_there_is_none() {
        let made = Overrides::take(&mut headers(&[("x-envoy-retry-on", "5xx")]), None, None).unwrap().retry.unwrap();
        assert_eq!((made.on.http.as_slice(), made.retries), (&[HttpRetry::ServerError][..], 1));
        assert_eq!(Overrides::take(&mut headers(&[("x-envoy-max-retries", "5")]), None, None), None);
        assert_eq!(Overrides::take(&mut headers(&[("x-other", "5")]), None, None), None);
        assert_eq!(Overrides::take(&mut headers(&[("x-envoy-attempt-count", "1")]), None, None), None);
    }
}
