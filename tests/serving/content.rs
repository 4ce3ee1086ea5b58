//! The control plane speaks its protocol and says nonsense: garbage, half of something, circles, far too much.

use std::time::Duration;

use mesh_tower::config::{Action, Cluster, Discovery, Forward, HashPolicy, HashSource, RouteMatch};
use mesh_xds::ads::{MOST_RESOURCES, TypeUrl};
use serde_json::Value;
use tokio::time::sleep;

use crate::{
    harness::{self, Kind, Upstream, route},
    plane::{Load, Sayings, anywhere, leading_to, page, program, reaches, set, stands},
};

/// XD3, XD9, OP16, C20: resources that are noise are refused by name in one line each, in the status and to the control plane; the
/// good ones beside them are used, and what was in force stays.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_is_refused_by_name() {
    for kind in Kind::ALL {
        let (one, two) = (Upstream::start("one").await, Upstream::start("two").await);
        let sayings = Sayings::of(&leading_to(kind, &one));
        let plane = sayings.speak(anywhere());
        let program = program(kind, plane.address, None).await;
        reaches(&program, "one").await;
        let load = Load::on(&program);
        let mut garbage = set(&leading_to(kind, &one));
        for kind in [TypeUrl::Cluster, TypeUrl::Endpoint, TypeUrl::Listener, TypeUrl::Route] {
            let names: Vec<_> = garbage.iter(kind).map(|(name, _)| name.clone()).collect();
            for name in names {
                // The name can be read; what follows is no message.
                let body = [&[0x0a, name.len() as u8][..], name.as_bytes(), &[0x12, 3, 0xff, 0xff, 0xff]].concat();
                garbage.insert(kind, name, body);
            }
        }
        sayings.say(garbage);
        for refused in ["CDS", "EDS", "LDS", "RDS"] {
            let status = stands(&program, |status| status["types"][refused]["nack"].is_object()).await;
            let why = status["types"][refused]["nack"]["message"].as_str().unwrap();
            assert!(why.lines().count() == 1 && why.starts_with(&format!("{refused} \"")), "{why}");
        }
        assert!(sayings.refusals().iter().any(|why| why.starts_with("CDS")), "{:?}", sayings.refusals());
        let fields: Value = serde_json::from_str(body_of(&page(&program, "/fields").await)).unwrap();
        let states: Vec<_> = fields.as_array().unwrap().iter().map(|one| one["state"].as_str().unwrap()).collect();
        assert!(!states.is_empty() && states.iter().all(|state| *state == "NACKED"), "{fields}");
        sleep(Duration::from_millis(200)).await;
        sayings.say(set(&leading_to(kind, &two)));
        reaches(&program, "two").await;
        stands(&program, |status| status["types"]["CDS"]["nack"].is_null()).await;
        load.went_well().await;
    }
}

/// XD13, XD14, NR5: of a configuration half of which is missing nothing is seen until the other half comes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_a_configuration_waits_for_the_other() {
    for kind in Kind::ALL {
        let (one, two) = (Upstream::start("one").await, Upstream::start("two").await);
        let sayings = Sayings::of(&leading_to(kind, &one));
        let plane = sayings.speak(anywhere());
        let program = program(kind, plane.address, None).await;
        reaches(&program, "one").await;
        let load = Load::on(&program);
        // Routes to a cluster whose endpoints nobody tells.
        let mut half = leading_to(kind, &two);
        let before = leading_to(kind, &one);
        half.clusters.extend(before.clusters.iter().map(|(name, cluster)| (name.clone(), cluster.clone())));
        let whole = set(&half);
        let mut half = mesh_xds::ads::ResourceSet::default();
        for kind in [TypeUrl::Cluster, TypeUrl::Endpoint, TypeUrl::Listener, TypeUrl::Route] {
            for (name, resource) in whole.iter(kind).filter(|(name, _)| kind != TypeUrl::Endpoint || &***name == "one")
            {
                half.insert(kind, name.clone(), resource.body.clone());
            }
        }
        sayings.say(half);
        stands(&program, |status| status["types"]["CDS"]["resources"] == 2).await;
        sleep(Duration::from_millis(500)).await;
        assert_eq!(program.get("/").await.header("x-upstream"), "one");
        sayings.say(whole);
        reaches(&program, "two").await;
        load.went_well().await;
    }
}

/// NR6, OP16: clusters that stand for each other in a circle, or for themselves, end nothing but the requests to them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_circle_ends_only_what_goes_there() {
    for kind in Kind::ALL {
        let one = Upstream::start("one").await;
        let sayings = Sayings::of(&leading_to(kind, &one));
        let plane = sayings.speak(anywhere());
        let program = program(kind, plane.address, None).await;
        reaches(&program, "one").await;
        let load = Load::on(&program);
        let circle = |name: String, members: Vec<String>| {
            let members = members.iter().map(|name| name.as_str().into()).collect();
            Cluster { discovery: Discovery::Aggregate(members), ..harness::cluster(kind, &name, &[]) }
        };
        // Each of thirty stands for all thirty.
        let all: Vec<_> = (0..30).map(|n| format!("ring{n}")).collect();
        let eds = Cluster { discovery: Discovery::Eds("one".into()), ..harness::cluster(kind, "one", &[&one]) };
        let clusters = all.iter().map(|name| circle(name.clone(), all.clone())).chain([eds]);
        let to_circle = route(
            RouteMatch {
                path: mesh_tower::config::PathMatch::Prefix { value: "/ring".to_owned(), ignore_case: false },
                ..RouteMatch::default()
            },
            Action::Forward(harness::to("ring0")),
        );
        let to_one = route(RouteMatch::default(), Action::Forward(harness::to("one")));
        sayings.say(set(&harness::config(clusters, vec![to_circle, to_one])));
        stands(&program, |status| status["types"]["CDS"]["resources"] == 31).await;
        let began = std::time::Instant::now();
        while program.get("/ring").await.is_ok() {
            assert!(began.elapsed() < Duration::from_secs(5));
            sleep(Duration::from_millis(10)).await;
        }
        let answer = program.get("/ring").await;
        assert!(answer.is(kind, 503), "{answer:?}");
        load.went_well().await;
    }
}

