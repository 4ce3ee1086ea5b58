//! How a deadline is written for gRPC, and read. What a route allows is in `plan.rs`; timers are the caller's. Source: gRPC
//! over HTTP/2, `Timeout`.

use std::time::Duration;

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
pub fn grpc_timeout(left: Duration, text: &mut [u8; 9]) -> &[u8] {
    const MOST: u128 = 99_999_999;
    let seconds = u128::from(left.as_secs());
    let units = [
        (left.as_nanos(), b'n'),
        (left.as_micros(), b'u'),
        (left.as_millis(), b'm'),
        (seconds, b'S'),
        (seconds / 60, b'M'),
        ((seconds / 3600).min(MOST), b'H'),
    ];
    let (n, unit) = units.into_iter().find(|(n, _)| *n <= MOST).unwrap_or((0, b'n'));
    *text = [unit; 9];
    let (mut start, mut rest) = (8, n);
    for (at, digit) in text.iter_mut().enumerate().rev().skip(1) {
        *digit = b'0' + (rest % 10) as u8;
        (start, rest) = (at, rest / 10);
        if rest == 0 {
            break;
        }
    }
    text.get(start..).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::RoutePolicy;

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
            let read = std::str::from_utf8(grpc_timeout(left, &mut [0; 9])).ok().and_then(parse_grpc_timeout);
            assert!(read.is_some_and(|read| read <= left && left - read <= left / 1_000_000), "{left:?} {read:?}");
        }
    }

    /// TO1, TO2: what is said of gRPC calls replaces the other limits for these, longer or not, and zero is none.
    #[test]
    fn grpc_calls_have_limits_of_their_own() {
        let seconds = |n| Some(Duration::from_secs(n));
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
            let limit =
                |is_grpc| [route.timeout_of(is_grpc), route.stream_limit_of(is_grpc)].into_iter().flatten().min();
            assert_eq!(limit(true), expected, "{header_max:?} {max_grpc:?}");
            assert_eq!(limit(false), seconds(3));
        }
    }
}
