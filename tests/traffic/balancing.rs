//! Which endpoint a request goes to.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use mesh_tower::config::{
    Action, ClientWeighted, Cluster, Discovery, DropOverload, Endpoint, Endpoints, Forward, Fraction, HashCookie,
    HashPolicy, HashSource, Health, HttpRetry, LeastRequest, LoadBalancer, Locality, LocalityEndpoints, Maglev,
    PickFirst, RetryConditions, RetryPolicy, RingHash, RouteMatch, ZoneAware,
};
use tokio::{net::TcpListener, sync::Semaphore};

use crate::harness::{Kind, Program, Reply, Upstream, cluster, cluster_at, config, route, to};

const NAMES: [&str; 4] = ["a", "b", "c", "d"];

async fn four() -> Vec<Upstream> {
    let mut upstreams = Vec::new();
    for name in NAMES {
        upstreams.push(Upstream::start(name).await);
    }
    upstreams
}

fn all(upstreams: &[Upstream]) -> Vec<&Upstream> {
    upstreams.iter().collect()
}

/// All requests to this cluster, hashed like that.
async fn program(kind: Kind, cluster: Cluster, sources: &[HashSource]) -> Program {
    let hash = sources.iter().map(|source| HashPolicy { source: source.clone(), terminal: false }).collect();
    let forward = Forward { hash, ..to(&cluster.name) };
    Program::new(kind, config([cluster], vec![route(RouteMatch::default(), Action::Forward(forward))])).await
}

fn balanced(kind: Kind, upstreams: &[Upstream], load_balancer: LoadBalancer) -> Cluster {
    Cluster { load_balancer, ..cluster(kind, "app", &all(upstreams)) }
}

fn by_header() -> HashSource {
    HashSource::Header { name: "end-user".into(), rewrite: None }
}

/// An address that nobody listens at.
async fn nobody() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}

fn locality(priority: u32, zone: &str, weight: Option<u32>, addresses: &[SocketAddr]) -> LocalityEndpoints {
    LocalityEndpoints {
        locality: Locality { zone: zone.into(), ..Locality::default() },
        priority,
        weight,
        endpoints: addresses.iter().map(|address| Endpoint::from(*address)).collect(),
    }
}

fn placed(kind: Kind, localities: Vec<LocalityEndpoints>) -> Cluster {
    let endpoints = Arc::new(Endpoints { localities, ..Endpoints::default() });
    Cluster { endpoints, ..cluster(kind, "app", &[]) }
}

/// LB8, LB12, LB14, LB15, SA1: requests of one user go to one endpoint, on a ring or in a table, and users are spread.
#[tokio::test]
async fn users_stay_with_their_endpoint() {
    for kind in Kind::ALL {
        for balancer in [LoadBalancer::RingHash(RingHash::default()), LoadBalancer::Maglev(Maglev::default())] {
            let upstreams = four().await;
            let program = program(kind, balanced(kind, &upstreams, balancer.clone()), &[by_header()]).await;
            let mut used = BTreeSet::new();
            for user in 0..12 {
                let user = format!("user-{user}");
                let mut of_user = BTreeSet::new();
                for _ in 0..3 {
                    of_user.insert(program.get_with("/", &[("end-user", &user)]).await.body);
                }
                assert_eq!(of_user.len(), 1, "{kind:?} {balancer:?} {user}");
                used.extend(of_user);
            }
            assert!(used.len() > 1, "{kind:?} {balancer:?}: all users at {used:?}");
            // Without a hash anywhere will do.
            let mut anywhere = BTreeSet::new();
            for _ in 0..40 {
                anywhere.insert(program.get("/").await.body);
            }
            assert!(anywhere.len() > 1, "{kind:?} {balancer:?}");
        }
    }
}

/// LB10: a ring passes over what cannot be reached, and who would have been there stays where he came instead.
#[tokio::test]
async fn a_ring_passes_over_the_unreachable() {
    for kind in Kind::ALL {
        let upstreams = four().await;
        let mut addresses: Vec<_> = upstreams.iter().map(|upstream| upstream.address).collect();
        addresses.extend([nobody().await, nobody().await]);
        let load_balancer = LoadBalancer::RingHash(RingHash::default());
        let ring = Cluster { load_balancer, ..cluster_at(kind, "app", &addresses) };
        let on = RetryConditions { http: vec![HttpRetry::ConnectFailure], ..RetryConditions::default() };
        let retry = Some(RetryPolicy { on, retries: 2, ..RetryPolicy::default() });
        let hash = vec![HashPolicy { source: by_header(), terminal: false }];
        let forward = Forward { hash, retry, ..to("app") };
        let program =
            Program::new(kind, config([ring], vec![route(RouteMatch::default(), Action::Forward(forward))])).await;
        for user in 0..24 {
            let user = format!("user-{user}");
            let first = program.get_with("/", &[("end-user", &user)]).await;
            assert!(first.is_ok(), "{kind:?} {user}: {first:?}");
            assert_eq!(program.get_with("/", &[("end-user", &user)]).await.body, first.body, "{kind:?} {user}");
        }
    }
}

