//! What is asked of an authorization service, as messages. Source: Envoy `envoy.service.auth.v3`.

use std::collections::BTreeMap;

use mesh_core::authz::question::{Answer, Codec, Question, TextOrBytes};
use prost::Message;

use crate::proto::envoy::{
    config::core::v3::{Address, HeaderValueOption, SocketAddress, address, socket_address::PortSpecifier},
    service::auth::v3::{
        AttributeContext, CheckRequest, CheckResponse,
        attribute_context::{HttpRequest, Peer, Request},
        check_response::HttpResponse,
    },
};

/// Both directions.
pub const CODEC: Codec = Codec { encode, decode };

fn encode(question: &Question) -> Vec<u8> {
    let at = |address: String, port: u16| {
        let port_specifier = Some(PortSpecifier::PortValue(port.into()));
        let socket = SocketAddress { address, port_specifier, ..SocketAddress::default() };
        Some(Address { address: Some(address::Address::SocketAddress(socket)) })
    };
    let source = question.source.map(|source| Peer {
        address: at(source.ip().to_string(), source.port()),
        principal: question.source_principal.clone(),
        ..Peer::default()
    });
    let headers: BTreeMap<String, String> = question.headers.iter().cloned().collect();
    let (body, raw_body) = match question.body.clone() {
        None => (String::new(), Vec::new()),
        Some(TextOrBytes::Text(text)) => (text, Vec::new()),
        Some(TextOrBytes::Bytes(bytes)) => (String::new(), bytes),
    };
    let http = HttpRequest {
        id: headers.get("x-request-id").cloned().unwrap_or_default(),
        method: question.method.clone(),
        headers,
        path: question.path.clone(),
        host: question.host.clone(),
        scheme: question.scheme.clone(),
        size: -1,
        protocol: question.protocol.clone(),
        body,
        raw_body: raw_body.into(),
        ..HttpRequest::default()
    };
    let attributes = AttributeContext {
        source,
        destination: Some(Peer { address: at(String::new(), question.port), ..Peer::default() }),
        request: Some(Request { http: Some(http), ..Request::default() }),
        ..AttributeContext::default()
    };
    CheckRequest { attributes: Some(attributes) }.encode_to_vec()
}

fn decode(message: &[u8]) -> Result<Answer, String> {
    let message = CheckResponse::decode(message).map_err(|error| error.to_string())?;
    let allowed = message.status.is_none_or(|status| status.code == 0);
    let headers = |options: Vec<HeaderValueOption>| options.into_iter().filter_map(header).collect();
    Ok(match (allowed, message.http_response) {
        (true, Some(HttpResponse::OkResponse(ok))) => {
            Answer { allowed, headers: headers(ok.headers), remove: ok.headers_to_remove, ..Answer::default() }
        }
        (true, None) => Answer { allowed, ..Answer::default() },
        (true, Some(HttpResponse::DeniedResponse(_))) => return Err("it says yes and no at once".to_owned()),
        (false, Some(HttpResponse::DeniedResponse(denied))) => Answer {
            status: denied
                .status
                .and_then(|status| u16::try_from(status.code).ok())
                .filter(|it| *it >= 100)
                .unwrap_or(403),
            body: denied.body,
            headers: headers(denied.headers),
            ..Answer::default()
        },
        (false, _) => Answer { status: 403, ..Answer::default() },
    })
}

/// Name, value, and whether it stands beside others: here that is not the default.
fn header(option: HeaderValueOption) -> Option<(String, String, bool)> {
    let header = option.header?;
    let value = if header.value.is_empty() { String::from_utf8(header.raw_value.into()).ok()? } else { header.value };
    let beside = option.append.unwrap_or(false);
    Some((header.key, value, beside))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::proto::{
        Status,
        envoy::{
            config::core::v3::HeaderValue,
            service::auth::v3::{DeniedHttpResponse, OkHttpResponse},
            r#type::v3::HttpStatus,
        },
    };

    fn option(key: &str, value: &str) -> HeaderValueOption {
        let header = HeaderValue { key: key.into(), value: value.into(), ..HeaderValue::default() };
        HeaderValueOption { header: Some(header), ..HeaderValueOption::default() }
    }

    /// AZ8: what is asked names the caller and the request, and yes and no are told apart.
    #[test]
    fn questions_and_answers() {
        let question = Question {
            source: Some("127.0.0.1:1".parse().unwrap()),
            source_principal: "spiffe://a/b".into(),
            port: 80,
            method: "GET".into(),
            path: "/a?b".into(),
            headers: vec![("x".into(), "y".into())],
            ..Question::default()
        };
        let asked = CheckRequest::decode(encode(&question).as_slice()).unwrap().attributes.unwrap();
        assert_eq!(asked.source.unwrap().principal, "spiffe://a/b");
        let http = asked.request.unwrap().http.unwrap();
        assert_eq!((http.method.as_str(), http.path.as_str(), http.headers["x"].as_str()), ("GET", "/a?b", "y"));

        let say = |code: i32, response| {
            let status = Some(Status { code, ..Status::default() });
            decode(&CheckResponse { status, http_response: response }.encode_to_vec())
        };
        let ok = OkHttpResponse { headers: vec![option("x-user", "jason")], ..OkHttpResponse::default() };
        let yes = say(0, Some(HttpResponse::OkResponse(ok))).unwrap();
        assert!(yes.allowed);
        assert_eq!(yes.headers, [("x-user".to_owned(), "jason".to_owned(), false)]);
        let denied = DeniedHttpResponse {
            status: Some(HttpStatus { code: 401 }),
            body: "who?".into(),
            ..DeniedHttpResponse::default()
        };
        let no = say(16, Some(HttpResponse::DeniedResponse(denied.clone()))).unwrap();
        assert_eq!((no.allowed, no.status, no.body.as_str()), (false, 401, "who?"));
        assert_eq!(say(7, None).unwrap().status, 403);
        assert!(say(0, None).unwrap().allowed);
        assert!(say(0, Some(HttpResponse::DeniedResponse(denied))).is_err());
        assert!(decode(b"\xff").is_err());
    }
}
