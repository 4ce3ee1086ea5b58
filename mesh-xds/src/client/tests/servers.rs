//! More than one server: fallback, authorities, the incremental variant and servers without it, one client for all.

use super::*;
use crate::{ads::client::Variant, bootstrap::Authority, profile::Profile};

fn incremental(bootstrap: &Bootstrap) -> Arc<Bootstrap> {
    Arc::new(Bootstrap { variant: Variant::Delta, ..bootstrap.clone() })
}

/// An address at which nobody listens, until somebody does.
async fn free() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}

/// XD2, XD3, XD14 (envoy): over the incremental variant a configuration arrives whole, changes follow, what is gone goes.
#[tokio::test]
async fn delta_configuration_arrives_and_changes() {
    let plane = Plane::start(&config("a", 1)).await;
    let client = Client::start(incremental(&plane.bootstrap()));
    let mut configs = client.config();
    assert_eq!(*next_config(&mut configs).await, config("a", 1));
    plane.source.set(&config("a", 2));
    assert_eq!(*next_config(&mut configs).await, config("a", 2));
    plane.source.set(&config("b", 2));
    assert_eq!(*wait_for(&mut configs, |config| !config.clusters.contains_key("a")).await, config("b", 2));
    let version = plane.source.views.borrow().version(TypeUrl::Cluster);
    plane.source.wait_for(|events| events.contains(&format!("acked CDS {version}"))).await;
    // On the next stream only what differs is sent; what went meanwhile goes here, too.
    let address = plane.address;
    drop(plane);
    let plane = Plane::start_at(address, &config("c", 1), None).await;
    assert_eq!(*wait_for(&mut configs, |config| !config.clusters.contains_key("b")).await, config("c", 1));
    let mut set = ResourceSet::clone(&plane.source.views.borrow());
    set.insert(TypeUrl::Cluster, "bad", [&[0x0a, 3][..], b"bad", &[0x10, 0x7f]].concat());
    plane.source.views.send_replace(Arc::new(set));
    let refused = |event: &String| event.starts_with("nacked CDS") && event.contains("\"bad\"");
    plane.source.wait_for(|events| events.iter().any(refused)).await;
}

/// XD2 (envoy): a server without the incremental variant is spoken to in the other.
#[tokio::test]
async fn servers_without_delta_are_spoken_to_all_the_same() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let service = AggregatedDiscoveryServiceServer::new(Deaf);
    let _server = Task::spawn(async move {
        let incoming = TcpListenerStream::new(listener);
        Server::builder().add_service(service).serve_with_incoming(incoming).await.unwrap();
    });
    let client = Client::start(incremental(&bootstrap(address, None)));
    let mut status = client.status.clone();
    let last = |status: &Arc<Status>| status.types.get(&TypeUrl::Cluster).is_some_and(|cds| cds.version == "5000");
    tokio::time::timeout(PATIENCE, status.wait_for(last)).await.unwrap().unwrap();
}

/// XD27 (envoy): another server is asked while the first cannot be reached and something is missing, and left when the
/// first answers; when nothing is missing, the loss of the first is borne.
#[tokio::test]
async fn fallback_is_used_and_left() {
    let first = free().await;
    let second = Plane::start(&config("b", 1)).await;
    let primary = bootstrap(first, None);
    let fallbacks = vec![second.bootstrap().server.clone()];
    let client = Client::start(Arc::new(Bootstrap { fallbacks, ..Bootstrap::clone(&primary) }));
    let mut configs = client.config();
    assert_eq!(*next_config(&mut configs).await, config("b", 1));
    assert_eq!(client.status().server, second.address.to_string());
    let plane = Plane::start_at(first, &config("a", 1), None).await;
    assert_eq!(*wait_for(&mut configs, |config| !config.clusters.contains_key("b")).await, config("a", 1));
    second.source.wait_for(|events| events.contains(&"disconnect 1".to_owned())).await;
    drop(plane);
    let mut status = client.status.clone();
    let refused = |status: &Arc<Status>| status.error.as_ref().is_some_and(|why| why.contains(&first.to_string()));
    tokio::time::timeout(PATIENCE, status.wait_for(refused)).await.unwrap().unwrap();
    assert!(!second.source.saw("disconnect 2") && second.source.connections.load(Ordering::Relaxed) == 1);
    assert!(configs.borrow().as_ref().unwrap().clusters.contains_key("a"));
}

