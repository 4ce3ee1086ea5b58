//! The protobuf types of xDS: Envoy's messages as far as they are used here, their services, and Istio's CA.
//!
//! The sources are our own files under `proto/`, with Envoy's names and numbers; the code under `proto/generated/` is
//! made from them by `tests/protos.rs`. The modules below mirror the packages; [`fields`] knows the numbers of all fields,
//! so that what decoding drops can be reported. Not stable: a message gains fields whenever the mesh learns to act on
//! them, and nothing outside this workspace should build on them.

use prost::{DecodeError, Message, Name};

pub use self::{
    envoy::service::discovery::v3::{
        DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse, Resource,
        aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
        aggregated_discovery_service_server::{AggregatedDiscoveryService, AggregatedDiscoveryServiceServer},
    },
    google::{protobuf::Any, rpc::Status},
    istio::v1::auth::{
        IstioCertificateRequest, IstioCertificateResponse,
        istio_certificate_service_client::IstioCertificateServiceClient,
        istio_certificate_service_server::{IstioCertificateService, IstioCertificateServiceServer},
    },
};

pub(crate) mod fields;

/// The `FileDescriptorSet` of all sources and what they import, encoded: for tools that read and write JSON.
pub const DESCRIPTORS: &[u8] = include_bytes!("proto/generated/descriptors.bin");

impl Any {
    /// The message, named and encoded.
    pub fn pack<M: Message + Name>(message: &M) -> Self {
        Self { type_url: M::type_url(), value: message.encode_to_vec().into() }
    }

    /// The message, if this is one of that type; `None` if it is of another.
    pub fn unpack<M: Message + Name + Default>(&self) -> Option<Result<M, DecodeError>> {
        self.is::<M>().then(|| M::decode(self.value.clone()))
    }

    /// Whether this is a message of that type. Only what follows the last `/` of the URL counts.
    pub fn is<M: Name>(&self) -> bool {
        self.message_name() == M::full_name()
    }

    /// The full name of the message within: `envoy.config.listener.v3.Listener`.
    pub fn message_name(&self) -> &str {
        self.type_url.rsplit('/').next().unwrap_or_default()
    }
}

