//! Our own client by gRPC's rules: a bootstrap such as gRPC's libraries take, and it asks for what is dialled, by name.

use std::{net::Ipv4Addr, time::Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use mesh_control::WorkloadSpec;
use mesh_tower::{Builder, Mesh};
use tower::ServiceExt;

use crate::plane::{PATIENCE, Plane};

const CALLER: &str = "own.default";

/// NR1, NR4, XD25, XD34: over HTTP/1.1, HTTP/2 and gRPC what is dialled resolves by its listener, its routes, clusters and
/// endpoints, and nothing else is asked for; a change is in force; a name that is not there fails with what is missing.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_dialled_is_asked_for_by_name() {
    let Some(plane) = Plane::start().await else { return };
    let mesh = member(&plane).await;
    for kind in [Kind::Http1, Kind::Http2, Kind::Grpc] {
        assert_eq!(ask(&mesh, kind, "reviews:9080", None).await, Ok("reviews-v1".to_owned()), "{kind:?}");
    }
    for target in ["xds:///reviews:9080", "xds:reviews.default:9080", "reviews.default.svc:9080"] {
        assert_eq!(ask(&mesh, Kind::Grpc, target, None).await, Ok("reviews-v1".to_owned()), "{target}");
    }
    assert_eq!(ask(&mesh, Kind::Http1, "ratings:9080", None).await, Ok("ratings-v1".to_owned()));
    plane.synced(CALLER, &["CDS", "LDS", "EDS", "RDS"]).await;
    let snapshot = mesh.snapshot().unwrap();
    let mut clusters: Vec<_> = snapshot.config().clusters.iter().map(|(name, _)| name.to_string()).collect();
    clusters.sort();
    let expected = ["ratings", "reviews"].map(|name| format!("outbound|9080|v1|{name}.default.svc.cluster.local"));
    assert_eq!(clusters, expected, "productpage and details are not asked for");
    assert!(snapshot.config().outbound.is_empty());

    // One user to v2: the routes change, and with them what is asked for.
    plane.sample("virtual-service-reviews-test-v2.yaml");
    for kind in [Kind::Http1, Kind::Http2, Kind::Grpc] {
        until(&mesh, kind, "reviews:9080", Some("jason"), "reviews-v2").await;
        assert_eq!(ask(&mesh, kind, "reviews:9080", None).await, Ok("reviews-v1".to_owned()), "{kind:?}");
    }

    // XD11: what the control plane does not have is UNAVAILABLE, with the resource and the node.
    let why = ask(&mesh, Kind::Grpc, "nowhere:9080", None).await.unwrap_err();
    assert!(why.starts_with("14 ") && why.contains("LDS \"nowhere:9080\"") && why.contains("own"), "{why}");
    assert!(ask(&mesh, Kind::Http1, "nowhere:9080", None).await.unwrap_err().starts_with("503 "));
    assert!(mesh.grpc("xds://elsewhere/reviews:9080").is_err(), "the bootstrap has no such authority");
}

/// How a request is sent.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Http1,
    Http2,
    Grpc,
}

/// A process whose bootstrap is one for gRPC.
async fn member(plane: &Plane) -> Mesh {
    let spec = WorkloadSpec { grpc: true, ..WorkloadSpec::new("own", Ipv4Addr::LOCALHOST.into()) };
    let text = plane.bootstrap(&spec).to_string();
    let variable = |name: &str| match name {
        "GRPC_XDS_BOOTSTRAP_CONFIG" => Some(text.clone()),
        "MESH_ADMIN_ADDR" => Some("off".to_owned()),
        _ => None,
    };
    Builder::from_variables(variable).unwrap().build().await.unwrap()
}

/// Which upstream answers, or the status and its text.
async fn ask(mesh: &Mesh, kind: Kind, target: &str, user: Option<&str>) -> Result<String, String> {
    let mut request = http::Request::post("/mesh.Echo/Call");
    if let Some(user) = user {
        request = request.header("end-user", user);
    }
    let request = |version, uri: &str, message| {
        let mut request = request.body(Full::new(message)).unwrap();
        *request.uri_mut() = uri.parse().unwrap();
        *request.version_mut() = version;
        request
    };
    let uri = format!("http://{target}/mesh.Echo/Call");
    let answer = match kind {
        Kind::Http1 => mesh.http().request(request(http::Version::HTTP_11, &uri, Bytes::new())).await,
        Kind::Http2 => mesh.http().request(request(http::Version::HTTP_2, &uri, Bytes::new())).await,
        Kind::Grpc => {
            let message = Bytes::from_static(b"\0\0\0\0\0");
            let request = request(http::Version::HTTP_2, "/mesh.Echo/Call", message);
            mesh.grpc(target).unwrap().oneshot(request).await
        }
    };
    let answer = answer.map_err(|error| error.to_string())?;
    let (head, body) = answer.into_parts();
    let body = body.collect().await.map_err(|error| error.to_string())?;
    let trailers = body.trailers().cloned().unwrap_or_default();
    let grpc = [&head.headers, &trailers].into_iter().find_map(|headers| headers.get("grpc-status").cloned());
    if let Some(status) = grpc.filter(|status| status != "0") {
        let text = head.headers.get("grpc-message").map(|text| text.to_str().unwrap()).unwrap_or_default();
        return Err(format!("{} {text}", status.to_str().unwrap()));
    }
    let body = String::from_utf8_lossy(&body.to_bytes()).into_owned();
    match head.headers.get("x-upstream") {
        Some(name) if head.status == 200 => Ok(name.to_str().unwrap().to_owned()),
        _ => Err(format!("{} {body}", head.status.as_u16())),
    }
}

async fn until(mesh: &Mesh, kind: Kind, target: &str, user: Option<&str>, expected: &str) {
    let end = Instant::now() + PATIENCE;
    loop {
        let answer = ask(mesh, kind, target, user).await;
        if answer.as_deref() == Ok(expected) {
            return;
        }
        assert!(Instant::now() < end, "{target} is answered with {answer:?}, not by {expected}");
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
}
