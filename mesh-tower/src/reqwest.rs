//! A middleware for reqwest: the last of a chain, which hands the request to the mesh instead of to reqwest's own connections.
//!
//! What reqwest makes of a request (`.json()`, `.query()`, `.multipart()`) and of a response stays as it is; what it does of
//! connections, proxies, redirects and TLS is not used: that is the mesh's. Not here: the mesh's client itself ([`crate::client`]).

use std::{
    fmt,
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
    error::{BoxError, Error, ErrorKind},
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
    /// The time limit of a request (`RequestBuilder::timeout`) counts up to the head of its response here; the mesh's own limits
    /// hold besides, and count up to the last byte.
    ///
    /// ```no_run
    /// # async fn example(mesh: mesh_tower::Mesh) -> Result<(), Box<dyn std::error::Error>> {
    /// let client = reqwest_middleware::ClientBuilder::new(reqwest::Client::new()).with(mesh.reqwest()).build();
    /// let page = client.get("http://reviews:9080/reviews/0").header("end-user", "jason").send().await?.text().await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn reqwest(&self) -> Reqwest {
        Reqwest { http: self.http() }
    }
}

impl Reqwest {
    async fn send(&self, request: Request) -> std::result::Result<Response, BoxError> {
        let (url, limit) = (request.url().clone(), request.timeout().copied());
        let request: http::Request<Body> = request.try_into()?;
        let answer = within(limit, self.http.request(request)).await?;
        Ok(response(answer.map(|body| Body::wrap(Answer::new(body))), url)?)
    }
}

#[async_trait::async_trait]
impl Middleware for Reqwest {
    async fn handle(&self, request: Request, _: &mut Extensions, _: Next<'_>) -> Result<Response> {
        self.send(request).await.map_err(|error| MiddlewareError::middleware(Failed(error)))
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

/// Why a request was not answered.
#[derive(Debug)]
struct Failed(BoxError);

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for Failed {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source()
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
