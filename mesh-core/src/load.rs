//! What an endpoint says of its load, in the headers or trailers of its responses. Source: ORCA (`xds.data.orca.v3.OrcaLoadReport`),
//! gRFC A51, A58.
//!
//! Three forms are read: `endpoint-load-metrics-bin`, the message in base64, which gRPC servers send in trailers; and
//! `endpoint-load-metrics` with `TEXT cpu_utilization=0.3,named_metrics.cost=2` or `JSON {...}`. The message is a handful of numbers and
//! small maps, read here without generated code, so that clients without a control plane have it too.

use std::{collections::BTreeMap, time::Duration};

use http::{HeaderMap, HeaderName};
use serde::Deserialize;

/// One report.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(default)]
pub struct LoadReport {
    /// Of the processors, 1 is all of them; may be more.
    pub cpu_utilization: f64,
    /// Of the memory, 0 to 1.
    pub mem_utilization: f64,
    /// As the application measures it; 0 is not reported.
    pub application_utilization: f64,
    /// Requests per second.
    #[serde(alias = "rps_fractional")]
    pub rps: f64,
    /// Errors per second.
    #[serde(alias = "eps")]
    pub errors: f64,
    /// Metrics of the application's own.
    pub named_metrics: BTreeMap<String, f64>,
    /// Utilisations of resources of the application's own, 0 to 1.
    pub utilization: BTreeMap<String, f64>,
    /// What the request cost.
    pub request_cost: BTreeMap<String, f64>,
}

impl LoadReport {
    /// The message in base64.
    pub const BINARY: HeaderName = HeaderName::from_static("endpoint-load-metrics-bin");
    /// As text or JSON.
    pub const TEXT: HeaderName = HeaderName::from_static("endpoint-load-metrics");

