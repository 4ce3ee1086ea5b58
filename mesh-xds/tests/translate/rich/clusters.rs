//! Clusters with something in every field that has a form on the wire.

use super::*;

pub(super) fn clusters() -> Vec<Cluster> {
    let endpoint = |address: &str, health, mtls| Endpoint {
        address: EndpointAddress::Socket(address.parse().unwrap()),
        weight: 3,
        health,
        mtls,
        workload: Some(Arc::new(Workload {
            name: "reviews-v1".into(),
            namespace: "default".into(),
            canonical_name: "reviews".into(),
            canonical_revision: "v1".into(),
            cluster: "Kubernetes".into(),
            ..Workload::default()
        })),
        hostname: "reviews-v1.local".into(),
        hash_key: Some("first".into()),
        more: Some(Arc::new(EndpointMore {
            addresses: vec![([10, 9, 8, 7], 7_000 + health as u16).into()],
            metadata: vec![
                ("canary".into(), MetadataValue::Bool(true)),
                ("shard".into(), MetadataValue::Number("3".into())),
                ("version".into(), "v1".into()),
            ],
        })),
    };
    let endpoints = Arc::new(Endpoints {
        localities: vec![
            LocalityEndpoints {
                locality: Locality { region: "eu".into(), zone: "a".into(), sub_zone: "1".into() },
                priority: 0,
                weight: Some(2),
                endpoints: vec![
                    endpoint("127.0.0.11:9080", Health::Healthy, true),
                    endpoint("[::1]:9080", Health::Draining, false),
                ],
            },
            LocalityEndpoints {
                locality: Locality::default(),
                priority: 1,
                weight: None,
                endpoints: vec![
                    endpoint("127.0.0.13:9080", Health::Unhealthy, true),
                    Endpoint {
                        address: EndpointAddress::Unix("/run/x.sock".into()),
                        workload: None,
                        more: None,
                        ..endpoint("127.0.0.1:1", Health::Degraded, false)
                    },
                ],
            },
        ],
        overprovisioning: 150,
        weighted_priority_health: true,
        drops: vec![
            DropOverload { category: "lb".into(), fraction: Fraction { numerator: 60, denominator: 100 } },
            DropOverload { category: "throttle".into(), fraction: Fraction { numerator: 1, denominator: 1_000_000 } },
        ],
    });
    let named = |name: &str, discovery| Cluster { name: name.into(), discovery, ..Cluster::default() };
    let with = |name: &str, load_balancer| Cluster { load_balancer, ..named(name, Discovery::Static) };
    let common = ConsistentHash { by_hostname: true, balance_factor: 150 };
    let ring = RingHash { min_size: 10, max_size: 100, function: HashFunction::Murmur2, common };
    let slow_start = SlowStart { window: Duration::from_secs(60), aggression: 2.0, min_percent: 20.0 };
    let zones = ZoneAware { enabled_percent: 50.0, min_cluster_size: 2, fail_on_panic: true, force_local: Some(3) };
    let weighted = ClientWeighted {
        out_of_band: Some(Duration::from_secs(7)),
        blackout: Duration::from_secs(1),
        expiration: Duration::from_secs(2),
        update: Duration::from_millis(300),
        error_penalty: 0.5,
        metrics: vec!["named_metrics.queue".to_owned()],
    };
    let hashes = hash_policies();
    vec![
        Cluster {
            service: Some(ServiceName {
                host: "reviews.default.svc.cluster.local".into(),
                name: "reviews".into(),
                namespace: "default".into(),
            }),
            endpoints: Arc::clone(&endpoints),
            load_balancer: LoadBalancer::LeastRequest(LeastRequest { choices: 3, bias: 1.5 }),
            connect_timeout: Duration::from_secs(10),
            protocol: Protocol::Http2,
            connections: connections(),
            thresholds: Thresholds {
                max_connections: 1,
                max_pending_requests: 2,
                max_requests: 3,
                max_retries: 4,
                retry_budget: Some(RetryBudget { percent: 12.5, min_concurrency: 7 }),
                max_requests_per_endpoint: 9,
            },
            high_thresholds: Thresholds { max_requests: 5, ..Thresholds::default() },
            outlier_detection: Some(outliers()),
            health_check: Some(Arc::new(http_check())),
            avoid_unreachable: false,
            tls: TlsMode::IfEndpointCan(mtls()),
            panic_threshold: 0,
            locality_weighted: true,
            slow_start: Some(slow_start),
            load_reports: Some(Arc::new(LoadReports {
                metrics: vec!["cpu_utilization".into(), "named_metrics.*".into()],
            })),
            override_host: vec![Health::Draining, Health::Healthy],
            subsets: Some(Arc::new(subsets())),
            origin: Some("destination-rule/default/reviews".into()),
            ..named("outbound|9080|v1|reviews.default.svc.cluster.local", Discovery::Eds("other-name".into()))
        },
        Cluster {
            endpoints: Arc::clone(&endpoints),
            tls: TlsMode::Always(mtls()),
            outlier_detection: Some(OutlierDetection::default()),
            health_check: Some(Arc::new(grpc_check())),
            ..named("own-name", Discovery::Eds("own-name".into()))
        },
        with("ring", LoadBalancer::RingHash(ring)),
        with("plain-ring", LoadBalancer::RingHash(RingHash::default())),
        with("maglev", LoadBalancer::Maglev(Maglev { table_size: 101, common })),
        Cluster { hash: hashes.clone(), ..with("hashed-ring", LoadBalancer::RingHash(ring)) },
        Cluster {
            hash: hashes,
            locality_weighted: true,
            ..with("hashed-maglev", LoadBalancer::Maglev(Maglev { table_size: 101, common }))
        },
        Cluster { locality_weighted: true, ..with("reported", LoadBalancer::ClientWeighted(weighted)) },
        with("first", LoadBalancer::PickFirst(PickFirst { shuffle: true })),
        Cluster {
            subset_size: Some(3),
            slow_start: Some(slow_start),
            ..with("subset", LoadBalancer::LeastRequest(LeastRequest { choices: 4, bias: 0.5 }))
        },
        Cluster { zone_aware: Some(zones), ..with("zones", LoadBalancer::Random) },
        Cluster {
            zone_aware: Some(ZoneAware { force_local: None, ..zones }),
            subset_size: Some(2),
            ..with("subset-zones", LoadBalancer::RoundRobin)
        },
        Cluster { slow_start: Some(slow_start), ..with("slow", LoadBalancer::RoundRobin) },
        named("aggregate", Discovery::Aggregate(vec!["ring".into(), "maglev".into()])),
        Cluster {
            endpoints,
            load_balancer: LoadBalancer::RoundRobin,
            protocol: Protocol::Auto,
            health_check: Some(Arc::new(tcp_check())),
            ..named("static", Discovery::Static)
        },
        Cluster {
            load_balancer: LoadBalancer::Random,
            tls: TlsMode::Always(Arc::new(UpstreamTls {
                sni: "api.example.com".into(),
                host_sni: true,
                alpn: vec!["h2".into()],
                workload_identity: false,
                subject_alt_names: vec![exact("api.example.com")],
                certificate: Some(CertificateFiles { chain: "/certs/chain.pem".into(), key: "/certs/key.pem".into() }),
                roots: Some("/certs/root.pem".into()),
                versions: TlsVersions::Only13,
            })),
            ..named("strict", Discovery::StrictDns(vec![("api.example.com".into(), 443), ("10.0.0.1".into(), 80)]))
        },
        Cluster {
            protocol: Protocol::Caller,
            ..named("logical", Discovery::LogicalDns(("db.example.com".into(), 5432)))
        },
        named("PassthroughCluster", Discovery::OriginalDestination),
    ]
}

