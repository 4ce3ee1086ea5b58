//! A service mesh that is linked, not deployed: what a program links, and what its tests use, under one name.
//!
//! ```no_run
//! use axum::{BoxError, Router, routing::get};
//! use mesh::Mesh;
//!
//! #[tokio::main]
//! async fn main() -> Result<(), BoxError> {
//!     let mesh = Mesh::from_env().await?;                  // who we are and where the control plane is
//!     let http = mesh.http();                              // a tower::Service: routed, balanced, retried, mutual TLS
//!     let app = Router::new().route("/", get(move || async move {
//!         let reviews = http.get("http://reviews:9080/reviews/0").await;
//!         reviews.map_or_else(|error| error.to_string(), |reviews| reviews.status().to_string())
//!     }));
//!     Ok(mesh.serve("0.0.0.0:9080", app).await?)           // mutual TLS, telemetry, drain on SIGTERM
//! }
//! ```
//!
//! # A walk through one request
//!
//! Somebody calls this program's `/`, and it calls `reviews`.
//!
//! **In.** [`Mesh::serve`] listens. A connection that comes shows a certificate of the mesh, or is refused: which is demanded of a port is a
//! `PeerAuthentication`'s ([`config::Inbound`]). Its request is admitted by what the control plane told of that port (path brought into one form, tokens,
//! AuthorizationPolicies, rate limits), counted, and given to the handler within a [`Context`]: trace, deadline, headers that travel on.
//!
//! **Out.** `http.get("http://reviews:9080/...")` goes down [`HttpClient`]'s layers, each of which works alone, too ([`layer`]):
//!
//! 1. *context*: trace, deadline and propagated headers of the request being served join this one. No handler copies a header.
//! 2. *route*: the virtual host of `reviews:9080`, its first rule that matches, and of its weighted clusters one. Nothing matches: 404 `NR`; a redirect or a
//!    direct response ends here. What is decided is one pure function of configuration and request: [`plan`].
//! 3. *telemetry*: from here on whatever happens is one event: a metric under Istio's names, a span, a line of the access log.
//! 4. *rate limit*, *fault*, *timeout*, *mirror*: what the rule says of each, if anything.
//! 5. *retry*: which outcomes are tried again, how often, within a budget ([`retry`]); every try is a span of its own.
//! 6. *balance*: limits, then priority, locality, endpoint, without those that failed too often ([`cluster`]). Nobody is left: 503 `UH`; too
//!    much is under way: 503 `UO`.
//! 7. *pool*: a connection of that endpoint, HTTP/1.1 or HTTP/2, mutual TLS with the identity that the endpoint is to prove ([`tls`]).
//!
//! **Back.** The response's body still counts: its time limit, its bytes, its trailers; then the event is told. What the mesh itself answered in a service's
//! place carries [`ResponseFlags`] and [`ErrorKind`] in its extensions. [`GrpcClient`] is the same for tonic's generated clients, with gRPC's statuses.
//!
//! **Beside it.** Configuration arrives over xDS meanwhile. It is compiled beside the runtime's workers and put in place as a whole ([`Live`]): a request
//! sees the configuration it began with, to its end.
//!
//! # Features
//!
//! | feature | default | brings |
//! |---|---|---|
//! | `xds` | yes | configuration from a control plane: [`Mesh::from_env`] with a bootstrap; without, a file (`MESH_CONFIG_FILE`) or [`Mesh::builder`] |
//! | `otlp` | yes | spans to an OTLP collector, when one is configured |
//! | `reqwest` | no | `Mesh::reqwest`: the mesh as reqwest's last middleware |
//! | `testing` | no | `mesh::testing`: a mesh of YAML inside a test, and `assert_route!` |
//!
//! Everything here but `testing` is `mesh-tower`'s, re-exported. What is decided of a request is in `mesh-core`, what a control plane says of it is read in
//! `mesh-xds`, what YAML means is in `mesh-control`; this file holds no code.

pub use mesh_tower::*;

#[cfg(feature = "testing")]
pub mod testing;