/// LB16, SA1: a request without its cookie gets one, and whoever sends it back stays.
#[tokio::test]
async fn a_cookie_keeps_requests_together() {
    for kind in Kind::ALL {
        let upstreams = four().await;
        let cookie = HashCookie {
            name: "session".into(),
            ttl: Some(Duration::from_secs(60)),
            path: "/".into(),
            attributes: Vec::new(),
        };
        let in_turn = balanced(kind, &upstreams, LoadBalancer::RoundRobin);
        let unhashed = program(kind, in_turn, &[HashSource::Cookie(cookie.clone())]).await;
        assert!(!unhashed.get("/").await.headers.contains_key("set-cookie"), "{kind:?}: nobody goes by it");
        let balancer = LoadBalancer::RingHash(RingHash::default());
        let program = program(kind, balanced(kind, &upstreams, balancer), &[HashSource::Cookie(cookie)]).await;
        for _ in 0..4 {
            let first = program.get("/").await;
            let set = first.headers["set-cookie"].to_str().unwrap().to_owned();
            let (pair, attributes) = set.split_once(';').unwrap();
            assert_eq!(attributes, " Max-Age=60; Path=/; HttpOnly", "{kind:?}");
            for _ in 0..4 {
                let next = program.get_with("/", &[("cookie", pair)]).await;
                assert_eq!(next.body, first.body, "{kind:?} {pair}");
                assert!(!next.headers.contains_key("set-cookie"), "{kind:?}");
            }
        }
    }
}

/// LB17: by query parameter, and by source address, which is one for a program that serves nobody.
#[tokio::test]
async fn other_sources_of_a_hash() {
    for kind in Kind::ALL {
        let upstreams = four().await;
        let balancer = || LoadBalancer::Maglev(Maglev::default());
        let query = [HashSource::Query("user".into())];
        let by_query = program(kind, balanced(kind, &upstreams, balancer()), &query).await;
        let mut seen: BTreeMap<usize, BTreeSet<String>> = BTreeMap::new();
        for n in 0..24 {
            let user = n % 8;
            let answer = by_query.get(&format!("/?x={n}&user={user}")).await;
            seen.entry(user).or_default().insert(answer.body);
        }
        assert!(seen.values().all(|at| at.len() == 1), "{kind:?}: {seen:?}");
        for source in [HashSource::SourceIp, HashSource::Channel] {
            let program = program(kind, balanced(kind, &upstreams, balancer()), &[source]).await;
            let mut used = BTreeSet::new();
            for _ in 0..8 {
                used.insert(program.get("/").await.body);
            }
            assert_eq!(used.len(), 1, "{kind:?}");
        }
    }
}

/// LB2, LB21: in turn, as often as weights say.
#[tokio::test]
async fn turns_follow_weights() {
    for kind in Kind::ALL {
        let upstreams = four().await;
        let mut app = balanced(kind, &upstreams, LoadBalancer::RoundRobin);
        let mut endpoints = Endpoints::clone(&app.endpoints);
        for (endpoint, weight) in endpoints.localities[0].endpoints.iter_mut().zip([1, 1, 2, 4]) {
            endpoint.weight = weight;
        }
        app.endpoints = Arc::new(endpoints);
        let program = program(kind, app, &[]).await;
        for _ in 0..80 {
            assert!(program.get("/").await.is_ok(), "{kind:?}");
        }
        let counts: Vec<_> = upstreams.iter().map(Upstream::count).collect();
        for (count, expected) in counts.iter().zip([10, 10, 20, 40]) {
            assert!(count.abs_diff(expected) <= 1, "{kind:?}: {counts:?}");
        }
    }
}

