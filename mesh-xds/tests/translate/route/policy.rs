//! Rules of policies that routes carry: retries, faults, and whose filter settings count.

use std::time::Duration;

use mesh_core::config::{Abort, AbortStatus, Action, Fault, Fraction, GrpcRetry, HttpRetry};
use mesh_xds::{
    proto::{
        Any,
        envoy::{
            config::route::v3::{
                FilterConfig, HeaderMatcher, HedgePolicy, RetryPolicy, Route, VirtualHost,
                header_matcher::HeaderMatchSpecifier,
                retry_policy::{RateLimitedRetryBackOff, ResetHeader, RetryBackOff, RetryHostPredicate},
            },
            extensions::filters::{
                common::fault::v3::{FaultDelay, fault_delay::FaultDelaySecifier},
                http::fault::v3::{FaultAbort, HttpFault, fault_abort::ErrorType},
            },
            r#type::v3::FractionalPercent,
        },
    },
    translate,
};

use super::{decode, decoded, host, refused, route, table, with_action};
use crate::{body, seconds};

fn retry(policy: RetryPolicy) -> Route {
    with_action(|action| action.retry_policy = Some(policy))
}

/// RT1, RT2, RT3: words are read, unknown ones reported, and one retry is the default.
#[test]
fn retry_words_are_read_and_unknown_ones_reported() {
    let policy = RetryPolicy {
        retry_on: "5xx, reset,deadline-exceeded,,http3-post-connect-failure".into(),
        ..Default::default()
    };
    let decoded = decode(retry(policy)).unwrap();
    assert_eq!(decoded.ignored, ["virtual_hosts.routes.route.retry_policy.retry_on \"http3-post-connect-failure\""]);
    let Action::Forward(forward) = &decoded.value.virtual_hosts[0].routes[0].action else { panic!() };
    let policy = forward.retry.as_ref().unwrap();
    assert_eq!(policy.on.http, [HttpRetry::ServerError, HttpRetry::Reset]);
    assert_eq!(policy.on.grpc, [GrpcRetry::DeadlineExceeded]);
    assert_eq!((policy.retries, policy.avoid_previous_hosts, policy.per_try_timeout), (1, 0, None));
}

/// RT6: the longest wait is ten times the base unless set, and never below it.
#[test]
fn back_off_has_envoys_defaults() {
    let back_off = |base: Option<i64>, max: Option<i64>| {
        let back_off = RetryBackOff { base_interval: base.map(seconds), max_interval: max.map(seconds) };
        retry(RetryPolicy { retry_back_off: Some(back_off), ..RetryPolicy::default() })
    };
    let Action::Forward(forward) = decoded(back_off(Some(1), None)).action else { panic!() };
    assert_eq!(forward.retry.unwrap().back_off.max, Duration::from_secs(10));
    refused(back_off(Some(2), Some(1)), "route.retry_policy.retry_back_off.max_interval", "below");
    refused(back_off(Some(0), None), "route.retry_policy.retry_back_off.base_interval", "greater than zero");
    refused(back_off(None, None), "route.retry_policy.retry_back_off.base_interval", "missing");
}

/// RT13: previous hosts are avoided once unless told how often; other predicates are reported.
#[test]
fn host_predicates_are_read() {
    let predicate = |name: &str| RetryHostPredicate { name: name.into(), config_type: None };
    let policy = RetryPolicy {
        retry_host_predicate: vec![
            predicate("envoy.retry_host_predicates.previous_hosts"),
            predicate("envoy.retry_host_predicates.omit_canary_hosts"),
        ],
        ..RetryPolicy::default()
    };
    let decoded = decode(retry(policy)).unwrap();
    assert!(decoded.ignored[0].contains("omit_canary_hosts"), "{:?}", decoded.ignored);
    let Action::Forward(forward) = &decoded.value.virtual_hosts[0].routes[0].action else { panic!() };
    assert_eq!(forward.retry.as_ref().unwrap().avoid_previous_hosts, 1);
}

fn fault(fault: &HttpFault) -> Route {
    let settings = [("envoy.filters.http.fault".to_owned(), Any::pack(fault))];
    Route { typed_per_filter_config: settings.into(), ..route() }
}

/// FI1, FI2: a fault without a percentage is never injected; delay and abort are drawn apart.
#[test]
fn a_fault_without_percentage_is_none() {
    let delay =
        |percentage| FaultDelay { fault_delay_secifier: Some(FaultDelaySecifier::FixedDelay(seconds(7))), percentage };
    let abort = |percentage| FaultAbort { error_type: Some(ErrorType::HttpStatus(500)), percentage };
    let half = Some(FractionalPercent { numerator: 50, denominator: 0 });
    let both =
        |percentage| HttpFault { delay: Some(delay(percentage)), abort: Some(abort(percentage)), ..Default::default() };
    assert_eq!(decoded(fault(&both(None))).fault, None);
    let Fault { delay, abort: decoded_abort, .. } = decoded(fault(&both(half))).fault.unwrap();
    assert_eq!(delay.unwrap().duration, Some(Duration::from_secs(7)));
    let fraction = Fraction { numerator: 50, denominator: 100 };
    assert_eq!(decoded_abort, Some(Abort { status: AbortStatus::Http(500), fraction }));
    let bad = HttpFault {
        abort: Some(FaultAbort { error_type: Some(ErrorType::HttpStatus(99)), percentage: half }),
        ..HttpFault::default()
    };
    refused(fault(&bad), "typed_per_filter_config[\"envoy.filters.http.fault\"].abort.http_status", "200..=599");
}

