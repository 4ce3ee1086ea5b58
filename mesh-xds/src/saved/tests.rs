//! The file, and when it is used.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use mesh_core::config::{Cluster, Endpoint, Endpoints, LocalityEndpoints, Name};
use serde_json::json;

use super::*;

/// Nothing here takes this long unless it is broken.
const PATIENCE: Duration = Duration::from_secs(20);

fn bootstrap() -> Bootstrap {
    let text = json!({
        "xds_servers": [{"server_uri": "127.0.0.1:1", "channel_creds": [{"type": "insecure"}]}],
        "node": {"id": "sidecar~a"},
    });
    Bootstrap::parse(&text.to_string(), "test").unwrap()
}

fn config(name: &str) -> Arc<Config> {
    let address: std::net::SocketAddr = "127.0.0.1:9".parse().unwrap();
    let locality = LocalityEndpoints { endpoints: vec![Endpoint::from(address)], ..LocalityEndpoints::default() };
    let endpoints = Arc::new(Endpoints { localities: vec![locality], ..Endpoints::default() });
    let name = Name::from(name);
    let cluster = Cluster { name: name.clone(), endpoints, ..Cluster::default() };
    let mut config = Config::default();
    config.clusters.insert(name, Arc::new(cluster));
    Arc::new(config)
}

/// XD37: what is written is read again, whole; the file is its owner's alone, and no other is left beside it.
#[test]
fn a_configuration_survives_the_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("last");
    let saved = Saved::new(&path, Saved::MAX_AGE, &bootstrap());
    let now = UNIX_EPOCH + Duration::from_secs(1_000_000);
    assert_eq!(saved.load(now), Ok(None));
    for name in ["a", "b"] {
        saved.store(&config(name), now).unwrap();
        assert_eq!(saved.load(now), Ok(Some(Loaded { config: config(name), written: now })));
    }
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    #[cfg(unix)]
    {
        let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&path).unwrap().permissions());
        assert_eq!(mode & 0o777, 0o600);
    }
    // A directory that is not there: told in one line, and the file of before stays.
    let nowhere = Saved::new(directory.path().join("no/last"), Saved::MAX_AGE, &bootstrap());
    let error = nowhere.store(&config("a"), now).unwrap_err();
    assert!(error.contains("no/last") && error.lines().count() == 1, "{error}");
}

/// XD37: a file that is damaged anywhere, too old, of another node or version is refused in one line that names it.
#[test]
fn a_file_that_cannot_be_trusted_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("last");
    let saved = Saved::new(&path, Duration::from_secs(60), &bootstrap());
    let now = UNIX_EPOCH + Duration::from_secs(1_000_000);
    saved.store(&config("a"), now).unwrap();
    let good = fs::read(&path).unwrap();
    let refused = |saved: &Saved, now| {
        let error = saved.load(now).unwrap_err();
        assert!(error.contains("last") && error.lines().count() == 1, "{error}");
        error
    };
    assert!(refused(&saved, now + Duration::from_secs(61)).contains("61 s old"));
    assert!(refused(&saved, now - Duration::from_secs(1)).contains("future"));
    let mut other = bootstrap();
    other.node.id = "sidecar~b".to_owned();
    assert!(refused(&Saved::new(&path, Saved::MAX_AGE, &other), now).contains("sidecar~b"));
    let newer = String::from_utf8(good.clone()).unwrap().replacen(env!("CARGO_PKG_VERSION"), "9.9.9", 1);
    fs::write(&path, newer).unwrap();
    assert!(refused(&saved, now).contains("9.9.9"));
    // Every byte counts, and so does the end.
    for at in (0..good.len()).step_by(7) {
        let mut bad = good.clone();
        bad[at] ^= 0x20;
        fs::write(&path, &bad).unwrap();
        let error = saved.load(now).map(|loaded| loaded.map(|loaded| loaded.config));
        assert!(error.is_err() || error == Ok(Some(config("a"))), "byte {at}");
        fs::write(&path, &good[..at]).unwrap();
        assert!(saved.load(now).is_err(), "cut at {at}");
    }
    fs::write(&path, &good).unwrap();
    assert!(saved.load(now).is_ok());
}

