//! Where finished spans go: OpenTelemetry's OTLP exporter when an endpoint is configured, nowhere otherwise.

use std::fmt;

use super::Span;

/// The way out for spans, and the sampling of traces that begin here.
pub struct Spans {
    #[cfg(feature = "otlp")]
    processor: Option<otlp::Processor>,
    ratio: f64,
}

impl Spans {
    /// Spans go nowhere.
    pub fn none() -> Self {
        Self {
            #[cfg(feature = "otlp")]
            processor: None,
            ratio: 1.0,
        }
    }

    /// As the environment says: `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT` or `OTEL_EXPORTER_OTLP_ENDPOINT` (gRPC), the name
    /// `service` unless `OTEL_SERVICE_NAME` is set, `OTEL_TRACES_SAMPLER` with `OTEL_TRACES_SAMPLER_ARG`.
    ///
    /// Must be called within a tokio runtime.
    pub fn from_env(service: &str) -> Self {
        let ratio = sampler_ratio(
            std::env::var("OTEL_TRACES_SAMPLER").ok().as_deref(),
            std::env::var("OTEL_TRACES_SAMPLER_ARG").ok().as_deref(),
        );
        #[cfg(feature = "otlp")]
        let spans = Self { processor: otlp::Processor::from_env(service), ratio };
        #[cfg(not(feature = "otlp"))]
        let spans = {
            let _ = service;
            Self { ratio }
        };
        spans
    }

    /// To the OTLP collector (gRPC) at `endpoint`, `http://127.0.0.1:4317`, as the service `service`, all of them. They go out
    /// within a fifth of a second.
    ///
    /// Must be called within a tokio runtime.
    ///
    /// # Errors
    ///
    /// The endpoint cannot be used; as a sentence.
    #[cfg(feature = "otlp")]
    pub fn to(endpoint: &str, service: &str) -> Result<Self, String> {
        Ok(Self { processor: Some(otlp::Processor::to(endpoint, service)?), ratio: 1.0 })
    }

    /// Does a trace that begins here want spans? `bits` are 64 random ones.
    pub fn samples(&self, bits: u64) -> bool {
        // 53 bits are what a double holds exactly.
        ((bits >> 11) as f64) < self.ratio * (1u64 << 53) as f64
    }

    /// Would a sampled span go anywhere?
    pub fn is_exporting(&self) -> bool {
        #[cfg(feature = "otlp")]
        return self.processor.is_some();
        #[cfg(not(feature = "otlp"))]
        return false;
    }

    /// Sends a finished span on its way; one that is not sampled is dropped.
    pub fn export(&self, span: Span) {
        #[cfg(feature = "otlp")]
        if let Some(processor) = &self.processor
            && span.context.sampled
        {
            processor.export(span);
        }
        #[cfg(not(feature = "otlp"))]
        drop(span);
    }
}

impl fmt::Debug for Spans {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Spans").field("exporting", &self.is_exporting()).field("ratio", &self.ratio).finish()
    }
}

/// The share of new traces sampled. Source: OpenTelemetry's `OTEL_TRACES_SAMPLER`; unset is all.
fn sampler_ratio(sampler: Option<&str>, argument: Option<&str>) -> f64 {
    match sampler {
        Some("always_off" | "parentbased_always_off") => 0.0,
        Some("traceidratio" | "parentbased_traceidratio") => {
            argument.and_then(|ratio| ratio.parse().ok()).map_or(1.0, |ratio: f64| ratio.clamp(0.0, 1.0))
        }
        _ => 1.0,
    }
}

#[cfg(feature = "otlp")]
mod otlp {
    use std::time::Duration;

    use opentelemetry::{
        InstrumentationScope, KeyValue,
        trace::{Event, SpanContext, SpanId, SpanKind as Kind, Status, TraceFlags, TraceId, TraceState},
    };
    use opentelemetry_otlp::{SpanExporter, WithExportConfig};
    use opentelemetry_sdk::{
        Resource,
        trace::{BatchConfigBuilder, BatchSpanProcessor, SpanData, SpanEvents, SpanLinks, SpanProcessor},
    };

    use super::super::{Attribute, Span, SpanKind};

    pub(super) struct Processor {
        inner: BatchSpanProcessor,
        scope: InstrumentationScope,
    }