    /// The report in headers or trailers, if there is one that can be read.
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        if let Some(value) = headers.get(Self::BINARY) {
            return Self::decode(&base64(value.as_bytes())?);
        }
        let text = headers.get(Self::TEXT)?.to_str().ok()?.trim();
        if let Some(json) = text.strip_prefix("JSON") {
            return json_report(json.trim());
        }
        Self::parse(text.strip_prefix("TEXT").unwrap_or(text))
    }

    /// Of the message's bytes; `None` if they are none.
    pub fn decode(mut bytes: &[u8]) -> Option<Self> {
        let mut report = Self::default();
        while !bytes.is_empty() {
            let (field, value) = field(&mut bytes)?;
            match (field, value) {
                (1, Value::Fixed(bits)) => report.cpu_utilization = f64::from_bits(bits),
                (2, Value::Fixed(bits)) => report.mem_utilization = f64::from_bits(bits),
                (3, Value::Varint(rps)) if report.rps == 0.0 => report.rps = rps as f64,
                (6, Value::Fixed(bits)) => report.rps = f64::from_bits(bits),
                (7, Value::Fixed(bits)) => report.errors = f64::from_bits(bits),
                (9, Value::Fixed(bits)) => report.application_utilization = f64::from_bits(bits),
                (4, Value::Bytes(entry)) => report.request_cost.extend([entry_of(entry)?]),
                (5, Value::Bytes(entry)) => report.utilization.extend([entry_of(entry)?]),
                (8, Value::Bytes(entry)) => report.named_metrics.extend([entry_of(entry)?]),
                _ => {}
            }
        }
        Some(report)
    }

    /// The message's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let numbers = [
            (1, self.cpu_utilization),
            (2, self.mem_utilization),
            (6, self.rps),
            (7, self.errors),
            (9, self.application_utilization),
        ];
        for (field, number) in numbers.into_iter().filter(|(_, number)| *number != 0.0) {
            put_number(&mut bytes, field, number);
        }
        for (field, map) in [(4, &self.request_cost), (5, &self.utilization), (8, &self.named_metrics)] {
            for (key, number) in map {
                let mut entry = Vec::with_capacity(key.len() + 12);
                put_bytes(&mut entry, 1, key.as_bytes());
                put_number(&mut entry, 2, *number);
                put_bytes(&mut bytes, field, &entry);
            }
        }
        bytes
    }

    /// The value of [`LoadReport::BINARY`].
    pub fn to_binary(&self) -> String {
        to_base64(&self.encode())
    }

    /// The value of [`LoadReport::TEXT`].
    pub fn to_text(&self) -> String {
        let numbers = [
            ("cpu_utilization", self.cpu_utilization),
            ("mem_utilization", self.mem_utilization),
            ("application_utilization", self.application_utilization),
            ("rps_fractional", self.rps),
            ("eps", self.errors),
        ];
        let numbers = numbers.into_iter().filter(|(_, number)| *number != 0.0);
        let mut pairs: Vec<_> = numbers.map(|(name, number)| format!("{name}={number}")).collect();
        for (map, numbers) in [
            ("named_metrics", &self.named_metrics),
            ("utilization", &self.utilization),
            ("request_cost", &self.request_cost),
        ] {
            pairs.extend(numbers.iter().map(|(key, number)| format!("{map}.{key}={number}")));
        }
        format!("TEXT {}", pairs.join(","))
    }

    /// What `own` says over what this says: of one thing, `own` counts.
    #[must_use]
    pub fn with(mut self, own: Self) -> Self {
        let over = |number: &mut f64, own: f64| {
            if own != 0.0 {
                *number = own;
            }
        };
        over(&mut self.cpu_utilization, own.cpu_utilization);
        over(&mut self.mem_utilization, own.mem_utilization);
        over(&mut self.application_utilization, own.application_utilization);
        over(&mut self.rps, own.rps);
        over(&mut self.errors, own.errors);
        self.named_metrics.extend(own.named_metrics);
        self.utilization.extend(own.utilization);
        self.request_cost.extend(own.request_cost);
        self
    }

    /// Of `name=value` pairs, with commas between.
    fn parse(text: &str) -> Option<Self> {
        let mut report = Self::default();
        for pair in text.split(',').map(str::trim).filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once(['=', ':'])?;
            report.set(name.trim(), value.trim().parse().ok().filter(|value: &f64| value.is_finite())?);
        }
        Some(report)
    }

    fn set(&mut self, name: &str, value: f64) {
        let (map, key) = match name.split_once('.') {
            Some(("named_metrics", key)) => (&mut self.named_metrics, key),
            Some(("utilization", key)) => (&mut self.utilization, key),
            Some(("request_cost", key)) => (&mut self.request_cost, key),
            _ => {
                match name {
                    "cpu_utilization" | "cpu" => self.cpu_utilization = value,
                    "mem_utilization" | "mem" => self.mem_utilization = value,
                    "application_utilization" => self.application_utilization = value,
                    "rps" | "rps_fractional" => self.rps = value,
                    "eps" => self.errors = value,
                    _ => {}
                }
                return;
            }
        };
        map.insert(key.to_owned(), value);
    }

    /// Requests per second.
    pub fn rate(&self) -> f64 {
        self.rps
    }

    /// How busy the endpoint is: as the application says, else the largest of these metrics, else its processors.
    pub fn utilisation(&self, metrics: &[String]) -> f64 {
        if self.application_utilization > 0.0 {
            return self.application_utilization;
        }
        let most = metrics.iter().map(|name| self.metric(name)).fold(0.0, f64::max);
        if most > 0.0 { most } else { self.cpu_utilization }
    }

    fn metric(&self, name: &str) -> f64 {
        let (map, key) = match name.split_once('.') {
            Some(("named_metrics", key)) => (&self.named_metrics, key),
            Some(("utilization", key)) => (&self.utilization, key),
            Some(("request_cost", key)) => (&self.request_cost, key),
            _ => {
                return match name {
                    "cpu_utilization" => self.cpu_utilization,
                    "mem_utilization" => self.mem_utilization,
                    "application_utilization" => self.application_utilization,
                    _ => 0.0,
                };
            }
        };
        map.get(key).copied().unwrap_or(0.0)
    }
}

