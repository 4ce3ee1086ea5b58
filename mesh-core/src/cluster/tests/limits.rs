//! Limits beyond the plain ones: retry budgets, and one endpoint's own.

use super::*;
use crate::config::RetryBudget;

/// RT16: a budget is a share of what is under way and never below its minimum, and replaces `max_retries`.
#[test]
fn a_retry_budget_follows_what_is_under_way() {
    for (percent, min_concurrency, active, expected) in
        [(20.0, 3, 0, 3), (20.0, 3, 19, 3), (20.0, 3, 20, 4), (20.0, 3, 100, 20), (50.0, 0, 5, 2), (0.0, 0, 100, 0)]
    {
        let retry_budget = Some(RetryBudget { percent, min_concurrency });
        let thresholds = Thresholds { retry_budget, max_retries: 0, ..Thresholds::default() };
        let cluster = compile(config::Cluster { thresholds, ..with_weights(LoadBalancer::RoundRobin, &[1]) }, None);
        let held: Vec<_> = (0..active).map(|n| pick(&cluster, n)).collect();
        let slots: Vec<_> = std::iter::from_fn(|| cluster.retry_slot(RoutingPriority::Default, false)).collect();
        assert_eq!(slots.len(), expected, "{percent} {min_concurrency} {active}");
        drop(slots);
        // The try that failed and is over counts, too.
        let slots: Vec<_> = std::iter::from_fn(|| cluster.retry_slot(RoutingPriority::Default, true)).collect();
        let one_more = (percent * f64::from(active as u32 + 1) / 100.0) as usize;
        assert_eq!(slots.len(), one_more.max(min_concurrency as usize));
        drop(held);
    }
}

/// CB7: an endpoint with as many requests as it may have gets no more; when all have, the request is refused.
#[test]
fn one_endpoint_cannot_hold_all_the_requests() {
    let thresholds = Thresholds { max_requests_per_endpoint: 2, ..Thresholds::default() };
    for policy in [LoadBalancer::RoundRobin, LoadBalancer::Random, LoadBalancer::default(), LoadBalancer::PeakEwma] {
        for panic_threshold in [0, 50] {
            let config = with_weights(policy.clone(), &[1, 1, 1]);
            let cluster = compile(config::Cluster { thresholds, panic_threshold, ..config }, None);
            let mut held: Vec<_> = (0..6).map(|n| pick(&cluster, n)).collect();
            assert!(cluster.endpoints().iter().all(|endpoint| endpoint.in_flight() == 2), "{policy:?}");
            assert_eq!(try_pick(&cluster, Time::ZERO).unwrap_err(), PickError::Overflow);
            assert_eq!(cluster.requests_in_flight(), 6);
            let freed = held.pop().map(|pick| port(&pick)).unwrap();
            assert_eq!(port(&pick(&cluster, 7)), freed);
        }
    }
}

/// CB5: requests of routes with priority HIGH have limits of their own, of retries, connections and what waits for them too.
#[test]
fn important_requests_have_their_own_limits() {
    let limits = |most, max_retries| Thresholds {
        max_requests: most,
        max_connections: most,
        max_pending_requests: most,
        max_retries,
        ..Thresholds::default()
    };
    let config = with_weights(LoadBalancer::RoundRobin, &[1]);
    let config = config::Cluster { thresholds: limits(1, 1), high_thresholds: limits(2, 2), ..config };
    let cluster = compile(config, None);
    let important = Ask { priority: RoutingPriority::High, ..Ask::default() };
    let pick_high = || cluster.pick(&important, Time::ZERO, &mut RequestRng::new(3, 0));
    let usual = pick(&cluster, 0);
    assert_eq!(try_pick(&cluster, Time::ZERO).unwrap_err(), PickError::Overflow);
    let held = [pick_high().unwrap(), pick_high().unwrap()];
    assert_eq!(pick_high().unwrap_err(), PickError::Overflow);
    drop(usual);
    assert_eq!(pick_high().unwrap_err(), PickError::Overflow, "a slot of the others is none of theirs");
    assert_eq!(cluster.requests_in_flight(), 2);
    drop(held);
    assert_eq!(cluster.requests_in_flight(), 0);
    for (priority, expected) in [(RoutingPriority::Default, 1), (RoutingPriority::High, 2)] {
        let slots: Vec<_> = std::iter::from_fn(|| cluster.retry_slot(priority, false)).collect();
        assert_eq!(slots.len(), expected);
        let connections: Vec<_> = std::iter::from_fn(|| cluster.connection_slot(priority)).collect();
        let pending: Vec<_> = std::iter::from_fn(|| cluster.pending_slot(priority)).collect();
        assert_eq!((connections.len(), pending.len()), (expected, expected));
    }
    assert_eq!(cluster.pending(), 0);
}
