//! What is published when, resource by resource.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use mesh_core::config::{Discovery, Forward, WeightedCluster};

use super::*;

/// XD13, XD14: the first configuration waits until nothing is missing.
#[test]
fn first_configuration_is_complete() {
    let mut mesh = Mesh::default();
    mesh.cluster("a").cluster("b").synced(TypeUrl::Cluster);
    assert!(mesh.poll().is_none());
    mesh.endpoints("a").listener(80, "80").synced(TypeUrl::Listener);
    assert!(mesh.poll().is_none());
    assert_eq!(mesh.graph.wanted(TypeUrl::Endpoint).len(), 2);
    assert_eq!(mesh.graph.wanted(TypeUrl::Route).iter().next().unwrap().as_ref(), "80");
    mesh.route("80", &["a"]);
    assert!(mesh.poll().is_none());
    mesh.endpoints("b");
    let config = mesh.poll().unwrap();
    assert_eq!((config.clusters.len(), config.outbound.len()), (2, 1));
    assert_eq!(config.clusters["a"].endpoints.overprovisioning, 1);
    assert!(mesh.poll().is_none(), "and is published once");
}

/// XD12, XD13: new routes wait for the endpoints of their new cluster; the rest moves on.
#[test]
fn routes_wait_for_their_clusters() {
    let mut mesh = Mesh::running();
    mesh.cluster("b").route("80", &["b"]).cluster("c").route("81", &["a"]).listener(81, "81");
    let config = mesh.poll().unwrap();
    assert_eq!(config.named(80), ["a"]);
    assert_eq!(config.named(81), ["a"]);
    assert!(!config.clusters.contains_key("b"), "it is warming");
    mesh.endpoints("b");
    let config = mesh.poll().unwrap();
    assert_eq!(config.named(80), ["b"]);
    assert!(config.clusters.contains_key("b"));
}

/// XD12: routes that come before their cluster wait for it, but not for ever.
#[test]
fn routes_before_their_cluster_wait_for_the_grace() {
    let mut mesh = Mesh::running();
    mesh.route("80", &["b"]);
    assert!(mesh.poll().is_none());
    assert_eq!(mesh.graph.next_timeout(mesh.now), Some(mesh.now + GRACE));
    mesh.cluster("b").endpoints("b");
    assert_eq!(mesh.poll().unwrap().named(80), ["b"]);
    mesh.route("80", &["nowhere"]);
    assert!(mesh.poll().is_none());
    mesh.wait(GRACE);
    let config = mesh.poll().unwrap();
    assert_eq!(config.named(80), ["nowhere"]);
    assert!(!config.clusters.contains_key("nowhere"));
    assert_eq!(mesh.graph.next_timeout(mesh.now), None);
}

/// XD12: a cluster removed before the routes to it stays until they are gone, or for the grace.
#[test]
fn removed_cluster_stays_while_routes_name_it() {
    let mut mesh = Mesh::running();
    mesh.cluster("b").endpoints("b").gone(TypeUrl::Cluster, "a");
    let config = mesh.poll().unwrap();
    assert!(config.clusters.contains_key("a") && config.clusters.contains_key("b"));
    mesh.route("80", &["b"]);
    let config = mesh.poll().unwrap();
    assert_eq!((config.named(80), config.clusters.contains_key("a")), (vec!["b".to_owned()], false));
    mesh.gone(TypeUrl::Cluster, "b");
    assert!(mesh.poll().is_none());
    mesh.wait(GRACE);
    assert!(mesh.poll().unwrap().clusters.is_empty(), "and then the route answers NC");
}

/// XD13: a changed cluster without its endpoints keeps its previous form; with the same name it keeps them at once.
#[test]
fn changed_cluster_keeps_the_old_until_it_is_whole() {
    let mut mesh = Mesh::running();
    mesh.event(TypeUrl::Cluster, "a", Part::Cluster(Arc::new(Cluster { panic_threshold: 9, ..cluster("a", "a") })));
    let config = mesh.poll().unwrap();
    assert_eq!((config.clusters["a"].panic_threshold, config.clusters["a"].endpoints.overprovisioning), (9, 1));
    mesh.event(TypeUrl::Cluster, "a", Part::Cluster(Arc::new(cluster("a", "elsewhere"))));
    assert!(mesh.poll().is_none());
    mesh.endpoints("elsewhere");
    assert_eq!(mesh.poll().unwrap().clusters["a"].discovery, Discovery::Eds("elsewhere".into()));
}

