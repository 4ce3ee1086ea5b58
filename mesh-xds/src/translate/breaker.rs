//! Limits of what is under way at once. Source: Envoy `CircuitBreakers`.

use mesh_core::config::{RetryBudget, Thresholds};

use super::read::{Ignored, Wrong, wrong};
use crate::proto::envoy::{
    config::{
        cluster::v3::{CircuitBreakers, circuit_breakers, circuit_breakers::thresholds},
        core::v3::RoutingPriority,
    },
    r#type::v3::Percent,
};

/// The limits of requests of one priority: the first entry of that priority counts (CB1).
pub(super) fn decode(
    breakers: Option<&CircuitBreakers>,
    priority: RoutingPriority,
    ignored: &mut Ignored,
) -> Result<Thresholds, Wrong> {
    let default = Thresholds::default();
    let first = |breakers: &CircuitBreakers| {
        breakers.thresholds.iter().find(|limits| limits.priority == i32::from(priority)).copied()
    };
    let Some(limits) = breakers.and_then(first) else { return Ok(default) };
    if limits.track_remaining {
        ignored.add("circuit_breakers.thresholds", "track_remaining");
    }
    Ok(Thresholds {
        max_connections: limits.max_connections.unwrap_or(default.max_connections),
        max_pending_requests: limits.max_pending_requests.unwrap_or(default.max_pending_requests),
        max_requests: limits.max_requests.unwrap_or(default.max_requests),
        max_retries: limits.max_retries.unwrap_or(default.max_retries),
        retry_budget: limits.retry_budget.as_ref().map(retry_budget).transpose()?,
        ..default
    })
}

fn retry_budget(message: &thresholds::RetryBudget) -> Result<RetryBudget, Wrong> {
    let default = RetryBudget::default();
    let percent = message.budget_percent.as_ref().map_or(default.percent, |percent| percent.value);
    if !(0.0..=100.0).contains(&percent) {
        let field = "circuit_breakers.thresholds.retry_budget.budget_percent";
        return Err(wrong(field, format!("{percent} is no percentage")));
    }
    Ok(RetryBudget { percent, min_concurrency: message.min_retry_concurrency.unwrap_or(default.min_concurrency) })
}

pub(super) fn encode(usual: &Thresholds, high: &Thresholds) -> CircuitBreakers {
    let limits = |limits: &Thresholds, priority: RoutingPriority| circuit_breakers::Thresholds {
        priority: priority.into(),
        max_connections: Some(limits.max_connections),
        max_pending_requests: Some(limits.max_pending_requests),
        max_requests: Some(limits.max_requests),
        max_retries: Some(limits.max_retries),
        retry_budget: limits.retry_budget.map(|budget| thresholds::RetryBudget {
            budget_percent: Some(Percent { value: budget.percent }),
            min_retry_concurrency: Some(budget.min_concurrency),
        }),
        ..circuit_breakers::Thresholds::default()
    };
    let mut thresholds = vec![limits(usual, RoutingPriority::Default)];
    if *high != Thresholds::default() {
        thresholds.push(limits(high, RoutingPriority::High));
    }
    CircuitBreakers { thresholds }
}
