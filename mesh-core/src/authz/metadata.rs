//! Conditions on what filters in front found out: the claims of verified tokens. Source: Envoy `MetadataMatcher`.
//!
//! Other filters that could leave something are not run here, and a listener with one of them refuses everything; so what
//! they would have left is known not to be there (gRFC A41). Only what an authorization service would have said is unknown.

use crate::{
    claims::{Claim, Claims, JWT_METADATA},
    config::{MetadataMatch, ValueMatch},
};

use super::condition::Truth;

/// Filters whose findings may exist and are not kept. `istio_authn` is what older control planes read claims from.
const UNKNOWN: [&str; 2] = ["envoy.filters.http.ext_authz", "istio_authn"];

pub(super) fn is_met(wanted: &MetadataMatch, claims: Option<&Claims>) -> Truth {
    if UNKNOWN.contains(&&*wanted.filter) {
        return Truth::Unknown;
    }
    let claims = claims.filter(|_| *wanted.filter == *JWT_METADATA);
    let value = claims.and_then(|claims| claims.at(wanted.path.iter().map(|name| &**name)));
    (matches(&wanted.value, value) != wanted.invert).into()
}

fn matches(wanted: &ValueMatch, value: Option<&Claim>) -> bool {
    match (wanted, value) {
        // Envoy: whatever is there is present, and what is not there never meets a condition.
        (ValueMatch::Present(present), value) => *present && value.is_some(),
        (ValueMatch::Or(of), value) => of.iter().any(|one| matches(one, value)),
        (ValueMatch::Null, Some(Claim::Null)) => true,
        (ValueMatch::Number(wanted), Some(Claim::Number(number))) => wanted == number,
        (ValueMatch::Range { start, end }, Some(Claim::Number(number))) => (*start..*end).contains(number),
        (ValueMatch::Text(wanted), Some(Claim::Text(text))) => wanted.is_match(text),
        (ValueMatch::Bool(wanted), Some(Claim::Bool(value))) => wanted == value,
        (ValueMatch::OneOf(wanted), Some(Claim::List(list))) => list.iter().any(|one| matches(wanted, Some(one))),
        _ => false,
    }
}
