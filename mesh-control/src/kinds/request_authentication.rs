//! Istio `RequestAuthentication`: whose tokens are believed. A request without one passes; to demand one takes an
//! `AuthorizationPolicy`.
//!
//! Source: `istio.security.v1.RequestAuthentication`.

use std::time::Duration;

use mesh_core::config::Labels;

use super::{
    read::{Fields, Reader},
    yaml::{At, Node},
};

/// A `RequestAuthentication`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RequestAuthentication {
    /// Labels of the workloads meant; empty is the whole namespace, in the root namespace the whole mesh.
    pub selector: Labels,
    /// Whose tokens.
    pub rules: Vec<TokenRule>,
}

/// Whose tokens are believed. Source: Istio `JWTRule`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TokenRule {
    /// The claim `iss`.
    pub issuer: String,
    /// Any one must be in the claim `aud`; empty is any.
    pub audiences: Vec<String>,
    /// Where the keys are fetched; `None` where they are in `keys`.
    pub keys_uri: Option<At<String>>,
    /// The keys, as a JSON Web Key Set.
    pub keys: String,
    /// Headers with the token: name and what stands before it.
    pub from_headers: Vec<(String, String)>,
    /// Query parameters with the token.
    pub from_params: Vec<String>,
    /// Cookies with the token.
    pub from_cookies: Vec<String>,
    /// The application gets the token too.
    pub forward: bool,
    /// The header with the payload.
    pub payload_header: Option<String>,
    /// Headers with claims: name, and the claim.
    pub claim_headers: Vec<(String, String)>,
    /// How long fetching keys may take, default 5 s.
    pub timeout: Option<Duration>,
    /// Claims that are lists with spaces between, besides `scope` and `permission`.
    pub space_delimited: Vec<String>,
}

impl RequestAuthentication {
    pub(crate) fn read(fields: &mut Fields<'_>, reader: &mut Reader<'_>) -> Self {
        let mut out = Self::default();
        if let Some((node, path)) = fields.take("selector")
            && let Some(mut selector) = reader.fields(node, &path)
        {
            out.selector =
                selector.read("matchLabels", |node, path| Some(reader.labels(node, path))).unwrap_or_default();
            selector.close(reader);
        }
        fields.refused(reader, &["targetRef", "targetRefs"], "say which workloads with spec.selector.matchLabels");
        if let Some((node, path)) = fields.take("jwtRules") {
            for (node, path) in reader.list(node, &path) {
                out.rules.extend(rule(node, &path, reader));
            }
        }
        out
    }
}

fn rule(node: &Node, path: &str, reader: &mut Reader<'_>) -> Option<TokenRule> {
    let mut fields = reader.fields(node, path)?;
    let mut out = TokenRule::default();
    match fields.read("issuer", |node, path| reader.text(node, path)) {
        Some(issuer) if !issuer.value.is_empty() => out.issuer = issuer.value,
        Some(issuer) => drop(reader.invalid(issuer.at, format!("{path}.issuer is empty"))),
        None => reader.missing(&fields, "issuer"),
    }
    out.audiences = texts(&mut fields, "audiences", reader);
    keys(&mut out, &mut fields, path, reader);
    for (node, path) in items(&mut fields, "fromHeaders", reader) {
        let Some(mut one) = reader.fields(node, &path) else { continue };
        let prefix = one.read("prefix", |node, path| reader.text(node, path)).map(|it| it.value).unwrap_or_default();
        match one.read("name", |node, path| header(node, path, reader)) {
            Some(name) => out.from_headers.push((name, prefix)),
            None if !one.seen("name") => reader.missing(&one, "name"),
            None => {}
        }
        one.close(reader);
    }
    out.from_params = texts(&mut fields, "fromParams", reader);
    out.from_cookies = texts(&mut fields, "fromCookies", reader);
    out.forward = fields.read("forwardOriginalToken", |node, path| reader.boolean(node, path)).unwrap_or_default();
    out.payload_header = fields.read("outputPayloadToHeader", |node, path| header(node, path, reader));
    for (node, path) in items(&mut fields, "outputClaimToHeaders", reader) {
        let Some(mut one) = reader.fields(node, &path) else { continue };
        let claim = one.read("claim", |node, path| reader.text(node, path));
        if claim.is_none() && !one.seen("claim") {
            reader.missing(&one, "claim");
        }
        let name = one.read("header", |node, path| header(node, path, reader));
        if name.is_none() && !one.seen("header") {
            reader.missing(&one, "header");
        }
        if let (Some(name), Some(claim)) = (name, claim) {
            out.claim_headers.push((name, claim.value));
        }
        one.close(reader);
    }
    out.timeout = fields.read("timeout", |node, path| reader.some_time(node, path));
    out.space_delimited = texts(&mut fields, "spaceDelimitedClaims", reader);
    fields.close(reader);
    Some(out)
}

/// Where the keys are: exactly one place.
fn keys(out: &mut TokenRule, fields: &mut Fields<'_>, path: &str, reader: &mut Reader<'_>) {
    let uri = fields.read("jwksUri", |node, path| reader.text(node, path));
    let inline = fields.read("jwks", |node, path| reader.text(node, path));
    match (uri, inline) {
        (Some(uri), Some(_)) => {
            reader.invalid(uri.at, format!("{path} has jwksUri and jwks")).help =
                Some("leave one of them out".to_owned());
        }
        (Some(uri), None) => match uri.value.parse::<http::Uri>() {
            Ok(parsed) if parsed.host().is_some() && matches!(parsed.scheme_str(), Some("http" | "https")) => {
                out.keys_uri = Some(uri);
            }
            _ => drop(reader.invalid(uri.at, format!("{path}.jwksUri is no address with http:// or https://"))),
        },
        (None, Some(inline)) => {
            let set = serde_json::from_str::<serde_json::Value>(&inline.value);
            match set.ok().filter(|set| set.get("keys").is_some_and(serde_json::Value::is_array)) {
                Some(_) => out.keys = inline.value,
                None => drop(reader.invalid(inline.at, format!("{path}.jwks is no JSON Web Key Set"))),
            }
        }
        (None, None) => {
            reader.unsupported(
                fields.at,
                &format!("{path} without jwksUri and jwks"),
                "write the jwksUri that the issuer's \
                /.well-known/openid-configuration names",
            );
        }
    }
}

fn header(node: &Node, path: &str, reader: &mut Reader<'_>) -> Option<String> {
    let name = reader.text(node, path)?;
    match http::HeaderName::from_bytes(name.value.as_bytes()) {
        Ok(name) => Some(name.as_str().to_owned()),
        Err(_) => {
            reader.invalid(name.at, format!("{path}: {:?} is no header name", name.value));
            None
        }
    }
}

fn items<'n>(fields: &mut Fields<'n>, name: &'static str, reader: &mut Reader<'_>) -> Vec<(&'n Node, String)> {
    fields.take(name).map(|(node, path)| reader.list(node, &path)).unwrap_or_default()
}

fn texts(fields: &mut Fields<'_>, name: &'static str, reader: &mut Reader<'_>) -> Vec<String> {
    let texts = fields.read(name, |node, path| Some(reader.texts(node, path))).unwrap_or_default();
    texts.into_iter().map(|it| it.value).collect()
}