/// FI3, FI4, FI5: what a fault leaves to headers, how many there may be, and whom it is for.
#[test]
fn conditions_and_limits_of_a_fault() {
    let all = Some(FractionalPercent { numerator: 100, denominator: 0 });
    let narrowed = HttpFault {
        delay: Some(FaultDelay {
            fault_delay_secifier: Some(FaultDelaySecifier::HeaderDelay(Default::default())),
            percentage: all,
        }),
        abort: Some(FaultAbort { error_type: Some(ErrorType::HeaderAbort(Default::default())), percentage: all }),
        upstream_cluster: "other".into(),
        downstream_nodes: vec!["node".into()],
        max_active_faults: Some(5),
        ..HttpFault::default()
    };
    let read = decoded_fault(fault(&narrowed)).unwrap();
    assert_eq!((&*read.cluster, read.nodes.as_slice(), read.max_active), ("other", &["node".to_owned()][..], Some(5)));
    assert_eq!((read.delay.unwrap().duration, read.abort.unwrap().status), (None, AbortStatus::ByHeader));
}

/// FI6: a limit on the rate of a response's bytes is not injected, and that is reported.
#[test]
fn a_fault_that_slows_responses_is_reported() {
    let mut bytes = prost::Message::encode_to_vec(&HttpFault { max_active_faults: Some(1), ..HttpFault::default() });
    // Field 7, an empty message: `response_rate_limit`.
    bytes.extend([0x3a, 0x00]);
    let any = Any { value: bytes.into(), ..Any::pack(&HttpFault::default()) };
    let settings = [("envoy.filters.http.fault".to_owned(), any)];
    let decoded = decode(Route { typed_per_filter_config: settings.into(), ..route() }).unwrap();
    assert_eq!(decoded.ignored, ["virtual_hosts.routes.typed_per_filter_config.response_rate_limit"]);
}

/// RT8, RT15, TO6: when responses say to come back, which requests a policy is for, and how long a try may stand still.
#[test]
fn the_rest_of_a_retry_policy() {
    let policy = RetryPolicy {
        per_try_idle_timeout: Some(seconds(3)),
        rate_limited_retry_back_off: Some(RateLimitedRetryBackOff {
            reset_headers: vec![ResetHeader { name: "Retry-After".into(), format: 0 }],
            max_interval: None,
        }),
        retriable_request_headers: vec![HeaderMatcher {
            name: ":method".into(),
            header_match_specifier: Some(HeaderMatchSpecifier::PresentMatch(true)),
            ..HeaderMatcher::default()
        }],
        ..RetryPolicy::default()
    };
    let Action::Forward(forward) = decoded(retry(policy.clone())).action else { panic!() };
    let read = forward.retry.unwrap();
    assert_eq!(read.per_try_idle_timeout, Some(Duration::from_secs(3)));
    let limited = read.rate_limited.unwrap();
    assert_eq!((&*limited.headers[0].name, limited.max), ("retry-after", Duration::from_secs(300)));
    assert_eq!(&*read.request_headers[0].name, ":method");
    let none = RateLimitedRetryBackOff::default();
    refused(
        retry(RetryPolicy { rate_limited_retry_back_off: Some(none), ..policy }),
        "route.retry_policy.rate_limited_retry_back_off.reset_headers",
        "empty",
    );
}

/// RT20, RT12: hedging and buffers of a host are those of its routes, unless these have their own.
#[test]
fn hosts_hedge_and_buffer_for_their_routes() {
    let hedge = HedgePolicy { hedge_on_per_try_timeout: true };
    let own = Route { per_request_buffer_limit_bytes: Some(7), ..route() };
    let host = VirtualHost {
        hedge_policy: Some(hedge),
        request_body_buffer_limit: Some(9),
        per_request_buffer_limit_bytes: Some(8),
        ..host(vec![route(), own])
    };
    let decoded = translate::route(&body(&table(vec![host]))).unwrap().value;
    let read = decoded.virtual_hosts[0].routes.iter().map(|route| match &route.action {
        Action::Forward(forward) => (forward.hedge.as_ref().unwrap().on_per_try_timeout, forward.replay_limit),
        other => panic!("{other:?}"),
    });
    assert_eq!(read.collect::<Vec<_>>(), [(true, Some(9)), (true, Some(7))]);
}

/// RA16: a route's own setting replaces its host's; wrappers are opened, disabled ones are none.
#[test]
fn the_most_specific_filter_setting_counts() {
    let delayed = |by: i64| HttpFault {
        delay: Some(FaultDelay {
            fault_delay_secifier: Some(FaultDelaySecifier::FixedDelay(seconds(by))),
            percentage: Some(FractionalPercent { numerator: 100, denominator: 0 }),
        }),
        ..HttpFault::default()
    };
    let wrapped = |disabled| {
        let wrapper = FilterConfig { config: Some(Any::pack(&delayed(3))), disabled, ..FilterConfig::default() };
        let settings = [("envoy.filters.http.fault".to_owned(), Any::pack(&wrapper))];
        Route { typed_per_filter_config: settings.into(), ..route() }
    };
    let host = VirtualHost {
        typed_per_filter_config: fault(&delayed(1)).typed_per_filter_config,
        ..host(vec![route(), fault(&delayed(2)), wrapped(false)])
    };
    let decoded = translate::route(&body(&table(vec![host]))).unwrap().value;
    let delays = decoded.virtual_hosts[0].routes.iter().map(|route| route.fault.as_ref()?.delay);
    let delays: Vec<_> = delays.map(|delay| delay.unwrap().duration.unwrap().as_secs()).collect();
    assert_eq!(delays, [1, 2, 3]);
    assert_eq!(decoded_fault(wrapped(true)), None);
}

fn decoded_fault(route: Route) -> Option<Fault> {
    decoded(route).fault
}