fn connections() -> Connections {
    Connections {
        idle_timeout: Some(Duration::from_secs(1)),
        max_duration: Some(Duration::from_secs(2)),
        max_requests: 3,
        max_response_headers: 4,
        max_response_headers_kib: 5,
        http2: Http2 {
            max_concurrent_streams: 6,
            stream_window: Some(70_000),
            connection_window: Some(80_000),
            header_table: Some(9),
            keepalive: Some(Keepalive {
                interval: Some(Duration::from_secs(10)),
                timeout: Duration::from_secs(11),
                after_idle: None,
            }),
        },
        tcp_keepalive: Some(TcpKeepalive {
            probes: Some(12),
            time: Some(Duration::from_secs(13)),
            interval: Some(Duration::from_secs(14)),
        }),
        bind: Some([127, 0, 0, 15].into()),
        bind_port: 16,
        socket_options: vec![
            SocketOption::Keepalive(true),
            SocketOption::ReuseAddress(true),
            SocketOption::SendBuffer(17),
            SocketOption::ReceiveBuffer(18),
            SocketOption::Mark(19),
            SocketOption::TypeOfService(20),
            SocketOption::NoDelay(false),
            SocketOption::UserTimeout(21),
            SocketOption::KeepaliveTime(22),
            SocketOption::KeepaliveInterval(23),
            SocketOption::KeepaliveProbes(24),
        ],
        preconnect_percent: 250,
        close_when_unhealthy: true,
    }
}