/// XD14, XD7: a cluster that cannot become whole fails alone.
#[test]
fn failing_cluster_fails_alone() {
    let mut mesh = Mesh::running();
    mesh.cluster("b").gone(TypeUrl::Endpoint, "b").refused(TypeUrl::Cluster, "c").route("80", &["a", "b", "c"]);
    let config = mesh.poll().unwrap();
    assert_eq!(config.named(80), ["a", "b", "c"]);
    assert_eq!(config.clusters["a"].failed, None);
    assert!(config.clusters["b"].failed.as_ref().unwrap().contains("no such resource"));
    assert_eq!(config.clusters["c"].failed.as_deref(), Some("bad"));
    // What is in force stays when its successor is refused.
    mesh.refused(TypeUrl::Cluster, "a").refused(TypeUrl::Endpoint, "a").refused(TypeUrl::Route, "80");
    assert!(mesh.poll().is_none());
    mesh.endpoints("b");
    assert_eq!(mesh.poll().unwrap().clusters["b"].failed, None, "it recovers");
}

/// XD7: routes that do not exist answer 503 on their port and hold nothing up.
#[test]
fn missing_routes_answer_503() {
    let mut mesh = Mesh::default();
    mesh.listener(80, "80").synced(TypeUrl::Listener).synced(TypeUrl::Cluster);
    assert!(mesh.poll().is_none());
    mesh.gone(TypeUrl::Route, "80");
    let config = mesh.poll().unwrap();
    let Action::DirectResponse(response) = &config.outbound[&80].virtual_hosts[0].routes[0].action else { panic!() };
    assert_eq!(response.status, 503);
    assert!(response.body.contains("\"80\""), "{}", response.body);
}

/// XD10: routes that were in force and are dropped answer 503; others that never came leave them where they are.
#[test]
fn dropped_routes_answer_503() {
    let mut mesh = Mesh::running();
    mesh.listener(80, "other").gone(TypeUrl::Route, "other");
    assert!(mesh.poll().is_none(), "the new ones never were");
    mesh.listener(80, "80").route("80", &["a"]);
    let _ = mesh.poll();
    mesh.graph.handle_event(Event::Failed(TypeUrl::Route, "80".into(), "dropped".to_owned()));
    let config = mesh.poll().unwrap();
    assert!(config.named(80).is_empty());
    assert_eq!(&*config.outbound[&80].name, "80");
    mesh.route("80", &["a"]);
    assert_eq!(mesh.poll().unwrap().named(80), ["a"]);
}

/// NR4, XD34: by gRPC's rules each listener comes by itself once it is whole, with the clusters that it needs, those that
/// clusters are made of among them; what cannot be had says why; what is wanted no longer goes, with all it needed.
#[test]
fn what_is_dialled_comes_by_itself() {
    let mut mesh = Mesh { graph: Graph::by_name(Local { id: "me".into(), ..Local::default() }), now: Time::ZERO };
    assert_eq!(*mesh.poll().unwrap(), Config { local: mesh.graph.local.clone(), ..Config::default() });
    let dialled = |routes: &str| {
        Part::Listener(Listener::Target { routes: RouteSource::Rds(routes.into()), settings: Arc::default() })
    };
    let names = |names: &[&str]| names.iter().map(|name| Name::from(*name)).collect::<BTreeSet<_>>();
    mesh.event(TypeUrl::Listener, "x:1", dialled("x")).event(TypeUrl::Listener, "y:1", dialled("y"));
    assert_eq!(mesh.graph.wanted(TypeUrl::Route), names(&["x", "y"]));
    mesh.route("x", &["all"]).route("y", &["b"]);
    assert_eq!(mesh.graph.wanted(TypeUrl::Cluster), names(&["all", "b"]));
    assert!(mesh.poll().is_none());
    let all = Cluster { discovery: Discovery::Aggregate(vec!["a".into(), "c".into()]), ..cluster("all", "") };
    mesh.event(TypeUrl::Cluster, "all", Part::Cluster(Arc::new(all)));
    assert_eq!(mesh.graph.wanted(TypeUrl::Cluster), names(&["a", "all", "b", "c"]));
    mesh.cluster("a").endpoints("a").cluster("b");
    mesh.wait(GRACE * 2);
    let _ = mesh.poll();
    assert!(mesh.graph.current.as_ref().unwrap().targets.is_empty(), "c and the endpoints of b may come yet");
    mesh.gone(TypeUrl::Cluster, "c");
    let config = mesh.poll().unwrap();
    assert_eq!(config.targets.keys().map(|name| &**name).collect::<Vec<_>>(), ["x:1"]);
    assert!(config.clusters["c"].failed.as_ref().unwrap().contains("no such resource"));
    mesh.endpoints("b").gone(TypeUrl::Listener, "z:1");
    while mesh.poll().is_some() {}
    let config = mesh.graph.current.clone().unwrap();
    assert_eq!(config.targets.len(), 3);
    let Action::DirectResponse(missing) = &config.targets["z:1"].routes.virtual_hosts[0].routes[0].action else {
        panic!()
    };
    assert!(missing.status == 503 && missing.body.contains("LDS \"z:1\"") && missing.body.contains("\"me\""));

    // The routes of a server in place of a client's: the requests that take them fail.
    mesh.graph.want_listeners(&names(&["y:1"]));
    while mesh.poll().is_some() {}
    let config = mesh.graph.current.clone().unwrap();
    assert_eq!((config.targets.len(), config.clusters.len()), (1, 1));
    assert_eq!(mesh.graph.wanted(TypeUrl::Endpoint), names(&["b"]));
    assert_eq!(mesh.graph.wanted(TypeUrl::Route), names(&["y"]));
}

