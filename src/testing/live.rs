//! A mesh that runs: a control plane in this process, and members that join it on ports of the loopback.

use std::{net::Ipv4Addr, path::PathBuf};

use http_body::Body as HttpBody;
use mesh_control::{ControlPlane, WorkloadSpec, api::ProxyStatus, store::SourceFile};
use mesh_core::config::Labels;
use tempfile::TempDir;
use tokio::{net::TcpListener, task::JoinHandle};

use super::told;
use crate::{BoxError, Builder, Mesh, server::Handler};

/// A running mesh. Dropping it ends its control plane.
#[derive(Debug)]
pub struct Running {
    plane: ControlPlane,
    files: TempDir,
}

/// A workload that serves. Dropping it ends it at once.
#[derive(Debug)]
pub struct Member {
    mesh: Mesh,
    serving: JoinHandle<()>,
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

    /// A workload called `name` that serves `handler`, once it is a member. The labels `app` and `version` are taken from a name
    /// such as `reviews-v2`; a service finds it by them, on whatever port the loopback had free.
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
        let server = mesh.clone();
        let serving = tokio::spawn(async move {
            if let Err(error) = server.serve_listener(listener, handler).await {
                panic!("{error}");
            }
        });
        Member { mesh, serving }
    }

    /// A workload called `name` that only calls.
    ///
    /// # Panics
    ///
    /// It cannot join.
    pub async fn client(&self, name: &str) -> Mesh {
        self.join(name, Vec::new()).await
    }

    async fn join(&self, name: &str, ports: Vec<u16>) -> Mesh {
        let labels = labels(name);
        let spec = WorkloadSpec { labels, ports, ..WorkloadSpec::new(name, Ipv4Addr::LOCALHOST.into()) };
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
}

impl Drop for Member {
    fn drop(&mut self) {
        self.serving.abort();
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
