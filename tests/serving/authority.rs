//! The authority is changed while members call each other without pause: no request fails, by whatever step.

use std::{
    net::SocketAddr,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, SystemTime},
};

use mesh_control::{ControlPlane, WorkloadSpec, ca::Step, store::SourceFile};
use mesh_tower::Mesh;
use mesh_xds::bootstrap::Bootstrap;
use tokio::{
    net::TcpListener,
    task::JoinSet,
    time::{Instant, sleep},
};

use crate::{
    harness::{Kind, Program},
    plane::{PATIENCE, anywhere},
};

/// Callers of each program.
const CALLERS: usize = 8;

/// CT5, CT7: the authority changes in its three steps, again and again, and with it every member's certificate, under as many requests
/// as there can be: all of them are answered. `MESH_LONG=1` makes it twenty changes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_of_the_authority_fail_no_request() {
    let changes = if std::env::var_os("MESH_LONG").is_some() { 20 } else { 2 };
    for kind in Kind::ALL {
        let dir = tempfile::tempdir().unwrap();
        let plane = ControlPlane::builder().xds_addr(anywhere()).api_addr(anywhere());
        let plane = plane.state_dir(dir.path().join("state")).start().await.unwrap();
        let protocol = if kind == Kind::Http1 { "http" } else { "grpc" };
        let text = format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: app}}\nspec: {{ports: [{{name: {protocol}, port: 80, targetPort: http}}], selector: {{app: app}}}}\n"
        );
        plane.apply(&[SourceFile { name: "app.yaml".to_owned(), text }]).unwrap();
        let (mut meshes, mut servers) = (Vec::new(), JoinSet::new());
        for n in 0..2 {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let mesh = member(&plane, dir.path(), &format!("app-{n}"), listener.local_addr().ok()).await;
            let serving = mesh.clone();
            let handler = axum::Router::new().fallback(|| async { [("grpc-status", "0")] });
            servers.spawn(async move { drop(serving.serve_listener(listener, handler).await) });
            meshes.push(mesh);
        }
        let (mut callers, stop) = (JoinSet::new(), Arc::new(AtomicBool::new(false)));
        let answered = Arc::new(AtomicUsize::new(0));
        for n in 0..2 {
            let mesh = member(&plane, dir.path(), &format!("page-{n}"), None).await;
            let program = Program::over(kind, mesh.clone());
            until("it has somebody to call", async || program.get("/a.B/C").await.is_ok()).await;
            for _ in 0..CALLERS {
                let (mesh, stop, answered) = (mesh.clone(), stop.clone(), answered.clone());
                callers.spawn(async move {
                    let program = Program::over(kind, mesh);
                    while !stop.load(Relaxed) {
                        let answer = program.get("/a.B/C").await;
                        assert!(answer.is_ok(), "{kind:?}: {answer:?}");
                        answered.fetch_add(1, Relaxed);
                    }
                });
            }
            meshes.push(mesh);
        }
        let leaf = |mesh: &Mesh| mesh.identity().load().map(|identity| identity.chain()[0].clone());
        let roots = |mesh: &Mesh| mesh.identity().trust().bundles.values().map(Vec::len).sum::<usize>();
        let begun = Instant::now();
        for _ in 0..changes {
            let before: Vec<_> = meshes.iter().map(leaf).collect();
            let step = |step| plane.ca().rotate(Some(step), None, SystemTime::now()).unwrap();
            step(Step::Add);
            until("all trust both", async || meshes.iter().all(|mesh| roots(mesh) == 2)).await;
            step(Step::Activate);
            let renewed = || meshes.iter().zip(&before).all(|(mesh, before)| leaf(mesh) != *before);
            until("all have another certificate", async || renewed()).await;
            step(Step::Remove);
            until("all trust the new one alone", async || meshes.iter().all(|mesh| roots(mesh) == 1)).await;
            // Some requests under each authority.
            let count = answered.load(Relaxed);
            until("requests go on", async || answered.load(Relaxed) > count + 100 || callers.is_empty()).await;
        }
        stop.store(true, Relaxed);
        let took = begun.elapsed();
        while let Some(ended) = callers.join_next().await {
            ended.unwrap();
        }
        println!("{kind:?}: {changes} changes in {took:?}, {} requests", answered.load(Relaxed));
        assert!(answered.load(Relaxed) > changes * 100, "{answered:?}");
    }
}

/// A member of the account of its name, which listens there if anywhere.
async fn member(plane: &ControlPlane, dir: &Path, name: &str, at: Option<SocketAddr>) -> Mesh {
    let app = name.split('-').next().unwrap();
    let spec = WorkloadSpec {
        service_account: app.to_owned(),
        labels: [("app".to_owned(), app.to_owned())].into(),
        ports: at.iter().map(SocketAddr::port).collect(),
        ..WorkloadSpec::new(name, [127, 0, 0, 1].into())
    };
    let bootstrap = plane.bootstrap_for(&spec, &dir.join("workloads")).unwrap();
    let bootstrap = Bootstrap::parse(&bootstrap.to_string(), "test").unwrap();
    Mesh::builder().bootstrap(bootstrap).build().await.unwrap()
}

async fn until(what: &str, holds: impl AsyncFn() -> bool) {
    let begun = Instant::now();
    while !holds().await {
        assert!(begun.elapsed() < PATIENCE, "never: {what}");
        sleep(Duration::from_millis(5)).await;
    }
}