/// LB3: an endpoint with requests under way gets no more while others are free.
#[tokio::test]
async fn the_busy_are_left_alone() {
    for kind in Kind::ALL {
        let gate = Arc::new(Semaphore::new(0));
        let held = Arc::clone(&gate);
        let slow = Upstream::scripted("slow", move |_, _| Reply::ok().when(&held)).await;
        let (one, two, three) = (Upstream::start("1").await, Upstream::start("2").await, Upstream::start("3").await);
        let least = LoadBalancer::LeastRequest(LeastRequest { choices: 10, ..LeastRequest::default() });
        let app = Cluster { load_balancer: least, ..cluster(kind, "app", &[&slow, &one, &two, &three]) };
        let program = program(kind, app, &[]).await;
        let mut held = Vec::new();
        while slow.count() == 0 {
            let program = program.clone();
            held.push(tokio::spawn(async move { program.get("/").await }));
            tokio::time::timeout(Duration::from_millis(20), std::future::pending::<()>()).await.unwrap_err();
        }
        let before = slow.count();
        for _ in 0..20 {
            // Ten draws of four, all of the busy one: once in a million.
            assert!(program.get("/").await.is_ok(), "{kind:?}");
        }
        assert_eq!(slow.count(), before, "{kind:?}");
        gate.add_permits(100);
        for request in held {
            request.await.unwrap();
        }
    }
}

/// LB5: one endpoint gets everything, and the next in line when it cannot be reached.
#[tokio::test]
async fn the_first_that_can_be_reached() {
    for kind in Kind::ALL {
        let (one, two) = (Upstream::start("one").await, Upstream::start("two").await);
        let localities = vec![locality(0, "", None, &[nobody().await, one.address, two.address])];
        let first = LoadBalancer::PickFirst(PickFirst::default());
        let program = program(kind, Cluster { load_balancer: first, ..placed(kind, localities) }, &[]).await;
        for _ in 0..6 {
            program.get("/").await;
        }
        assert_eq!(two.count(), 0, "{kind:?}");
        assert!(one.count() >= 5, "{kind:?}: {}", one.count());
    }
}

/// LB7: what endpoints report decides how much they get.
#[tokio::test]
async fn reported_load_becomes_weight() {
    for kind in Kind::ALL {
        let reporting = |load: &'static str| move |_: usize, _: &_| Reply::ok().header("endpoint-load-metrics", load);
        let busy = Upstream::scripted("busy", reporting("TEXT cpu_utilization=0.9,rps_fractional=100")).await;
        let idle = Upstream::scripted("idle", reporting("JSON {\"cpu_utilization\":0.1,\"rps_fractional\":100}")).await;
        let config = ClientWeighted {
            blackout: Duration::ZERO,
            update: Duration::from_millis(100),
            ..ClientWeighted::default()
        };
        let load_balancer = LoadBalancer::ClientWeighted(config);
        let program = program(kind, Cluster { load_balancer, ..cluster(kind, "app", &[&busy, &idle]) }, &[]).await;
        let patience = Instant::now() + Duration::from_secs(20);
        loop {
            let before = idle.count();
            for _ in 0..50 {
                assert!(program.get("/").await.is_ok(), "{kind:?}");
            }
            // 9 of 10, give or take a turn.
            if (43..=47).contains(&(idle.count() - before)) {
                break;
            }
            assert!(Instant::now() < patience, "{kind:?}: {} of 50", idle.count() - before);
        }
    }
}

/// LB18: a program uses only some of the endpoints.
#[tokio::test]
async fn only_a_subset_is_used() {
    for kind in Kind::ALL {
        let upstreams = four().await;
        let app = Cluster { subset_size: Some(2), ..balanced(kind, &upstreams, LoadBalancer::RoundRobin) };
        let program = program(kind, app, &[]).await;
        for _ in 0..12 {
            assert!(program.get("/").await.is_ok(), "{kind:?}");
        }
        assert_eq!(upstreams.iter().filter(|upstream| upstream.count() > 0).count(), 2, "{kind:?}");
    }
}

/// LB26: requests of a category are dropped before anything is sent.
#[tokio::test]
async fn overload_is_dropped() {
    for kind in Kind::ALL {
        let upstream = Upstream::start("app").await;
        let mut app = cluster(kind, "app", &[&upstream]);
        let mut endpoints = Endpoints::clone(&app.endpoints);
        endpoints.drops = vec![DropOverload { category: "lb".into(), fraction: Fraction::ALL }];
        app.endpoints = Arc::new(endpoints);
        let program = program(kind, app, &[]).await;
        let answer = program.get("/").await;
        assert!(answer.is(kind, 503), "{kind:?}: {answer:?}");
        assert_eq!((answer.flags.as_str(), upstream.count()), ("DO", 0), "{kind:?}");
    }
}

