//! The control plane of one run: the embedded one, with the start resources of Bookinfo and a bootstrap for each member.

use std::path::Path;

use axum::BoxError;
use mesh_control::store::SourceFile;
use mesh_control::{ControlPlane, Listener, StartError};
use tokio::signal::unix::{SignalKind, signal};

use crate::layout::Layout;

/// Services, accounts, the gateway and its routes: what is there before anybody applies anything.
const START: &str = include_str!("mesh/bookinfo.yaml");

/// Serves the run in `dir` until SIGTERM. Its state is in `dir` too, so that it can be started again.
pub(crate) async fn run(dir: &Path) -> Result<(), BoxError> {
    let layout = Layout::read(dir)?;
    let state = dir.join("state");
    let first_time = !state.exists();
    let mut builder = ControlPlane::builder().xds_addr(layout.xds).api_addr(layout.api).state_dir(&state);
    if first_time {
        builder = builder.files(vec![SourceFile { name: "bookinfo.yaml".into(), text: START.into() }]);
    }
    let plane = builder.start().await.map_err(explain)?;
    for member in &layout.members {
        let bootstrap = plane.bootstrap_for(&member.spec(), dir)?;
        // Renamed into place, so that whoever waits for the file finds all of it.
        let (unfinished, finished) = (dir.join("unfinished.json"), member.bootstrap(dir));
        std::fs::write(&unfinished, serde_json::to_vec_pretty(&bootstrap)?)?;
        std::fs::rename(unfinished, finished)?;
    }
    signal(SignalKind::terminate())?.recv().await;
    plane.shutdown().await;
    Ok(())
}

/// Adds to the control plane's own words which flag helps.
fn explain(error: StartError) -> BoxError {
    match &error {
        StartError::Bind { listener: Listener::Xds, .. } => format!("{error}; choose another with --xds-addr").into(),
        StartError::Bind { listener: Listener::Api, .. } => format!("{error}; choose another with --api-addr").into(),
        StartError::Files(findings) => {
            let findings: String = findings.iter().map(|finding| format!("\n{finding}")).collect();
            format!("{error}{findings}").into()
        }
        _ => error.into(),
    }
}
