//! Where configuration comes from, and what is said when it comes from nowhere.

use axum::{Router, routing::get};
use http::StatusCode;
use mesh_tower::{Builder, Mesh, MeshError};

use crate::server::fetch;

fn builder(variables: &[(&str, &str)]) -> Result<Builder, MeshError> {
    let variables = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    let variables: std::collections::HashMap<_, _> = variables.collect();
    Builder::from_variables(|name| variables.get(name).cloned())
}

/// XD18: without any source, the error lists each that was tried; a wrong value says what it may be.
#[test]
fn nothing_configured_lists_what_was_tried() {
    // A `main` that returns the error shows it by `Debug`.
    let error = format!("{:?}", builder(&[]).unwrap_err());
    for source in ["in code", "MESH_MODE", "GRPC_XDS_BOOTSTRAP", "GRPC_XDS_BOOTSTRAP_CONFIG"] {
        assert!(error.contains(source), "{source} in {error}");
    }
    for (variables, expected) in [
        (&[("MESH_MODE", "of")][..], "MESH_MODE is \"of\""),
        (&[("MESH_MODE", "off"), ("MESH_ADMIN_ADDR", "15000")][..], "MESH_ADMIN_ADDR is \"15000\""),
        (&[("MESH_MODE", "off"), ("MESH_ACCESS_LOG", "yes")][..], "MESH_ACCESS_LOG"),
        (&[("MESH_MODE", "off"), ("MESH_PROPAGATE_HEADERS", "a b")][..], "\"a b\" is no header name"),
        (&[("GRPC_XDS_BOOTSTRAP", "/nowhere/bootstrap.json")][..], "/nowhere/bootstrap.json"),
        (&[("GRPC_XDS_BOOTSTRAP_CONFIG", "{")][..], "GRPC_XDS_BOOTSTRAP_CONFIG"),
    ] {
        let error = builder(variables).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

/// Pass-through is only ever chosen on purpose; it goes to the host that is named.
#[tokio::test]
async fn the_mesh_may_be_switched_off() {
    let (address, opened) = crate::pool::serve(Router::new().route("/", get(async || "hello"))).await;
    let mesh = builder(&[("MESH_MODE", "off"), ("MESH_ADMIN_ADDR", "off")]).unwrap().build().await.unwrap();
    assert!(mesh.admin_addr().is_none());
    let uri = format!("http://localhost:{}/", address.port());
    for _ in 0..3 {
        assert_eq!(fetch(&mesh, &uri).await, (StatusCode::OK, "hello".to_owned()));
    }
    assert_eq!(opened.load(std::sync::atomic::Ordering::Relaxed), 1, "connections are kept");
}

/// A taken port is told with its address.
#[tokio::test]
async fn a_taken_port_is_named() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let mesh = Mesh::builder().off().build().await.unwrap();
    let error = mesh.serve(address, Router::new()).await.unwrap_err().to_string();
    assert!(error.contains(&address.to_string()), "{error}");
}
