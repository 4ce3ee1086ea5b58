//! What an authorization service is asked about a request, and what it says: plain, whatever protocol carries it.
//!
//! Source: Envoy `CheckRequest`, `CheckResponse`.

use std::net::SocketAddr;

/// A request, as an authorization service is told of it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Question {
    /// Where it comes from.
    pub source: Option<SocketAddr>,
    /// Who the caller proved to be.
    pub source_principal: String,
    /// The port it came in by.
    pub port: u16,
    /// The method.
    pub method: String,
    /// The path with its query.
    pub path: String,
    /// The host.
    pub host: String,
    /// `http` or `https`.
    pub scheme: String,
    /// `HTTP/1.1`, `HTTP/2`.
    pub protocol: String,
    /// Its headers as far as they are told, in lower case; several lines of one joined by `,`.
    pub headers: Vec<(String, String)>,
    /// As much of its body as is told.
    pub body: Option<TextOrBytes>,
}

/// A body, or its beginning.
#[derive(Clone, Debug, PartialEq)]
pub enum TextOrBytes {
    /// It is text.
    Text(String),
    /// Whatever it is.
    Bytes(Vec<u8>),
}

/// What an authorization service says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answer {
    /// The request may pass.
    pub allowed: bool,
    /// The status it is refused with; 403 where the service does not say.
    pub status: u16,
    /// What the caller is told, refused.
    pub body: String,
    /// Headers of the request that passes, or of the answer that refuses it, and whether each stands beside those there are.
    pub headers: Vec<(String, String, bool)>,
    /// Headers that the request loses.
    pub remove: Vec<String>,
}

/// How a question is written down for a service over gRPC, and its answer read. The reading says why it is none.
#[derive(Clone, Copy, Debug)]
pub struct Codec {
    /// The message of `envoy.service.auth.v3.Authorization/Check`.
    pub encode: fn(&Question) -> Vec<u8>,
    /// Its answer's message.
    pub decode: fn(&[u8]) -> Result<Answer, String>,
}