/// LO1: a priority that cannot be reached gives way to the next.
#[tokio::test]
async fn the_next_priority_takes_over() {
    for kind in Kind::ALL {
        let second = Upstream::start("second").await;
        let localities = vec![locality(0, "a", None, &[nobody().await]), locality(1, "b", None, &[second.address])];
        let program = program(kind, placed(kind, localities), &[]).await;
        let mut answered = 0;
        for _ in 0..5 {
            answered += usize::from(program.get("/").await.is_ok());
        }
        // The first request learns of it, unless it may be tried again.
        assert!(answered >= 4, "{kind:?}: {answered}");
        let first = Upstream::start("first").await;
        let spare = Upstream::start("spare").await;
        let both = vec![locality(0, "a", None, &[first.address]), locality(1, "b", None, &[spare.address])];
        let program = self::program(kind, placed(kind, both), &[]).await;
        for _ in 0..5 {
            assert_eq!(program.get("/").await.body, "first", "{kind:?}");
        }
    }
}

/// LO4, LB22: localities get their share by weight.
#[tokio::test]
async fn localities_share_by_weight() {
    for kind in Kind::ALL {
        let (near, far) = (Upstream::start("near").await, Upstream::start("far").await);
        let localities = vec![locality(0, "a", Some(9), &[near.address]), locality(0, "b", Some(1), &[far.address])];
        let program = program(kind, Cluster { locality_weighted: true, ..placed(kind, localities) }, &[]).await;
        for _ in 0..200 {
            assert!(program.get("/").await.is_ok(), "{kind:?}");
        }
        // Binomial(200, 0.1): mean 20, five standard deviations are 21.
        assert!((1..=41).contains(&far.count()), "{kind:?}: {}", far.count());
    }
}

/// LO8, NR6: the first of several clusters that has an endpoint.
#[tokio::test]
async fn an_aggregate_is_its_first_available() {
    for kind in Kind::ALL {
        let backup = Upstream::start("backup").await;
        let clusters = [
            cluster(kind, "main", &[]),
            cluster(kind, "backup", &[&backup]),
            Cluster {
                discovery: Discovery::Aggregate(vec!["main".into(), "backup".into()]),
                ..cluster(kind, "app", &[])
            },
        ];
        let rules = vec![route(RouteMatch::default(), Action::Forward(to("app")))];
        let program = Program::new(kind, config(clusters, rules)).await;
        let answer = program.get("/").await;
        assert!(answer.is_ok(), "{kind:?}: {answer:?}");
        assert_eq!(answer.body, "backup", "{kind:?}");
    }
}

/// LO5: requests stay in the program's own zone as far as that has its part of the endpoints.
#[tokio::test]
async fn the_own_zone_comes_first() {
    for kind in Kind::ALL {
        let (near, far) = (Upstream::start("near").await, Upstream::start("far").await);
        let localities = vec![locality(0, "a", None, &[near.address]), locality(0, "b", None, &[far.address])];
        let zone_aware = Some(ZoneAware { min_cluster_size: 2, ..ZoneAware::default() });
        let app = Cluster { zone_aware, ..placed(kind, localities) };
        let callers = vec![locality(0, "a", None, &[nobody().await]), locality(0, "b", None, &[nobody().await])];
        let own = Cluster { name: "own".into(), ..placed(kind, callers) };
        let rules = vec![route(RouteMatch::default(), Action::Forward(to("app")))];
        let mut config = config([app, own], rules);
        config.local.locality.zone = "a".into();
        config.local.cluster = "own".into();
        let program = Program::new(kind, config).await;
        for _ in 0..10 {
            assert_eq!(program.get("/").await.body, "near", "{kind:?}");
        }
    }
}

/// LO2: what a priority cannot take spills to the next, in proportion.
#[tokio::test]
async fn the_rest_spills_over() {
    for kind in Kind::ALL {
        let (first, second) = (Upstream::start("first").await, Upstream::start("second").await);
        let mut localities =
            vec![locality(0, "a", None, &[first.address, nobody().await]), locality(1, "b", None, &[second.address])];
        localities[0].endpoints[1].health = Health::Unhealthy;
        let program = program(kind, placed(kind, localities), &[]).await;
        for _ in 0..200 {
            assert!(program.get("/").await.is_ok(), "{kind:?}");
        }
        // 1.4 x 50 % stay; binomial(200, 0.3): mean 60, five standard deviations are 33.
        assert!((27..=93).contains(&second.count()), "{kind:?}: {}", second.count());
    }
}

