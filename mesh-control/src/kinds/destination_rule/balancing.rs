//! How requests are spread over endpoints: a policy, where endpoints run, and how new ones begin. Source: Istio
//! `LoadBalancerSettings`, `LocalityLoadBalancerSetting`.

use std::time::Duration;

use mesh_core::{
    balance,
    config::{
        ConsistentHash, HashCookie, HashPolicy, HashSource, LeastRequest, LoadBalancer, Maglev, RingHash, SlowStart,
    },
};

use crate::kinds::{
    read::{Fields, Reader},
    yaml::{Node, Value},
};

/// Source: Istio `LoadBalancerSettings`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Balancing {
    /// The policy; `None` is the mesh's.
    pub choice: Option<Choice>,
    /// What is hashed, for policies that choose by hash.
    pub hash: Vec<HashPolicy>,
    /// What to make of where endpoints run; `None` says nothing.
    pub locating: Option<Locating>,
    /// How new endpoints begin. `warmup`.
    pub warmup: Option<SlowStart>,
}

/// Source: Istio `LoadBalancerSettings.lb_policy`.
#[derive(Clone, Debug, PartialEq)]
pub enum Choice {
    /// Among the known endpoints.
    Among(LoadBalancer),
    /// The host the caller named, resolved as it is. `PASSTHROUGH`.
    Passthrough,
}

/// Source: Istio `LocalityLoadBalancerSetting`.
#[derive(Clone, Debug, PartialEq)]
pub struct Locating {
    /// False turns off what would otherwise be done of itself. Default true.
    pub enabled: bool,
    /// Shares of the requests of some callers, by where endpoints are.
    pub distribute: Vec<Distribute>,
    /// From which region requests go to which when theirs fails.
    pub failover: Vec<(String, String)>,
    /// Labels, or `label=value`, in the order in which they bind; instead of the locality.
    pub failover_priority: Vec<String>,
}

/// Source: Istio `LocalityLoadBalancerSetting.Distribute`.
#[derive(Clone, Debug, PartialEq)]
pub struct Distribute {
    /// Callers meant: `region/zone/subzone`, the last ones may be missing or `*`.
    pub from: String,
    /// Percentages by locality, written alike; 100 in sum.
    pub to: Vec<(String, u32)>,
}

pub(super) fn read(node: &Node, path: &str, reader: &mut Reader<'_>) -> Option<Balancing> {
    let mut fields = reader.fields(node, path)?;
    let mut balancing = Balancing::default();
    if let Some((node, path)) = fields.take("simple") {
        let least = || Choice::Among(LoadBalancer::LeastRequest(LeastRequest::default()));
        let words = [
            ("LEAST_REQUEST", 0),
            ("ROUND_ROBIN", 1),
            ("RANDOM", 2),
            ("PASSTHROUGH", 3),
            ("UNSPECIFIED", 0),
            ("LEAST_CONN", 0),
        ];
        balancing.choice = reader.word(node, &path, &words).map(|word| match word {
            1 => Choice::Among(LoadBalancer::RoundRobin),
            2 => Choice::Among(LoadBalancer::Random),
            3 => Choice::Passthrough,
            _ => least(),
        });
        if matches!(&node.value, Value::Text(text) if text == "LEAST_CONN") {
            reader.deprecated(node.at, format!("{path}: LEAST_CONN is deprecated"), "write LEAST_REQUEST");
        }
    }
    if let Some((node, path)) = fields.take("consistentHash")
        && let Some((choice, policy)) = consistent_hash(node, &path, reader)
    {
        if balancing.choice.is_some() {
            reader.invalid(node.at, format!("{path}: stands beside simple; only one may"));
        }
        balancing.choice = Some(Choice::Among(choice));
        balancing.hash = policy.into_iter().collect();
    }
    balancing.locating = fields.read("localityLbSetting", |node, path| locating(node, path, reader));
    let window = fields.read("warmupDurationSecs", |node, path| reader.some_time(node, path));
    balancing.warmup = window.map(|window| SlowStart { window, ..SlowStart::default() });
    if let Some(warmup) = fields.read("warmup", |node, path| warmup(node, path, reader)) {
        balancing.warmup = Some(warmup);
    }
    fields.ignored(reader, &["zoneAwareLbSetting"], "use localityLbSetting: it keeps requests near, too");
    fields.close(reader);
    Some(balancing)
}

fn consistent_hash(node: &Node, path: &str, reader: &mut Reader<'_>) -> Option<(LoadBalancer, Option<HashPolicy>)> {
    let mut fields = reader.fields(node, path)?;
    let mut sources = Vec::new();
    if let Some(name) = fields.read("httpHeaderName", |node, path| reader.text(node, path)) {
        sources.push(HashSource::Header { name: name.value.to_ascii_lowercase().into(), rewrite: None });
    }
    if let Some(name) = fields.read("httpQueryParameterName", |node, path| reader.text(node, path)) {
        sources.push(HashSource::Query(name.value.into()));
    }
    if fields.read("useSourceIp", |node, path| reader.boolean(node, path)) == Some(true) {
        sources.push(HashSource::SourceIp);
    }
    if let Some(cookie) = fields.read("httpCookie", |node, path| cookie(node, path, reader)) {
        sources.push(HashSource::Cookie(cookie));
    }
    let mut ring = RingHash { common: ConsistentHash::default(), ..RingHash::default() };
    // The older place of the size.
    if let Some(size) = fields.read("minimumRingSize", |node, path| ring_size(node, path, reader)) {
        ring.min_size = size;
    }
    let mut choice = LoadBalancer::RingHash(ring);
    if let Some((node, path)) = fields.take("ringHash")
        && let Some(mut inner) = reader.fields(node, &path)
    {
        if let Some(size) = inner.read("minimumRingSize", |node, path| ring_size(node, path, reader)) {
            choice = LoadBalancer::RingHash(RingHash { min_size: size, ..ring });
        }
        inner.close(reader);
    }
    if let Some((node, path)) = fields.take("maglev")
        && let Some(mut inner) = reader.fields(node, &path)
    {
        let size = table_size(&mut inner, reader);
        choice = LoadBalancer::Maglev(Maglev { table_size: size, ..Maglev::default() });
        inner.close(reader);
    }
    fields.close(reader);
    if sources.len() > 1 {
        reader.invalid(node.at, format!("{path}: says more than once what is hashed; leave one"));
    }
    Some((choice, sources.into_iter().next().map(|source| HashPolicy { source, terminal: false })))
}

