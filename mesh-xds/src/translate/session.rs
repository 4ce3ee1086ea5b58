//! Sessions that stay at the endpoint they began at. Source: Envoy `StatefulSession`, gRFC A55.

use std::{collections::BTreeMap, sync::Arc};

use mesh_core::config::{HashCookie, Session, SessionState};

use super::{
    read::{Ignored, Within, Wrong, wrong},
    value,
};
use crate::proto::{
    Any,
    envoy::{
        config::{core::v3::TypedExtensionConfig, route::v3::FilterConfig},
        extensions::{
            filters::http::stateful_session::v3::{
                StatefulSession as Message, StatefulSessionPerRoute as PerRoute, stateful_session_per_route::Override,
            },
            http::stateful_session::{
                cookie::v3::CookieBasedSessionState,
                envelope::v3::{EnvelopeSessionState, envelope_session_state::Header},
                header::v3::HeaderBasedSessionState,
            },
        },
        r#type::http::v3::{Cookie, CookieAttribute},
    },
};

/// The filter's name, by which routes carry what they say of sessions.
pub(super) const STATEFUL_SESSION: &str = "envoy.filters.http.stateful_session";

pub(super) fn decode(message: Message, place: &str, ignored: &mut Ignored) -> Result<Arc<Session>, Wrong> {
    if !message.stat_prefix.is_empty() {
        ignored.add(place, "stat_prefix");
    }
    let state = match message.session_state.and_then(|state| state.typed_config) {
        None => None,
        Some(any) => Some(state(&any, place, ignored).under("session_state")?),
    };
    Ok(Arc::new(Session { state, strict: message.strict }))
}

fn state(any: &Any, place: &str, ignored: &mut Ignored) -> Result<SessionState, Wrong> {
    let header = |name: String| match http::HeaderName::from_bytes(name.as_bytes()) {
        Ok(name) => Ok(name.as_str().into()),
        Err(_) => Err(wrong("name", format!("{name:?} is no header"))),
    };
    if any.is::<HeaderBasedSessionState>() {
        let message: HeaderBasedSessionState = ignored.open(any, place)?;
        return header(message.name).map(SessionState::Header);
    }
    if any.is::<EnvelopeSessionState>() {
        let message: EnvelopeSessionState = ignored.open(any, place)?;
        let name = message.header.ok_or_else(|| wrong("header", "is missing"))?.name;
        return header(name).under("header").map(SessionState::Envelope);
    }
    if any.is::<CookieBasedSessionState>() {
        let message: CookieBasedSessionState = ignored.open(any, place)?;
        let cookie = message.cookie.ok_or_else(|| wrong("cookie", "is missing"))?;
        if cookie.name.is_empty() {
            return Err(wrong("cookie.name", "is missing"));
        }
        return Ok(SessionState::Cookie(HashCookie {
            name: cookie.name.into(),
            ttl: cookie.ttl.map(|ttl| value::duration(ttl, "cookie.ttl")).transpose()?,
            path: cookie.path,
            attributes: cookie.attributes.into_iter().map(|attribute| (attribute.name, attribute.value)).collect(),
        }));
    }
    Err(wrong("", format!("is of type {:?}, which is not supported", any.message_name())))
}

/// Is this a setting of sessions, of a route or host?
pub(super) fn is_setting(any: &Any) -> bool {
    any.is::<PerRoute>()
}

/// What a route or host says of sessions; a session without state says that there is none.
pub(super) fn of_route(
    settings: &BTreeMap<String, Any>,
    place: &str,
    ignored: &mut Ignored,
) -> Result<Option<Arc<Session>>, Wrong> {
    let mut found = None;
    for (key, any) in settings {
        let at = || format!("typed_per_filter_config[{key:?}]");
        let wrapper = any.unpack::<FilterConfig>().and_then(Result::ok);
        let any = match &wrapper {
            Some(FilterConfig { disabled: true, .. }) => {
                if key == STATEFUL_SESSION {
                    found = Some(Arc::default());
                }
                continue;
            }
            Some(FilterConfig { config: Some(any), .. }) => any,
            Some(_) => continue,
            None => any,
        };
        if any.is::<PerRoute>() {
            let place = format!("{place}.typed_per_filter_config");
            let message: PerRoute = ignored.open(any, &place).within(at)?;
            found = match message.r#override {
                Some(Override::StatefulSession(session)) => {
                    Some(decode(session, &place, ignored).under("stateful_session").within(at)?)
                }
                Some(Override::Disabled(true)) => Some(Arc::default()),
                Some(Override::Disabled(false)) | None => return Err(wrong("override", "is missing")).within(at),
            };
        }
    }
    Ok(found)
}

fn message(session: &Session) -> Message {
    let state = session.state.as_ref().map(|state| {
        let (name, any) = match state {
            SessionState::Cookie(cookie) => {
                let attribute =
                    |(name, value): &(String, String)| CookieAttribute { name: name.clone(), value: value.clone() };
                let cookie = Cookie {
                    name: cookie.name.to_string(),
                    ttl: cookie.ttl.map(value::encode_duration),
                    path: cookie.path.clone(),
                    attributes: cookie.attributes.iter().map(attribute).collect(),
                };
                ("cookie", Any::pack(&CookieBasedSessionState { cookie: Some(cookie) }))
            }
            SessionState::Header(name) => ("header", Any::pack(&HeaderBasedSessionState { name: name.to_string() })),
            SessionState::Envelope(name) => {
                let header = Some(Header { name: name.to_string() });
                ("envelope", Any::pack(&EnvelopeSessionState { header }))
            }
        };
        TypedExtensionConfig { name: format!("envoy.http.stateful_session.{name}"), typed_config: Some(any) }
    });
    Message { session_state: state, strict: session.strict, ..Message::default() }
}

/// The filter of all routes.
pub(super) fn encode(session: &Session) -> Any {
    Any::pack(&message(session))
}

/// The setting of one route.
pub(super) fn encode_route(session: &Session) -> Any {
    let said = match session.state {
        None => Override::Disabled(true),
        Some(_) => Override::StatefulSession(message(session)),
    };
    Any::pack(&PerRoute { r#override: Some(said) })
}
