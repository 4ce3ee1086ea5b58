//! A connection, or a place on one, while a request has it.
//!
//! What is let go of without having been used goes back. An HTTP/1.1 connection let go of in the middle of a response
//! goes back when what is left of the response is here already, else it closes; an HTTP/2 stream is reset and frees its
//! place.

use std::{
    future::Future,
    sync::{Arc, Weak},
    time::Duration,
};

use futures_util::future::Either;
use http::{Request, Response};
use hyper::body::Incoming;
use mesh_core::{identity::SpiffeId, time::Time};
use tokio::{sync::Notify, time::sleep};

use super::{
    endpoint::EndpointPool,
    http1::Http1,
    http2::{Http2, announced},
    response::Flow,
};
use crate::{body::Body, error::Error, upkeep::Owned};

/// How long a connection may need to be ready again after its response ended, while the request is still being sent.
const SETTLE: Duration = Duration::from_secs(5);

/// What became of a request.
pub(super) enum Sent<B> {
    /// The head of the response is here.
    Answered(Response<B>),
    /// Nothing of it was sent.
    Returned(Box<Request<Body>>, Error),
    /// The connection or stream ended.
    Failed(Error),
}

/// A connection for one request.
pub(super) enum Lease {
    Http1(Held),
    Http2(Place),
}

impl Lease {
    /// It served requests before this one.
    pub(super) fn is_reused(&self) -> bool {
        match self {
            Self::Http1(held) => held.connection.as_ref().is_some_and(|connection| connection.requests > 1),
            Self::Http2(place) => place.connection.requests() > 1,
        }
    }

    pub(super) fn is_http2(&self) -> bool {
        matches!(self, Self::Http2(_))
    }

    /// Who is at the other end, as its certificate proved.
    pub(super) fn peer(&self) -> Option<&SpiffeId> {
        match self {
            Self::Http1(held) => held.connection.as_ref()?.peer.as_ref(),
            Self::Http2(place) => place.connection.peer.as_ref(),
        }
    }

    /// Sends the request; the response comes with the way its body will arrive.
    pub(super) fn send(&mut self, request: Request<Body>) -> impl Future<Output = Sent<Arriving>> + Send + '_ {
        match self {
            Self::Http1(held) => {
                held.used = true;
                let sent = match &mut held.connection {
                    Some(connection) => Ok(connection.send(request)),
                    None => Err(Sent::Returned(Box::new(request), Error::of(crate::error::ErrorKind::Reset))),
                };
                Either::Left(async move {
                    match sent {
                        Ok(sent) => match sent.await {
                            Sent::Answered(response) => Sent::Answered(response.map(Arriving::Http1)),
                            Sent::Returned(request, error) => Sent::Returned(request, error),
                            Sent::Failed(error) => Sent::Failed(error),
                        },
                        Err(returned) => returned,
                    }
                })
            }
            Self::Http2(place) => {
                let is_head = *request.method() == http::Method::HEAD;
                let sent = place.connection.send(request);
                Either::Right(async move {
                    let (sent, pipe) = sent.await;
                    match sent {
                        Sent::Answered(response) => {
                            // The answer to HEAD announces what a GET would get.
                            let left = if is_head { None } else { announced(&response) };
                            // Sending goes on whether or not the response is read.
                            let sending = pipe.map(|mut pipe| {
                                Owned::spawn(async move {
                                    std::future::poll_fn(|cx| pipe.poll(cx)).await;
                                })
                            });
                            Sent::Answered(response.map(|stream| Arriving::Http2 { stream, left, sending }))
                        }
                        Sent::Returned(request, error) => Sent::Returned(request, error),
                        Sent::Failed(error) => Sent::Failed(error),
                    }
                })
            }
        }
    }

    /// The body of the response, holding what it comes over. `sending`: the request is still on its way.
    pub(super) fn flow(self, arriving: Arriving, sending: bool, now: Time) -> Flow {
        match (self, arriving) {
            (Self::Http1(held), Arriving::Http1(body)) if sending => Flow::Escorted { body, escort: held.escort(now) },
            (Self::Http1(held), Arriving::Http1(body)) => Flow::Http1 { body, held },
            (Self::Http2(place), Arriving::Http2 { stream, left, sending }) => {
                let over = stream.is_end_stream();
                Flow::Http2 { stream, left, over, _sending: sending, place }
            }
            // A lease gives what it is.
            (Self::Http1(_) | Self::Http2(_), _) => Flow::Over,
        }
    }
}

