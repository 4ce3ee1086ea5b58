//! What is told of ejections: a log event each, with reason, address, rate and threshold, and counters. Source: Envoy
//! `OutlierDetectionEvent`, gRFC A91.
//!
//! Labels are names of clusters and words of ours, so their number is bounded by the configuration; the address is in the log
//! alone.

use mesh_core::{
    cluster::Cluster,
    outlier::{Event, Reason, What},
    telemetry::{EJECTIONS_ENFORCED, EJECTIONS_UNENFORCED},
};
use metrics::{Key, Label, Level, Metadata};

static METADATA: Metadata<'static> = Metadata::new("mesh::outlier", Level::INFO, Some(module_path!()));

/// Tells what happened to the endpoints of a cluster since the last time; cheap when that is nothing.
pub(crate) fn tell_ejections(cluster: &Cluster) {
    for event in cluster.take_events() {
        tell(cluster, &event);
    }
}

fn tell(cluster: &Cluster, event: &Event) {
    let (name, endpoint, ejections) = (&event.cluster, &event.address, event.ejections);
    let (measured, threshold) = event.measured.unzip();
    match event.what {
        What::Ejected(reason) => {
            let monitor = monitor(cluster, reason);
            tracing::warn!(
                target: "mesh::outlier",
                cluster = %name, %endpoint, %reason, monitor, ejections, measured, threshold,
                "endpoint ejected"
            );
            count(EJECTIONS_ENFORCED, name, reason, None);
        }
        What::NotEnforced(reason) => {
            let monitor = monitor(cluster, reason);
            tracing::info!(
                target: "mesh::outlier",
                cluster = %name, %endpoint, %reason, monitor, measured, threshold,
                "endpoint is an outlier; it stays, as only a share of them is ejected"
            );
            count(EJECTIONS_UNENFORCED, name, reason, Some("enforcement_percentage"));
        }
        What::TooMany(reason) => {
            let monitor = monitor(cluster, reason);
            tracing::info!(
                target: "mesh::outlier",
                cluster = %name, %endpoint, %reason, monitor, measured, threshold,
                "endpoint is an outlier; it stays, as too many are ejected"
            );
            count(EJECTIONS_UNENFORCED, name, reason, Some("max_ejection_overflow"));
        }
        What::Returned => {
            tracing::info!(target: "mesh::outlier", cluster = %name, %endpoint, ejections, "endpoint in use again");
        }
        _ => {}
    }
}

/// The monitor's name, where it was one.
fn monitor(cluster: &Cluster, reason: Reason) -> Option<&str> {
    let Reason::Monitor(index) = reason else { return None };
    let detection = cluster.config().outlier_detection.as_ref()?;
    detection.monitors.get(usize::from(index)).map(|monitor| &*monitor.name)
}

fn count(name: &'static str, cluster: &str, reason: Reason, not: Option<&'static str>) {
    let mut labels = vec![Label::new("cluster", cluster.to_owned()), Label::new("detection_method", reason.as_str())];
    labels.extend(not.map(|why| Label::new("unenforced_reason", why)));
    metrics::with_recorder(|recorder| {
        recorder.register_counter(&Key::from_parts(name, labels), &METADATA).increment(1);
    });
}
