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
        ("/listeners", "\"direction\":\"outbound\""),
        ("/stats", "istio_build{component=\"proxy\""),
        ("/stats?filter=^istio_bu", "istio_build"),
        ("/stats?format=json&filter=istio_build", "\"value\":1.0"),
        ("/stats?format=prometheus", "# TYPE istio_build gauge"),
        ("/server_info", "\"state\":\"LIVE\""),
        ("/init_dump", "\"target_names\":[]"),
        ("/memory", "\"resident\":"),
        ("/runtime", "entries"),
        ("/config_dump?resource=dynamic_active_clusters&name_regex=outbound.*", "outbound|9080||reviews"),
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

/// AD3, AD5, TE25: a POST makes it say that it is not well, changes what is logged, and ends serving; a GET and a page in a browser do
/// not, and neither what would profile it (AD8) nor channelz is there.
#[tokio::test]
async fn the_admin_port_steers_by_post() {
    let (changed, seen) = std::sync::mpsc::channel();
    let changed = std::sync::Mutex::new(changed);
    let mesh = Mesh::builder()
        .config(Config::default())
        .admin_addr("127.0.0.1:0".parse().unwrap())
        .on_log_level(move |directive| {
            if directive.contains("loud") {
                return Err(format!("{directive:?} is no level"));
            }
            changed.lock().unwrap().send(directive.to_owned()).unwrap();
            Ok(())
        })
        .build()
        .await
        .unwrap();
    let admin = mesh.admin_addr().unwrap();
    let outside = Mesh::builder().off().build().await.unwrap();
    let ask = async |method: &str, path: &str, headers: &[(&str, &str)]| {
        let request = Request::builder().method(method).uri(format!("http://{admin}{path}"));
        let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        let request = request.body(Empty::<bytes::Bytes>::new()).unwrap();
        outside.http().request(request).await.unwrap().status().as_u16()
    };
    for path in ["/drain_listeners", "/quitquitquit", "/healthcheck/fail", "/logging?level=debug"] {
        assert_eq!(ask("GET", path, &[]).await, 405, "{path}");
        assert_eq!(ask("POST", path, &[("origin", "http://127.0.0.1")]).await, 403, "{path}");
        assert_eq!(ask("POST", path, &[("sec-fetch-site", "cross-site")]).await, 403, "{path}");
    }
    assert_eq!(ask("GET", "/ready", &[]).await, 200);
    assert_eq!(ask("POST", "/healthcheck/fail", &[]).await, 200);
    assert_eq!(ask("GET", "/ready", &[]).await, 503);
    assert_eq!(ask("POST", "/healthcheck/ok", &[]).await, 200);
    assert_eq!(ask("GET", "/ready", &[]).await, 200);
    assert_eq!(ask("POST", "/logging?level=debug", &[]).await, 200);
    assert_eq!(ask("POST", "/logging?mesh::xds=trace", &[]).await, 200);
    assert_eq!(ask("POST", "/logging?level=loud", &[]).await, 400);
    assert_eq!(ask("POST", "/logging", &[]).await, 400);
    assert_eq!(seen.try_iter().collect::<Vec<_>>(), ["debug", "mesh::xds=trace"]);
    // A gRPC client takes that for UNIMPLEMENTED.
    let channelz = "/grpc.channelz.v1.Channelz/GetTopChannels";
    assert_eq!(ask("POST", channelz, &[("content-type", "application/grpc")]).await, 404);
    for path in ["/cpuprofiler?enable=y", "/heapprofiler", "/pprof/profile"] {
        assert_eq!(ask("POST", path, &[]).await, 404, "{path}");
    }
    assert_eq!(ask("POST", "/drain_listeners?graceful", &[]).await, 200);
    assert_eq!(ask("GET", "/ready", &[]).await, 503);
}
