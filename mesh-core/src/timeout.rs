//! How long a request may take: the least of what its route, its stream limit, its `grpc-timeout` and its caller allow.
//!
//! Only the arithmetic is here; timers are the caller's. Source: Envoy `RouteAction.timeout`, gRFC A31, gRPC over HTTP/2.

use std::time::Duration;

use http::{HeaderMap, HeaderValue};

use crate::{plan::RoutePolicy, request::is_grpc};

/// How long a request may take from the time it is whole, all tries included; `None` is no limit.
///
/// `inherited` is what is left of the deadline of the inbound request this one serves (C11). The route's limits can only
/// shorten what the caller allows (gRFC A31).
pub fn limit(route: &RoutePolicy, headers: &HeaderMap, inherited: Option<Duration>) -> Option<Duration> {
    let is_grpc = is_grpc(headers);
    let grpc = headers.get("grpc-timeout").and_then(|value| parse_grpc_timeout(value.to_str().ok()?));
    let of_route = [route.timeout_of(is_grpc), route.stream_limit_of(is_grpc)];
    of_route.into_iter().chain([grpc, inherited]).flatten().min()
}

/// Reads a `grpc-timeout`: one to eight digits and a unit.
pub fn parse_grpc_timeout(value: &str) -> Option<Duration> {
    let (digits, unit) = value.split_at_checked(value.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let n: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(n * 3600),
        "M" => Duration::from_secs(n * 60),
        "S" => Duration::from_secs(n),
        "m" => Duration::from_millis(n),
        "u" => Duration::from_micros(n),
        "n" => Duration::from_nanos(n),
        _ => return None,
    })
}

/// Writes a `grpc-timeout` in the finest unit that eight digits hold; rounded down, so a hop never lengthens a deadline.
pub fn grpc_timeout(left: Duration) -> HeaderValue {
    const MOST: u128 = 99_999_999;
    let seconds = u128::from(left.as_secs());
    let units = [
        (left.as_nanos(), 'n'),
        (left.as_micros(), 'u'),
        (left.as_millis(), 'm'),
        (seconds, 'S'),
        (seconds / 60, 'M'),
        ((seconds / 3600).min(MOST), 'H'),
    ];
    let (n, unit) = units.into_iter().find(|(n, _)| *n <= MOST).unwrap_or((0, 'n'));
    HeaderValue::from_str(&format!("{n}{unit}")).unwrap_or_else(|_| HeaderValue::from_static("0n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// TO3: every unit is read, a round trip never lengthens a deadline, nonsense is no timeout.
    #[test]
    fn grpc_timeout_round_trip() {
        for (text, expected) in [
            ("1H", Some(Duration::from_secs(3600))),
            ("2M", Some(Duration::from_secs(120))),
            ("15S", Some(Duration::from_secs(15))),
            ("100m", Some(Duration::from_millis(100))),
            ("99999999u", Some(Duration::from_micros(99_999_999))),
            ("0n", Some(Duration::ZERO)),
            ("123456789n", None),
            ("", None),
            ("S", None),
            ("5s", None),
            ("-1S", None),
            ("1\u{e9}", None),
        ] {
            assert_eq!(parse_grpc_timeout(text), expected, "{text}");
        }
        for nanos in [0, 1, 99_999_999, 100_000_000, 12_345_678_901, u64::MAX] {
            let left = Duration::from_nanos(nanos);
            let read = grpc_timeout(left).to_str().ok().and_then(parse_grpc_timeout);
            assert!(read.is_some_and(|read| read <= left && left - read <= left / 1_000_000), "{left:?} {read:?}");
        }
    }

    /// TO1, TO2, C11: the least of all limits holds, and none is none.
    #[test]
    fn the_least_limit_holds() {
        let seconds = |n| Some(Duration::from_secs(n));
        let mut headers = HeaderMap::new();
        let mut route = RoutePolicy::default();
        assert_eq!(limit(&route, &headers, None), None);
        route.timeout = seconds(15);
        assert_eq!(limit(&route, &headers, None), seconds(15));
        route.max_stream_duration = seconds(9);
        assert_eq!(limit(&route, &headers, None), seconds(9));
        headers.insert("grpc-timeout", HeaderValue::from_static("5S"));
        assert_eq!(limit(&route, &headers, None), seconds(5));
        assert_eq!(limit(&route, &headers, seconds(1)), seconds(1));
    }

    /// TO1, TO2: what is said of gRPC calls replaces the other limits for these, longer or not, and zero is none.
    #[test]
    fn grpc_calls_have_limits_of_their_own() {
        let seconds = |n| Some(Duration::from_secs(n));
        let mut grpc = HeaderMap::new();
        grpc.insert("content-type", HeaderValue::from_static("application/grpc"));
        for (header_max, max_grpc, expected) in [
            (None, None, seconds(3)),
            (None, seconds(20), seconds(5)),
            (seconds(9), None, seconds(3)),
            (seconds(9), seconds(20), seconds(9)),
            (seconds(0), seconds(20), seconds(20)),
            (seconds(0), seconds(0), None),
        ] {
            let route = RoutePolicy {
                timeout: seconds(3),
                max_stream_duration: seconds(5),
                grpc_timeout_header_max: header_max,
                max_grpc_timeout: max_grpc,
                ..RoutePolicy::default()
            };
            assert_eq!(limit(&route, &grpc, None), expected, "{header_max:?} {max_grpc:?}");
            assert_eq!(limit(&route, &HeaderMap::new(), None), seconds(3));
        }
    }
}
