//! A mesh inside a test: Istio's YAML in, and routes to assert, or services that call each other with mutual TLS.
//!
//! ```
//! use mesh::{assert_route, testing};
//!
//! let mesh = testing::Mesh::from_yaml(
//!     "
//! apiVersion: v1
//! kind: Service
//! metadata: {name: reviews}
//! spec: {selector: {app: reviews}, ports: [{name: http, port: 9080}]}
//! ---
//! apiVersion: networking.istio.io/v1
//! kind: DestinationRule
//! metadata: {name: reviews}
//! spec:
//!   host: reviews
//!   subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]
//! ---
//! apiVersion: networking.istio.io/v1
//! kind: VirtualService
//! metadata: {name: reviews}
//! spec:
//!   hosts: [reviews]
//!   http:
//!   - match: [{headers: {end-user: {exact: jason}}}]
//!     route: [{destination: {host: reviews, subset: v2}}]
//!   - route: [{destination: {host: reviews, subset: v1}}]
//! ",
//! );
//! assert_route!(mesh, GET "http://reviews:9080/reviews/0" => "reviews/v1");
//! assert_route!(mesh, GET "http://reviews:9080/reviews/0" ["end-user" => "jason"] => "reviews/v2");
//! ```
//!
//! [`Mesh::start`] makes it live. What it does not do: load, or the network's faults; see the clock and seed of
//! [`HttpClient::with_source`](crate::HttpClient::with_source) for replays.
#![allow(clippy::panic, reason = "a test kit fails the test it is used in")]

mod live;
mod panics;
mod route;

use std::{
    fs,
    path::Path,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use mesh_control::{
    Workloads,
    compile::{MeshSettings, NodeInfo, World, compile},
    registry::Registered,
    store::{SourceFile, Store, StoreError},
};
use mesh_core::{plan::Target, request::RequestView, rng::RequestRng, snapshot::Snapshot};

pub use live::{Member, Running};
pub use route::{Expected, Routed};

/// The configuration of a mesh, as its YAML says.
#[derive(Debug)]
pub struct Mesh {
    files: Vec<SourceFile>,
    world: World,
}

impl Mesh {
    /// Of a file, or of the files of a folder that end in `.yaml` or `.yml`.
    ///
    /// # Panics
    ///
    /// They cannot be read, or have an error: its diagnostics are the message.
    #[track_caller]
    pub fn from_path(path: impl AsRef<Path>) -> Self {
        let path = path.as_ref();
        let read = || {
            let mut paths = vec![path.to_owned()];
            if path.is_dir() {
                paths = fs::read_dir(path)?.map(|entry| Ok(entry?.path())).collect::<std::io::Result<_>>()?;
                let is_yaml = |path: &Path| path.extension().is_some_and(|end| end == "yaml" || end == "yml");
                paths.retain(|path| is_yaml(path));
                paths.sort();
            }
            let file =
                |path: &Path| Ok(SourceFile { name: path.display().to_string(), text: fs::read_to_string(path)? });
            paths.iter().map(|path| file(path)).collect::<std::io::Result<Vec<_>>>()
        };
        match read() {
            Ok(files) => Self::made(files),
            Err(error) => panic!("{}: {error}", path.display()),
        }
    }

    /// Of a text: one or more documents of YAML.
    ///
    /// # Panics
    ///
    /// It has an error: its diagnostics are the message.
    #[track_caller]
    pub fn from_yaml(yaml: &str) -> Self {
        Self::made(vec![SourceFile { name: "test.yaml".to_owned(), text: yaml.to_owned() }])
    }

    #[track_caller]
    fn made(files: Vec<SourceFile>) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis());
        let applied = Store::open(None).and_then(|mut store| {
            store.apply(&files, u64::try_from(now).unwrap_or(u64::MAX))?;
            Ok(store)
        });
        match applied {
            Ok(store) => Self { files, world: World::new(store.objects(), &Nobody, MeshSettings::default()) },
            Err(error) => panic!("{}", told(&error)),
        }
    }

    /// What becomes of a request that `from` sends; see [`assert_route!`](crate::assert_route).
    ///
    /// `from` names a `Deployment` of the YAML; `None` is a workload of namespace `default` without labels.
    ///
    /// # Panics
    ///
    /// No `Deployment` is called so.
    #[track_caller]
    pub fn route(&self, request: &http::Request<()>, from: Option<&str>) -> Routed {
        let node = match from {
            None => NodeInfo { namespace: "default".to_owned(), name: "anybody".to_owned(), ..NodeInfo::default() },
            Some(name) => match self.world.announced(name) {
                Some(node) => node,
                None => panic!("no Deployment is called {name:?}"),
            },
        };
        let snapshot = match Snapshot::compile(&compile(&self.world, &node), None) {
            Ok(snapshot) => snapshot,
            Err(error) => panic!("{error}"),
        };
        let (parts, ()) = request.clone().into_parts();
        let view = RequestView::of(&parts, None);
        let explanation = snapshot.explain(&view, &mut RequestRng::new(0, 0));
        let weights = explanation.weights.iter().map(|told| (told.cluster.clone(), told.weight)).collect();
        let outcome = match snapshot.plan(&view, &mut RequestRng::new(0, 0)) {
            Err(_) => Expected::Status(404),
            Ok(plan) => match (&plan.target, &plan.route.redirect, &plan.route.respond) {
                (Target::Respond, _, Some(answer)) => Expected::Status(answer.status),
                (Target::Redirect, Some(redirect), _) => Expected::Status(redirect.status),
                (Target::Cluster(cluster), ..) => Expected::of_clusters(weights, cluster.name().as_ref()),
                (Target::NoCluster(name), ..) => Expected::of_clusters(weights, name),
                _ => Expected::Status(404),
            },
        };
        Routed { outcome, why: explanation.to_string() }
    }

    /// Starts its control plane in this process, on free ports of the loopback.
    ///
    /// # Panics
    ///
    /// It cannot be started.
    pub async fn start(self) -> Running {
        Running::start(self.files).await
    }
}

