//! A mesh that runs: a control plane in this process, and members that join it on ports of the loopback.

use std::{net::Ipv4Addr, path::PathBuf, pin::Pin};

use http_body::Body as HttpBody;
use mesh_control::{ControlPlane, WorkloadSpec, api::ProxyStatus, store::SourceFile};
use mesh_core::config::Labels;
use tempfile::TempDir;
use tokio::{net::TcpListener, task::JoinHandle};

use super::{
    panics::{Panics, Watched},
    told,
};
use crate::{BoxError, Builder, Mesh, server::Handler};

/// A running mesh. Dropping it ends its control plane.
#[derive(Debug)]
#[must_use = "dropping it ends its control plane"]
pub struct Running {
    plane: ControlPlane,
    files: TempDir,
}

/// A workload that serves. Dropping it ends it at once; [`finish`](Self::finish) lets it answer what is under way.
///
/// It fails the test it is used in: where its handler panicked, or it could not serve, dropping or finishing it panics with the words of that.
#[derive(Debug)]
#[must_use = "dropping it ends it at once"]
pub struct Member {
    mesh: Mesh,
    serving: JoinHandle<()>,
    panics: Panics,
}

impl Running {
    pub(super) async fn start(files: Vec<SourceFile>) -> Self {
        let any = (Ipv4Addr::LOCALHOST, 0).into();
        let plane = ControlPlane::builder().xds_addr(any).api_addr(any).start().await;
        match (plane, tempfile::tempdir()) {
            (Ok(plane), Ok(dir)) => {
                let running = Self { plane, files: dir };
                running.put(&files);
                running
            }
            (Err(error), _) => panic!("the control plane: {error}"),
            (_, Err(error)) => panic!("a directory for certificates: {error}"),
        }
    }

    /// Applies more YAML, as `meshctl apply` does. Members come to use it a few milliseconds later.
    ///
    /// # Panics
    ///
    /// It has an error: its diagnostics are the message.
    #[track_caller]
    pub fn apply(&self, yaml: &str) {
        self.put(&[SourceFile { name: "test.yaml".to_owned(), text: yaml.to_owned() }]);
    }

    #[track_caller]
    fn put(&self, files: &[SourceFile]) {
        if let Err(error) = self.plane.apply(files) {
            panic!("{}", told(&error));
        }
    }

    /// A workload called `name` that serves `handler`, once it is a member, on whatever port the loopback had free.
    ///
    /// Where a `Deployment` of the YAML is called so (or `NAME.NAMESPACE`), namespace, labels and service account are its. Else namespace and account
    /// are `default` (`reviews-v2.shop` is in namespace `shop`), and the labels `app` and `version` are taken from a name such as `reviews-v2`.
    ///
    /// # Panics
    ///
    /// It cannot join.
    pub async fn serve<S, B>(&self, name: &str, handler: S) -> Member
    where
        S: Handler<B> + 'static,
        B: HttpBody<Error: Into<BoxError>, Data: Send> + Send + 'static,
    {
        let listener = match TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await {
            Ok(listener) => listener,
            Err(error) => panic!("{name}: {error}"),
        };
        let port = listener.local_addr().map_or(0, |address| address.port());
        let mesh = self.join(name, vec![port]).await;
        let (server, panics) = (mesh.clone(), Panics::of(name));
        let (handler, seen) = (Watched::new(handler, &panics), panics.clone());
        let serving = tokio::spawn(async move {
            let served: Pin<Box<dyn Future<Output = _> + Send>> = Box::pin(server.serve_listener(listener, handler));
            if let Err(error) = seen.watch(served).await {
                seen.add(format!("it cannot serve: {error}"));
            }
        });
        Member { mesh, serving, panics }
    }

    /// A workload called `name` that only calls; who it is, is said as for [`serve`](Self::serve).
    ///
    /// # Panics
    ///
    /// It cannot join.
    pub async fn client(&self, name: &str) -> Mesh {
        self.join(name, Vec::new()).await
    }

    async fn join(&self, name: &str, ports: Vec<u16>) -> Mesh {
        let ip = Ipv4Addr::LOCALHOST.into();
        let spec = match self.plane.announced(name, ip) {
            Some(announced) => WorkloadSpec { ports, ..announced },
            None => {
                let (short, namespace) = name.split_once('.').unwrap_or((name, "default"));
                let namespace = namespace.to_owned();
                WorkloadSpec { labels: labels(short), ports, namespace, ..WorkloadSpec::new(short, ip) }
            }
        };
        let dir: PathBuf = self.files.path().join(name);
        let bootstrap = match self.plane.bootstrap_for(&spec, &dir) {
            Ok(bootstrap) => bootstrap.to_string(),
            Err(error) => panic!("{name}: {error}"),
        };
        let variable = |variable: &str| match variable {
            "GRPC_XDS_BOOTSTRAP_CONFIG" => Some(bootstrap.clone()),
            "MESH_ADMIN_ADDR" => Some("off".to_owned()),
            _ => None,
        };
        let built = match Builder::from_variables(variable) {
            Ok(builder) => builder.build().await,
            Err(error) => Err(error),
        };
        match built {
            Ok(mesh) => {
                mesh.ready().await;
                mesh
            }
            Err(error) => panic!("{name}: {error}"),
        }
    }

    /// What each member said to what it was sent: which types are in force, and what it refused.
    pub fn status(&self) -> Vec<ProxyStatus> {
        self.plane.proxy_status()
    }

    /// The control plane itself.
    pub fn control_plane(&self) -> &ControlPlane {
        &self.plane
    }
}

impl Member {
    /// Its membership, to call others with.
    pub fn mesh(&self) -> &Mesh {
        &self.mesh
    }

    /// Ends it once what is under way is answered.
    ///
    /// # Panics
    ///
    /// Its handler panicked, or it could not serve.
    pub async fn finish(mut self) {
        self.mesh.shutdown();
        // Of its own panics the record tells.
        let _ = (&mut self.serving).await;
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.serving.abort();
        // A second panic would end the process, and with it the words of the first.
        if let Some(words) = self.panics.told().filter(|_| !std::thread::panicking()) {
            panic!("{words}");
        }
    }
}

/// `app: reviews, version: v2` of `reviews-v2`.
fn labels(name: &str) -> Labels {
    let label = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    match name.rsplit_once('-') {
        Some((app, version)) if version.starts_with('v') => [label("app", app), label("version", version)].into(),
        _ => [label("app", name)].into(),
    }
}
