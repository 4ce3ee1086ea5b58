//! A middleware for reqwest: the last of a chain, which hands the request to the mesh instead of to reqwest's own connections.
//!
//! What reqwest makes of a request (`.json()`, `.query()`, `.multipart()`) and of a response stays as it is; what its client was built with
//! is not used: see [`Mesh::reqwest`]. Not here: the mesh's client itself ([`crate::client`]).

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use ::reqwest::{Body, Request, Response, ResponseBuilderExt, Url};
use bytes::Bytes;
use http::Extensions;
use http_body::{Body as HttpBody, Frame, SizeHint};
use reqwest_middleware::{Error as MiddlewareError, Middleware, Next, Result};
use sync_wrapper::SyncWrapper;
use tokio::time;

use crate::{
    body::ResponseBody,
    client::HttpClient,
    error::{Error, ErrorKind},
    mesh::Mesh,
    pool::{Pool, PooledBody},
};

/// Sends reqwest's requests through the mesh. Made by [`Mesh::reqwest`].
#[derive(Clone, Debug)]
pub struct Reqwest {
    http: HttpClient<Pool>,
}

impl Mesh {
    /// A middleware for reqwest, to be the last of its chain: what comes after it is not called.
    ///
    /// # What of reqwest holds
    ///
    /// A middleware comes before reqwest's own client, which is not called. So what a **request** says holds: `RequestBuilder`'s `header`,
    /// `query`, `json`, `form`, `multipart`, `body`, `basic_auth`, `bearer_auth`, and its `timeout`, which counts up to the head of
    /// the response here (the mesh's own limits hold besides, and count up to the last byte). What the **client** was built with does not:
    ///
    /// | `reqwest::ClientBuilder` | here |
    /// |---|---|
    /// | `default_headers`, `user_agent`, `referer` | not sent; set them by a middleware before this one |
    /// | `timeout`, `read_timeout`, `connect_timeout` | the route's and the cluster's limits hold, and `RequestBuilder::timeout` |
    /// | `cookie_store`, `cookie_provider` | no cookie is kept or sent |
    /// | `gzip`, `brotli`, `zstd`, `deflate` | nothing is asked for by them, and a compressed body arrives as it was sent |
    /// | `redirect` | not followed: the response is the redirect |
    /// | `proxy`, `resolve`, `dns_resolver`, `local_address`, `pool_*`, `http1_*`, `http2_*`, `tcp_*` | the mesh's pool and its configuration |
    /// | `identity`, `add_root_certificate`, `danger_*`, `min_tls_version` | the workload's certificate and the mesh's roots |
    /// | `https_only` | not looked at: a route, not the URL, says whether TLS is spoken |
    ///
    /// # Errors of the mesh
    ///
    /// As with [`HttpClient`], what the mesh refuses is the response that Envoy would give (503, 504, 404 ...), with
    /// [`ResponseFlags`](crate::ResponseFlags) and [`ErrorKind`] in its extensions. What could not be sent at all is an error, the mesh's
    /// [`Error`] itself:
    ///
    /// ```no_run
    /// # async fn example(mesh: mesh_tower::Mesh) {
    /// let client = reqwest_middleware::ClientBuilder::new(reqwest::Client::new()).with(mesh.reqwest()).build();
    /// match client.get("http://reviews:9080/reviews/0").header("end-user", "jason").send().await {
    ///     Ok(page) => match page.extensions().get::<mesh_tower::ErrorKind>() {
    ///         Some(kind) => println!("the mesh answered {}: {kind:?}", page.status()),
    ///         None => println!("reviews answered {}", page.status()),
    ///     },
    ///     Err(reqwest_middleware::Error::Middleware(error)) => match error.downcast_ref::<mesh_tower::Error>() {
    ///         Some(error) => println!("not sent: {:?}", error.kind()),
    ///         None => println!("another middleware: {error}"),
    ///     },
    ///     Err(error) => println!("{error}"),
    /// }
    /// # }
    /// ```
    pub fn reqwest(&self) -> Reqwest {
        Reqwest { http: self.http() }
    }
}

impl Reqwest {
    async fn send(&self, request: Request) -> std::result::Result<Response, Error> {
        let (url, limit) = (request.url().clone(), request.timeout().copied());
        let request: http::Request<Body> = request.try_into().map_err(|error| Error::new(ErrorKind::Invalid, error))?;
        let answer = within(limit, self.http.request(request)).await?;
        response(answer.map(|body| Body::wrap(Answer::new(body))), url)
            .map_err(|error| Error::new(ErrorKind::Protocol, error))
    }
}

#[async_trait::async_trait]
impl Middleware for Reqwest {
    async fn handle(&self, request: Request, _: &mut Extensions, _: Next<'_>) -> Result<Response> {
        // As it is: whoever asks finds the mesh's own error in it, and its kind.
        self.send(request).await.map_err(MiddlewareError::middleware)
    }
}

/// A body as reqwest wants it, which shares what it does not share: only one at a time can look into this.
struct Answer {
    body: SyncWrapper<Pin<Box<ResponseBody<PooledBody>>>>,
    left: SizeHint,
}

impl Answer {
    fn new(body: ResponseBody<PooledBody>) -> Self {
        Self { left: body.size_hint(), body: SyncWrapper::new(Box::pin(body)) }
    }
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<std::result::Result<Frame<Bytes>, Error>>> {
        let this = self.get_mut();
        let body = this.body.get_mut();
        let frame = body.as_mut().poll_frame(cx);
        this.left = body.size_hint();
        frame
    }

    fn size_hint(&self) -> SizeHint {
        self.left
    }
}

async fn within<T>(
    limit: Option<Duration>,
    answer: impl Future<Output = std::result::Result<T, Error>>,
) -> std::result::Result<T, Error> {
    match limit {
        None => answer.await,
        Some(limit) => match time::timeout(limit, answer).await {
            Ok(answer) => answer,
            Err(_) => {
                Err(Error::msg(ErrorKind::Timeout, format!("no answer within {limit:?}, the request's own limit")))
            }
        },
    }
}

/// The response, with the URL it was asked for.
fn response(answer: http::Response<Body>, url: Url) -> http::Result<Response> {
    let (parts, body) = answer.into_parts();
    let mut with_url = http::Response::builder().status(parts.status).version(parts.version).url(url).body(body)?;
    *with_url.headers_mut() = parts.headers;
    // The mesh's remarks stay, beside the URL.
    let mut extensions = parts.extensions;
    extensions.extend(std::mem::take(with_url.extensions_mut()));
    *with_url.extensions_mut() = extensions;
    Ok(with_url.into())
}
