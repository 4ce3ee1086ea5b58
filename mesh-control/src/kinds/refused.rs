//! Kinds that people bring along and this control plane does not take, each with what to do instead.

/// What to do instead of a kind that is known and refused; `None` for kinds nobody knows.
pub(super) fn reason(group: &str, kind: &str) -> Option<&'static str> {
    let reason = match (group, kind) {
        (_, "EnvoyFilter") => {
            "it patches the internals of Envoy, which is not here; for rate limits use connectionPool and \
             outlierDetection of a DestinationRule, for routing a VirtualService, for anything else a Tower layer of \
             your own"
        }
        ("extensions.istio.io", "WasmPlugin" | "TrafficExtension") => {
            "it extends Envoy, which is not here; write a Tower layer instead"
        }
        ("networking.istio.io", "Sidecar") => "not yet supported; every workload sees every service",
        ("networking.istio.io", "WorkloadGroup") => {
            "not yet supported; workloads register themselves when they connect, or write a WorkloadEntry for each"
        }
        ("networking.istio.io", "ProxyConfig") => {
            "it configures Envoy, which is not here; processes are configured by their environment"
        }
        ("security.istio.io", "AuthorizationPolicy") => "not yet supported; who may call whom is not restricted",
        ("security.istio.io", "RequestAuthentication") => "not yet supported; tokens are for the application to check",
        ("telemetry.istio.io", "Telemetry") => {
            "not yet supported; metrics are always on, logs and traces are switched by the environment"
        }
        ("gateway.networking.k8s.io", "HTTPRoute" | "GRPCRoute") => "not yet supported; write a VirtualService instead",
        ("gateway.networking.k8s.io", "Gateway") => {
            "not yet supported; write a Gateway of networking.istio.io/v1 instead"
        }
        ("gateway.networking.k8s.io", _) => "the Kubernetes Gateway API is not yet supported",
        ("config.istio.io", _) => {
            "Mixer went away with Istio 1.8; telemetry is built in, and a PeerAuthentication or DestinationRule \
             replaces policy"
        }
        ("authentication.istio.io", "Policy" | "MeshPolicy") => {
            "write a PeerAuthentication of security.istio.io/v1 (in namespace istio-system for the whole mesh)"
        }
        ("rbac.istio.io", _) => "write an AuthorizationPolicy of security.istio.io/v1 (itself not yet supported)",
        ("networking.k8s.io" | "extensions", "Ingress") => "write a Gateway and a VirtualService instead",
        ("networking.k8s.io", "NetworkPolicy") => "it restricts packets, which is for the network to do",
        ("", "Pod" | "ReplicationController") | ("apps", "StatefulSet" | "DaemonSet" | "ReplicaSet") => {
            "nothing is started here; workloads register themselves when they connect"
        }
        ("", "Endpoints") | ("discovery.k8s.io", "EndpointSlice") => {
            "write a WorkloadEntry for each endpoint, or let workloads register themselves"
        }
        ("", "Namespace") => "namespaces need no declaration; leave it out",
        ("", "ConfigMap" | "Secret" | "PersistentVolume" | "PersistentVolumeClaim") => {
            "it means nothing to the mesh; leave it out"
        }
        _ => return None,
    };
    Some(reason)
}