fn ring_size(node: &Node, path: &str, reader: &mut Reader<'_>) -> Option<u64> {
    let size = reader.integer(node, path, 1, i128::from(RingHash::LARGEST))?;
    u64::try_from(size.value).ok()
}

fn table_size(fields: &mut Fields<'_>, reader: &mut Reader<'_>) -> u64 {
    let default = Maglev::default().table_size;
    let Some((node, path)) = fields.take("tableSize") else { return default };
    let size = reader.integer(node, &path, 2, i128::from(Maglev::LARGEST));
    let Some(size) = size.and_then(|size| u64::try_from(size.value).ok()) else { return default };
    if !balance::is_prime(size) {
        reader.invalid(node.at, format!("{path}: {size} is no prime number"));
        return default;
    }
    size
}

fn cookie(node: &Node, path: &str, reader: &mut Reader<'_>) -> Option<HashCookie> {
    let mut fields = reader.fields(node, path)?;
    let name = fields.read("name", |node, path| reader.text(node, path));
    if name.is_none() && !fields.seen("name") {
        reader.missing(&fields, "name");
    }
    let route = fields.read("path", |node, path| reader.text(node, path));
    let ttl = fields.read("ttl", |node, path| reader.duration(node, path));
    let mut attributes = Vec::new();
    if let Some((node, path)) = fields.take("attributes") {
        for (node, path) in reader.list(node, &path) {
            let Some(mut attribute) = reader.fields(node, &path) else { continue };
            let name = attribute.read("name", |node, path| reader.text(node, path));
            let value = attribute.read("value", |node, path| reader.text(node, path));
            attribute.close(reader);
            attributes.extend(name.map(|name| (name.value, value.map(|value| value.value).unwrap_or_default())));
        }
    }
    fields.close(reader);
    let path = route.map(|path| path.value).unwrap_or_default();
    Some(HashCookie { name: name?.value.into(), ttl: ttl.or(Some(Duration::ZERO)), path, attributes })
}

fn warmup(node: &Node, path: &str, reader: &mut Reader<'_>) -> Option<SlowStart> {
    let mut fields = reader.fields(node, path)?;
    let window = fields.read("duration", |node, path| reader.some_time(node, path));
    if window.is_none() && !fields.seen("duration") {
        reader.missing(&fields, "duration");
    }
    let mut slow = SlowStart { window: window.unwrap_or_default(), ..SlowStart::default() };
    if let Some(percent) = fields.read("minimumPercent", |node, path| reader.percent(node, path)) {
        slow.min_percent = percent;
    }
    if let Some(aggression) = fields.read("aggression", |node, path| reader.percent(node, path)) {
        slow.aggression = aggression.max(1.0);
    }
    fields.close(reader);
    (!slow.window.is_zero()).then_some(slow)
}

fn locating(node: &Node, path: &str, reader: &mut Reader<'_>) -> Option<Locating> {
    let mut fields = reader.fields(node, path)?;
    let enabled = fields.read("enabled", |node, path| reader.boolean(node, path)).unwrap_or(true);
    let mut locating =
        Locating { enabled, distribute: Vec::new(), failover: Vec::new(), failover_priority: Vec::new() };
    if let Some((node, path)) = fields.take("distribute") {
        for (node, path) in reader.list(node, &path) {
            let Some(mut entry) = reader.fields(node, &path) else { continue };
            let from = entry.read("from", |node, path| reader.text(node, path));
            let mut to = Vec::new();
            if let Some((node, path)) = entry.take("to") {
                for (place, share) in reader.map(node, &path) {
                    let path = format!("{path}.{}", place.value);
                    to.extend(reader.u32(share, &path).map(|share| (place.value.clone(), share)));
                }
                let sum: u64 = to.iter().map(|(_, share)| u64::from(*share)).sum();
                if sum != 100 {
                    reader.invalid(node.at, format!("{path}: the shares add up to {sum}, not to 100"));
                }
            }
            entry.close(reader);
            locating.distribute.extend(from.map(|from| Distribute { from: from.value, to }));
        }
    }
    if let Some((node, path)) = fields.take("failover") {
        for (node, path) in reader.list(node, &path) {
            let Some(mut entry) = reader.fields(node, &path) else { continue };
            let from = entry.read("from", |node, path| reader.text(node, path));
            let to = entry.read("to", |node, path| reader.text(node, path));
            entry.close(reader);
            locating.failover.extend(from.zip(to).map(|(from, to)| (from.value, to.value)));
        }
    }
    if let Some((node, path)) = fields.take("failoverPriority") {
        locating.failover_priority = reader.texts(node, &path).into_iter().map(|label| label.value).collect();
    }
    let several = [!locating.distribute.is_empty(), !locating.failover.is_empty()];
    if several == [true, true] || (several[0] && !locating.failover_priority.is_empty()) {
        reader.invalid(node.at, format!("{path}: distribute stands beside failover; only one may"));
    }
    fields.close(reader);
    Some(locating)
}