/// The message that asks for a stream of reports, this often: `xds.service.orca.v3.OrcaLoadReportRequest`.
pub fn stream_request(period: Duration) -> Vec<u8> {
    let mut duration = Vec::new();
    for (field, number) in [(1, period.as_secs()), (2, period.subsec_nanos().into())] {
        if number != 0 {
            duration.push(field << 3);
            put_varint(&mut duration, number);
        }
    }
    let mut message = Vec::new();
    put_bytes(&mut message, 1, &duration);
    message
}

/// How often such a message asks for reports; `None` of what is none, zero of what does not say.
pub fn requested_period(mut message: &[u8]) -> Option<Duration> {
    let mut period = Duration::ZERO;
    while !message.is_empty() {
        let (1, Value::Bytes(mut duration)) = field(&mut message)? else { continue };
        while !duration.is_empty() {
            match field(&mut duration)? {
                // Beyond what anybody waits for, and below nothing.
                (1, Value::Varint(seconds)) => period += Duration::from_secs(seconds.min(u32::MAX.into())),
                (2, Value::Varint(nanos)) if nanos < 1_000_000_000 => period += Duration::from_nanos(nanos),
                _ => {}
            }
        }
    }
    Some(period)
}

fn put_varint(bytes: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        bytes.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
}

fn put_number(bytes: &mut Vec<u8>, field: u8, number: f64) {
    bytes.push(field << 3 | 1);
    bytes.extend_from_slice(&number.to_le_bytes());
}

fn put_bytes(bytes: &mut Vec<u8>, field: u8, value: &[u8]) {
    bytes.push(field << 3 | 2);
    put_varint(bytes, value.len() as u64);
    bytes.extend_from_slice(value);
}

/// JSON may spell its fields either way; only numbers and maps of numbers are looked at.
fn json_report(text: &str) -> Option<LoadReport> {
    let mut report = LoadReport::default();
    let mut rest = text.strip_prefix('{')?.strip_suffix('}')?.trim();
    let mut within: Option<String> = None;
    while !rest.is_empty() {
        if let Some(after) = rest.strip_prefix('}') {
            within.take()?;
            rest = after.trim_start().trim_start_matches(',').trim_start();
            continue;
        }
        let (name, after) = rest.strip_prefix('"')?.split_once('"')?;
        rest = after.trim_start().strip_prefix(':')?.trim_start();
        let name = snake(name);
        if let Some(after) = rest.strip_prefix('{') {
            if within.replace(name).is_some() {
                return None;
            }
            rest = after.trim_start();
            continue;
        }
        let end = rest.find([',', '}']).unwrap_or(rest.len());
        let (value, after) = rest.split_at(end);
        let value = value.trim().trim_matches('"').parse().ok().filter(|value: &f64| value.is_finite())?;
        match &within {
            Some(map) => report.set(&format!("{map}.{name}"), value),
            None => report.set(&name, value),
        }
        rest = after.trim_start().trim_start_matches(',').trim_start();
    }
    within.is_none().then_some(report)
}

fn snake(name: &str) -> String {
    let mut snake = String::with_capacity(name.len() + 4);
    for c in name.chars() {
        if c.is_ascii_uppercase() {
            snake.push('_');
        }
        snake.push(c.to_ascii_lowercase());
    }
    snake
}

enum Value<'a> {
    Varint(u64),
    Fixed(u64),
    Bytes(&'a [u8]),
    Other,
}

