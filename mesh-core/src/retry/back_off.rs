//! How long to wait before another try: Envoy's form, gRPC's form, and what a response's own headers say.

use std::time::Duration;

use http::HeaderMap;
use rand::RngCore;

use crate::{
    config::{BackOff, RateLimitedBackOff, ResetFormat},
    rng::below,
};

/// The wait before retry `n` (1, 2, ...): uniform below `base x 2^(n-1)`, and below `max` (RT6). Source: Envoy
/// `JitteredExponentialBackOffStrategy`, by what it does; its documentation has another factor, and cuts off what was
/// drawn, which would have most of those that wait long come back at the same moment.
pub fn back_off(back_off: BackOff, n: u32, rng: &mut impl RngCore) -> Duration {
    let base = base(back_off);
    let factor = 1_u64.checked_shl(n.saturating_sub(1)).unwrap_or(u64::MAX);
    let interval = base.saturating_mul(factor).min(nanos(back_off.max).max(base));
    Duration::from_nanos(below(rng.next_u64(), interval))
}

/// The wait before retry `n` (1, 2, ...) of a gRPC call: `min(base x 2^(n-1), max)`, times 0.8 to 1.2 (RT7). Source:
/// gRFC A6 and, for what stands for what, A44.
pub fn grpc_back_off(back_off: BackOff, n: u32, rng: &mut impl RngCore) -> Duration {
    let base = base(back_off);
    let factor = 1_u64.checked_shl(n.saturating_sub(1)).unwrap_or(u64::MAX);
    let wait = base.saturating_mul(factor).min(nanos(back_off.max).max(base));
    let low = wait - wait / 5;
    Duration::from_nanos(low.saturating_add(below(rng.next_u64(), wait / 5 * 2)))
}

/// How long a response asks to wait, and up to half as long again; `None` when it does not say, or asks for longer than
/// is believed (RT8). Source: Envoy `rate_limited_retry_back_off`.
pub fn rate_limited(
    policy: &RateLimitedBackOff,
    headers: &HeaderMap,
    wall: Duration,
    rng: &mut impl RngCore,
) -> Option<Duration> {
    let asked = policy.headers.iter().find_map(|header| {
        let value = headers.get(&*header.name)?.to_str().ok()?.trim();
        let asked = match (header.format, value.parse::<u64>()) {
            (ResetFormat::Seconds, Ok(seconds)) => Duration::from_secs(seconds),
            (ResetFormat::Seconds, Err(_)) => http_date(value)?.saturating_sub(wall),
            (ResetFormat::UnixTimestamp, Ok(moment)) => Duration::from_secs(moment).saturating_sub(wall),
            (ResetFormat::UnixTimestamp, Err(_)) => return None,
        };
        (asked <= policy.max).then_some(asked)
    })?;
    let jitter = below(rng.next_u64(), nanos(asked) / 2);
    Some(asked.saturating_add(Duration::from_nanos(jitter)))
}

/// A date as HTTP writes it (`Sun, 06 Nov 1994 08:49:37 GMT`), since 1970. Source: RFC 9110, 5.6.7; the two obsolete
/// forms are not read.
fn http_date(text: &str) -> Option<Duration> {
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let (_, rest) = text.split_once(", ")?;
    let mut words = rest.split(' ');
    let day: u64 = words.next()?.parse().ok()?;
    let month = words.next()?;
    let month = MONTHS.iter().zip(1..).find(|(name, _)| **name == month)?.1;
    let year: u64 = words.next()?.parse().ok()?;
    let mut clock = words.next()?.split(':').map(|part| part.parse::<u64>().ok());
    let (hour, minute, second) = (clock.next()??, clock.next()??, clock.next()??);
    if words.next() != Some("GMT") || !(1970..=9999).contains(&year) || !(1..=31).contains(&day) {
        return None;
    }
    if hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    let days = days_since_1970(year, month, day);
    Some(Duration::from_secs(days * 86_400 + hour * 3_600 + minute * 60 + second))
}

/// Years begin in March, so that the leap day is their last. Source: Hinnant, "chrono-compatible low-level date
/// algorithms".
fn days_since_1970(year: u64, month: u64, day: u64) -> u64 {
    let year = if month <= 2 { year - 1 } else { year };
    let (era, of_era) = (year / 400, year % 400);
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let days = era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year;
    // 719 468 days lie between the first of March of the year 0 and 1970; `year` is 1969 at least.
    days - 719_468
}