#[allow(
    missing_docs,
    unreachable_pub,
    clippy::all,
    clippy::use_self,
    reason = "generated; Envoy's own documentation describes it"
)]
pub mod envoy {
    pub mod admin {
        pub mod v3 {
            include!("proto/generated/envoy.admin.v3.rs");
        }
    }
    pub mod config {
        pub mod accesslog {
            pub mod v3 {
                include!("proto/generated/envoy.config.accesslog.v3.rs");
            }
        }
        pub mod cluster {
            pub mod v3 {
                include!("proto/generated/envoy.config.cluster.v3.rs");
            }
        }
        pub mod common {
            pub mod mutation_rules {
                pub mod v3 {
                    include!("proto/generated/envoy.config.common.mutation_rules.v3.rs");
                }
            }
        }
        pub mod core {
            pub mod v3 {
                include!("proto/generated/envoy.config.core.v3.rs");
            }
        }
        pub mod endpoint {
            pub mod v3 {
                include!("proto/generated/envoy.config.endpoint.v3.rs");
            }
        }
        pub mod listener {
            pub mod v3 {
                include!("proto/generated/envoy.config.listener.v3.rs");
            }
        }
        pub mod ratelimit {
            pub mod v3 {
                include!("proto/generated/envoy.config.ratelimit.v3.rs");
            }
        }
        pub mod rbac {
            pub mod v3 {
                include!("proto/generated/envoy.config.rbac.v3.rs");
            }
        }
        pub mod route {
            pub mod v3 {
                include!("proto/generated/envoy.config.route.v3.rs");
            }
        }
    }
    pub mod extensions {
        pub mod access_loggers {
            pub mod file {
                pub mod v3 {
                    include!("proto/generated/envoy.extensions.access_loggers.file.v3.rs");
                }
            }
            pub mod filters {
                pub mod cel {
                    pub mod v3 {
                        include!("proto/generated/envoy.extensions.access_loggers.filters.cel.v3.rs");
                    }
                }
            }
        }
        pub mod clusters {
            pub mod aggregate {
                pub mod v3 {
                    include!("proto/generated/envoy.extensions.clusters.aggregate.v3.rs");
                }
            }
        }
        pub mod common {
            pub mod ratelimit {
                pub mod v3 {
                    include!("proto/generated/envoy.extensions.common.ratelimit.v3.rs");
                }
            }
        }
        pub mod filters {
            pub mod common {
                pub mod fault {
                    pub mod v3 {
                        include!("proto/generated/envoy.extensions.filters.common.fault.v3.rs");
                    }
                }
            }
            pub mod http {
                pub mod buffer {
                    pub mod v3 {
                        include!("proto/generated/envoy.extensions.filters.http.buffer.v3.rs");
                    }
                }
                pub mod ext_authz {
                    pub mod v3 {
                        include!("proto/generated/envoy.extensions.filters.http.ext_authz.v3.rs");
                    }
                }
                pub mod fault {
                    pub mod v3 {
                        include!("proto/generated/envoy.extensions.filters.http.fault.v3.rs");
                    }
                }
                pub mod jwt_authn {
                    pub mod v3 {
                        include!("proto/generated/envoy.extensions.filters.http.jwt_authn.v3.rs");
                    }
                }
                pub mod local_ratelimit {
                    pub mod v3 {
                        include!("proto/generated/envoy.extensions.filters.http.local_ratelimit.v3.rs");
                    }
                }
                pub mod ratelimit {
                    pub mod v3 {
                        include!("proto/generated/envoy.extensions.filters.http.ratelimit.v3.rs");
                    }
                }
                pub mod rbac {
                    pub mod v3 {
                        include!("proto/generated/envoy.extensions.filters.http.rbac.v3.rs");
                    }
                }
                pub mod router {
                    pub mod v3 {
                        include!("proto/generated/envoy.extensions.filters.http.router.v3.rs");
                    }
                }
                pub mod stateful_session {
                    pub mod v3 {
                        include!("proto/generated/envoy.extensions.filters.http.stateful_session.v3.rs");
                    }
                }
            }
            pub mod listener {
                pub mod tls_inspector {
                    pub mod v3 {
                        include!("proto/generated/envoy.extensions.filters.listener.tls_inspector.v3.rs");
                    }
                }
            }
            pub mod network {
                pub mod connection_limit {
                    pub mod v3 {
                        include!("proto/generated/envoy.extensions.filters.network.connection_limit.v3.rs");
                    }
                }
                pub mod http_connection_manager {
                    pub mod v3 {
                        include!("proto/generated/envoy.extensions.filters.network.http_connection_manager.v3.rs");
                    }
                }
                pub mod rbac {
                    pub mod v3 {
                        include!("proto/generated/envoy.extensions.filters.network.rbac.v3.rs");
                    }
                }
                pub mod tcp_proxy {
                    pub mod v3 {
                        include!("proto/generated/envoy.extensions.filters.network.tcp_proxy.v3.rs");
                    }
                }
            }
        }
        pub mod http {
            pub mod stateful_session {
                pub mod cookie {
                    pub mod v3 {
                        include!("proto/generated/envoy.extensions.http.stateful_session.cookie.v3.rs");
                    }
                }
                pub mod envelope {
                    pub mod v3 {
                        include!("proto/generated/envoy.extensions.http.stateful_session.envelope.v3.rs");
                    }
                }
                pub mod header {
                    pub mod v3 {
                        include!("proto/generated/envoy.extensions.http.stateful_session.header.v3.rs");
                    }
                }
            }
        }
        pub mod load_balancing_policies {
            pub mod client_side_weighted_round_robin {
                pub mod v3 {
                    include!(
                        "proto/generated/envoy.extensions.load_balancing_policies.client_side_weighted_round_robin.v3.rs"
                    );
                }
            }
            pub mod common {
                pub mod v3 {
                    include!("proto/generated/envoy.extensions.load_balancing_policies.common.v3.rs");
                }
            }
            pub mod least_request {
                pub mod v3 {
                    include!("proto/generated/envoy.extensions.load_balancing_policies.least_request.v3.rs");
                }
            }
            pub mod maglev {
                pub mod v3 {
                    include!("proto/generated/envoy.extensions.load_balancing_policies.maglev.v3.rs");
                }
            }
            pub mod pick_first {
                pub mod v3 {
                    include!("proto/generated/envoy.extensions.load_balancing_policies.pick_first.v3.rs");
                }
            }
            pub mod random {
                pub mod v3 {
                    include!("proto/generated/envoy.extensions.load_balancing_policies.random.v3.rs");
                }
            }
            pub mod random_subsetting {
                pub mod v3 {
                    include!("proto/generated/envoy.extensions.load_balancing_policies.random_subsetting.v3.rs");
                }
            }
            pub mod ring_hash {
                pub mod v3 {
                    include!("proto/generated/envoy.extensions.load_balancing_policies.ring_hash.v3.rs");
                }
            }
            pub mod round_robin {
                pub mod v3 {
                    include!("proto/generated/envoy.extensions.load_balancing_policies.round_robin.v3.rs");
                }
            }
            pub mod wrr_locality {
                pub mod v3 {
                    include!("proto/generated/envoy.extensions.load_balancing_policies.wrr_locality.v3.rs");
                }
            }
        }
        pub mod outlier_detection_monitors {
            pub mod common {
                pub mod v3 {
                    include!("proto/generated/envoy.extensions.outlier_detection_monitors.common.v3.rs");
                }
            }
            pub mod consecutive_errors {
                pub mod v3 {
                    include!("proto/generated/envoy.extensions.outlier_detection_monitors.consecutive_errors.v3.rs");
                }
            }
        }
        pub mod path {
            pub mod r#match {
                pub mod uri_template {
                    pub mod v3 {
                        include!("proto/generated/envoy.extensions.path.r#match.uri_template.v3.rs");
                    }
                }
            }
            pub mod rewrite {
                pub mod uri_template {
                    pub mod v3 {
                        include!("proto/generated/envoy.extensions.path.rewrite.uri_template.v3.rs");
                    }
                }
            }
        }
        pub mod retry {
            pub mod host {
                pub mod previous_hosts {
                    pub mod v3 {
                        include!("proto/generated/envoy.extensions.retry.host.previous_hosts.v3.rs");
                    }
                }
            }
        }
        pub mod transport_sockets {
            pub mod raw_buffer {
                pub mod v3 {
                    include!("proto/generated/envoy.extensions.transport_sockets.raw_buffer.v3.rs");
                }
            }
            pub mod tls {
                pub mod v3 {
                    include!("proto/generated/envoy.extensions.transport_sockets.tls.v3.rs");
                }
            }
        }
        pub mod upstreams {
            pub mod http {
                pub mod v3 {
                    include!("proto/generated/envoy.extensions.upstreams.http.v3.rs");
                }
            }
        }
    }
    pub mod r#type {
        pub mod http {
            pub mod v3 {
                include!("proto/generated/envoy.r#type.http.v3.rs");
            }
        }
        pub mod matcher {
            pub mod v3 {
                include!("proto/generated/envoy.r#type.matcher.v3.rs");
            }
        }
        pub mod metadata {
            pub mod v3 {
                include!("proto/generated/envoy.r#type.metadata.v3.rs");
            }
        }
        pub mod tracing {
            pub mod v3 {
                include!("proto/generated/envoy.r#type.tracing.v3.rs");
            }
        }
        pub mod v3 {
            include!("proto/generated/envoy.r#type.v3.rs");
        }
    }
    pub mod service {
        pub mod auth {
            pub mod v3 {
                include!("proto/generated/envoy.service.auth.v3.rs");
            }
        }
        pub mod discovery {
            pub mod v3 {
                include!("proto/generated/envoy.service.discovery.v3.rs");
            }
        }
        pub mod load_stats {
            pub mod v3 {
                include!("proto/generated/envoy.service.load_stats.v3.rs");
            }
        }
        pub mod ratelimit {
            pub mod v3 {
                include!("proto/generated/envoy.service.ratelimit.v3.rs");
            }
        }
        pub mod secret {
            pub mod v3 {
                include!("proto/generated/envoy.service.secret.v3.rs");
            }
        }
        pub mod status {
            pub mod v3 {
                include!("proto/generated/envoy.service.status.v3.rs");
            }
        }
    }
}

