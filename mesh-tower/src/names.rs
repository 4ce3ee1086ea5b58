//! Clusters made of names: their addresses are asked for again and again and become their endpoints.
//!
//! Each address of each name of a `STRICT_DNS` cluster is an endpoint; a name that has not been resolved yet is an endpoint
//! itself, resolved when connecting, so that no request waits for a first round. The name of a `LOGICAL_DNS` cluster stays
//! one endpoint, resolved for each new connection: its addresses are one backend (gRFC A37). A resolver that fails takes
//! nothing away: the last answer stays, and is asked for again after a while that grows. One task asks, a bounded number of
//! names at once; it ends with the mesh.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use mesh_core::{
    config::{
        Cluster, Config, Discovery, Dns, DnsFamily, DnsName, Endpoint, EndpointAddress, Endpoints, LocalityEndpoints,
    },
    time::Time,
};
use tokio::{
    task::JoinSet,
    time::{sleep_until, timeout},
};

use crate::{
    dns::Resolve,
    live::Live,
    source::{Source, random_u64},
};

/// Names asked for at once.
const AT_ONCE: usize = 16;
/// An answer takes no longer.
const PATIENCE: Duration = Duration::from_secs(10);
/// No name is asked for more often.
const SHORTEST: Duration = Duration::from_millis(10);
/// When nothing is to be asked for.
const LONG: Duration = Duration::from_secs(3_600);

/// The addresses of names, as far as they are known.
#[derive(Debug, Default)]
pub(crate) struct Answers(Mutex<BTreeMap<DnsName, Vec<SocketAddr>>>);

impl Answers {
    /// Notes the addresses of a name; says whether they are others than before.
    pub(crate) fn put(&self, name: &DnsName, mut addresses: Vec<SocketAddr>) -> bool {
        // Resolvers take turns in what they name first; that is no change.
        addresses.sort_unstable();
        addresses.dedup();
        let mut answers = self.lock();
        if answers.get(name) == Some(&addresses) {
            return false;
        }
        answers.insert(name.clone(), addresses);
        true
    }

    fn retain(&self, wanted: &BTreeMap<DnsName, Dns>) {
        self.lock().retain(|name, _| wanted.contains_key(name));
    }

