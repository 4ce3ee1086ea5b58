//! Clusters made of DNS names, with a resolver that says what the test wants.

use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use mesh_tower::{
    Mesh,
    config::{Action, Cluster, Discovery, Dns, RouteMatch},
    dns::{Resolve, Resolving},
};
use tokio::time::sleep;

use crate::harness::{Kind, Program, Upstream, cluster, config, route, to};

const PATIENCE: Duration = Duration::from_secs(20);

/// What the resolver answers; a name that is not here fails.
#[derive(Clone, Default)]
struct Names(Arc<Mutex<BTreeMap<String, Vec<SocketAddr>>>>);

impl Names {
    fn set(&self, name: &str, upstreams: &[&Upstream]) {
        let addresses = upstreams.iter().map(|upstream| upstream.address).collect();
        self.0.lock().unwrap().insert(name.to_owned(), addresses);
    }

    fn forget(&self, name: &str) {
        self.0.lock().unwrap().remove(name);
    }
}

impl Resolve for Names {
    fn resolve<'a>(&'a self, host: &'a str, _: u16) -> Resolving<'a> {
        let answer = self.0.lock().unwrap().get(host).cloned();
        Box::pin(async move { answer.ok_or_else(|| io::Error::other("scripted to fail")) })
    }
}

async fn program(kind: Kind, names: &Names, discovery: Discovery) -> Program {
    let dns = Dns { refresh: Duration::from_millis(50), ..Dns::default() };
    let cluster = Cluster { discovery, dns, endpoints: Arc::default(), ..cluster(kind, "app", &[]) };
    let config = config([cluster], vec![route(RouteMatch::default(), Action::Forward(to("app")))]);
    Program::over(kind, Mesh::builder().config(config).resolver(names.clone()).build().await.unwrap())
}

/// Every one of these answers, and within a while nobody else does.
async fn only(program: &Program, wanted: &[&str]) {
    let began = Instant::now();
    loop {
        let mut seen = BTreeMap::<_, usize>::new();
        for _ in 0..20 {
            let answer = program.get("/").await;
            assert!(answer.is_ok(), "{answer:?}");
            *seen.entry(answer.header("x-upstream")).or_default() += 1;
        }
        if seen.keys().map(String::as_str).eq(wanted.iter().copied()) {
            return;
        }
        assert!(began.elapsed() < PATIENCE, "{seen:?}");
        sleep(Duration::from_millis(20)).await;
    }
}

/// NR5: every address of every name of a `STRICT_DNS` cluster is an endpoint; answers that change are followed, and a resolver
/// that fails takes nothing away.
#[tokio::test]
async fn every_address_of_a_name_is_an_endpoint() {
    for kind in Kind::ALL {
        let (one, two) = (Upstream::start("one").await, Upstream::start("two").await);
        let three = Upstream::start("three").await;
        let names = Names::default();
        names.set("a.test", &[&one, &two]);
        names.set("b.test", &[&two, &three]);
        let discovery = Discovery::StrictDns(vec![("a.test".to_owned(), 80), ("b.test".to_owned(), 80)]);
        let program = program(kind, &names, discovery).await;
        // The very first request waits for no round of the resolver.
        assert!(program.get("/").await.is_ok());
        only(&program, &["one", "three", "two"]).await;
        names.set("a.test", &[&one]);
        names.set("b.test", &[&one]);
        only(&program, &["one"]).await;
        names.forget("a.test");
        names.set("b.test", &[&three]);
        only(&program, &["one", "three"]).await;
    }
}

/// NR5: a `LOGICAL_DNS` cluster is one endpoint whatever its name resolves to, and comes to life once the name does.
#[tokio::test]
async fn a_name_may_be_one_endpoint() {
    for kind in Kind::ALL {
        let one = Upstream::start("one").await;
        let names = Names::default();
        let program = program(kind, &names, Discovery::LogicalDns(("a.test".to_owned(), 80))).await;
        let answer = program.get("/").await;
        assert!(answer.is(kind, 503) && answer.flags.contains("UF"), "{answer:?}");
        names.set("a.test", &[&one]);
        let began = Instant::now();
        while !program.get("/").await.is_ok() {
            assert!(began.elapsed() < PATIENCE);
            sleep(Duration::from_millis(20)).await;
        }
        let snapshot = program.mesh.snapshot().unwrap();
        assert_eq!(snapshot.cluster("app").unwrap().endpoints().len(), 1);
        // Connections that are open stay, whatever the name says.
        names.forget("a.test");
        only(&program, &["one"]).await;
    }
}
