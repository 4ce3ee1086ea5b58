//! Kinds that people bring along and this control plane does not take, each with what to do instead.

/// What to do instead of a kind that is known and refused; `None` for kinds nobody knows.
pub(super) fn reason(group: &str, kind: &str) -> Option<&'static str> {
    let reason = match (group, kind) {
        ("extensions.istio.io", "WasmPlugin" | "TrafficExtension") => {
            "it extends Envoy, which is not here; write a Tower layer instead"
        }
        ("networking.istio.io", "ProxyConfig") => {
            "it configures Envoy, which is not here; processes are configured by their environment"
        }
        ("gateway.networking.k8s.io", "UDPRoute") => {
            "UDP is not routed; HTTPRoute, GRPCRoute, TLSRoute and TCPRoute are taken"
        }
        ("gateway.networking.k8s.io", "BackendTLSPolicy") => "write tls.mode SIMPLE in a DestinationRule for the host",
        ("gateway.networking.k8s.io" | "gateway.networking.x-k8s.io", _) => {
            "of the Gateway API GatewayClass, Gateway, HTTPRoute, GRPCRoute, TLSRoute, TCPRoute and ReferenceGrant are taken"
        }
        ("config.istio.io", "RouteRule") | ("networking.istio.io", "RouteRule") => {
            "write a VirtualService of networking.istio.io/v1: match is http[].match, route is http[].route with weights, \
             httpReqTimeout is timeout, httpReqRetries is retries, httpFault is fault"
        }
        ("config.istio.io", "DestinationPolicy") | ("networking.istio.io", "DestinationPolicy") => {
            "write a DestinationRule of networking.istio.io/v1: loadBalancing is trafficPolicy.loadBalancer, circuitBreaker is \
             trafficPolicy.connectionPool and outlierDetection"
        }
        ("config.istio.io", "EgressRule") | ("networking.istio.io", "EgressRule") => {
            "write a ServiceEntry of networking.istio.io/v1 with location MESH_EXTERNAL and resolution DNS"
        }
        ("networking.istio.io", "ExternalService") => "it was renamed: write a ServiceEntry of networking.istio.io/v1",
        ("networking.istio.io", "IngressRule") | ("config.istio.io", "IngressRule") => {
            "write a Gateway and a VirtualService bound to it"
        }
        ("config.istio.io", "QuotaSpec" | "QuotaSpecBinding" | "quota" | "memquota" | "redisquota") => {
            "Mixer's quotas went away with Istio 1.8; how many at once is connectionPool of a DestinationRule, how many in a \
             time is a local rate limit of the server's own (with a bucket for each descriptor, as memquota's overrides had), \
             and one count for all processes, as redisquota kept, is a rate limit service's \
             (envoy.service.ratelimit.v3.RateLimitService)"
        }
        ("config.istio.io", "HTTPAPISpec" | "HTTPAPISpecBinding") => {
            "API attributes were Mixer's; match paths in a VirtualService instead"
        }
        ("config.istio.io", "rule" | "handler" | "instance") => {
            "Mixer's rules went away with Istio 1.8; telemetry is built in, and what denied requests is an AuthorizationPolicy"
        }
        (
            "config.istio.io",
            "denier" | "listchecker" | "checknothing" | "listentry" | "opa" | "rbac" | "authorization",
        ) => "Mixer's policy checks went away with Istio 1.8; write an AuthorizationPolicy of security.istio.io/v1",
        (
            "config.istio.io",
            "metric" | "logentry" | "tracespan" | "prometheus" | "stdio" | "fluentd" | "statsd" | "stackdriver"
            | "reportnothing",
        ) => "Mixer's telemetry went away with Istio 1.8; metrics, logs and traces are built in",
        ("config.istio.io", _) => {
            "Mixer went away with Istio 1.8; telemetry is built in, and a PeerAuthentication or DestinationRule \
             replaces policy"
        }
        ("authentication.istio.io", "Policy" | "MeshPolicy") => {
            "write a PeerAuthentication of security.istio.io/v1 (in namespace istio-system for the whole mesh)"
        }
        ("rbac.istio.io", "RbacConfig" | "ClusterRbacConfig") => {
            "it switched Mixer's rules on; an AuthorizationPolicy of security.istio.io/v1 counts wherever it is"
        }
        ("rbac.istio.io", "ServiceRole") => {
            "write an AuthorizationPolicy of security.istio.io/v1: rules[].to says what ServiceRole said"
        }
        ("rbac.istio.io", "ServiceRoleBinding") => {
            "write an AuthorizationPolicy of security.istio.io/v1: rules[].from says what ServiceRoleBinding said"
        }
        ("rbac.istio.io", _) => "write an AuthorizationPolicy of security.istio.io/v1",
        ("networking.k8s.io", "IngressClass") => "write a Gateway: its selector says which workloads serve it",
        ("install.istio.io" | "operator.istio.io", _) => {
            "nothing is installed here; write what its meshConfig says as a file of its own, or as the key mesh of the ConfigMap istio"
        }
        ("networking.k8s.io" | "extensions", "Ingress") => "write a Gateway and a VirtualService instead",
        ("networking.k8s.io", "NetworkPolicy") => "it restricts packets, which is for the network to do",
        ("", "Pod" | "ReplicationController") | ("apps", "StatefulSet" | "DaemonSet" | "ReplicaSet") => {
            "nothing is started here; workloads register themselves when they connect"
        }
        ("", "Endpoints") | ("discovery.k8s.io", "EndpointSlice") => {
            "write a WorkloadEntry for each endpoint, or let workloads register themselves"
        }
        ("", "Namespace") => "namespaces need no declaration; leave it out",
        ("", "ConfigMap") => {
            "of ConfigMaps only one with the key mesh is taken, which is Istio's MeshConfig; leave it out"
        }
        ("", "PersistentVolume" | "PersistentVolumeClaim") => "it means nothing to the mesh; leave it out",
        _ => return None,
    };
    Some(reason)
}