    /// The configuration with the endpoints of clusters that are made of names; `None` when that changes nothing.
    pub(crate) fn expand(&self, config: &Config) -> Option<Config> {
        let answers = self.lock();
        let mut expanded: Option<Config> = None;
        for (name, cluster) in config.clusters.made_of_names() {
            let Some(endpoints) = endpoints_of(cluster, &answers) else { continue };
            if *cluster.endpoints == endpoints {
                continue;
            }
            let whole = Cluster { endpoints: Arc::new(endpoints), ..Cluster::clone(cluster) };
            expanded.get_or_insert_with(|| config.clone()).clusters.insert(name.clone(), Arc::new(whole));
        }
        expanded
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<DnsName, Vec<SocketAddr>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The endpoints that the names of a cluster come to; `None` if it is not made of names.
fn endpoints_of(cluster: &Cluster, answers: &BTreeMap<DnsName, Vec<SocketAddr>>) -> Option<Endpoints> {
    let mut endpoints = Vec::new();
    match &cluster.discovery {
        Discovery::LogicalDns(name) => endpoints.push(by_name(name)),
        Discovery::StrictDns(names) => {
            let mut seen = BTreeSet::new();
            for name in names {
                let addresses = answers.get(name).filter(|_| literal(name).is_none());
                let known = addresses.into_iter().flatten().filter(|address| seen.insert(**address));
                endpoints
                    .extend(known.map(|address| Endpoint { hostname: name.0.as_str().into(), ..(*address).into() }));
                if addresses.is_none() {
                    endpoints.push(by_name(name));
                }
            }
        }
        _ => return None,
    }
    let localities = vec![LocalityEndpoints { endpoints, ..LocalityEndpoints::default() }];
    Some(Endpoints { localities, ..Endpoints::default() })
}

/// An endpoint that is resolved when connecting, unless its name is an address.
fn by_name(name: &DnsName) -> Endpoint {
    let address = match literal(name) {
        Some(address) => EndpointAddress::Socket(address),
        None => EndpointAddress::Host(name.0.clone(), name.1),
    };
    Endpoint { hostname: name.0.as_str().into(), ..Endpoint::at(address) }
}

fn literal((host, port): &DnsName) -> Option<SocketAddr> {
    host.trim_matches(['[', ']']).parse::<IpAddr>().ok().map(|ip| (ip, *port).into())
}

/// When a name is to be asked for.
struct Asked {
    next: Time,
    failures: u32,
    is_under_way: bool,
}

/// Asks for the names of the configuration in force for as long as there is one.
pub(crate) async fn follow(live: Arc<Live>, source: Source, resolve: Arc<dyn Resolve>) {
    let mut asked: BTreeMap<DnsName, Asked> = BTreeMap::new();
    let mut under_way: JoinSet<(DnsName, io::Result<Vec<SocketAddr>>)> = JoinSet::new();
    loop {
        // Listening before looking: an update between the two is not missed.
        let updated = live.updated();
        let now = source.now();
        let wanted = wanted(&live);
        asked.retain(|name, _| wanted.contains_key(name));
        live.answers().retain(&wanted);
        for name in wanted.keys() {
            let state =
                asked.entry(name.clone()).or_insert_with(|| Asked { next: now, failures: 0, is_under_way: false });
            if state.is_under_way || state.next > now || under_way.len() >= AT_ONCE {
                continue;
            }
            state.is_under_way = true;
            let (resolve, name) = (Arc::clone(&resolve), name.clone());
            under_way.spawn(async move {
                let answer = timeout(PATIENCE, resolve.resolve(&name.0, name.1)).await;
                (name, answer.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())))
            });
        }
        let later = asked.values().filter(|state| !state.is_under_way && state.next > now).map(|state| state.next);
        let wake = source.instant(later.min().unwrap_or(now + LONG));
        tokio::select! {
            () = updated => {}
            Some(done) = under_way.join_next(), if !under_way.is_empty() => {
                // A task that panicked names nobody: its name is asked for no more, and its last answer stays.
                let Ok((name, answer)) = done else { continue };
                let (Some(state), Some(dns)) = (asked.get_mut(&name), wanted.get(&name)) else { continue };
                take(&live, state, &name, dns, answer, source.now());
            }
            () = sleep_until(wake) => {}
        }
    }
}

fn take(live: &Live, state: &mut Asked, name: &DnsName, dns: &Dns, answer: io::Result<Vec<SocketAddr>>, now: Time) {
    state.is_under_way = false;
    let answer = answer.map(|addresses| of_family(addresses, dns.family)).and_then(|addresses| match addresses[..] {
        [] => Err(io::Error::new(io::ErrorKind::NotFound, "it has no address of the family asked for")),
        _ => Ok(addresses),
    });
    match answer {
        Ok(addresses) => {
            if std::mem::take(&mut state.failures) > 0 {
                tracing::info!(target: "mesh", host = name.0, "the name is resolved again");
            }
            state.next = now + dns.refresh.max(SHORTEST);
            live.resolved(name, addresses);
        }
        Err(error) => {
            state.failures = state.failures.saturating_add(1);
            if state.failures == 1 {
                tracing::warn!(target: "mesh", host = name.0, %error, "the name is not resolved; its last addresses stay");
            }
            state.next = now + pause(dns, state.failures).max(SHORTEST);
        }
    }
}

/// How long after that many failures a name is asked for again.
fn pause(dns: &Dns, failures: u32) -> Duration {
    let Some((first, longest)) = dns.after_failure else { return dns.refresh };
    let grown = first.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(longest.max(first));
    // A fifth more or less, so that many processes do not ask at once.
    let unit = (random_u64() >> 11) as f64 / (1_u64 << 53) as f64;
    grown.mul_f64(0.8 + 0.4 * unit)
}