/// What a response's body comes from.
pub(super) enum Arriving {
    Http1(Incoming),
    Http2 { stream: h2::RecvStream, left: Option<u64>, sending: Option<Owned> },
}

/// An HTTP/1.1 connection in use.
pub(super) struct Held {
    pub(super) connection: Option<Box<Http1>>,
    pool: Weak<EndpointPool>,
    used: bool,
}

impl Held {
    pub(super) fn new(connection: Box<Http1>, pool: Weak<EndpointPool>) -> Self {
        Self { connection: Some(connection), pool, used: false }
    }

    /// The response has been read to its end: the connection can be used again.
    pub(super) fn give_back(mut self, now: Time) {
        let Some(mut connection) = self.connection.take() else { return };
        if !connection.is_ready() && !connection.is_closed() {
            connection.drive();
        }
        if connection.is_ready() {
            if let Some(pool) = self.pool.upgrade() {
                pool.put_back(connection, now);
            }
        } else if !connection.is_closed()
            && let Some(pool) = self.pool.upgrade()
        {
            // The rest of the request is still on its way out.
            let weak = Weak::clone(&self.pool);
            pool.spawn(async move {
                tokio::select! {
                    () = settled(&mut connection) => put_back(connection, &weak, now),
                    () = sleep(SETTLE) => {}
                }
            });
        }
    }

    /// The response is let go of before its end: the connection is used again if that costs nothing.
    pub(super) fn let_go(self, now: Time) {
        let Some(connection) = &self.connection else { return };
        if !connection.is_closed() {
            let mut this = self;
            if let Some(mut connection) = this.connection.take() {
                connection.drive();
                if connection.is_ready() {
                    put_back(connection, &this.pool, now);
                }
            }
        }
    }

    /// Lets a task drive it, which gives it back when request and response have ended.
    fn escort(mut self, now: Time) -> Escort {
        let over = Arc::new(Notify::new());
        let (pool, heard) = (std::mem::take(&mut self.pool), Arc::clone(&over));
        let connection = self.connection.take();
        let task = Owned::spawn(async move {
            let Some(mut connection) = connection else { return };
            let ended = async {
                heard.notified().await;
                sleep(SETTLE).await;
            };
            tokio::select! {
                () = settled(&mut connection) => put_back(connection, &pool, now),
                () = ended => {}
            }
        });
        Escort { task: Some(task), over }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // Handed to a request that had gone meanwhile.
        if !self.used
            && let Some(connection) = self.connection.take()
            && let Some(pool) = self.pool.upgrade()
        {
            let now = connection.idle_since;
            pool.put_back(connection, now);
        }
    }
}

async fn settled(connection: &mut Http1) {
    std::future::poll_fn(|cx| connection.poll_settled(cx)).await;
}

fn put_back(mut connection: Box<Http1>, pool: &Weak<EndpointPool>, now: Time) {
    if connection.is_ready()
        && let Some(pool) = pool.upgrade()
    {
        pool.put_back(connection, now);
    }
}

/// A connection that a task drives, because the request is still being sent while the response comes.
pub(super) struct Escort {
    task: Option<Owned>,
    over: Arc<Notify>,
}

impl Escort {
    /// The response has ended: the task ends by itself, soon.
    pub(super) fn end(mut self) {
        self.over.notify_one();
        if let Some(task) = self.task.take() {
            task.detach();
        }
    }
}

/// One stream of a shared connection.
pub(super) struct Place {
    connection: Arc<Http2>,
    pool: Weak<EndpointPool>,
}

impl Place {
    pub(super) fn new(connection: Arc<Http2>, pool: Weak<EndpointPool>) -> Self {
        Self { connection, pool }
    }

    /// When the response ended.
    pub(super) fn ended(&self, now: Time) {
        self.connection.touch(now);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.connection.leave();
        if let Some(pool) = self.pool.upgrade() {
            pool.freed();
        }
    }
}
