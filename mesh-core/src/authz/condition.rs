//! Conditions of rules, compiled, and the three answers they have.
//!
//! `No` and `Unknown` make `No` where all must be met, `Yes` and `Unknown` make `Yes` where one is enough, and `Unknown`
//! turned round stays unknown (Kleene's logic). Headers are looked at as Envoy does: of several lines each by itself.
//! Unlike routes, rules see all headers of a gRPC call, and read no text into bytes that are none.

use std::net::IpAddr;

use ipnet::IpNet;

use super::metadata;
use crate::{
    admit::InboundView,
    config::{Condition, HeaderMatch, HeaderMatcher, HeaderSource, MetadataMatch, StringMatch},
    error::CompileError,
    request::RequestView,
};

/// Whether a condition is met.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Truth {
    Yes,
    No,
    /// It cannot be told.
    Unknown,
}

impl Truth {
    pub(super) fn and(self, other: impl FnOnce() -> Self) -> Self {
        match self {
            Self::No => Self::No,
            Self::Yes => other(),
            Self::Unknown if other() == Self::No => Self::No,
            Self::Unknown => Self::Unknown,
        }
    }

    fn not(self) -> Self {
        match self {
            Self::Yes => Self::No,
            Self::No => Self::Yes,
            Self::Unknown => Self::Unknown,
        }
    }
}

impl From<bool> for Truth {
    fn from(met: bool) -> Self {
        if met { Self::Yes } else { Self::No }
    }
}

/// A compiled [`Condition`].
#[derive(Debug)]
pub(super) enum Rule {
    Any,
    All(Vec<Self>),
    One(Vec<Self>),
    Not(Box<Self>),
    Header { source: HeaderSource, wanted: HeaderMatch },
    Path(StringMatch),
    DestinationIp(IpNet),
    DestinationPorts { start: u32, end: u32 },
    ServerName(StringMatch),
    Metadata(MetadataMatch),
    Peer(Option<StringMatch>),
    DirectIp(IpNet),
    RemoteIp(IpNet),
    Undecidable,
}

impl Rule {
    pub(super) fn compile(config: &Condition, field: &str) -> Result<Self, CompileError> {
        let list = |list: &[Condition]| list.iter().map(|it| Self::compile(it, field)).collect::<Result<Vec<_>, _>>();
        Ok(match config {
            Condition::Any => Self::Any,
            Condition::All(of) => Self::All(list(of)?),
            Condition::One(of) => Self::One(list(of)?),
            Condition::Not(of) => Self::Not(Box::new(Self::compile(of, field)?)),
            Condition::Header(wanted) => {
                // Policies are written in any case, headers travel in lower case.
                let source = HeaderSource::parse(&wanted.name.to_ascii_lowercase());
                let source = source.ok_or_else(|| {
                    CompileError::new(field, "header.name", format!("{:?} is no name of a header", wanted.name))
                })?;
                Self::Header { source, wanted: wanted.clone() }
            }
            Condition::Path(text) => Self::Path(text.clone()),
            Condition::DestinationIp(net) => Self::DestinationIp(*net),
            Condition::DestinationPort(port) => {
                Self::DestinationPorts { start: u32::from(*port), end: u32::from(*port) + 1 }
            }
            Condition::DestinationPorts { start, end } => Self::DestinationPorts { start: *start, end: *end },
            Condition::ServerName(text) => Self::ServerName(text.clone()),
            Condition::Metadata(wanted) => Self::Metadata(wanted.clone()),
            Condition::Peer(text) => Self::Peer(text.clone()),
            Condition::DirectIp(net) => Self::DirectIp(*net),
            Condition::RemoteIp(net) => Self::RemoteIp(*net),
            Condition::Undecidable(_) => Self::Undecidable,
        })
    }

    /// Does it, or anything in it, look at a request?
    pub(super) fn is_of_requests(&self) -> bool {
        match self {
            Self::All(of) | Self::One(of) => of.iter().any(Self::is_of_requests),
            Self::Not(of) => of.is_of_requests(),
            Self::Header { .. } | Self::Path(_) | Self::Metadata(_) => true,
            _ => false,
        }
    }

