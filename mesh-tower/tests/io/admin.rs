//! The admin port: what it shows, to whom, and what it never shows.

use http::{Request, StatusCode};
use http_body_util::{BodyExt, Empty};
use mesh_tower::{Mesh, MeshError, config::Config};

use crate::{
    configs::{cluster, config},
    pki::{Ca, REVIEWS},
};

/// AD2: metrics, readiness, configuration, endpoints and certificates over loopback; keys never.
#[tokio::test]
async fn the_admin_port_shows_what_the_process_knows() {
    let address = "127.0.0.1:1".parse().unwrap();
    let mesh = Mesh::builder()
        .config(config("reviews", cluster("outbound|9080||reviews", &[address])))
        .identity(Ca::new().identity(REVIEWS))
        .admin_addr("127.0.0.1:0".parse().unwrap())
        .build()
        .await
        .unwrap();
    let admin = mesh.admin_addr().unwrap();
    let outside = Mesh::builder().off().build().await.unwrap();
    let ask = async |path: &str, host: Option<&str>| {
        let mut request = Request::get(format!("http://{admin}{path}"));
        if let Some(host) = host {
            request = Request::get(path).header("host", host);
        }
        let request = request.body(Empty::<bytes::Bytes>::new()).unwrap();
        let response = outside.http().request(request).await.unwrap();
        let status = response.status();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(body.to_vec()).unwrap())
    };
    for (path, expected) in [
        ("/healthz", "ok"),
        ("/ready", "ready"),
        ("/metrics", "istio_build{component=\"proxy\""),
        ("/stats/prometheus", "istio_build"),
        ("/config_dump", "\"control_plane\""),
        ("/config_dump", "outbound|9080||reviews"),
        ("/config_dump", "type.googleapis.com/envoy.admin.v3.ClustersConfigDump"),
        ("/config", "outbound|9080||reviews"),
        ("/clusters", "127.0.0.1:1"),
        ("/certs", REVIEWS),
    ] {
        let (status, body) = ask(path, None).await;
        assert_eq!(status, StatusCode::OK, "{path}");
        assert!(body.contains(expected), "{path}: {body}");
        assert!(!body.contains("PRIVATE KEY"), "{path}");
    }
    mesh.shutdown();
    assert_eq!(ask("/ready", None).await, (StatusCode::SERVICE_UNAVAILABLE, "draining\n".to_owned()));
    let port = admin.port();
    assert_eq!(ask("/healthz", Some(&format!("localhost:{port}"))).await.0, StatusCode::OK);
}

#[tokio::test]
async fn the_admin_port_is_on_loopback_only() {
    let everywhere = "0.0.0.0:0".parse().unwrap();
    let error = Mesh::builder().config(Config::default()).admin_addr(everywhere).build().await.unwrap_err();
    assert!(matches!(error, MeshError::Admin { .. }), "{error}");
    assert!(error.to_string().contains("loopback") && error.to_string().contains("MESH_ADMIN_ADDR"), "{error}");
}
