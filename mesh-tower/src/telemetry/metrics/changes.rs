//! Labels as the control plane wants them: values in place of others, labels left out, metrics not told. Source: Istio
//! `Telemetry.metrics[].overrides`.

use std::sync::Arc;

use mesh_core::telling::{Facts, Telling};
use metrics::Label;

/// The metrics of requests, by what Istio calls them in such changes; in the order in which they are written.
pub(super) const METRICS: [&str; 6] = [
    "requests_total",
    "request_duration_milliseconds",
    "request_bytes",
    "response_bytes",
    "request_messages_total",
    "response_messages_total",
];

/// What changes for one request, with the values it has.
#[derive(Debug, Eq, Hash, PartialEq)]
pub(super) struct Changes(Vec<One>);

#[derive(Debug, Eq, Hash, PartialEq)]
struct One {
    /// Empty is all.
    metric: String,
    labels: Vec<(String, String)>,
    without: Vec<String>,
    drop: bool,
}

impl Changes {
    /// Of a request; an expression without a value is `unknown`, and a value that is not admitted `_OTHER`.
    pub(super) fn of(telling: &Telling, facts: &impl Facts, admits: impl Fn(&str, &str) -> bool) -> Option<Arc<Self>> {
        let value = |label: &str, value: &mesh_core::telling::Expression| match value.text(facts) {
            Some(value) if admits(label, &value) => value,
            Some(_) => super::OTHER.to_owned(),
            None => super::UNKNOWN.to_owned(),
        };
        let one = |change: &mesh_core::telling::Change| One {
            metric: change.name.clone(),
            labels: change.labels.iter().map(|(name, it)| (name.clone(), value(name, it))).collect(),
            without: change.without.clone(),
            drop: change.drop,
        };
        let all: Vec<One> = telling.metrics.iter().map(one).collect();
        (!all.is_empty()).then(|| Arc::new(Self(all)))
    }

    /// The labels of a metric; `None` when it is not told.
    pub(super) fn apply(&self, metric: &str, base: &[Label]) -> Option<Vec<Label>> {
        let mut labels = base.to_vec();
        for one in self.0.iter().filter(|one| one.metric.is_empty() || one.metric == metric) {
            if one.drop {
                return None;
            }
            labels.retain(|label| !one.without.iter().any(|name| name == label.key()));
            for (name, value) in &one.labels {
                let changed = Label::new(name.clone(), value.clone());
                match labels.iter_mut().find(|label| label.key() == name) {
                    Some(label) => *label = changed,
                    None => labels.push(changed),
                }
            }
        }
        Some(labels)
    }
}

#[cfg(test)]
mod tests {
    use mesh_core::{
        config::{self, MetricChange},
        telling::{Fact, Operator},
    };

    use super::*;

    struct Seen;

    impl Facts for Seen {
        fn fact(&self, operator: &Operator) -> Option<Fact<'_>> {
            (*operator == Operator::Method).then_some(Fact::Text("GET".into()))
        }
    }

    /// TE10: labels are put in, replaced and left out, for all metrics or one; a metric can be switched off.
    #[test]
    fn labels_change_as_told() {
        let labels = |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let telling = Telling::new(&config::Telling {
            metrics: vec![
                MetricChange { without: vec!["a".into()], ..MetricChange::default() },
                MetricChange {
                    name: "requests_total".into(),
                    labels: labels(&[("b", "request.method"), ("c", "request.headers['x']"), ("d", "'fixed'")]),
                    ..MetricChange::default()
                },
                MetricChange { name: "request_bytes".into(), drop: true, ..MetricChange::default() },
            ],
            ..config::Telling::default()
        });
        let base = [Label::new("a", "1"), Label::new("b", "2")];
        let told = |metric: &str| {
            let labels = Changes::of(&telling, &Seen, |_, _| true)?.apply(metric, &base)?;
            Some(labels.iter().map(|it| format!("{}={}", it.key(), it.value())).collect::<Vec<_>>().join(" "))
        };
        assert_eq!(told("requests_total").as_deref(), Some("b=GET c=unknown d=fixed"));
        assert_eq!(told("response_bytes").as_deref(), Some("b=2"));
        assert_eq!(told("request_bytes"), None);
        assert!(Changes::of(&Telling::default(), &Seen, |_, _| true).is_none());
    }
}