    impl Processor {
        pub(super) fn from_env(service: &str) -> Option<Self> {
            let names = ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"];
            let configured = names.iter().any(|name| std::env::var_os(name).is_some_and(|value| !value.is_empty()));
            if !configured {
                return None;
            }
            match SpanExporter::builder().with_tonic().build() {
                Ok(exporter) => Some(Self::new(exporter, service)),
                Err(error) => {
                    tracing::warn!(target: "mesh::telemetry", %error, "spans are not exported: the OTLP endpoint cannot be used");
                    None
                }
            }
        }

        pub(super) fn to(endpoint: &str, service: &str) -> Result<Self, String> {
            let exporter = SpanExporter::builder().with_tonic().with_endpoint(endpoint).build();
            let exporter =
                exporter.map_err(|error| format!("the OTLP endpoint {endpoint:?} cannot be used: {error}"))?;
            let soon = BatchConfigBuilder::default().with_scheduled_delay(Duration::from_millis(200)).build();
            Ok(Self::of(BatchSpanProcessor::builder(exporter).with_batch_config(soon).build(), service))
        }

        fn new(exporter: SpanExporter, service: &str) -> Self {
            Self::of(BatchSpanProcessor::builder(exporter).build(), service)
        }

        fn of(mut inner: BatchSpanProcessor, service: &str) -> Self {
            let mut resource = Resource::builder();
            if std::env::var_os("OTEL_SERVICE_NAME").is_none() {
                resource = resource.with_service_name(service.to_owned());
            }
            inner.set_resource(&resource.build());
            let scope = InstrumentationScope::builder("mesh-tower").with_version(env!("CARGO_PKG_VERSION")).build();
            Self { inner, scope }
        }

        pub(super) fn export(&self, span: Span) {
            let context = &span.context;
            let state = context.state.as_ref().and_then(|state| state.to_str().ok()?.parse::<TraceState>().ok());
            let span_context = SpanContext::new(
                TraceId::from_bytes(context.trace_id.to_be_bytes()),
                SpanId::from_bytes(context.span_id.to_be_bytes()),
                TraceFlags::SAMPLED,
                false,
                state.unwrap_or_default(),
            );
            let attributes = span.attributes.into_iter().map(|(key, value)| match value {
                Attribute::Text(text) => KeyValue::new(key, text),
                Attribute::Number(number) => KeyValue::new(key, number),
                Attribute::Truth(truth) => KeyValue::new(key, truth),
            });
            let events = span.events.into_iter().map(|(name, at)| Event::new(name, at, Vec::new(), 0));
            let mut all = SpanEvents::default();
            all.events.extend(events);
            self.inner.on_end(SpanData {
                span_context,
                parent_span_id: span.parent.map_or(SpanId::INVALID, |id| SpanId::from_bytes(id.to_be_bytes())),
                parent_span_is_remote: span.kind == SpanKind::Server,
                span_kind: match span.kind {
                    SpanKind::Client => Kind::Client,
                    SpanKind::Server => Kind::Server,
                    SpanKind::Internal => Kind::Internal,
                },
                name: span.name.into(),
                start_time: span.start,
                end_time: span.end,
                attributes: attributes.collect(),
                dropped_attributes_count: 0,
                events: all,
                links: SpanLinks::default(),
                status: if span.error { Status::error("") } else { Status::Unset },
                instrumentation_scope: self.scope.clone(),
            });
        }
    }

    impl Drop for Processor {
        fn drop(&mut self) {
            // What is queued goes out; a collector that does not answer may not hold up the end of the process.
            let _ = self.inner.shutdown_with_timeout(Duration::from_millis(500));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// TE14: a trace that begins here is sampled by `OTEL_TRACES_SAMPLER`.
    #[test]
    fn sampler_follows_opentelemetrys_variables() {
        let cases = [
            (None, None, 1.0),
            (Some("always_on"), None, 1.0),
            (Some("parentbased_always_off"), None, 0.0),
            (Some("parentbased_traceidratio"), Some("0.25"), 0.25),
            (Some("traceidratio"), Some("7"), 1.0),
            (Some("traceidratio"), Some("x"), 1.0),
        ];
        for (sampler, argument, ratio) in cases {
            assert_eq!(sampler_ratio(sampler, argument), ratio, "{sampler:?} {argument:?}");
        }
        let mut spans = Spans::none();
        assert!(spans.samples(u64::MAX));
        spans.ratio = 0.0;
        assert!(!spans.samples(0));
        spans.ratio = 0.25;
        assert!(spans.samples(u64::MAX / 8) && !spans.samples(u64::MAX / 2));
    }
}
