//! To whom the load of a cluster is reported, and which metrics.

use mesh_core::config::LoadReports;
use mesh_xds::{
    ads::TypeUrl,
    profile::{Context, Profile},
    proto::envoy::config::{
        cluster::v3::{
            Cluster,
            cluster::{ClusterDiscoveryType, DiscoveryType, EdsClusterConfig},
        },
        core::v3::{AggregatedConfigSource, ConfigSource, SelfConfigSource, config_source::ConfigSourceSpecifier},
    },
    translate,
};

use crate::body;

fn source(of: ConfigSourceSpecifier) -> Option<ConfigSource> {
    Some(ConfigSource { config_source_specifier: Some(of), ..ConfigSource::default() })
}

fn cluster(lrs_server: Option<ConfigSource>, metrics: &[&str]) -> Cluster {
    let ads = ConfigSourceSpecifier::Ads(AggregatedConfigSource {});
    Cluster {
        name: "reviews".into(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Eds.into())),
        eds_cluster_config: Some(EdsClusterConfig { eds_config: source(ads), ..EdsClusterConfig::default() }),
        lrs_server,
        lrs_report_endpoint_metrics: metrics.iter().map(ToString::to_string).collect(),
        ..Cluster::default()
    }
}

/// TE22: loads are reported to whom the cluster comes from; metrics that are not known, and another server, are told of.
#[test]
fn loads_are_reported_to_where_the_cluster_comes_from() {
    let own = || source(ConfigSourceSpecifier::Self_(SelfConfigSource::default()));
    let other = source(ConfigSourceSpecifier::Ads(AggregatedConfigSource {}));
    let known = ["cpu_utilization", "named_metrics.*", "request_cost.rows"];
    let reports = |metrics: &[&str]| Some(LoadReports { metrics: metrics.iter().map(ToString::to_string).collect() });
    for (message, expected, ignored) in [
        (cluster(None, &[]), None, None),
        (cluster(None, &["cpu_utilization"]), None, Some("lrs_report_endpoint_metrics")),
        (cluster(own(), &[]), reports(&[]), None),
        (cluster(own(), &known), reports(&known), None),
        (
            cluster(own(), &["rps", "mem_utilization"]),
            reports(&["mem_utilization"]),
            Some("lrs_report_endpoint_metrics"),
        ),
        (cluster(other, &[]), None, Some("lrs_server")),
    ] {
        let decoded = translate::cluster(&body(&message)).unwrap();
        assert_eq!(decoded.value.load_reports.as_deref(), expected.as_ref());
        let told = decoded.ignored.iter().find(|field| field.starts_with("lrs"));
        assert_eq!(told.map(String::as_str), ignored, "{:?}", decoded.ignored);
    }
    let grpc = Context { profile: Profile::Grpc, ..Context::default() };
    assert!(translate::read(TypeUrl::Cluster, &body(&cluster(own(), &[])), &grpc).is_ok());
    let refused = translate::read(TypeUrl::Cluster, &body(&cluster(other, &[])), &grpc).unwrap_err();
    assert_eq!(refused.field, "lrs_server");
}