/// XD27, XD8 (envoy): servers that all fail are tried in rounds with a pause between, not one after another for ever.
#[tokio::test]
async fn failing_servers_are_not_hammered() {
    let (first, second) = (free().await, TcpListener::bind("127.0.0.1:0").await.unwrap());
    let fallbacks = vec![bootstrap(second.local_addr().unwrap(), None).server.clone()];
    let primary = bootstrap(first, None);
    let client = Client::start(Arc::new(Bootstrap { fallbacks, ..Bootstrap::clone(&primary) }));
    let began = Instant::now();
    for _ in 0..5 {
        drop(tokio::time::timeout(PATIENCE, second.accept()).await.unwrap().unwrap());
    }
    // Two pauses of 0.8 s at least, each a fifth shorter at most: an attempt may connect twice.
    assert!(began.elapsed() > Duration::from_millis(1_200), "{:?}", began.elapsed());
    assert!(client.status().error.is_some());
}

/// XD8 (envoy): a server that finds it is pinged too often says so, and is understood; it is not taken for one that is busy.
#[tokio::test]
async fn a_server_may_have_enough_of_pings() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    const HEADERS: u8 = 1;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = bootstrap(listener.local_addr().unwrap(), None).server.clone();
    let _server = Task::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut preface = [0; 24];
        stream.read_exact(&mut preface).await.unwrap();
        // No settings of its own.
        stream.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await.unwrap();
        loop {
            let mut head = [0; 9];
            stream.read_exact(&mut head).await.unwrap();
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
            stream.read_exact(&mut vec![0; length]).await.unwrap();
            if head[3] == HEADERS {
                break;
            }
        }
        let why = b"too_many_pings";
        let goodbye = [&[0, 0, 8 + why.len() as u8, 7, 0, 0, 0, 0, 0], &[0, 0, 0, 0, 0, 0, 0, 0xb][..], why].concat();
        stream.write_all(&goodbye).await.unwrap();
        let _ = stream.read_to_end(&mut Vec::new()).await;
    });
    let channel = transport::connect(&server).await.unwrap();
    let mut client = proto::AggregatedDiscoveryServiceClient::new(channel);
    let answer = client.stream_aggregated_resources(tokio_stream::pending::<DiscoveryRequest>()).await;
    let status = match answer {
        Ok(answer) => answer.into_inner().message().await.unwrap_err(),
        Err(status) => status,
    };
    assert!(transport::pinged_too_often(&status), "{status:?}");
    let busy = tonic::Status::resource_exhausted("later");
    assert!(!transport::pinged_too_often(&busy));
}

/// XD26 (envoy): a resource is asked for where its authority is, however its name is spelled; without one it fails alone.
#[tokio::test]
async fn authorities_have_their_own_servers() {
    let spelled = "xdstp://other/envoy.config.endpoint.v3.ClusterLoadAssignment/%61?z=1&b=2";
    let canonical = "xdstp://other/envoy.config.endpoint.v3.ClusterLoadAssignment/a?b=2&z=1";
    let discovered = |name: &str, endpoints: u8| {
        let mut config = config("a", endpoints);
        let cluster = Cluster { discovery: Discovery::Eds(name.into()), ..Cluster::clone(&config.clusters["a"]) };
        config.clusters.insert("a".into(), Arc::new(cluster));
        config
    };
    let plane = Plane::start(&discovered(spelled, 1)).await;
    let other = Plane::start(&discovered(canonical, 2)).await;
    let authority =
        Authority { servers: vec![other.bootstrap().server.clone()], listener_template: "xdstp://other/%s".to_owned() };
    let authorities = BTreeMap::from([("other".to_owned(), authority)]);
    let client = Client::start(Arc::new(Bootstrap { authorities, ..Bootstrap::clone(&plane.bootstrap()) }));
    let config = next_config(&mut client.config()).await;
    assert_eq!(config.clusters["a"].endpoints.localities[0].endpoints.len(), 2);
    assert_eq!(client.status().others[0].server, other.address.to_string());
    // Nobody is known for that name.
    let client = Client::start(plane.bootstrap());
    let config = next_config(&mut client.config()).await;
    assert!(config.clusters["a"].failed.as_ref().unwrap().contains("have no \"other\""), "{:?}", config.clusters["a"]);
}