#[allow(
    missing_docs,
    unreachable_pub,
    clippy::all,
    clippy::use_self,
    reason = "generated; Envoy's own documentation describes it"
)]
pub mod google {
    pub mod protobuf {
        include!("proto/generated/google.protobuf.rs");
    }
    pub mod rpc {
        include!("proto/generated/google.rpc.rs");
    }
}

#[allow(
    missing_docs,
    unreachable_pub,
    clippy::all,
    clippy::use_self,
    reason = "generated; Envoy's own documentation describes it"
)]
pub mod istio {
    pub mod v1 {
        pub mod auth {
            include!("proto/generated/istio.v1.auth.rs");
        }
    }
}

#[allow(
    missing_docs,
    unreachable_pub,
    clippy::all,
    clippy::use_self,
    reason = "generated; Istio's own documentation describes it"
)]
pub mod stats {
    include!("proto/generated/stats.rs");
}

#[allow(
    missing_docs,
    unreachable_pub,
    clippy::all,
    clippy::use_self,
    reason = "generated; Envoy's own documentation describes it"
)]
pub mod udpa {
    pub mod r#type {
        pub mod v1 {
            include!("proto/generated/udpa.r#type.v1.rs");
        }
    }
}

#[allow(
    missing_docs,
    unreachable_pub,
    clippy::all,
    clippy::use_self,
    reason = "generated; Envoy's own documentation describes it"
)]
pub mod xds {
    pub mod r#type {
        pub mod v3 {
            include!("proto/generated/xds.r#type.v3.rs");
        }
    }
}

#[allow(
    missing_docs,
    unreachable_pub,
    clippy::all,
    clippy::use_self,
    reason = "generated; the standards of SPIFFE describe it"
)]
pub mod spiffe {
    pub mod workload {
        include!("proto/generated/_.rs");
    }
}
