//! Asking an authorization service whether a request may pass (AZ8).
//!
//! No answer, or none that can be read, refuses the request unless the service is configured to fail open. What the service
//! says of headers is done before the application sees them; it can neither name another host nor another path.
//! Source: Envoy `ext_authz`.

use std::{fmt::Write as _, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, Version, header, request::Parts};
use mesh_core::{
    authz::question::{Answer, Question, TextOrBytes},
    config::{AuthzService, ExtAuthz, StringMatch, ToldBody},
    identity::SpiffeId,
    outcome::Flags,
    request::RequestView,
};

use tokio::time::timeout;

use super::{Refusal, Server};
use crate::server::{Caller, body::Begun};

const METHOD: &str = "/envoy.service.auth.v3.Authorization/Check";
/// The most that is read of an answer over HTTP.
const MOST: usize = 64 << 10;
/// What is always told of a request over HTTP, beside its method, its path and its host.
const ALWAYS: HeaderName = header::AUTHORIZATION;
/// What a refusal over HTTP always tells the caller.
const TOLD: [HeaderName; 3] = [header::WWW_AUTHENTICATE, header::LOCATION, header::CONTENT_TYPE];

/// How long a caller may take for the beginning of a body where nothing is said.
const PATIENCE: Duration = Duration::from_secs(60);
/// Tells whether there is more of a body than what is told. Source: Envoy.
const PARTIAL: HeaderName = HeaderName::from_static("x-envoy-auth-partial-body");

/// As much of a body as a service is told.
struct Told {
    begin: Vec<u8>,
    /// There is more.
    more: bool,
    as_bytes: bool,
}

impl Server {
    /// Lets the request pass if the service says so.
    pub(super) async fn ask(
        &self,
        service: &ExtAuthz,
        caller: &Caller,
        parts: &mut Parts,
        body: &mut Begun,
    ) -> Result<(), Box<Refusal>> {
        let told = match &service.body {
            Some(wanted) if !body.is_empty() => Some(self.begin(wanted, body).await?),
            _ => None,
        };
        let answer = match &service.service {
            AuthzService::Grpc { cluster, authority } => {
                let authority = if authority.is_empty() { &**cluster } else { authority.as_str() };
                self.check(service, (cluster, authority), caller, parts, told).await
            }
            AuthzService::Http { .. } => self.check_http(service, parts, told).await,
        };
        match answer {
            Ok(answer) if answer.allowed => {
                pass(parts, &answer);
                Ok(())
            }
            Ok(answer) => Err(refused(answer)),
            Err(why) => {
                tracing::warn!(target: "mesh::authz", %why, allowed = service.failure_allows, "no answer of the authorization service");
                if service.failure_allows {
                    return Ok(());
                }
                let status = StatusCode::from_u16(service.status_on_error).unwrap_or(StatusCode::FORBIDDEN);
                let mut refusal = Refusal::new(status, Flags::UAEX, "");
                refusal.details = "ext_authz_error".into();
                Err(refusal)
            }
        }
    }

    /// The beginning of the body, as much as is to be told; it comes within the time for whole requests.
    async fn begin(&self, wanted: &ToldBody, body: &mut Begun) -> Result<Told, Box<Refusal>> {
        let refuse = |status, why| Refusal::new(status, Flags::UAEX, why);
        let limit = self.inbound().and_then(|inbound| inbound.request_timeout).unwrap_or(PATIENCE);
        let most = usize::try_from(wanted.max_bytes).unwrap_or(usize::MAX);
        let begun = timeout(limit, body.begin(most, wanted.partial)).await;
        let begun = begun.map_err(|_| refuse(StatusCode::REQUEST_TIMEOUT, "the request took too long"))?;
        let (begin, more) =
            begun.map_err(|_| refuse(StatusCode::BAD_REQUEST, "the request did not come to its end"))?;
        if more && !wanted.partial {
            let mut refusal = refuse(StatusCode::PAYLOAD_TOO_LARGE, "the body is too large");
            refusal.details = "request_payload_too_large".into();
            return Err(refusal);
        }
        Ok(Told { begin, more, as_bytes: wanted.as_bytes })
    }

    async fn check(
        &self,
        service: &ExtAuthz,
        (cluster, authority): (&str, &str),
        caller: &Caller,
        parts: &Parts,
        told_body: Option<Told>,
    ) -> Result<Answer, String> {
        let codec = self.check_codec.ok_or("this build has no protocol for it")?;
        let mut headers = told(service, parts)?;
        let body = match told_body {
            None => None,
            Some(Told { begin, more, as_bytes }) => {
                headers.retain(|(name, _)| **name != PARTIAL);
                headers.push((PARTIAL.to_string(), more.to_string()));
                // Part of a text may end within a letter, and is a text as far as that.
                let text = |bytes: Vec<u8>| match String::from_utf8(bytes) {
                    Ok(text) => Ok(text),
                    Err(error) if more && error.utf8_error().error_len().is_none() => {
                        let upto = error.utf8_error().valid_up_to();
                        Ok(String::from_utf8_lossy(error.as_bytes().get(..upto).unwrap_or_default()).into_owned())
                    }
                    Err(_) => Err("the body is no text, and is not to be told as bytes"),
                };
                Some(if as_bytes { TextOrBytes::Bytes(begin) } else { TextOrBytes::Text(text(begin)?) })
            }
        };
        let view = RequestView::of(parts, None);
        let question = Question {
            source: Some(caller.address),
            source_principal: caller.peer.as_ref().map(SpiffeId::to_string).unwrap_or_default(),
            port: self.role.port(),
            method: parts.method.to_string(),
            path: view.path.to_owned(),
            host: view.authority.to_owned(),
            scheme: if caller.secure { "https" } else { "http" }.to_owned(),
            protocol: if parts.version == Version::HTTP_2 { "HTTP/2" } else { "HTTP/1.1" }.to_owned(),
            headers,
            body,
        };
        let message = (codec.encode)(&question);
        let answer = self.side.grpc(cluster, authority, METHOD, &message, service.timeout).await;
        (codec.decode)(&answer.map_err(|error| error.to_string())?)
    }