/// XD37, XD9: no control plane: the file is used and told to be stale; its first answer replaces it, and is written.
#[tokio::test]
async fn the_file_bridges_the_time_without_control_plane() {
    let directory = tempfile::tempdir().unwrap();
    let saved = Saved::new(directory.path().join("last"), Saved::MAX_AGE, &bootstrap());
    saved.store(&config("old"), SystemTime::now()).unwrap();
    let (publish, live) = watch::channel(None);
    let keeper = Keeper::start(saved.clone(), live, || true);
    let mut configs = keeper.config();
    let is = |wanted: Arc<Config>| move |config: &Option<Arc<Config>>| config.as_ref() == Some(&wanted);
    tokio::time::timeout(PATIENCE, configs.wait_for(is(config("old")))).await.unwrap().unwrap();
    assert!(keeper.standing().stale && keeper.standing().written.is_some());
    publish.send_replace(Some(config("new")));
    tokio::time::timeout(PATIENCE, configs.wait_for(is(config("new")))).await.unwrap().unwrap();
    assert_eq!(keeper.standing(), Standing::default());
    publish.send_replace(Some(config("newer")));
    tokio::time::timeout(PATIENCE, configs.wait_for(is(config("newer")))).await.unwrap().unwrap();
    let written = async {
        while saved.load(SystemTime::now()).unwrap().is_none_or(|loaded| loaded.config != config("newer")) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, written).await.unwrap();
}

/// XD37: a control plane that answers at once is never preceded by what was saved.
#[tokio::test]
async fn a_control_plane_that_answers_comes_first() {
    let directory = tempfile::tempdir().unwrap();
    let saved = Saved::new(directory.path().join("last"), Saved::MAX_AGE, &bootstrap());
    saved.store(&config("old"), SystemTime::now()).unwrap();
    let (_publish, live) = watch::channel(Some(config("new")));
    let keeper = Keeper::start(saved, live, || true);
    let mut configs = keeper.config();
    let first = tokio::time::timeout(PATIENCE, configs.wait_for(Option::is_some)).await.unwrap().unwrap().clone();
    assert_eq!(first, Some(config("new")));
    assert!(!keeper.standing().stale);
}

/// XD37: while the control plane is there, a configuration that does not change does not age; from its loss on it does.
#[tokio::test(start_paused = true)]
async fn a_quiet_mesh_does_not_age() {
    const HOUR: Duration = Duration::from_secs(60 * 60);
    let directory = tempfile::tempdir().unwrap();
    let saved = Saved::new(directory.path().join("last"), Saved::MAX_AGE, &bootstrap());
    let (_publish, live) = watch::channel(Some(config("quiet")));
    let there = Arc::new(std::sync::atomic::AtomicBool::new(true));
    let answers = Arc::clone(&there);
    let start = Instant::now();
    let clock = move || UNIX_EPOCH + Duration::from_secs(1_000_000) + start.elapsed();
    let _keeper =
        Keeper::with_clock(saved.clone(), live, move || answers.load(std::sync::atomic::Ordering::Relaxed), clock);
    for _ in 0..50 {
        tokio::time::sleep(HOUR).await;
    }
    // Writing takes a moment of another clock.
    let loaded = async {
        loop {
            match saved.load(clock()) {
                Ok(Some(loaded)) => return loaded,
                _ => tokio::task::yield_now().await,
            }
        }
    };
    let loaded = loaded.await;
    assert_eq!(loaded.config, config("quiet"));
    assert!(clock().duration_since(loaded.written).unwrap() <= 4 * HOUR);
    there.store(false, std::sync::atomic::Ordering::Relaxed);
    for _ in 0..30 {
        tokio::time::sleep(HOUR).await;
    }
    assert!(saved.load(clock()).unwrap_err().contains("s old"));
}