    pub(super) fn is_met(&self, view: &InboundView<'_>) -> Truth {
        match self {
            Self::Header { .. } | Self::Path(_) | Self::Metadata(_) if view.bytes => Truth::Unknown,
            Self::Any => Truth::Yes,
            Self::All(of) => all(of, view),
            Self::One(of) => any(of, view),
            Self::Not(of) => of.is_met(view).not(),
            Self::Header { source, wanted } => header(wanted, source, &view.request),
            Self::Path(wanted) => wanted.is_match(view.request.path_only()).into(),
            Self::DestinationIp(net) => within(view.local, net),
            Self::DestinationPorts { start, end } => (*start..*end).contains(&u32::from(view.port)).into(),
            Self::ServerName(wanted) => wanted.is_match(view.server_name).into(),
            Self::Metadata(wanted) => metadata::is_met(wanted, view.claims),
            Self::Peer(wanted) => match (view.peer, wanted) {
                (None, wanted) => outsider(view.names, wanted.as_ref()),
                (Some(_), None) => Truth::Yes,
                (Some(peer), Some(wanted)) => wanted.is_match(peer.as_str()).into(),
            },
            Self::DirectIp(net) => within(view.request.source, net),
            Self::RemoteIp(net) => within(view.remote, net),
            Self::Undecidable => Truth::Unknown,
        }
    }
}

pub(super) fn all(rules: &[Rule], view: &InboundView<'_>) -> Truth {
    let mut truth = Truth::Yes;
    for rule in rules {
        match rule.is_met(view) {
            Truth::No => return Truth::No,
            Truth::Unknown => truth = Truth::Unknown,
            Truth::Yes => {}
        }
    }
    truth
}

pub(super) fn any(rules: &[Rule], view: &InboundView<'_>) -> Truth {
    let mut truth = Truth::No;
    for rule in rules {
        match rule.is_met(view) {
            Truth::Yes => return Truth::Yes,
            Truth::Unknown => truth = Truth::Unknown,
            Truth::No => {}
        }
    }
    truth
}

/// Is a caller of outside the one that is meant? A certificate without names has a subject, which is not looked at.
fn outsider(names: Option<&[String]>, wanted: Option<&StringMatch>) -> Truth {
    match (names, wanted) {
        (None, _) => Truth::No,
        (Some(_), None) => Truth::Yes,
        (Some([]), Some(_)) => Truth::Unknown,
        (Some(names), Some(wanted)) => names.iter().any(|name| wanted.is_match(name)).into(),
    }
}

fn within(address: Option<IpAddr>, net: &IpNet) -> Truth {
    match address {
        None => Truth::Unknown,
        Some(address) => net.contains(&address.to_canonical()).into(),
    }
}

/// Of several lines any may meet the condition; turned round, none may.
fn header(wanted: &HeaderMatch, source: &HeaderSource, request: &RequestView<'_>) -> Truth {
    let name = match source {
        HeaderSource::Header(name) => name,
        HeaderSource::Method => return value(wanted, Some(request.method.as_str().as_bytes())),
        HeaderSource::Scheme => return value(wanted, Some(request.scheme.as_bytes())),
        HeaderSource::Path => return value(wanted, Some(request.path.as_bytes())),
        HeaderSource::Authority => {
            let there = !request.authority.is_empty();
            return value(wanted, there.then_some(request.authority.as_bytes()));
        }
    };
    let mut lines = request.headers.get_all(name).iter().map(|line| line.as_bytes()).peekable();
    if lines.peek().is_none() {
        return value(wanted, None);
    }
    let mut truth = Truth::from(wanted.invert);
    for line in lines {
        // Each is turned round by itself, so that none may meet the condition is that all meet the opposite.
        match (value(wanted, Some(line)), wanted.invert) {
            (Truth::Yes, false) => return Truth::Yes,
            (Truth::No, true) => return Truth::No,
            (Truth::Unknown, _) => truth = Truth::Unknown,
            (Truth::Yes | Truth::No, _) => {}
        }
    }
    truth
}

fn value(wanted: &HeaderMatch, line: Option<&[u8]>) -> Truth {
    let line = line.or_else(|| wanted.missing_as_empty.then_some(b"".as_slice()));
    let text = match line.map(std::str::from_utf8) {
        None => None,
        Some(Ok(text)) => Some(text),
        // What is no text is there; what it says nobody knows for certain.
        Some(Err(_)) => match wanted.matcher {
            HeaderMatcher::Present(present) => return Truth::from(present != wanted.invert),
            HeaderMatcher::Range { .. } | HeaderMatcher::Value(_) => return Truth::Unknown,
        },
    };
    let met = match (&wanted.matcher, text) {
        (HeaderMatcher::Present(present), text) => text.is_some() == *present,
        // RM9: a header that is not there never meets a condition on its value, inverted or not.
        (_, None) => return Truth::No,
        (HeaderMatcher::Range { start, end }, Some(text)) => {
            text.parse().is_ok_and(|number: i64| (*start..*end).contains(&number))
        }
        (HeaderMatcher::Value(matcher), Some(text)) => matcher.is_match(text),
    };
    (met != wanted.invert).into()
}
