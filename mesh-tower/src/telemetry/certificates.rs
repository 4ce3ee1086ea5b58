//! When our certificate ends, and whether getting the next one works: gauges and counters that alarms are made of.

use std::time::{SystemTime, UNIX_EPOCH};

use metrics::{Key, Level, Metadata};

static METADATA: Metadata<'static> = Metadata::new("mesh::tls", Level::INFO, Some(module_path!()));

/// Unix seconds; 0 while there is none.
const NOT_AFTER: &str = "mesh_certificate_not_after_seconds";
/// Unix seconds; 0 while there is none.
const NOT_BEFORE: &str = "mesh_certificate_not_before_seconds";
/// How many there have been.
const OBTAINED: &str = "mesh_certificates_obtained_total";
/// Attempts that failed since the last that did not.
const FAILURES: &str = "mesh_certificate_failures";

/// What was told last.
#[derive(Debug, Default)]
pub(crate) struct CertificateGauges {
    obtained: u64,
}

impl CertificateGauges {
    /// Tells how it stands.
    pub(crate) fn tell(&mut self, validity: Option<(SystemTime, SystemTime)>, obtained: u64, failures: u32) {
        let seconds = |at: SystemTime| at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        let (not_before, not_after) = validity.map_or((0.0, 0.0), |(from, until)| (seconds(from), seconds(until)));
        metrics::with_recorder(|recorder| {
            recorder.register_gauge(&Key::from_static_name(NOT_BEFORE), &METADATA).set(not_before);
            recorder.register_gauge(&Key::from_static_name(NOT_AFTER), &METADATA).set(not_after);
            recorder.register_gauge(&Key::from_static_name(FAILURES), &METADATA).set(f64::from(failures));
            recorder
                .register_counter(&Key::from_static_name(OBTAINED), &METADATA)
                .increment(obtained.saturating_sub(self.obtained));
        });
        self.obtained = obtained;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::time::Duration;

    use metrics_exporter_prometheus::PrometheusBuilder;

    use super::*;

    /// CT13: the end of the certificate, how many there were and how often the next failed are there to be watched.
    #[test]
    fn the_end_of_a_certificate_is_a_metric() {
        let recorder = PrometheusBuilder::new().build_recorder();
        let handle = recorder.handle();
        metrics::with_local_recorder(&recorder, || {
            let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
            let mut certificates = CertificateGauges::default();
            certificates.tell(Some((at(1_000), at(2_000))), 1, 0);
            certificates.tell(Some((at(1_000), at(2_000))), 1, 3);
            certificates.tell(Some((at(1_500), at(2_500))), 3, 0);
            let text = handle.render();
            for line in [
                "mesh_certificate_not_after_seconds 2500",
                "mesh_certificates_obtained_total 3",
                "mesh_certificate_failures 0",
            ] {
                assert!(text.contains(line), "{text} should have {line}");
            }
            certificates.tell(None, 3, 5);
            let text = handle.render();
            assert!(
                text.contains("mesh_certificate_not_after_seconds 0") && text.contains("mesh_certificate_failures 5")
            );
        });
    }
}
