//! Load reports as messages, and back: what the server asks for.

use std::time::Duration;

use mesh_core::{
    config::{LoadReports, Locality},
    tally::{ClusterLoad, LocalityLoad, Sum},
};

use super::{Order, Said};
use crate::{
    node::Node,
    proto::envoy::{
        config::{
            core::v3,
            endpoint::v3::{
                ClusterStats, EndpointLoadMetricStats, UnnamedEndpointLoadMetricStats, UpstreamLocalityStats,
                cluster_stats::DroppedRequests,
            },
        },
        service::load_stats::v3::{LoadStatsRequest, LoadStatsResponse},
    },
    translate::encode_duration,
};

/// Says that the server may ask for every cluster at once. Source: gRFC A27.
const ALL_CLUSTERS: &str = "envoy.lrs.supports_send_all_clusters";

pub(super) fn encode(said: &Said, node: &Node) -> LoadStatsRequest {
    match said {
        Said::Hello => {
            let client_features = vec![ALL_CLUSTERS.to_owned()];
            let node = Some(v3::Node { client_features, ..node.to_proto() });
            LoadStatsRequest { node, cluster_stats: Vec::new() }
        }
        Said::Loads(loads) => LoadStatsRequest {
            node: None,
            cluster_stats: loads.iter().map(|(load, took)| cluster(load, *took)).collect(),
        },
    }
}

pub(super) fn decode(response: LoadStatsResponse) -> Order {
    let interval = response.load_reporting_interval.and_then(|interval| Duration::try_from(interval).ok());
    Order {
        all: response.send_all_clusters,
        clusters: response.clusters.into_iter().map(Into::into).collect(),
        interval: interval.unwrap_or_default(),
        by_endpoint: response.report_endpoint_granularity,
    }
}

fn cluster(load: &ClusterLoad, took: Duration) -> ClusterStats {
    let dropped = load.dropped.iter();
    ClusterStats {
        cluster_name: load.cluster.to_string(),
        cluster_service_name: load.service.to_string(),
        upstream_locality_stats: load.localities.iter().map(locality).collect(),
        total_dropped_requests: load.refused + dropped.clone().map(|(_, count)| count).sum::<u64>(),
        dropped_requests: dropped
            .map(|(category, count)| DroppedRequests { category: category.to_string(), dropped_count: *count })
            .collect(),
        load_report_interval: Some(encode_duration(took)),
    }
}

fn locality(load: &LocalityLoad) -> UpstreamLocalityStats {
    let Locality { region, zone, sub_zone } = &load.locality;
    let unnamed = |name: &str| {
        load.metrics.get(name).map(|Sum { count, total }| UnnamedEndpointLoadMetricStats {
            num_requests_finished_with_metric: *count,
            total_metric_value: *total,
        })
    };
    let named = load.metrics.iter().filter(|(name, _)| name.contains('.'));
    UpstreamLocalityStats {
        locality: Some(v3::Locality {
            region: region.to_string(),
            zone: zone.to_string(),
            sub_zone: sub_zone.to_string(),
        }),
        total_successful_requests: load.succeeded,
        total_requests_in_progress: load.under_way,
        total_error_requests: load.failed,
        total_issued_requests: load.issued,
        load_metric_stats: named
            .map(|(name, sum)| EndpointLoadMetricStats {
                metric_name: name.clone(),
                num_requests_finished_with_metric: sum.count,
                total_metric_value: sum.total,
            })
            .collect(),
        cpu_utilization: unnamed(LoadReports::CPU),
        mem_utilization: unnamed(LoadReports::MEMORY),
        application_utilization: unnamed(LoadReports::APPLICATION),
        priority: load.priority,
    }
}