    async fn check_http(&self, service: &ExtAuthz, parts: &Parts, told: Option<Told>) -> Result<Answer, String> {
        let AuthzService::Http { cluster, authority, path_prefix, add, to_upstream, to_client } = &service.service
        else {
            return Err("it is not asked over HTTP".to_owned());
        };
        let view = RequestView::of(parts, None);
        let host = if view.authority.is_empty() { authority.as_str() } else { view.authority };
        let mut request =
            Request::builder().method(&parts.method).uri(format!("http://{host}{path_prefix}{}", view.path));
        for (name, value) in &parts.headers {
            // What the operator says of a request is not the caller's to say.
            let is_own = add.iter().any(|(own, _)| name.as_str().eq_ignore_ascii_case(own));
            let is_told = !is_own && (name == ALWAYS || may_be_told(service, name.as_str()).unwrap_or(false));
            let is_ours = told.is_some() && *name == PARTIAL;
            if is_told && !is_ours && !is_of_body(name) && *name != header::HOST {
                request = request.header(name, value);
            }
        }
        for (name, value) in add {
            request = request.header(&**name, value);
        }
        let mut body = Bytes::new();
        if let Some(Told { begin, more, .. }) = told {
            request = request.header(PARTIAL, if more { "true" } else { "false" });
            body = begin.into();
        }
        let request = request.body(body).map_err(|error| error.to_string())?;
        let is_head = parts.method == Method::HEAD;
        let answer =
            self.side.http(cluster, request, service.timeout, MOST).await.map_err(|error| error.to_string())?;
        if answer.status().is_server_error() {
            return Err(format!("it answered {}", answer.status()));
        }
        let allowed = answer.status() == StatusCode::OK;
        let wanted = |name: &HeaderName| {
            let listed = |list: &[StringMatch]| list.iter().any(|it| it.is_match(name.as_str()));
            match allowed {
                true => listed(to_upstream),
                false => !is_of_body(name) && (to_client.is_empty() || listed(to_client) || TOLD.contains(name)),
            }
        };
        let headers = answer.headers().iter().filter(|(name, _)| wanted(name));
        let headers =
            headers.filter_map(|(name, value)| Some((name.to_string(), value.to_str().ok()?.to_owned(), false)));
        Ok(Answer {
            allowed,
            status: answer.status().as_u16(),
            headers: headers.collect(),
            body: if allowed || is_head { String::new() } else { String::from_utf8_lossy(answer.body()).into_owned() },
            ..Answer::default()
        })
    }
}

/// The headers that a service is told over gRPC. One it must be told and that is no text cannot be told.
fn told(service: &ExtAuthz, parts: &Parts) -> Result<Vec<(String, String)>, String> {
    let mut out: Vec<(String, String)> = Vec::new();
    for name in parts.headers.keys().filter(|name| may_be_told(service, name.as_str()).unwrap_or(true)) {
        let mut joined = String::new();
        for value in parts.headers.get_all(name) {
            let text = std::str::from_utf8(value.as_bytes()).map_err(|_| format!("{name} is no text"))?;
            let comma = if joined.is_empty() { "" } else { "," };
            let _ = write!(joined, "{comma}{text}");
        }
        out.push((name.to_string(), joined));
    }
    Ok(out)
}

/// `None` where nothing is said of it.
fn may_be_told(service: &ExtAuthz, name: &str) -> Option<bool> {
    if service.disallowed_headers.iter().any(|it| it.is_match(name)) {
        return Some(false);
    }
    service.allowed_headers.as_ref().map(|list| list.iter().any(|it| it.is_match(name)))
}

/// Is it about the body or the connection, which are not passed on?
fn is_of_body(name: &HeaderName) -> bool {
    [header::CONTENT_LENGTH, header::TRANSFER_ENCODING, header::CONNECTION, header::UPGRADE, header::TE, header::EXPECT]
        .contains(name)
}

/// Does to the request what the service asks for.
fn pass(parts: &mut Parts, answer: &Answer) {
    for name in answer.remove.iter().filter(|name| !name.starts_with(':') && !name.eq_ignore_ascii_case("host")) {
        parts.headers.remove(name.as_str());
    }
    change(&mut parts.headers, &answer.headers);
}

fn change(headers: &mut HeaderMap, changes: &[(String, String, bool)]) {
    for (name, value, beside) in changes {
        let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) else { continue };
        if name == header::HOST || is_of_body(&name) {
            continue;
        }
        if *beside {
            headers.append(name, value);
        } else {
            headers.insert(name, value);
        }
    }
}

fn refused(answer: Answer) -> Box<Refusal> {
    let status = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::FORBIDDEN);
    let mut refusal = Refusal::new(status, Flags::UAEX, answer.body);
    refusal.details = "ext_authz_denied".into();
    change(&mut refusal.headers, &answer.headers);
    refusal
}