fn outliers() -> OutlierDetection {
    OutlierDetection {
        consecutive_5xx: 1,
        enforcing_consecutive_5xx: 2,
        consecutive_gateway_failure: 3,
        enforcing_consecutive_gateway_failure: 4,
        split_local_origin: true,
        consecutive_local_origin_failure: 5,
        enforcing_consecutive_local_origin_failure: 6,
        success_rate: SuccessRate {
            minimum_hosts: 7,
            request_volume: 8,
            stdev_factor: 9,
            enforcing: 10,
            enforcing_local_origin: 11,
        },
        failure_percentage: FailurePercentage {
            threshold: 12,
            minimum_hosts: 13,
            request_volume: 14,
            enforcing: 15,
            enforcing_local_origin: 16,
        },
        interval: Duration::from_secs(1),
        base_ejection_time: Duration::from_secs(180),
        max_ejection_time: Duration::from_secs(400),
        max_ejection_time_jitter: Duration::from_millis(1500),
        max_ejection_percent: 100,
        always_eject_one_host: true,
        uneject_on_health_check: false,
        monitors: vec![
            Monitor { name: "refused".into(), statuses: vec![(429, 429), (401, 403)], ..Monitor::default() },
            Monitor { name: "gone".into(), local_origin: true, consecutive: 9, enforcing: 8, ..Monitor::default() },
            Monitor {
                name: "quota".into(),
                grpc_codes: vec![8, 14],
                slower_than: Some(Duration::from_millis(2500)),
                ..Monitor::default()
            },
        ],
        latency: Some(LatencyOutlier { factor: 250, ..LatencyOutlier::default() }),
        half_open: true,
    }
}

fn http_check() -> HealthCheck {
    HealthCheck {
        probe: Probe::Http(HttpCheck {
            host: "reviews".into(),
            path: "/ready".into(),
            method: "HEAD".into(),
            headers: vec![("x-check".into(), "yes".into())],
            remove_headers: vec!["user-agent".into()],
            expected: vec![(200, 204), (301, 301)],
            retriable: vec![(500, 599)],
            protocol: Protocol::Http2,
        }),
        timeout: Duration::from_millis(100),
        interval: Duration::from_secs(2),
        unhealthy_interval: Some(Duration::from_secs(3)),
        unhealthy_edge_interval: Some(Duration::from_secs(4)),
        healthy_edge_interval: Some(Duration::from_secs(5)),
        no_traffic_interval: Duration::from_secs(6),
        no_traffic_healthy_interval: Some(Duration::from_secs(7)),
        initial_jitter: Duration::from_secs(8),
        interval_jitter: Duration::from_secs(9),
        interval_jitter_percent: 10,
        unhealthy_threshold: 11,
        healthy_threshold: 12,
        reuse_connection: false,
    }
}

fn grpc_check() -> HealthCheck {
    let metadata = vec![("x-check".into(), "yes".into())];
    let grpc = GrpcCheck { service: "reviews.v1".into(), authority: "reviews".into(), metadata, watch: false };
    HealthCheck { probe: Probe::Grpc(grpc), ..HealthCheck::default() }
}

fn tcp_check() -> HealthCheck {
    let tcp = TcpCheck { send: vec![0, 255], receive: vec![b"PONG".to_vec(), vec![10]] };
    HealthCheck { probe: Probe::Tcp(tcp), ..HealthCheck::default() }
}

fn subsets() -> Subsets {
    let selector = |keys: &[&str], fallback, single| SubsetSelector {
        keys: keys.iter().map(|key| (*key).into()).collect(),
        fallback,
        single,
    };
    Subsets {
        selectors: vec![
            selector(&["shard"], None, true),
            selector(&["canary", "version"], Some(SelectorFallback::Keys(vec!["version".into()])), false),
            selector(&["version"], Some(SelectorFallback::To(SubsetFallback::Any)), false),
        ],
        fallback: SubsetFallback::Default,
        default: vec![("version".into(), "v1".into())],
        panic_to_any: true,
        locality_weighted: true,
        scale_locality_weights: true,
        by_list: true,
    }
}
