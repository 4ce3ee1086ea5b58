//! Subsets of endpoints by what they say of themselves.

use super::*;
use crate::config::{Criteria, EndpointMore, Metadata, SelectorFallback, SubsetFallback, SubsetSelector, Subsets};

fn metadata(pairs: &[(&str, &str)]) -> Metadata {
    pairs.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect()
}

/// Endpoints 1 to 4: v1 in prod twice, v2 in prod, v2 in canary; 5 says nothing.
fn five(subsets: Subsets) -> config::Cluster {
    let of = [("prod", "v1"), ("prod", "v1"), ("prod", "v2"), ("canary", "v2")];
    let mut cluster = with_weights(LoadBalancer::RoundRobin, &[1; 5]);
    let mut localities = cluster.endpoints.localities.clone();
    for (endpoint, (stage, version)) in localities[0].endpoints.iter_mut().zip(of) {
        let metadata = metadata(&[("stage", stage), ("version", version)]);
        endpoint.more = Some(Arc::new(EndpointMore { metadata, ..EndpointMore::default() }));
    }
    cluster.endpoints = Arc::new(config::Endpoints { localities, ..Default::default() });
    cluster.subsets = Some(Arc::new(subsets));
    cluster
}

fn selector(keys: &[&str]) -> SubsetSelector {
    SubsetSelector { keys: keys.iter().map(|key| (*key).into()).collect(), ..SubsetSelector::default() }
}

fn by(keys: &[&[&str]]) -> Subsets {
    Subsets { selectors: keys.iter().map(|keys| selector(keys)).collect(), ..Subsets::default() }
}

/// The ports that criteria lead to.
fn ports(cluster: &Arc<Cluster>, criteria: &Criteria) -> Vec<u16> {
    let ask = Ask { criteria, ..Ask::default() };
    let mut seen: Vec<_> = (0..60)
        .filter_map(|n| cluster.pick(&ask, Time::ZERO, &mut RequestRng::new(3, n)).ok())
        .map(|pick| port(&pick))
        .collect();
    seen.sort_unstable();
    seen.dedup();
    seen
}

fn asked(pairs: &[(&str, &str)]) -> Criteria {
    Criteria { metadata: metadata(pairs), list: Vec::new() }
}

/// RA8: criteria with exactly the keys of a selector lead to the endpoints with their values.
#[test]
fn subsets_are_asked_for_by_label() {
    let cluster = compile(five(by(&[&["stage", "version"], &["version"]])), None);
    assert_eq!(ports(&cluster, &asked(&[("version", "v1")])), [1, 2]);
    assert_eq!(ports(&cluster, &asked(&[("version", "v2")])), [3, 4]);
    assert_eq!(ports(&cluster, &asked(&[("stage", "prod"), ("version", "v2")])), [3]);
    // No selector for these keys, no subset of these values, nothing asked: all is left to the fallback, which is none.
    assert!(ports(&cluster, &asked(&[("stage", "prod")])).is_empty());
    assert!(ports(&cluster, &asked(&[("version", "v3")])).is_empty());
    assert!(ports(&cluster, Criteria::ANY).is_empty());
    // Without subsets labels play no part.
    let plain = compile(config::Cluster { subsets: None, ..five(Subsets::default()) }, None);
    assert_eq!(ports(&plain, &asked(&[("version", "v1")])), [1, 2, 3, 4, 5]);
}

/// RA8: what has no subset goes by the fallback of its selector, else of the cluster.
#[test]
fn fallbacks_of_subsets() {
    let strange = asked(&[("stage", "test"), ("version", "v2")]);
    for (fallback, to_strange) in
        [(SubsetFallback::None, vec![]), (SubsetFallback::Any, vec![1, 2, 3, 4, 5]), (SubsetFallback::Default, vec![4])]
    {
        let default = metadata(&[("stage", "canary")]);
        let subsets = Subsets { fallback, default, ..by(&[&["stage", "version"], &["version"]]) };
        let cluster = compile(five(subsets.clone()), None);
        assert_eq!(ports(&cluster, &strange), to_strange, "{fallback:?}");
        assert_eq!(ports(&cluster, Criteria::ANY), to_strange, "{fallback:?}");
        for (own, to) in [
            (SelectorFallback::To(SubsetFallback::None), vec![]),
            (SelectorFallback::To(SubsetFallback::Any), vec![1, 2, 3, 4, 5]),
            (SelectorFallback::Keys(vec!["version".into()]), vec![3, 4]),
        ] {
            let mut subsets = subsets.clone();
            subsets.selectors[0].fallback = Some(own);
            assert_eq!(ports(&compile(five(subsets), None), &strange), to, "{fallback:?}");
        }
    }
    // A default that nobody is.
    let nobody = Subsets { fallback: SubsetFallback::Default, default: metadata(&[("a", "b")]), ..by(&[]) };
    assert!(ports(&compile(five(nobody.clone()), None), &strange).is_empty());
    let panics = Subsets { panic_to_any: true, ..nobody };
    assert_eq!(ports(&compile(five(panics), None), &strange), [1, 2, 3, 4, 5]);
}

/// RA8: one endpoint stands for its subset; a list of criteria is gone through until one finds an endpoint.
#[test]
fn single_endpoints_and_lists() {
    let single = SubsetSelector { single: true, ..selector(&["version"]) };
    let cluster = compile(five(Subsets { selectors: vec![single], ..Subsets::default() }), None);
    assert_eq!(ports(&cluster, &asked(&[("version", "v1")])), [1]);
    let list = vec![metadata(&[("version", "v3")]), metadata(&[("version", "v2")])];
    let criteria = Criteria { list, ..asked(&[("version", "v1")]) };
    let subsets = by(&[&["version"]]);
    assert_eq!(ports(&compile(five(subsets.clone()), None), &criteria), [1, 2]);
    assert_eq!(ports(&compile(five(Subsets { by_list: true, ..subsets }), None), &criteria), [3, 4]);
}

/// RA8: a subset that exists is used whatever its health, and what is ejected is left out of its subsets too, also after an
/// update.
#[test]
fn subsets_know_who_is_ejected() {
    let mut config = five(Subsets { fallback: SubsetFallback::Any, ..by(&[&["version"]]) });
    config.outlier_detection = ejecting(1, 100, 1).outlier_detection;
    config.panic_threshold = 0;
    let cluster = compile(config.clone(), None);
    fail(&cluster, 1, 1, Outcome::response(503), Time::ZERO);
    assert_eq!(ports(&cluster, &asked(&[("version", "v1")])), [2]);
    let cluster = compile(config, Some(&cluster));
    assert_eq!(ports(&cluster, &asked(&[("version", "v1")])), [2]);
    fail(&cluster, 2, 1, Outcome::response(503), Time::ZERO);
    // Nobody is left there, and that is no reason to go elsewhere.
    assert!(ports(&cluster, &asked(&[("version", "v1")])).is_empty());
}