/// LO3: below the threshold, endpoints that are said to be unhealthy are used all the same.
#[tokio::test]
async fn panic_uses_everybody() {
    for kind in Kind::ALL {
        let (one, two) = (Upstream::start("one").await, Upstream::start("two").await);
        let mut localities = vec![locality(0, "", None, &[one.address, two.address])];
        localities[0].endpoints.iter_mut().for_each(|endpoint| endpoint.health = Health::Unhealthy);
        let program = program(kind, placed(kind, localities.clone()), &[]).await;
        for _ in 0..10 {
            assert!(program.get("/").await.is_ok(), "{kind:?}");
        }
        let calm = Cluster { panic_threshold: 0, ..placed(kind, localities) };
        let answer = self::program(kind, calm, &[]).await.get("/").await;
        assert!(answer.is(kind, 503) && answer.flags == "UH", "{kind:?}: {answer:?}");
    }
}

/// LB4: at random, and by latency where all are as fast: everybody gets some.
#[tokio::test]
async fn everybody_gets_some() {
    for kind in Kind::ALL {
        for balancer in [LoadBalancer::Random, LoadBalancer::PeakEwma] {
            let upstreams = four().await;
            let program = program(kind, balanced(kind, &upstreams, balancer.clone()), &[]).await;
            for _ in 0..80 {
                assert!(program.get("/").await.is_ok(), "{kind:?}");
            }
            // None of 80 at random happens once in ten thousand million.
            assert!(upstreams.iter().all(|upstream| upstream.count() > 0), "{kind:?} {balancer:?}");
        }
    }
}

/// LB9, NR10: who an endpoint is to a ring is the key in its metadata, wherever it listens.
#[tokio::test]
async fn an_endpoint_keeps_its_users_when_it_moves() {
    for kind in Kind::ALL {
        let upstreams = four().await;
        let keyed = |order: [usize; 4]| {
            let mut app = balanced(kind, &upstreams, LoadBalancer::RingHash(RingHash::default()));
            let mut endpoints = Endpoints::clone(&app.endpoints);
            for (endpoint, key) in endpoints.localities[0].endpoints.iter_mut().zip(order) {
                endpoint.hash_key = Some(format!("pod-{key}").into());
            }
            app.endpoints = Arc::new(endpoints);
            app
        };
        let before = program(kind, keyed([0, 1, 2, 3]), &[by_header()]).await;
        // All four have moved, each to where the next one was.
        let after = program(kind, keyed([3, 0, 1, 2]), &[by_header()]).await;
        for user in 0..20 {
            let user = format!("user-{user}");
            let at = before.get_with("/", &[("end-user", &user)]).await.body;
            let then = after.get_with("/", &[("end-user", &user)]).await.body;
            let place = NAMES.iter().position(|name| **name == at).unwrap();
            assert_eq!(then, NAMES[(place + 1) % 4], "{kind:?} {user}");
        }
    }
}

/// LB25: a policy of the program's own decides, of what may be picked.
#[tokio::test]
async fn a_policy_of_the_programs_own_decides() {
    use mesh_core::{balance, endpoint::Endpoint as Live, pick::Ask, time::Time};

    /// The last one.
    #[derive(Debug)]
    struct Last;

    impl balance::Policy for Last {
        fn pick(
            &self,
            endpoints: &[Arc<Live>],
            may: &dyn Fn(&Live) -> bool,
            _: &Ask<'_>,
            _: Time,
            _: &mut dyn rand::RngCore,
        ) -> Option<usize> {
            endpoints.iter().rposition(|endpoint| may(endpoint))
        }
    }

    balance::register("test.traffic.Last", |_| Ok(Arc::new(Last)));
    for kind in Kind::ALL {
        let upstreams = four().await;
        let custom = mesh_tower::config::Custom { name: "test.traffic.Last".into(), config: Vec::new() };
        let program = program(kind, balanced(kind, &upstreams, LoadBalancer::Custom(custom)), &[]).await;
        for _ in 0..5 {
            assert_eq!(program.get("/").await.body, "d", "{kind:?}");
        }
    }
}