/// XD28 (envoy): who asks for the same bootstrap shares the client and its stream.
#[tokio::test]
async fn one_client_is_shared() {
    let plane = Plane::start(&config("a", 1)).await;
    let client = Client::shared(plane.bootstrap());
    let again = Client::shared(plane.bootstrap());
    assert!(Arc::ptr_eq(&client, &again));
    next_config(&mut again.config()).await;
    drop(client);
    assert!(Arc::ptr_eq(&again, &Client::shared(plane.bootstrap())));
    let other = Client::shared(incremental(&plane.bootstrap()));
    assert!(!Arc::ptr_eq(&again, &other));
    next_config(&mut other.config()).await;
    assert_eq!(plane.source.connections.load(Ordering::Relaxed), 2);
    drop(again);
    plane.source.wait_for(|events| events.contains(&"disconnect 1".to_owned())).await;
}

/// XD21 (envoy): the client's own certificate is read again for each stream; one that is open is not disturbed.
#[tokio::test]
async fn client_certificate_is_read_for_each_stream() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let ca = TestCa::new();
    let plane = Plane::start_at("127.0.0.1:0".parse().unwrap(), &config("a", 1), Some(&ca)).await;
    std::fs::write(path("token"), "t").unwrap();
    std::fs::write(path("root.pem"), &ca.root).unwrap();
    let write = || {
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(vec!["client.test".to_owned()]).unwrap().signed_by(&key, &*ca.issuer);
        let certificate = certificate.unwrap();
        std::fs::write(path("key.pem"), key.serialize_pem()).unwrap();
        std::fs::write(path("chain.pem"), certificate.pem()).unwrap();
        format!("certificate {:016x}", xxh64(certificate.der(), 0))
    };
    let first = write();
    let mut bootstrap = Bootstrap::clone(&bootstrap(plane.address, Some(directory.path())));
    bootstrap.server.tls.as_mut().unwrap().client_files = Some((path("chain.pem"), path("key.pem")));
    let client = Client::start(Arc::new(bootstrap));
    next_config(&mut client.config()).await;
    assert!(plane.source.saw(&first));
    let second = write();
    plane.source.set(&config("b", 1));
    wait_for(&mut client.config(), |config| config.clusters.contains_key("b")).await;
    assert!(!plane.source.saw("disconnect 1"));
    let address = plane.address;
    drop(plane);
    let plane = Plane::start_at(address, &config("b", 1), Some(&ca)).await;
    plane.source.wait_for(|events| events.contains(&second)).await;
}

/// XD34 (grpc): only the listeners dialled are asked for; one that nobody dials any more goes after a while.
#[tokio::test]
async fn only_what_is_dialled_is_asked_for() {
    let mut named = config("a", 1);
    for table in named.outbound.values_mut() {
        for host in &mut Arc::make_mut(table).virtual_hosts {
            Arc::make_mut(host).domains = vec!["host".to_owned()];
        }
    }
    let plane = Plane::start(&named).await;
    plane.source.views.send_replace(Arc::new(encode(&named, Shape::Grpc)));
    let client = Client::start(Arc::new(Bootstrap { profile: Profile::Grpc, ..Bootstrap::clone(&plane.bootstrap()) }));
    let dialled = client.dial("xds:///host:80").unwrap();
    let mut status = client.status.clone();
    let one = |status: &Arc<Status>| status.types.get(&TypeUrl::Listener).is_some_and(|lds| lds.resources == 1);
    tokio::time::timeout(PATIENCE, status.wait_for(one)).await.unwrap().unwrap();
    let mut configs = client.config();
    let config = wait_for(&mut configs, |config| config.targets.contains_key("host:80")).await;
    assert!(config.clusters.contains_key("a") && config.outbound.is_empty());
    assert!(client.dial("xds://nowhere/a").is_err());
    let again = client.dial("host:80").unwrap();
    drop(dialled);
    tokio::time::pause();
    tokio::time::advance(IDLE * 2).await;
    assert_eq!(client.status().types[&TypeUrl::Listener].resources, 1, "it is still dialled");
    drop(again);
    let none = |status: &Arc<Status>| status.types[&TypeUrl::Listener].resources == 0;
    tokio::time::timeout(IDLE * 2, status.wait_for(none)).await.unwrap().unwrap();
}
