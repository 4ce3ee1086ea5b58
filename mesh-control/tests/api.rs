//! The HTTP API as anything but `meshctl` meets it: a browser that a web page leads there, a client that errs.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::net::SocketAddr;

use mesh_control::{ControlPlane, StartError};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// The API answers this machine only: no web page gets through, whatever name it gives the loopback.
#[tokio::test(flavor = "multi_thread")]
async fn web_pages_and_strangers_are_refused() {
    let plane = start().await;
    let address = plane.api_address();
    let cases = [
        ("GET", "/version", format!("Host: {address}\r\n"), "", 200),
        ("GET", "/version", format!("Host: localhost:{}\r\n", address.port()), "", 200),
        ("GET", "/version", "Host: evil.example\r\n".to_owned(), "", 403),
        ("GET", "/version", format!("Host: {address}\r\nOrigin: https://evil.example\r\n"), "", 403),
        ("GET", "/version", format!("Host: {address}\r\nOrigin: null\r\n"), "", 403),
        ("GET", "/version", format!("Host: {address}\r\nOrigin: http://{address}\r\n"), "", 200),
        // What a page may send without asking first (CORS) is not JSON by its type.
        ("POST", "/apply", format!("Host: {address}\r\nContent-Type: text/plain\r\n"), "{\"files\":[]}", 415),
        ("POST", "/apply", format!("Host: {address}\r\nContent-Type: application/json\r\n"), "{}", 422),
        ("POST", "/apply", format!("Host: {address}\r\nContent-Type: application/json\r\n"), "{\"files\":[]}", 200),
        ("GET", "/objects?kind=pod", format!("Host: {address}\r\n"), "", 400),
        ("GET", "/objects?kind=vs&namespace=a&name=b", format!("Host: {address}\r\n"), "", 404),
        ("GET", "/nowhere", format!("Host: {address}\r\n"), "", 404),
        ("GET", "/ready", format!("Host: {address}\r\n"), "", 200),
    ];
    for (method, path, headers, body, expected) in cases {
        let request = format!(
            "{method} {path} HTTP/1.1\r\n{headers}Connection: close\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let status = answer.split(' ').nth(1).unwrap();
        assert_eq!(status, expected.to_string(), "{request}\n\n{answer}");
        if expected >= 400 {
            assert!(answer.contains("\"error\":"), "{answer}");
        }
    }
}

/// Without authentication it stays on the loopback.
#[tokio::test]
async fn api_listens_on_the_loopback_only() {
    let elsewhere: SocketAddr = "0.0.0.0:0".parse().unwrap();
    let error = ControlPlane::builder().xds_addr(any()).api_addr(elsewhere).start().await.unwrap_err();
    assert!(matches!(error, StartError::NotLoopback(_)), "{error}");
}

/// OP10: dropped or shut down, it leaves its ports free and nothing behind.
#[tokio::test(flavor = "multi_thread")]
async fn ports_are_free_after_the_end() {
    let first = start().await;
    let (xds, api) = (first.xds_address(), first.api_address());
    first.shutdown().await;
    let second = ControlPlane::builder().xds_addr(xds).api_addr(api).start().await.unwrap();
    let error = ControlPlane::builder().xds_addr(xds).api_addr(any()).start().await.unwrap_err();
    assert!(error.to_string().contains(&xds.to_string()), "{error}");
    second.shutdown().await;
}

async fn start() -> ControlPlane {
    ControlPlane::builder().xds_addr(any()).api_addr(any()).start().await.unwrap()
}

fn any() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}
