//! Services that call each other and a control plane that tells them where, all over the simulated network.
//!
//! The control plane's wire is not xDS here, but frames of the configuration itself: what is shown is how members live with a
//! control plane that is slow, unreachable or dead. The protocol has its own tests, in mesh-xds.

use std::{convert::Infallible, sync::Arc, time::Duration};

use bytes::Bytes;
use http::Response;
use http_body_util::Full;
use mesh_tower::{
    Live, Mesh,
    config::{Config, EndpointAddress, Forward},
    connect::{Connector, Listener, Target},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::watch,
    task::JoinSet,
    time::{Instant, sleep},
};

use crate::{
    net::Net,
    trace::{Event, hash},
    upstream::Script,
    world::{Kind, World, cluster_of, retries, routed, simulate},
};

const PLANE: u16 = 200;
/// Two services, `front` and `middle`, two members each; `middle` calls the hosts of `upstream`.
const FRONT: [u16; 2] = [101, 102];
const MIDDLE: [u16; 2] = [111, 112];

/// E5, RA1: while hosts are replaced one by one and the control plane is unreachable for a while, no request fails; what was
/// missed meanwhile is in force soon after it is back; and it is all one history of one seed.
#[test]
fn services_live_with_a_control_plane_that_comes_and_goes() {
    let (one, same, other) = (life(1), life(1), life(2));
    assert_eq!(one.iter().zip(&same).find(|(one, same)| one != same), None);
    assert_eq!((hash(&one), one.len()), (hash(&same), same.len()));
    assert_ne!(hash(&one), hash(&other));
}

fn life(seed: u64) -> Vec<Event> {
    simulate(seed, async |world| {
        let mut hosts = world.upstreams(6, Script { jitter: Duration::from_millis(5), ..Script::default() });
        let plane = Plane { hosts: watch::Sender::new(vec![1, 2, 3]) };
        let mut tasks = JoinSet::new();
        tasks.spawn(serve_plane(world.net.clone(), plane.hosts.subscribe()));
        for n in FRONT.into_iter().chain(MIDDLE) {
            let mesh = world.member(Config::default(), u64::from(n)).await;
            tasks.spawn(follow(world.net.clone(), Arc::clone(mesh.live())));
            let next = if FRONT.contains(&n) { "middle" } else { "upstream" };
            tasks.spawn(relay(mesh, world.net.listen(World::address(n)), next));
        }
        let edge = world.member(Config::default(), 0).await;
        tasks.spawn(follow(world.net.clone(), Arc::clone(edge.live())));
        sleep(Duration::from_secs(1)).await;

        let client = edge.http();
        let load = world.load_of("front", &client, Kind::Http1, 50, Duration::from_secs(30), 0);
        let plane_address = World::address(PLANE);
        let story = async {
            for (old, new) in [(0, 4), (1, 5)] {
                sleep(Duration::from_secs(2)).await;
                plane.hosts.send_modify(|hosts| hosts[old] = new);
                sleep(Duration::from_secs(2)).await;
                hosts[old].drain().await;
            }
            world.net.weather(plane_address, |weather| weather.blackhole = true);
            // Nobody hears of the host that takes the place of one that dies.
            plane.hosts.send_modify(|hosts| hosts[2] = 6);
            sleep(Duration::from_secs(4)).await;
            let unheard = hosts[5].arrived();
            hosts[2].kill();
            sleep(Duration::from_secs(10)).await;
            world.net.weather(plane_address, |weather| weather.blackhole = false);
            let back = Instant::now();
            while hosts[5].arrived() == 0 {
                sleep(Duration::from_millis(100)).await;
            }
            (unheard, back.elapsed())
        };
        let (done, (unheard, caught_up)) = tokio::join!(load, story);
        let failed: Vec<_> = done.iter().filter(|done| !done.is_ok()).take(3).collect();
        assert!(failed.is_empty(), "{failed:?}");
        assert_eq!(unheard, 0);
        assert!(caught_up <= Duration::from_secs(5), "{caught_up:?}");
        drop(tasks);
        world.trace.events()
    })
}

struct Plane {
    /// Where `upstream` is.
    hosts: watch::Sender<Vec<u16>>,
}

fn config(upstream: &[u16]) -> Config {
    let forward = || Forward { retry: Some(retries()), ..Forward::default() };
    let mut config = Config::default();
    let services = [("upstream", upstream), ("middle", &MIDDLE[..]), ("front", &FRONT[..])];
    for (name, hosts) in services {
        let one = routed(name, forward(), [cluster_of(name, hosts.iter().copied(), Kind::Http2)]);
        config.clusters.extend(one.clusters);
        for (port, table) in one.outbound {
            let all = config.outbound.entry(port).or_default();
            Arc::make_mut(all).virtual_hosts.extend(table.virtual_hosts.iter().cloned());
            Arc::make_mut(all).ignore_port = true;
        }
    }
    config
}

/// Tells every caller the configuration, and each new one.
async fn serve_plane(net: Net, hosts: watch::Receiver<Vec<u16>>) {
    let mut listener = net.listen(World::address(PLANE));
    let mut conversations = JoinSet::new();
    while let Ok((mut end, _)) = listener.accept().await {
        let mut hosts = hosts.clone();
        conversations.spawn(async move {
            loop {
                let text = serde_json::to_vec(&config(&hosts.borrow_and_update())).unwrap();
                if end.write_u32(text.len() as u32).await.is_err() || end.write_all(&text).await.is_err() {
                    return;
                }
                if hosts.changed().await.is_err() {
                    return;
                }
            }
        });
    }
}

/// Puts in force what the control plane tells; when that ends, calls again.
async fn follow(net: Net, live: Arc<Live>) {
    let address = EndpointAddress::Socket(World::address(PLANE));
    let cluster = cluster_of("plane", [], Kind::Http1);
    loop {
        if let Ok(mut stream) = net.connect(Target::new(&address, &cluster)).await {
            while let Ok(length) = stream.read_u32().await {
                let mut text = vec![0; length as usize];
                if stream.read_exact(&mut text).await.is_err() {
                    break;
                }
                live.update(&serde_json::from_slice(&text).unwrap()).unwrap();
            }
        }
        sleep(Duration::from_secs(1)).await;
    }
}

/// A service whose every answer is that of the next.
async fn relay(mesh: Mesh, listener: impl Listener, next: &'static str) {
    let client = mesh.http();
    let handler = tower::service_fn(move |request: http::Request<_>| {
        let client = client.clone();
        async move {
            let below = client.get(format!("http://{next}{}", request.uri().path())).await.unwrap();
            let mut response = Response::new(Full::<Bytes>::default());
            *response.status_mut() = below.status();
            Ok::<_, Infallible>(response)
        }
    });
    let _ = mesh.serve_listener(listener, handler).await;
}
