//! What a caller's place means for the endpoints of a service: which come first, and how requests are shared. Source: istiod
//! `pilot/pkg/networking/core/loadbalancer`, Istio `LocalityLoadBalancerSetting` (LO6).
//!
//! Failover turns nearness into priorities: the own subzone, zone, region, then the region named for it, then the rest. It needs outlier
//! detection, without which nobody notices that the near ones fail. With labels in order of weight, an endpoint's priority is
//! the number of labels that do not match in a row with the caller's. Distribution turns shares into weights
//! of localities.

use mesh_core::config::{Endpoint, Endpoints, Labels, Locality, LocalityEndpoints};

use crate::kinds::{Distribute, Locating};

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct From<'a> {
    pub(crate) locality: &'a Locality,
    pub(crate) labels: &'a Labels,
}

/// Puts the endpoints in the caller's order. True if localities have got weights that count.
pub(crate) fn locate(
    endpoints: &mut Endpoints,
    labels: impl Fn(&Endpoint) -> Labels,
    from: From<'_>,
    setting: Option<&Locating>,
    detects_outliers: bool,
) -> bool {
    if setting.is_some_and(|setting| !setting.enabled) {
        return false;
    }
    let distribute = setting.into_iter().flat_map(|setting| &setting.distribute);
    if let Some(shares) = distribute.into_iter().find(|entry| covers(&entry.from, from.locality)) {
        distribution(endpoints, shares);
        return true;
    }
    if !detects_outliers {
        return false;
    }
    match setting {
        Some(setting) if !setting.failover_priority.is_empty() => {
            by_labels(endpoints, labels, from, &setting.failover_priority);
        }
        setting if !from.locality.region.is_empty() => {
            let failover = setting.map_or(&[][..], |setting| &setting.failover);
            for group in &mut endpoints.localities {
                group.priority = distance(from.locality, &group.locality, failover);
            }
        }
        _ => {}
    }
    close_up(endpoints);
    false
}

/// How far away a place is: 0 is the same subzone.
fn distance(here: &Locality, there: &Locality, failover: &[(String, String)]) -> u32 {
    if here.region != there.region {
        let to = failover.iter().find(|(from, _)| **from == *here.region).map(|(_, to)| to.as_str());
        return if to.is_none_or(|to| *to == *there.region) { 3 } else { 4 };
    }
    match (here.zone == there.zone, here.sub_zone == there.sub_zone) {
        (false, _) => 2,
        (true, false) => 1,
        (true, true) => 0,
    }
}

/// Each label binds only if all before it did.
fn by_labels(endpoints: &mut Endpoints, labels: impl Fn(&Endpoint) -> Labels, from: From<'_>, wanted: &[String]) {
    let mut groups: Vec<LocalityEndpoints> = Vec::new();
    for group in std::mem::take(&mut endpoints.localities) {
        for endpoint in group.endpoints {
            let own = labels(&endpoint);
            let matched = wanted.iter().take_while(|label| match label.split_once('=') {
                Some((label, value)) => own.get(label).map(String::as_str) == Some(value),
                None => {
                    let value = |labels: &Labels, place: &Locality| value_of(label, labels, place);
                    value(&own, &group.locality) == value(from.labels, from.locality)
                }
            });
            let priority = u32::try_from(wanted.len() - matched.count()).unwrap_or(u32::MAX);
            let same = |other: &&mut LocalityEndpoints| other.priority == priority && other.locality == group.locality;
            match groups.iter_mut().find(same) {
                Some(other) => other.endpoints.push(endpoint),
                None => groups.push(LocalityEndpoints {
                    locality: group.locality.clone(),
                    priority,
                    weight: group.weight,
                    endpoints: vec![endpoint],
                }),
            }
        }
    }
    endpoints.localities = groups;
}

/// A label's value; those of places are known without being written.
fn value_of(label: &str, labels: &Labels, place: &Locality) -> Option<String> {
    match label {
        "topology.kubernetes.io/region" => Some(place.region.to_string()),
        "topology.kubernetes.io/zone" => Some(place.zone.to_string()),
        "topology.istio.io/subzone" => Some(place.sub_zone.to_string()),
        label => labels.get(label).cloned(),
    }
}

/// Priorities count up from 0 without a gap, nearest first.
fn close_up(endpoints: &mut Endpoints) {
    let mut used: Vec<u32> = endpoints.localities.iter().map(|group| group.priority).collect();
    used.sort_unstable();
    used.dedup();
    for group in &mut endpoints.localities {
        group.priority = used.binary_search(&group.priority).map_or(group.priority, |at| at as u32);
    }
    endpoints.localities.sort_by(|a, b| (a.priority, &a.locality).cmp(&(b.priority, &b.locality)));
}

/// Weights by share; places that no entry names get nothing.
fn distribution(endpoints: &mut Endpoints, shares: &Distribute) {
    let entry_of = |place: &Locality| shares.to.iter().position(|(pattern, _)| covers(pattern, place));
    let count = |at: usize, groups: &[LocalityEndpoints]| -> u32 {
        let of = groups.iter().filter(|group| entry_of(&group.locality) == Some(at));
        of.map(|group| group.endpoints.len() as u32).sum()
    };
    let groups = endpoints.localities.clone();
    for group in &mut endpoints.localities {
        // Several places of one entry share by their sizes.
        group.weight = entry_of(&group.locality).and_then(|at| {
            let (_, share) = shares.to.get(at)?;
            let part = u64::from(*share) * 1_000 * group.endpoints.len() as u64 / u64::from(count(at, &groups).max(1));
            u32::try_from(part).ok().filter(|weight| *weight > 0)
        });
    }
    endpoints.localities.retain(|group| group.weight.is_some());
}