fn told(error: &StoreError) -> String {
    match error {
        StoreError::Invalid(diagnostics) => diagnostics.iter().map(|told| told.render(false)).collect(),
        other => other.to_string(),
    }
}

/// Nobody runs before [`Mesh::start`].
#[derive(Debug)]
struct Nobody;

impl Workloads for Nobody {
    fn workloads(&self) -> Vec<Arc<Registered>> {
        Vec::new()
    }
}

/// Asserts where a request goes: a method, a URL, headers, and the service and subset it is to arrive at.
///
/// ```ignore
/// assert_route!(mesh, GET "http://reviews:9080/reviews/0" => "reviews/v1");
/// assert_route!(mesh, GET "http://reviews:9080/reviews/0" ["end-user" => "jason"] => "reviews/v2");
/// assert_route!(mesh, GET "http://reviews:9080/reviews/0" from "productpage-v1" => [("reviews/v1", 50), ("reviews/v3", 50)]);
/// assert_route!(mesh, POST "http://reviews:9080/old" => 301);
/// ```
///
/// A service may be written short (`reviews`, `reviews.default`). A number is the status of what answers in its place: a
/// redirect, a direct response, or 404 where no rule takes the request. Faults are not drawn: a rule that aborts is told by where it leads. When it fails, the message is the whole decision, rule
/// by rule.
#[macro_export]
macro_rules! assert_route {
    ($mesh:expr, $method:ident $url:literal $([$($name:literal => $value:expr),* $(,)?])? $(from $from:literal)? => $to:expr) => {{
        let request = $crate::testing::request(stringify!($method), $url, &[$($(($name, $value)),*)?]);
        let from: &[&str] = &[$($from)?];
        $crate::testing::Mesh::route(&$mesh, &request, from.first().copied()).assert($to);
    }};
}

/// The request of an [`assert_route!`](crate::assert_route).
///
/// # Panics
///
/// It cannot be sent.
#[doc(hidden)]
#[track_caller]
pub fn request(method: &str, url: &str, headers: &[(&str, &str)]) -> http::Request<()> {
    let request = http::Request::builder().method(method).uri(url);
    let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
    match request.body(()) {
        Ok(request) => request,
        Err(error) => panic!("{method} {url}: {error}"),
    }
}
