//! Asking an authorization service whether a request may pass (AZ8).
//!
//! No answer, or none that can be read, refuses the request unless the service is configured to fail open. What the service
//! says of headers is done before the application sees them; it can neither name another host nor another path.
//! Source: Envoy `ext_authz`.

use std::fmt::Write as _;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, Version, header, request::Parts};
use mesh_core::{
    authz::question::{Answer, Question},
    config::{AuthzService, ExtAuthz, StringMatch},
    identity::SpiffeId,
    outcome::Flags,
    request::RequestView,
};

use super::{Refusal, Server};
use crate::server::Caller;

const METHOD: &str = "/envoy.service.auth.v3.Authorization/Check";
/// The most that is read of an answer over HTTP.
const MOST: usize = 64 << 10;
/// What is always told of a request over HTTP, beside its method, its path and its host.
const ALWAYS: HeaderName = header::AUTHORIZATION;
/// What a refusal over HTTP always tells the caller.
const TOLD: [HeaderName; 3] = [header::WWW_AUTHENTICATE, header::LOCATION, header::CONTENT_TYPE];

impl Server {
    /// Lets the request pass if the service says so.
    pub(super) async fn ask(&self, service: &ExtAuthz, caller: &Caller, parts: &mut Parts) -> Result<(), Box<Refusal>> {
        let answer = match &service.service {
            AuthzService::Grpc { cluster, authority } => {
                let authority = if authority.is_empty() { &**cluster } else { authority.as_str() };
                self.check(service, cluster, authority, caller, parts).await
            }
            AuthzService::Http { .. } => self.check_http(service, parts).await,
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

    async fn check(
        &self,
        service: &ExtAuthz,
        cluster: &str,
        authority: &str,
        caller: &Caller,
        parts: &Parts,
    ) -> Result<Answer, String> {
        let codec = self.check_codec.ok_or("this build has no protocol for it")?;
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
            headers: told(service, parts)?,
        };
        let message = (codec.encode)(&question);
        let answer = self.side.grpc(cluster, authority, METHOD, &message, service.timeout).await;
        (codec.decode)(&answer.map_err(|error| error.to_string())?)
    }

    async fn check_http(&self, service: &ExtAuthz, parts: &Parts) -> Result<Answer, String> {
        let AuthzService::Http { cluster, authority, path_prefix, add, to_upstream, to_client } = &service.service
        else {
            return Err("it is not asked over HTTP".to_owned());
        };
        let view = RequestView::of(parts, None);
        let host = if view.authority.is_empty() { authority.as_str() } else { view.authority };
        let mut request =
            Request::builder().method(&parts.method).uri(format!("http://{host}{path_prefix}{}", view.path));
        for (name, value) in &parts.headers {
            let is_told = name == ALWAYS || may_be_told(service, name.as_str()).unwrap_or(false);
            if is_told && !is_of_body(name) && *name != header::HOST {
                request = request.header(name, value);
            }
        }
        for (name, value) in add {
            request = request.header(&**name, value);
        }
        let request = request.body(Bytes::new()).map_err(|error| error.to_string())?;
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
