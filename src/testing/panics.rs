//! Panics of members: kept, so that the test fails which they would otherwise only hang. A server's task that panics is nobody's failure:
//! its caller sees a closed connection and tries again.

use std::{
    any::Any,
    future::poll_fn,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
};

use tower_service::Service;

/// What went wrong in a member so far. Clones are one.
#[derive(Clone, Debug)]
pub(super) struct Panics {
    member: Arc<str>,
    words: Arc<Mutex<Vec<String>>>,
}

/// A handler whose panics are kept; they go on as they would.
#[derive(Clone, Debug)]
pub(super) struct Watched<S> {
    inner: S,
    panics: Panics,
}

impl Panics {
    pub(super) fn of(member: &str) -> Self {
        Self { member: member.into(), words: Arc::default() }
    }

    pub(super) fn add(&self, words: String) {
        self.words.lock().unwrap_or_else(PoisonError::into_inner).push(words);
    }

    /// All of it, if there is any.
    pub(super) fn told(&self) -> Option<String> {
        let words = self.words.lock().unwrap_or_else(PoisonError::into_inner);
        (!words.is_empty()).then(|| format!("member {}: {}", self.member, words.join("; ")))
    }

    fn caught<T>(&self, doing: impl FnOnce() -> T) -> T {
        match catch_unwind(AssertUnwindSafe(doing)) {
            Ok(done) => done,
            Err(panic) => {
                self.add(format!("it panicked: {}", words(&*panic)));
                resume_unwind(panic)
            }
        }
    }

    /// A future whose panics are kept.
    pub(super) async fn watch<F: Future + ?Sized>(&self, mut future: Pin<Box<F>>) -> F::Output {
        poll_fn(|cx| self.caught(|| future.as_mut().poll(cx))).await
    }
}

fn words(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("without words")
}

impl<S> Watched<S> {
    pub(super) fn new(inner: S, panics: &Panics) -> Self {
        Self { inner, panics: panics.clone() }
    }
}

impl<S, R> Service<R> for Watched<S>
where
    S: Service<R, Future: Send + 'static>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        let Self { inner, panics } = self;
        panics.caught(|| inner.poll_ready(cx))
    }

    fn call(&mut self, request: R) -> Self::Future {
        let Self { inner, panics } = self;
        let answer = Box::pin(panics.caught(|| inner.call(request)));
        let panics = panics.clone();
        Box::pin(async move { panics.watch(answer).await })
    }
}
