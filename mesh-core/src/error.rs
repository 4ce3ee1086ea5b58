//! What can go wrong when deciding: one small error a decision. Statuses and flags of answers are in `outcome.rs`.

use std::fmt;

use crate::config::Name;

/// No route takes the request: 404 with flag `NR`, `UNIMPLEMENTED` to a gRPC caller.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum NoRoute {
    /// Nothing is configured for the port.
    Port(u16),
    /// Nothing is configured for the name that was dialled.
    Target,
    /// No virtual host of the port has a domain that takes the authority.
    VirtualHost,
    /// None of the virtual host's rules matches.
    Rule,
}

impl fmt::Display for NoRoute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Port(port) => write!(f, "no routes are configured for port {port}"),
            Self::Target => f.write_str("nothing is known of the name that was dialled"),
            Self::VirtualHost => f.write_str("no virtual host takes this authority"),
            Self::Rule => f.write_str("no rule of the virtual host matches"),
        }
    }
}

impl std::error::Error for NoRoute {}

/// No endpoint could be picked; nothing was sent.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum PickError {
    /// The cluster has no endpoint that may be used: 503 with flag `UH`.
    NoEndpoint,
    /// As many requests as allowed are under way: 503 with flag `UO`.
    Overflow,
    /// The control plane asks for requests of this category to be dropped, and this is one. Envoy `drop_overloads`.
    Dropped(Name),
    /// The cluster cannot be used, and why: 503 with flag `NC`.
    Failed(String),
}

impl fmt::Display for PickError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoEndpoint => f.write_str("no healthy endpoint"),
            Self::Overflow => f.write_str("too many requests under way (circuit breaker max_requests)"),
            Self::Dropped(category) => write!(f, "dropped for overload ({category})"),
            Self::Failed(why) => write!(f, "the cluster cannot be used: {why}"),
        }
    }
}

impl std::error::Error for PickError {}

/// A configuration that cannot be compiled; the previous snapshot stays in force.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct CompileError {
    /// The part, by kind and name: `virtual host "reviews"`.
    pub resource: String,
    /// The field within it: `routes[2].action.clusters`.
    pub field: String,
    /// What is wrong and what to do.
    pub message: String,
}

impl CompileError {
    pub(crate) fn new(resource: &str, field: impl Into<String>, message: impl Into<String>) -> Self {
        Self { resource: resource.to_owned(), field: field.into(), message: message.into() }
    }
}

impl fmt::Display for CompileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: field {}: {}", self.resource, self.field, self.message)
    }
}

impl std::error::Error for CompileError {}
