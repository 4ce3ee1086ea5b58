//! The waker of one connection, which stays the same whoever waits for the connection.
//!
//! A connection is driven by the request that uses it, inside that request's own poll. Whatever the connection is woken
//! by while it is being polled anyway (a chunk that was asked for, a request that was put in) then costs no turn of the
//! scheduler: it is only remembered, and looked at before the poll returns. What wakes it while the request waits wakes
//! the request. What wakes it while it lies idle is remembered too: the peer closed it, most likely.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    task::{Context, Wake, Waker},
};

use futures_util::task::AtomicWaker;

/// Who is woken when something happens on a connection.
#[derive(Debug, Default)]
pub(super) struct Signal {
    woken: AtomicBool,
    /// Somebody waits; otherwise a wake is only remembered.
    waiting: AtomicBool,
    task: AtomicWaker,
}

impl Signal {
    /// From here on nobody needs to be woken: whoever holds the connection looks at it by itself.
    pub(super) fn quiet(&self) {
        self.waiting.store(false, SeqCst);
    }

    /// Did anything happen since the last time this was asked?
    pub(super) fn take(&self) -> bool {
        self.woken.swap(false, SeqCst)
    }

    /// Did anything happen? It stays so.
    pub(super) fn was_woken(&self) -> bool {
        self.woken.load(SeqCst)
    }

    /// The task will wait: false when something has happened already, so that it must look again.
    pub(super) fn wait(&self, cx: &Context<'_>) -> bool {
        self.task.register(cx.waker());
        // Either we see that it happened, or whoever makes it happen sees that we wait.
        self.waiting.store(true, SeqCst);
        if self.take() {
            self.quiet();
            return false;
        }
        true
    }
}

impl Wake for Signal {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.woken.store(true, SeqCst);
        if self.waiting.load(SeqCst) {
            self.task.wake();
        }
    }
}

/// A signal and the waker that sets it.
pub(super) fn signal() -> (Arc<Signal>, Waker) {
    let signal = Arc::new(Signal::default());
    let waker = Waker::from(Arc::clone(&signal));
    (signal, waker)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Default)]
    struct Counted(std::sync::atomic::AtomicUsize);

    impl Wake for Counted {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, SeqCst);
        }
    }

    #[test]
    fn only_a_waiting_task_is_woken() {
        let (signal, waker) = signal();
        let counted = Arc::new(Counted::default());
        let task = Waker::from(Arc::clone(&counted));
        let cx = Context::from_waker(&task);
        waker.wake_by_ref();
        assert!(!signal.wait(&cx), "it happened before the task waited");
        assert!(signal.wait(&cx));
        waker.wake_by_ref();
        assert_eq!(counted.0.load(SeqCst), 1);
        signal.quiet();
        waker.wake_by_ref();
        assert_eq!(counted.0.load(SeqCst), 1, "nobody waits");
        assert!(signal.take());
        assert!(!signal.take());
    }
}
