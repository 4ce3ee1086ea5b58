//! How late a machine under load is with what it is asked to do: to be added to limits of time.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use tokio::{task::JoinHandle, time::sleep};

/// Between two looks.
const EVERY: Duration = Duration::from_millis(20);
/// What any machine takes besides.
const USUAL: Duration = Duration::from_millis(5);

/// Watches from when it is made until it is dropped.
#[derive(Debug)]
pub(crate) struct Lateness {
    late: Arc<AtomicU64>,
    watching: JoinHandle<()>,
}

impl Lateness {
    /// From now on.
    pub(crate) fn watch() -> Self {
        let late = Arc::new(AtomicU64::new(0));
        let watching = tokio::spawn({
            let late = Arc::clone(&late);
            async move {
                loop {
                    let begun = Instant::now();
                    sleep(EVERY).await;
                    let over = begun.elapsed().saturating_sub(EVERY + USUAL);
                    late.fetch_add(u64::try_from(over.as_millis()).unwrap(), Relaxed);
                }
            }
        });
        Self { late, watching }
    }

    /// How much later than asked for, in all.
    pub(crate) fn so_far(&self) -> Duration {
        Duration::from_millis(self.late.load(Relaxed))
    }
}

impl Drop for Lateness {
    fn drop(&mut self) {
        self.watching.abort();
    }
}
