//! What a server answers by itself, and what it adds to the answers of its application.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use mesh_core::outcome::{grpc_of_http, grpc_status};
use tokio::time::sleep;

use super::{Answer, OVERLOADED, PUSHBACK};
use crate::error::percent_encode;

/// An answer, unless the limit passes while the request has not been read; then `None` (TO9).
pub(super) async fn in_time<T>(
    answer: impl Future<Output = T>,
    limit: Option<Duration>,
    read: Arc<AtomicBool>,
) -> Option<T> {
    let Some(limit) = limit.filter(|_| !read.load(Relaxed)) else { return Some(answer.await) };
    let late = async {
        sleep(limit).await;
        if read.load(Relaxed) {
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        biased;
        answer = answer => Some(answer),
        () = late => None,
    }
}

/// As far as its head says.
pub(super) fn has_failed<B>(response: &Response<B>) -> bool {
    response.status().is_server_error() || grpc_status(response.headers()).is_some_and(|status| status != 0)
}

/// Tells the caller that this failure was tried again already: trying it once more would multiply the load below (RT22).
pub(super) fn in_vain(headers: &mut HeaderMap, is_grpc: bool) {
    match is_grpc {
        true => headers.insert(PUSHBACK, HeaderValue::from_static("-1")),
        false => headers.insert(OVERLOADED, HeaderValue::from_static("true")),
    };
}

/// An answer of our own, in the caller's protocol.
pub(super) fn own_answer<B>(status: StatusCode, is_grpc: bool, reason: String) -> Response<Answer<B>> {
    let mut response = Response::new(Answer::Own { text: Bytes::new() });
    if is_grpc {
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert("grpc-status", HeaderValue::from(grpc_of_http(status.as_u16())));
        if let Ok(message) = HeaderValue::try_from(percent_encode(&reason)) {
            headers.insert("grpc-message", message);
        }
        return response;
    }
    *response.status_mut() = status;
    if !reason.is_empty() {
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    }
    *response.body_mut() = Answer::Own { text: reason.into() };
    response
}