/// Below a millisecond counts as one (Envoy `RetryBackOff.base_interval`).
fn base(back_off: BackOff) -> u64 {
    nanos(back_off.base).max(1_000_000)
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::{config::ResetHeader, rng::RequestRng};

    fn rng(seed: u64) -> RequestRng {
        RequestRng::new(seed, 0)
    }

    /// RT6: the wait is uniform below twice as much each time, up to the cap, and never more often the cap than any other;
    /// a base below a millisecond is one.
    #[test]
    fn back_off_grows_and_is_capped() {
        let millis = Duration::from_millis;
        let config = BackOff { base: millis(25), max: millis(250) };
        for (n, bound) in [(1, 25), (2, 50), (3, 100), (4, 200), (5, 250), (40, 250), (200, 250)] {
            let drawn: Vec<_> = (0..1_000).map(|seed| back_off(config, n, &mut rng(seed))).collect();
            let longest = drawn.iter().max().unwrap();
            assert!(*longest <= millis(bound) && *longest > millis(bound) * 9 / 10, "{n}: {longest:?}");
            assert!(*drawn.iter().min().unwrap() < millis(bound) / 10, "{n}");
            let mean = drawn.iter().sum::<Duration>() / 1_000;
            // Of 1000 draws the mean is within 5 % of the middle but for one case in ten million.
            assert!(mean.abs_diff(millis(bound) / 2) < millis(bound) / 20, "{n}: {mean:?}");
        }
        let tiny = BackOff { base: Duration::from_nanos(1), max: Duration::from_nanos(10) };
        assert!((0..1_000).map(|seed| back_off(tiny, 1, &mut rng(seed))).max().unwrap() > Duration::from_micros(900));
    }

    /// RT7: a gRPC call waits twice as long each time, a fifth more or less, up to the longest wait.
    #[test]
    fn grpc_back_off_doubles_within_a_fifth() {
        let config = BackOff { base: Duration::from_millis(100), max: Duration::from_millis(1_000) };
        for (n, middle) in [(1, 100.0), (2, 200.0), (3, 400.0), (4, 800.0), (5, 1_000.0), (90, 1_000.0)] {
            let drawn: Vec<_> =
                (0..1_000).map(|seed| grpc_back_off(config, n, &mut rng(seed)).as_secs_f64() * 1e3).collect();
            let (low, high) = drawn.iter().fold((f64::MAX, 0.0_f64), |(low, high), x| (low.min(*x), high.max(*x)));
            assert!((0.8 * middle..0.81 * middle).contains(&low), "{n}: {low}");
            assert!((1.19 * middle..1.2 * middle).contains(&high), "{n}: {high}");
        }
    }

    /// RT8: seconds, dates and moments are read in the order of the policy; what is too long or unreadable is passed over.
    #[test]
    fn responses_say_when_to_come_back() {
        let header = |name: &str, format| ResetHeader { name: name.into(), format };
        let policy = RateLimitedBackOff {
            headers: vec![
                header("retry-after", ResetFormat::Seconds),
                header("x-ratelimit-reset", ResetFormat::UnixTimestamp),
            ],
            max: Duration::from_secs(300),
        };
        // Sun, 06 Nov 1994 08:49:37 GMT, as RFC 9110 has it.
        let wall = Duration::from_secs(784_111_777);
        for (headers, expected) in [
            (&[("retry-after", "20")][..], Some(20)),
            (&[("retry-after", "Sun, 06 Nov 1994 08:50:37 GMT")], Some(60)),
            (&[("retry-after", "Sun, 06 Nov 1994 08:00:00 GMT")], Some(0)),
            (&[("retry-after", "301")], None),
            (&[("retry-after", "301"), ("x-ratelimit-reset", "784111780")], Some(3)),
            (&[("x-ratelimit-reset", "784111777")], Some(0)),
            (&[("x-ratelimit-reset", "soon")], None),
            (&[("retry-after", "-1")], None),
            (&[("retry-after", "Sun, 06 Nov 94 08:49:37 GMT")], None),
            (&[("retry-after", "Sun, 06 Foo 1994 08:49:37 GMT")], None),
            (&[], None),
        ] {
            let map: HeaderMap = headers
                .iter()
                .map(|(name, value)| (http::HeaderName::from_static(name), value.parse().unwrap()))
                .collect();
            let drawn: Vec<_> = (0..200).map(|seed| rate_limited(&policy, &map, wall, &mut rng(seed))).collect();
            match expected {
                None => assert!(drawn.iter().all(Option::is_none), "{headers:?}"),
                Some(seconds) => {
                    let (least, most) = (drawn.iter().min().unwrap().unwrap(), drawn.iter().max().unwrap().unwrap());
                    let asked = Duration::from_secs(seconds);
                    assert!(least >= asked && most <= asked * 3 / 2, "{headers:?} {least:?} {most:?}");
                    assert!(seconds == 0 || most > asked * 7 / 5, "{headers:?} {most:?}");
                }
            }
        }
    }

    #[test]
    fn dates_are_counted_from_1970() {
        for (text, expected) in [
            ("Thu, 01 Jan 1970 00:00:00 GMT", Some(0)),
            ("Sun, 06 Nov 1994 08:49:37 GMT", Some(784_111_777)),
            ("Thu, 29 Feb 2024 23:59:59 GMT", Some(1_709_251_199)),
            ("Fri, 01 Mar 2024 00:00:00 GMT", Some(1_709_251_200)),
            ("Thu, 01 Jan 1970 24:00:00 GMT", None),
            ("Thu, 01 Jan 1970 00:00:00 CET", None),
            ("", None),
        ] {
            assert_eq!(http_date(text).map(|date| date.as_secs()), expected, "{text}");
        }
    }
}