/// XD15: unchanged parts stay the same, and nothing new is nothing published.
#[test]
fn unchanged_parts_are_shared() {
    let mut mesh = Mesh::running();
    let before = mesh.graph.current.clone().unwrap();
    mesh.cluster("a").endpoints("a").route("80", &["a"]);
    assert!(mesh.poll().is_none());
    mesh.cluster("b").endpoints("b");
    let after = mesh.poll().unwrap();
    assert!(Arc::ptr_eq(&before.clusters["a"], &after.clusters["a"]));
    assert!(Arc::ptr_eq(&before.outbound[&80], &after.outbound[&80]));
}

#[test]
fn listeners_come_and_go() {
    let mut mesh = Mesh::running();
    let inbound = Arc::new(Inbound::default());
    mesh.event(TypeUrl::Listener, "virtualInbound", Part::Listener(Listener::Inbound(vec![(9080, inbound)])));
    assert_eq!(mesh.poll().unwrap().inbound.len(), 1);
    mesh.gone(TypeUrl::Listener, "80");
    let config = mesh.poll().unwrap();
    assert!(config.outbound.is_empty() && mesh.graph.wanted(TypeUrl::Route).is_empty());
}

#[derive(Default)]
struct Mesh {
    graph: Graph,
    now: Time,
}

impl Mesh {
    /// Port 80 leads to cluster `a`.
    fn running() -> Self {
        let mut mesh = Self::default();
        mesh.cluster("a").endpoints("a").listener(80, "80").route("80", &["a"]);
        mesh.synced(TypeUrl::Cluster).synced(TypeUrl::Listener);
        assert!(mesh.poll().is_some());
        mesh
    }

    fn event(&mut self, kind: TypeUrl, name: &str, part: Part) -> &mut Self {
        self.graph.handle_event(Event::Changed(kind, name.into(), part));
        self
    }

    fn cluster(&mut self, name: &str) -> &mut Self {
        self.event(TypeUrl::Cluster, name, Part::Cluster(Arc::new(cluster(name, name))))
    }

    fn endpoints(&mut self, name: &str) -> &mut Self {
        let endpoints = Endpoints { overprovisioning: 1, ..Endpoints::default() };
        self.event(TypeUrl::Endpoint, name, Part::Endpoints(Arc::new(endpoints)))
    }

    fn listener(&mut self, port: u16, routes: &str) -> &mut Self {
        let listener = Listener::Outbound { port, routes: RouteSource::Rds(routes.into()), settings: Arc::default() };
        self.event(TypeUrl::Listener, &port.to_string(), Part::Listener(listener))
    }

    fn route(&mut self, name: &str, clusters: &[&str]) -> &mut Self {
        let split = |name: &&str| WeightedCluster { cluster: (*name).into(), weight: 1, ..WeightedCluster::default() };
        let forward = Forward { clusters: clusters.iter().map(split).collect(), ..Forward::default() };
        let mut table = unavailable(&name.into(), "");
        let mut host = VirtualHost::clone(&table.virtual_hosts[0]);
        host.routes[0].action = Action::Forward(forward);
        table.virtual_hosts = vec![Arc::new(host)];
        self.event(TypeUrl::Route, name, Part::Route(Arc::new(table)))
    }

    fn gone(&mut self, kind: TypeUrl, name: &str) -> &mut Self {
        self.graph.handle_event(Event::Gone(kind, name.into()));
        self
    }

    fn refused(&mut self, kind: TypeUrl, name: &str) -> &mut Self {
        self.graph.handle_event(Event::Refused(kind, name.into(), "bad".to_owned()));
        self
    }

    fn synced(&mut self, kind: TypeUrl) -> &mut Self {
        self.graph.handle_event(Event::Synced(kind));
        self
    }

    fn wait(&mut self, duration: Duration) {
        self.now = self.now + duration;
        self.graph.handle_timeout(self.now);
    }

    fn poll(&mut self) -> Option<Arc<Config>> {
        self.graph.poll_config(self.now)
    }
}

fn cluster(name: &str, endpoints: &str) -> Cluster {
    Cluster { name: name.into(), discovery: Discovery::Eds(endpoints.into()), ..Cluster::default() }
}

trait NamedClusters {
    fn named(&self, port: u16) -> Vec<String>;
}

impl NamedClusters for Config {
    fn named(&self, port: u16) -> Vec<String> {
        clusters_of(None, &self.outbound[&port]).iter().map(ToString::to_string).collect()
    }
}
