//! `meshctl dev`: a control plane in the foreground, until interrupted.

use std::{io::ErrorKind, net::SocketAddr, path::PathBuf};

use mesh_control::{ControlPlane, Listener, StartError, compile::MeshSettings};
use tokio::signal;
use tracing_subscriber::EnvFilter;

use crate::cli::{BAD_INPUT, FAILURE, Failure, USAGE, input::Files, output, place::Pointer};

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Dev {
    /// Where workloads connect: xDS and certificates.
    #[arg(long, default_value = "127.0.0.1:15012", value_name = "IP:PORT")]
    xds_addr: SocketAddr,
    /// Where meshctl connects; a loopback address.
    #[arg(long, default_value = "127.0.0.1:15014", value_name = "IP:PORT")]
    api_addr: SocketAddr,
    /// Where objects, workloads and keys are kept over restarts; without, they are gone when it ends.
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// An authority of one's own: ca-cert.pem, ca-key.pem, root-cert.pem and cert-chain.pem, as in Istio's secret cacerts.
    #[arg(long, value_name = "DIR")]
    ca_dir: Option<PathBuf>,
    /// Which of several control planes beside one another this is: it leaves out objects whose label istio.io/rev is another.
    #[arg(long, default_value = "default", value_name = "NAME")]
    revision: String,
    #[command(flatten)]
    files: Files,
    /// Keep what the YAML of this folder says, as it changes; may be repeated.
    #[arg(long, value_name = "DIR")]
    watch: Vec<PathBuf>,
}

impl Dev {
    /// Without any object, and with nothing kept.
    pub(in crate::cli) fn at(api_addr: SocketAddr, xds_addr: SocketAddr) -> Self {
        Self {
            xds_addr,
            api_addr,
            state_dir: None,
            ca_dir: None,
            revision: "default".to_owned(),
            files: Files::default(),
            watch: Vec::new(),
        }
    }

    pub(in crate::cli) async fn run(self) -> Result<(), Failure> {
        self.run_and(|_| Ok(())).await
    }

    /// With something to be done as soon as it runs.
    pub(in crate::cli) async fn run_and(
        self,
        then: impl FnOnce(&ControlPlane) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn"));
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
        let files = self.files.read()?;
        let mesh = MeshSettings { revision: self.revision.clone(), ..MeshSettings::default() };
        let mut builder =
            ControlPlane::builder().xds_addr(self.xds_addr).api_addr(self.api_addr).mesh(mesh).files(files);
        // In a directory even then: whoever may read it can let workloads in, with `meshctl run`.
        let temporary = match &self.state_dir {
            Some(_) => None,
            None => Some(
                tempfile::Builder::new()
                    .prefix("meshctl-")
                    .tempdir()
                    .map_err(|error| Failure::new(FAILURE, format!("no directory for the state: {error}")))?,
            ),
        };
        let state = self.state_dir.as_deref().or_else(|| temporary.as_ref().map(|dir| dir.path()));
        if let Some(dir) = state {
            builder = builder.state_dir(dir);
        }
        if let Some(dir) = &self.ca_dir {
            builder = builder.ca_dir(dir);
        }
        for folder in &self.watch {
            builder = builder.watch(folder);
        }
        let plane = builder.start().await.map_err(failure)?;
        let kept = match &self.state_dir {
            Some(dir) => format!("in {}", dir.display()),
            None => "gone when it ends".to_owned(),
        };
        let pointer = state.map(|dir| Pointer::write(&plane.api_address().to_string(), dir));
        let _pointer = match pointer {
            Some(Err(error)) => {
                output::note(&format!("`meshctl run` will need --state-dir: {error}"));
                None
            }
            Some(Ok(pointer)) => pointer,
            None => None,
        };
        output::note(&format!(
            "The control plane is ready; its state is {kept}.\n  workloads connect to  {}\n  meshctl connects to   {}\n  the console           http://{}/console/\n\
             Press Ctrl-C to end it.",
            plane.xds_address(),
            plane.api_address(),
            plane.api_address()
        ));
        then(&plane)?;
        interrupted().await;
        plane.shutdown().await;
        Ok(())
    }
}

fn failure(error: StartError) -> Failure {
    match error {
        StartError::Bind { listener, address, source } => {
            let flag = match listener {
                Listener::Xds => "--xds-addr",
                Listener::Api => "--api-addr",
            };
            let reason = match source.kind() {
                ErrorKind::AddrInUse => format!("port {} of {} is taken", address.port(), address.ip()),
                _ => format!("{address} cannot be listened on ({source})"),
            };
            Failure::new(FAILURE, format!("{reason}; choose another with {flag} IP:PORT"))
        }
        StartError::NotLoopback(_) => Failure::new(USAGE, format!("{error}; choose another with --api-addr IP:PORT")),
        StartError::Files(diagnostics) => Failure {
            code: BAD_INPUT,
            message: "the files given with -f or --watch are wrong; nothing was started".to_owned(),
            diagnostics,
        },
        error => Failure::new(FAILURE, error.to_string()),
    }
}

/// Ctrl-C, or a supervisor's wish that it end.
async fn interrupted() {
    #[cfg(unix)]
    if let Ok(mut terminate) = signal::unix::signal(signal::unix::SignalKind::terminate()) {
        tokio::select! {
            _ = signal::ctrl_c() => {}
            _ = terminate.recv() => {}
        }
        return;
    }
    let _ = signal::ctrl_c().await;
}