/// Does `region/zone/subzone`, where parts may be `*` or missing at the end, mean this place?
fn covers(pattern: &str, place: &Locality) -> bool {
    if pattern == "*" {
        return true;
    }
    let parts = [&*place.region, &*place.zone, &*place.sub_zone];
    pattern.split('/').zip(parts).all(|(pattern, part)| pattern == "*" || pattern == part)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn place(text: &str) -> Locality {
        let mut parts = text.split('/');
        let mut next = || parts.next().unwrap_or_default().into();
        Locality { region: next(), zone: next(), sub_zone: next() }
    }

    fn at(places: &[&str]) -> Endpoints {
        let group = |(n, text): (usize, &&str)| {
            let address: std::net::SocketAddr = ([10, 0, 0, n as u8], 80).into();
            LocalityEndpoints { locality: place(text), endpoints: vec![address.into()], ..Default::default() }
        };
        Endpoints { localities: places.iter().enumerate().map(group).collect(), ..Default::default() }
    }

    fn setting() -> Locating {
        Locating { enabled: true, distribute: Vec::new(), failover: Vec::new(), failover_priority: Vec::new() }
    }

    fn priorities(endpoints: &Endpoints) -> Vec<(String, u32)> {
        let name = |place: &Locality| format!("{}/{}/{}", place.region, place.zone, place.sub_zone);
        endpoints.localities.iter().map(|group| (name(&group.locality), group.priority)).collect()
    }

    /// LO6: nearness is priority, the region named for failover before the others, and gaps are closed.
    #[test]
    fn nearness_is_priority() {
        let places = ["us/x/1", "eu/a/1", "eu/b/1", "asia/y/1", "eu/a/2"];
        let here = place("eu/a/1");
        let from = From { locality: &here, labels: &Labels::new() };
        let failover = Locating { failover: vec![("eu".into(), "us".into())], ..setting() };
        let expected = [("eu/a/1", 0), ("eu/a/2", 1), ("eu/b/1", 2), ("us/x/1", 3), ("asia/y/1", 4)];
        let mut endpoints = at(&places);
        assert!(!locate(&mut endpoints, |_| Labels::new(), from, Some(&failover), true));
        assert_eq!(priorities(&endpoints), expected.map(|(name, priority)| (name.to_owned(), priority)));
        let mut few = at(&["us/x/1", "eu/b/1"]);
        locate(&mut few, |_| Labels::new(), from, None, true);
        assert_eq!(priorities(&few), [("eu/b/1".to_owned(), 0), ("us/x/1".to_owned(), 1)]);
        for (setting, detects) in [(setting(), false), (Locating { enabled: false, ..setting() }, true)] {
            let mut endpoints = at(&places);
            locate(&mut endpoints, |_| Labels::new(), from, Some(&setting), detects);
            assert!(endpoints.localities.iter().all(|group| group.priority == 0), "{setting:?}");
        }
    }

    /// LO6: labels bind in order, each only if those before it match.
    #[test]
    fn labels_bind_in_order() {
        let labels = |version: &str| Labels::from([("version".to_owned(), version.to_owned())]);
        let here = place("eu/a/1");
        let own = labels("v1");
        let from = From { locality: &here, labels: &own };
        let wanted = vec!["version".to_owned(), "topology.kubernetes.io/zone".to_owned()];
        let setting = Locating { failover_priority: wanted, ..setting() };
        let mut endpoints = at(&["eu/a/1", "eu/b/1", "us/a/1"]);
        let of = |endpoint: &Endpoint| labels(if endpoint.address.to_string() == "10.0.0.2:80" { "v2" } else { "v1" });
        locate(&mut endpoints, of, from, Some(&setting), true);
        let expected = [("eu/a/1", 0), ("eu/b/1", 1), ("us/a/1", 2)].map(|(name, at)| (name.to_owned(), at));
        assert_eq!(priorities(&endpoints), expected);
    }

    /// LO6: shares are weights of localities, those of one entry by their sizes, and places without a share get nothing.
    #[test]
    fn shares_are_weights() {
        let here = place("eu/a/1");
        let from = From { locality: &here, labels: &Labels::new() };
        let to = vec![("eu/a/*".to_owned(), 80), ("eu/b/*".to_owned(), 20)];
        let distribute = vec![Distribute { from: "eu/a/*".into(), to }];
        let setting = Locating { distribute, ..setting() };
        let mut endpoints = at(&["eu/a/1", "eu/a/2", "eu/b/1", "us/a/1"]);
        assert!(locate(&mut endpoints, |_| Labels::new(), from, Some(&setting), false));
        let weights: Vec<_> = endpoints.localities.iter().map(|group| group.weight).collect();
        assert_eq!(weights, [Some(40_000), Some(40_000), Some(20_000)]);
    }
}