/// The next field of a protobuf message.
fn field<'a>(bytes: &mut &'a [u8]) -> Option<(u64, Value<'a>)> {
    let tag = varint(bytes)?;
    let value = match tag & 7 {
        0 => Value::Varint(varint(bytes)?),
        1 => {
            let (word, rest) = bytes.split_first_chunk::<8>()?;
            *bytes = rest;
            Value::Fixed(u64::from_le_bytes(*word))
        }
        2 => {
            let length = usize::try_from(varint(bytes)?).ok()?;
            let (value, rest) = bytes.split_at_checked(length)?;
            *bytes = rest;
            Value::Bytes(value)
        }
        5 => {
            *bytes = bytes.get(4..)?;
            Value::Other
        }
        _ => return None,
    };
    Some((tag >> 3, value))
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// An entry of a map from names to numbers.
fn entry_of(mut bytes: &[u8]) -> Option<(String, f64)> {
    let (mut key, mut number) = (String::new(), 0.0);
    while !bytes.is_empty() {
        match field(&mut bytes)? {
            (1, Value::Bytes(text)) => std::str::from_utf8(text).ok()?.clone_into(&mut key),
            (2, Value::Fixed(bits)) => number = f64::from_bits(bits),
            _ => {}
        }
    }
    Some((key, number))
}

/// Standard base64, padded or not, as gRPC sends binary headers.
fn base64(text: &[u8]) -> Option<Vec<u8>> {
    let text = text.strip_suffix(b"==").or_else(|| text.strip_suffix(b"=")).unwrap_or(text);
    let mut bytes = Vec::with_capacity(text.len() * 3 / 4);
    let (mut bits, mut held) = (0_u32, 0);
    for c in text {
        let digit = match c {
            b'A'..=b'Z' => c - b'A',
            b'a'..=b'z' => c - b'a' + 26,
            b'0'..=b'9' => c - b'0' + 52,
            b'+' | b'-' => 62,
            b'/' | b'_' => 63,
            _ => return None,
        };
        bits = (bits << 6) | u32::from(digit);
        held += 6;
        if held >= 8 {
            held -= 8;
            bytes.push((bits >> held) as u8);
        }
    }
    Some(bytes)
}

/// Standard base64 without padding, as gRPC sends binary headers.
fn to_base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let bits = chunk.iter().zip([16, 8, 0]).fold(0_u32, |bits, (byte, shift)| bits | u32::from(*byte) << shift);
        for shift in [18, 12, 6, 0].into_iter().take(chunk.len() + 1) {
            text.push(char::from(DIGITS[(bits >> shift & 63) as usize]));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn of(name: &HeaderName, value: &str) -> Option<LoadReport> {
        let mut headers = HeaderMap::new();
        headers.insert(name, value.parse().unwrap());
        LoadReport::of(&headers)
    }

    /// LB7: the three forms say the same.
    #[test]
    fn three_forms_say_the_same() {
        let expected = LoadReport {
            cpu_utilization: 0.5,
            rps: 100.0,
            errors: 2.0,
            named_metrics: [("cost".to_owned(), 0.25)].into(),
            ..LoadReport::default()
        };
        let text = "TEXT cpu_utilization=0.5, rps_fractional=100,eps=2,named_metrics.cost=0.25";
        assert_eq!(of(&LoadReport::TEXT, text).unwrap(), expected);
        for json in [
            r#"JSON {"cpu_utilization": 0.5, "rps_fractional": 100, "eps": 2, "named_metrics": {"cost": 0.25}}"#,
            r#"JSON {"named_metrics":{"cost":0.25},"cpuUtilization":0.5,"rpsFractional":100,"eps":2}"#,
        ] {
            assert_eq!(of(&LoadReport::TEXT, json).unwrap(), expected, "{json}");
        }
        let mut message = Vec::new();
        for (field, number) in [(1, 0.5_f64), (6, 100.0), (7, 2.0)] {
            message.push(field << 3 | 1);
            message.extend(number.to_le_bytes());
        }
        message.extend([8 << 3 | 2, 15, 1 << 3 | 2, 4]);
        message.extend(b"cost");
        message.push(2 << 3 | 1);
        message.extend(0.25_f64.to_le_bytes());
        assert_eq!(LoadReport::decode(&message).unwrap(), expected);
        // A whole number of requests in the old field, and a field of a later version.
        assert_eq!(LoadReport::decode(&[3 << 3, 7, 15 << 3, 1]).unwrap().rps, 7.0);
        assert_eq!(of(&LoadReport::BINARY, "GAc=").unwrap().rps, 7.0);
        assert_eq!(of(&LoadReport::BINARY, "GAc").unwrap().rps, 7.0);
    }

    /// TE23, SV12: what is written is read as it was, in both forms; of what two say the second counts.
    #[test]
    fn reports_are_written() {
        let map = |key: &str, number| [(key.to_owned(), number)].into();
        let report = LoadReport {
            cpu_utilization: 1.25,
            mem_utilization: 0.5,
            application_utilization: 0.75,
            rps: 1e6,
            errors: 3.0,
            named_metrics: map("queue", 7.0),
            utilization: map("disk", 0.1),
            request_cost: map("rows", 12.0),
        };
        assert_eq!(of(&LoadReport::BINARY, &report.to_binary()).unwrap(), report);
        assert_eq!(of(&LoadReport::TEXT, &report.to_text()).unwrap(), report);
        for length in 0..5 {
            let bytes: Vec<u8> = (0..length).map(|n| 250 - n * 50).collect();
            assert_eq!(base64(to_base64(&bytes).as_bytes()).unwrap(), bytes);
        }
        let own = LoadReport { cpu_utilization: 0.5, named_metrics: map("cost", 2.0), ..LoadReport::default() };
        let both = report.clone().with(own);
        assert_eq!((both.cpu_utilization, both.rps, both.named_metrics.len()), (0.5, 1e6, 2));
        assert_eq!(report.clone().with(LoadReport::default()), report);
    }

    /// TE24: how often a stream is to report goes there and back.
    #[test]
    fn streams_are_asked_for() {
        for period in [Duration::ZERO, Duration::from_millis(1_500), Duration::from_secs(300)] {
            assert_eq!(requested_period(&stream_request(period)), Some(period));
        }
        assert_eq!(stream_request(Duration::from_secs(10)), [0x0a, 2, 0x08, 10]);
        assert_eq!(requested_period(&[]), Some(Duration::ZERO));
        assert_eq!(requested_period(&[0x12, 1, b'x', 0x0a, 2, 0x08, 1]), Some(Duration::from_secs(1)));
        for none in [&[0x0a, 9][..], &[0x0a, 1, 0x08], &[0x0b]] {
            assert_eq!(requested_period(none), None, "{none:?}");
        }
    }

    /// LB7: what cannot be read is no report.
    #[test]
    fn what_cannot_be_read_is_no_report() {
        for text in ["TEXT cpu_utilization", "TEXT cpu=much", "JSON {", "JSON {\"a\":{\"b\":1}", "TEXT cpu=nan"] {
            assert_eq!(of(&LoadReport::TEXT, text), None, "{text}");
        }
        for value in ["!", "CA", "CQAA", "IgUKAUE="] {
            assert_eq!(of(&LoadReport::BINARY, value), None, "{value}");
        }
    }

    /// LB7: the application's own number goes before metrics by name, and those before the processors'.
    #[test]
    fn utilisation_by_rank() {
        let metrics = ["named_metrics.queue".to_owned(), "mem_utilization".to_owned()];
        for (text, expected) in [
            ("cpu=0.3", 0.3),
            ("cpu=0.3,mem=0.4", 0.4),
            ("cpu=0.3,mem=0.4,named_metrics.queue=0.6", 0.6),
            ("cpu=0.3,mem=0.4,application_utilization=0.1", 0.1),
            ("rps=4", 0.0),
        ] {
            assert_eq!(of(&LoadReport::TEXT, text).unwrap().utilisation(&metrics), expected, "{text}");
        }
    }
}
