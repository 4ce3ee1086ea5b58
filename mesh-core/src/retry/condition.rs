//! The words of a retry policy, each against what became of a try. Sources: Envoy `RetryPolicy.retry_on`, gRFC A44.

use super::{Asked, Ended, Rules};
use crate::{
    config::{GrpcRetry, HttpRetry, RetryPolicy},
    outcome::{Failure, grpc_status},
    route::header_matches,
};

/// Does the policy want this tried again?
pub(super) fn wanted(policy: &RetryPolicy, asked: Asked<'_>, ended: &Ended<'_>) -> bool {
    policy.on.http.iter().any(|condition| http_wanted(policy, *condition, asked, ended))
        || (!policy.on.grpc.is_empty() && status(asked, ended).is_some_and(|status| has_code(&policy.on.grpc, status)))
}

/// Is a status among these?
pub(super) fn has_code(conditions: &[GrpcRetry], status: u32) -> bool {
    conditions.iter().any(|condition| condition.code() == status)
}

fn http_wanted(policy: &RetryPolicy, condition: HttpRetry, asked: Asked<'_>, ended: &Ended<'_>) -> bool {
    let outcome = ended.outcome;
    let status = outcome.status.filter(|_| outcome.failure.is_none());
    let reset = outcome.failure.is_some_and(is_reset);
    match condition {
        // Envoy counts a reset as the 5xx it would become, for both words.
        HttpRetry::ServerError => reset || status.is_some_and(|status| (500..600).contains(&status)),
        HttpRetry::GatewayError => reset || matches!(status, Some(502..=504)),
        HttpRetry::Reset => reset,
        // To Envoy a stream that was refused had been sent; that it is proven unprocessed is enough for us.
        HttpRetry::ResetBeforeRequest => {
            let refused = asked.rules == Rules::Envoy && outcome.failure == Some(Failure::RefusedStream);
            reset && outcome.unsent && !refused
        }
        HttpRetry::ConnectFailure => matches!(outcome.failure, Some(Failure::Connect | Failure::Tls)),
        HttpRetry::RefusedStream => outcome.failure == Some(Failure::RefusedStream),
        HttpRetry::Retriable4xx => status == Some(409),
        HttpRetry::RetriableStatusCodes => status.is_some_and(|status| policy.on.status_codes.contains(&status)),
        HttpRetry::RetriableHeaders => {
            let found = |headers| policy.on.headers.iter().any(|wanted| header_matches(wanted, headers));
            status.is_some() && ended.response.is_some_and(found)
        }
        // Decided by what the server answered, which names the header.
        HttpRetry::EnvoyRatelimited => false,
    }
}

/// The gRPC status of a try. Envoy reads any response's header; a gRPC client also takes lost connections for
/// `UNAVAILABLE` and an HTTP status for what it amounts to.
fn status(asked: Asked<'_>, ended: &Ended<'_>) -> Option<u32> {
    if asked.rules == Rules::Envoy || !asked.is_grpc {
        return ended.response.and_then(grpc_status);
    }
    match (ended.outcome.failure, ended.outcome.grpc) {
        (Some(failure), _) => is_reset(failure).then(|| failure.grpc_status()),
        (None, status) => status,
    }
}

/// The try ended without a response and the request still has time; what was never sent on purpose is not a reset.
fn is_reset(failure: Failure) -> bool {
    failure.blames_endpoint() && failure != Failure::Timeout
}