/// OP15: more names than any process needs are refused as a whole, in one line, without the memory they would take.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_much_is_refused_as_a_whole() {
    let kind = Kind::Http1;
    let one = Upstream::start("one").await;
    let sayings = Sayings::of(&leading_to(kind, &one));
    let plane = sayings.speak(anywhere());
    let program = program(kind, plane.address, None).await;
    reaches(&program, "one").await;
    let load = Load::on(&program);
    let mut flood = set(&leading_to(kind, &one));
    for n in 0..=MOST_RESOURCES {
        let name = format!("{n:07}");
        let body = [&[0x0a, name.len() as u8][..], name.as_bytes()].concat();
        flood.insert(TypeUrl::Cluster, name, body);
    }
    sayings.say(flood);
    let status = stands(&program, |status| status["types"]["CDS"]["nack"].is_object()).await;
    let why = status["types"]["CDS"]["nack"]["message"].as_str().unwrap();
    assert!(why.contains("200002 resources") && why.lines().count() == 1, "{why}");
    assert_eq!(status["types"]["CDS"]["resources"], 1);
    assert_eq!(program.mesh.snapshot().unwrap().clusters().len(), 1);
    load.went_well().await;
}

/// The JSON of an answer, without its chunks.
fn body_of(page: &str) -> &str {
    let (start, end) = (page.find(['[', '{']).unwrap(), page.rfind([']', '}']).unwrap());
    &page[start..=end]
}

/// LB1: of a list of policies the first that is known decides, whatever the older field says; a cluster with none of them is
/// refused, and what was in force stays.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_known_policy_decides() {
    const NAMES: [&str; 3] = ["one", "two", "three"];
    // A field of bytes: its number, how many, what.
    let field = |tag: &[u8], body: &[u8]| {
        let length = [(body.len() % 128) as u8, (body.len() / 128) as u8];
        let length = if length[1] == 0 { vec![length[0]] } else { vec![length[0] | 0x80, length[1]] };
        [tag, &length, body].concat()
    };
    let policy = |name: &str| {
        let any = field(&[0x0a], format!("type.googleapis.com/{name}").as_bytes());
        field(&[0x0a], &field(&[0x22], &[field(&[0x0a], b"p"), field(&[0x12], &any)].concat()))
    };
    let listing =
        |policies: &[&str]| field(&[0xca, 0x02], &policies.iter().flat_map(|name| policy(name)).collect::<Vec<_>>());
    let ring = "envoy.extensions.load_balancing_policies.ring_hash.v3.RingHash";
    for kind in Kind::ALL {
        let mut upstreams = Vec::new();
        for name in NAMES {
            upstreams.push(Upstream::start(name).await);
        }
        let cluster = harness::cluster(kind, "app", &upstreams.iter().collect::<Vec<_>>());
        let source = HashSource::Header { name: "end-user".into(), rewrite: None };
        let hash = vec![HashPolicy { source, terminal: false }];
        let forward = Forward { hash, ..harness::to("app") };
        let leading = harness::config([cluster], vec![route(RouteMatch::default(), Action::Forward(forward))]);
        let saying = |more: &[u8]| {
            let mut said = set(&leading);
            let clusters: Vec<_> = said
                .iter(TypeUrl::Cluster)
                .map(|(name, resource)| (name.clone(), [&resource.body[..], more].concat()))
                .collect();
            for (name, body) in clusters {
                said.insert(TypeUrl::Cluster, name, body);
            }
            said
        };
        let sayings = Sayings::of(&leading);
        // The older field says at random.
        sayings.say(saying(&[&[0x30, 3][..], &listing(&["unheard.Of", ring, "unheard.Of.Too"])].concat()));
        let plane = sayings.speak(anywhere());
        let program = program(kind, plane.address, None).await;
        let places = async || {
            let mut places = Vec::new();
            for user in 0..12 {
                let mut at = Vec::new();
                for _ in 0..6 {
                    let answer = program.get_with("/a.B/C", &[("end-user", &format!("user-{user}"))]).await;
                    at.push(answer.header("x-upstream"));
                }
                at.dedup();
                places.push(at);
            }
            places
        };
        let before = places().await;
        assert!(before.iter().all(|at| at.len() == 1 && NAMES.contains(&at[0].as_str())), "{kind:?}: {before:?}");
        assert!(before.iter().any(|at| *at != before[0]), "{kind:?}: {before:?}");
        sayings.say(saying(&listing(&["unheard.Of"])));
        let status = stands(&program, |status| status["types"]["CDS"]["nack"].is_object()).await;
        let why = status["types"]["CDS"]["nack"]["message"].as_str().unwrap();
        assert!(why.contains("load_balancing_policy"), "{why}");
        assert_eq!(places().await, before, "{kind:?}");
    }
}
