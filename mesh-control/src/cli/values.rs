//! Values on the command line that several verbs take: durations, headers, labels, weights.

use std::time::Duration;

use mesh_control::kinds::{Key, Kind};

use super::{Failure, USAGE, get};

/// `250ms`, `7s`, `1m30s`, `2h`; a number alone is seconds.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is not a duration such as 250ms, 7s or 1m30s");
    if let Ok(seconds) = text.parse::<f64>() {
        return Duration::try_from_secs_f64(seconds).map_err(|_| wrong());
    }
    let (mut rest, mut sum) = (text, Duration::ZERO);
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(wrong)?;
        let (number, tail) = rest.split_at(end);
        let unit_end = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit_end);
        let seconds = match unit {
            "us" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return Err(wrong()),
        };
        let number: f64 = number.parse().map_err(|_| wrong())?;
        sum = Duration::try_from_secs_f64(number * seconds)
            .ok()
            .and_then(|part| sum.checked_add(part))
            .ok_or_else(wrong)?;
        rest = tail;
    }
    if text.is_empty() { Err(wrong()) } else { Ok(sum) }
}

/// As Istio's YAML has it: `7s`, `250ms`.
pub(super) fn in_yaml(duration: Duration) -> String {
    match (duration.as_micros() % 1000, duration.as_millis() % 1000) {
        (0, 0) => format!("{}s", duration.as_secs()),
        (0, _) => format!("{}ms", duration.as_millis()),
        _ => format!("{}us", duration.as_micros()),
    }
}

/// For people, three digits: `870µs`, `4.21ms`, `1.30s`.
pub(super) fn for_people(duration: Duration) -> String {
    let micros = duration.as_secs_f64() * 1e6;
    let (number, unit) = match micros {
        _ if micros < 1e3 => return format!("{micros:.0}µs"),
        _ if micros < 1e6 => (micros / 1e3, "ms"),
        _ => (micros / 1e6, "s"),
    };
    match number {
        _ if number < 10.0 => format!("{number:.2}{unit}"),
        _ if number < 100.0 => format!("{number:.1}{unit}"),
        _ => format!("{number:.0}{unit}"),
    }
}

/// `end-user:jason`.
pub(super) fn header(text: &str) -> Result<(String, String), String> {
    match text.split_once(':') {
        Some((name, value)) if !name.trim().is_empty() => Ok((name.trim().to_owned(), value.trim().to_owned())),
        _ => Err("a header is NAME:VALUE, as in end-user:jason".to_owned()),
    }
}

/// `version=v1`.
pub(super) fn label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("a label is NAME=VALUE, as in version=v1".to_owned()),
    }
}

/// `v1=90`; `v1` alone is all of it.
pub(super) fn weight(text: &str) -> Result<(String, u32), String> {
    let (subset, weight) = text.split_once('=').unwrap_or((text, "100"));
    match weight.trim_end_matches('%').parse() {
        Ok(weight) if weight <= 100 && !subset.is_empty() => Ok((subset.to_owned(), weight)),
        _ => Err("a weight is SUBSET=PERCENT, as in v1=90".to_owned()),
    }
}

/// A share in percent, 0 to 100.
pub(super) fn percent(text: &str) -> Result<f64, String> {
    match text.trim_end_matches('%').parse() {
        Ok(value) if (0.0..=100.0).contains(&value) => Ok(value),
        _ => Err(format!("{text:?} is not within 0 to 100")),
    }
}

/// `vs/reviews`, as `get -o name` writes it, or two words of an argument list: `vs reviews`.
pub(super) fn key(words: &[String], namespace: &str) -> Result<Key, Failure> {
    let (kind, name) = match words {
        [one] => one.split_once('/').ok_or_else(|| {
            Failure::new(USAGE, format!("{one:?} of which kind? give KIND NAME or KIND/NAME, such as vs/reviews"))
        })?,
        [kind, name] => (kind.as_str(), name.as_str()),
        _ => return Err(Failure::new(USAGE, "give a kind and a name, such as vs reviews")),
    };
    let kind: Kind = get::kind(kind)?;
    Ok(Key::new(kind, namespace, name))
}

/// A host as it is known in the whole mesh, as Istio reads short names.
pub(super) fn full_host(host: &str, namespace: &str) -> String {
    match host.contains('.') || host == "*" {
        true => host.to_owned(),
        false => format!("{host}.{namespace}.svc.cluster.local"),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use super::*;

    #[test]
    fn durations_are_read_and_written() {
        let cases = [("7s", 7_000, "7s"), ("250ms", 250, "250ms"), ("1m30s", 90_000, "90s"), ("0.5", 500, "500ms")];
        for (text, millis, yaml) in cases {
            assert_eq!(duration(text), Ok(Duration::from_millis(millis)), "{text}");
            assert_eq!(in_yaml(Duration::from_millis(millis)), yaml);
        }
        for wrong in ["", "s", "7x", "7s3", "-1s", "1e400", "99999999999999999999h"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
        let cases = [(870, "870µs"), (4_210, "4.21ms"), (42_100, "42.1ms"), (421_000, "421ms"), (1_300_000, "1.30s")];
        for (micros, expected) in cases {
            assert_eq!(for_people(Duration::from_micros(micros)), expected);
        }
    }

    #[test]
    fn weights_and_names_are_read() {
        assert_eq!(weight("v1=90"), Ok(("v1".to_owned(), 90)));
        assert_eq!(weight("v3"), Ok(("v3".to_owned(), 100)));
        assert!(["v1=", "=5", "v1=101", "v1=-1"].into_iter().all(|wrong| weight(wrong).is_err()));
        let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        for text in ["vs/reviews", "virtualservice reviews", "virtualservice.networking.istio.io/reviews"] {
            let found = key(&words(text), "shop").unwrap();
            assert_eq!(found, Key::new(Kind::VirtualService, "shop", "reviews"));
        }
        assert_eq!(full_host("reviews", "shop"), "reviews.shop.svc.cluster.local");
        assert_eq!(full_host("reviews.com", "shop"), "reviews.com");
    }
}
