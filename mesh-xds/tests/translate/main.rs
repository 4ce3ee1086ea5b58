//! The translation between xDS and configuration, through its public functions: there and back, against Envoy's own
//! message types, and rule by rule.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod alone;
mod balancer;
mod cluster;
mod discovery;
mod endpoint;
mod grpc;
mod limits;
mod listener;
mod loads;
mod named;
mod oracle;
mod rich;
mod round_trip;
mod route;
mod subset;

use bytes::Bytes;
use mesh_xds::proto::Any;
use prost::Message;

/// A message as a resource's body.
fn body(message: &impl Message) -> Bytes {
    message.encode_to_vec().into()
}

/// A message whose type this crate does not declare, by its full name.
fn any(name: &str, value: &[u8]) -> Any {
    Any { type_url: format!("type.googleapis.com/{name}"), value: value.to_vec().into() }
}

fn seconds(seconds: i64) -> prost_types::Duration {
    prost_types::Duration { seconds, nanos: 0 }
}
