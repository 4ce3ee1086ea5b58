//! What both ends do alike with services that count requests for the whole mesh: how they are called, and what is counted of
//! their answers.

use mesh_core::rate_limit::LimitVerdict;

/// The method asked.
pub(crate) const METHOD: &str = "/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit";

/// Counts an answer. Source: Envoy `cluster.<name>.ratelimit.{ok,over_limit,error,failure_mode_allowed}`.
pub(crate) fn tell_result(verdict: &LimitVerdict, failed: bool) {
    let result = match (failed, verdict.refused.is_some()) {
        (false, false) => "ok",
        (false, true) => "over_limit",
        (true, true) => "error",
        (true, false) => "failure_mode_allowed",
    };
    metrics::counter!("mesh_rate_limit_service_total", "result" => result).increment(1);
}
