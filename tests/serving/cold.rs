//! Starting without a control plane, from the last good configuration on disk.

use std::{fs, time::Duration};

use tokio::time::sleep;

use crate::{
    harness::{Kind, Upstream},
    plane::{PATIENCE, RECOVERY, Sayings, anywhere, leading_to, page, program, reaches, set, stands},
};

/// XD37, XD9: a program that starts while no control plane answers serves what it knew before, says that this is stale, and
/// follows the control plane once it is there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_starts_from_what_it_knew() {
    for kind in Kind::ALL {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("saved");
        let (one, two) = (Upstream::start("one").await, Upstream::start("two").await);
        let sayings = Sayings::of(&leading_to(kind, &one));
        let plane = sayings.speak(anywhere());
        let address = plane.address;
        let before = program(kind, address, Some(&file)).await;
        reaches(&before, "one").await;
        let began = std::time::Instant::now();
        while !file.exists() {
            assert!(began.elapsed() < PATIENCE);
            sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(page(&before, "/ready").await.trim(), "ready");
        drop((plane, before));

        let again = program(kind, address, Some(&file)).await;
        let took = reaches(&again, "one").await;
        assert!(took < RECOVERY, "{kind:?}: {took:?}");
        let status = stands(&again, |status| status["saved"]["stale"] == true).await;
        assert!(status["connected_since"].is_null() && status["saved"]["written"].is_object(), "{status}");
        assert_eq!(page(&again, "/ready").await.trim(), "ready, with a saved configuration");
        sayings.say(set(&leading_to(kind, &two)));
        let _plane = sayings.speak(address);
        let took = reaches(&again, "two").await;
        assert!(took < RECOVERY, "{kind:?}: {took:?}");
        stands(&again, |status| status["saved"]["stale"] == false).await;
    }
}

/// XD37: a damaged file is refused in one line and replaced by what the control plane says.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_file_is_refused() {
    for kind in Kind::ALL {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("saved");
        fs::write(&file, "{\"mesh_saved_config\":1,\n{}").unwrap();
        let one = Upstream::start("one").await;
        let sayings = Sayings::of(&leading_to(kind, &one));
        let address = sayings.speak(anywhere()).address;
        let program = program(kind, address, Some(&file)).await;
        let status = stands(&program, |status| status["saved"]["error"].is_string()).await;
        let why = status["saved"]["error"].as_str().unwrap();
        assert!(why.contains("saved") && why.contains("header") && why.lines().count() == 1, "{why}");
        assert!(status["saved"]["stale"] == false && program.mesh.snapshot().is_none());
        let _plane = sayings.speak(address);
        reaches(&program, "one").await;
        stands(&program, |status| status["saved"]["error"].is_null()).await;
        assert!(fs::read_to_string(&file).unwrap().contains("sidecar~127.0.0.1"));
    }
}