fn of_family(addresses: Vec<SocketAddr>, family: DnsFamily) -> Vec<SocketAddr> {
    let (v6, v4): (Vec<_>, Vec<_>) = addresses.into_iter().partition(SocketAddr::is_ipv6);
    match family {
        DnsFamily::V4Only => v4,
        DnsFamily::V6Only => v6,
        DnsFamily::Auto if v6.is_empty() => v4,
        DnsFamily::Auto => v6,
        DnsFamily::V4Preferred if v4.is_empty() => v6,
        DnsFamily::V4Preferred => v4,
        DnsFamily::All => [v4, v6].concat(),
    }
}

/// The names to ask for, and how; where clusters differ, as the most eager says.
fn wanted(live: &Live) -> BTreeMap<DnsName, Dns> {
    let mut wanted: BTreeMap<DnsName, Dns> = BTreeMap::new();
    let Some(snapshot) = live.load() else { return wanted };
    for cluster in snapshot.clusters_of_names() {
        let Discovery::StrictDns(names) = &cluster.discovery else { continue };
        let dns = cluster.dns;
        for name in names.iter().filter(|name| literal(name).is_none()) {
            let known = wanted.entry(name.clone()).or_insert(dns);
            if dns.refresh < known.refresh {
                *known = dns;
            }
        }
    }
    wanted
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use super::*;

    /// NR5: which addresses count follows Envoy's families.
    #[test]
    fn families_choose_addresses() {
        let parse = |list: &[&str]| list.iter().map(|a| a.parse().unwrap()).collect::<Vec<SocketAddr>>();
        let (both, v4, v6) = (&["[::1]:1", "127.0.0.1:1"][..], &["127.0.0.1:1"][..], &["[::1]:1"][..]);
        for (family, answer, kept) in [
            (DnsFamily::Auto, both, v6),
            (DnsFamily::Auto, v4, v4),
            (DnsFamily::V4Only, both, v4),
            (DnsFamily::V6Only, v4, &[]),
            (DnsFamily::V4Preferred, both, v4),
            (DnsFamily::V4Preferred, v6, v6),
        ] {
            assert_eq!(of_family(parse(answer), family), parse(kept), "{family:?} {answer:?}");
        }
        assert_eq!(of_family(parse(both), DnsFamily::All).len(), 2);
    }

    /// NR5: after failures a name is asked for ever more seldom, up to the longest pause.
    #[test]
    fn pauses_grow_with_failures() {
        let seconds = Duration::from_secs;
        let dns = Dns { after_failure: Some((seconds(1), seconds(10))), ..Dns::default() };
        for (failures, most) in [(1, 1.0), (2, 2.0), (3, 4.0), (5, 10.0), (u32::MAX, 10.0)] {
            let pause = pause(&dns, failures).as_secs_f64();
            assert!((most * 0.799..=most * 1.201).contains(&pause), "{failures}: {pause}");
        }
        assert_eq!(pause(&Dns::default(), 7), seconds(5));
    }

    /// NR5: addresses of all names are endpoints once each; what is not resolved yet is an endpoint by name.
    #[test]
    fn names_become_endpoints() {
        let name = |host: &str| (host.to_owned(), 80);
        let names = vec![name("a"), name("b"), name("c"), name("10.0.0.9")];
        let mut config = Config::default();
        let cluster = Cluster { discovery: Discovery::StrictDns(names), ..Cluster::default() };
        config.clusters.insert("x".into(), Arc::new(cluster));
        let answers = Answers::default();
        let address = |text: &str| text.parse::<SocketAddr>().unwrap();
        assert!(answers.put(&name("a"), vec![address("10.0.0.2:80"), address("10.0.0.1:80")]));
        assert!(!answers.put(&name("a"), vec![address("10.0.0.1:80"), address("10.0.0.2:80")]));
        assert!(answers.put(&name("b"), vec![address("10.0.0.2:80")]));
        let expanded = answers.expand(&config).unwrap();
        let endpoints = &expanded.clusters.get("x").unwrap().endpoints.localities[0].endpoints;
        let shown: Vec<_> = endpoints.iter().map(|endpoint| endpoint.address.to_string()).collect();
        assert_eq!(shown, ["10.0.0.1:80", "10.0.0.2:80", "c:80", "10.0.0.9:80"]);
        assert!(answers.expand(&expanded).is_none());
    }
}
