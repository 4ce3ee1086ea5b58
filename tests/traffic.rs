//! Every kind of traffic policy through the public client, over HTTP/1.1, HTTP/2 and gRPC alike: one file a group.
//!
//! Programs link `Mesh` and send requests; upstreams are plain servers on loopback that say what arrived. The tables of policy
//! themselves are tested in `mesh-core`; what is shown here is that a program gets them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "traffic/asking.rs"]
mod asking;
#[path = "traffic/authorization.rs"]
mod authorization;

#[path = "traffic/balancing.rs"]
mod balancing;

#[path = "traffic/bodies.rs"]
mod bodies;

#[path = "traffic/bypass.rs"]
mod bypass;

#[path = "traffic/collector.rs"]
mod collector;

#[path = "traffic/defaults.rs"]
mod defaults;

#[path = "traffic/endpoints.rs"]
mod endpoints;

#[path = "traffic/endings.rs"]
mod endings;

#[path = "traffic/filters.rs"]
mod filters;

#[path = "traffic/frames.rs"]
mod frames;

#[path = "traffic/harness.rs"]
mod harness;

#[path = "traffic/egress.rs"]
mod egress;

#[path = "traffic/outside.rs"]
mod outside;

#[path = "traffic/gateways.rs"]
mod gateways;

#[path = "traffic/forgers.rs"]
mod forgers;

#[path = "traffic/relayed.rs"]
mod relayed;

#[path = "traffic/standing.rs"]
mod standing;

#[path = "traffic/faults.rs"]
mod faults;

#[path = "traffic/checks.rs"]
mod checks;
#[path = "traffic/health.rs"]
mod health;

#[path = "traffic/load.rs"]
mod load;

#[path = "traffic/floods.rs"]
mod floods;

#[path = "traffic/mirroring.rs"]
mod mirroring;

#[path = "traffic/rate_limits.rs"]
mod rate_limits;

#[path = "traffic/written_limits.rs"]
mod written_limits;

#[path = "traffic/objects.rs"]
mod objects;

#[path = "traffic/unprotected.rs"]
mod unprotected;

#[path = "traffic/retries.rs"]
mod retries;

#[path = "traffic/names.rs"]
mod names;
#[path = "traffic/pools.rs"]
mod pools;

#[path = "traffic/profiles.rs"]
mod profiles;

#[path = "traffic/rewriting.rs"]
mod rewriting;

#[path = "traffic/routing.rs"]
mod routing;

#[path = "traffic/serving.rs"]
mod serving;

#[path = "traffic/sessions.rs"]
mod sessions;

#[path = "traffic/switches.rs"]
mod switches;

#[path = "traffic/telemetry.rs"]
mod telemetry;

#[path = "traffic/timeouts.rs"]
mod timeouts;

#[path = "traffic/tokens.rs"]
mod tokens;

#[path = "traffic/tracing.rs"]
mod tracing;

#[path = "traffic/upgrades.rs"]
mod upgrades;

#[path = "traffic/waiting.rs"]
mod waiting;
