//! Features that are switched off in one process, whatever its configuration says: for the hour in which one of them does harm.
//!
//! What is switched off is taken out of the configuration before it is compiled, so that requests cost nothing for it, and is
//! there again as soon as it is switched on. What decides who may do what (authorization, TLS) cannot be switched off.
//! Source: Envoy's runtime flags.

use std::{fmt, str::FromStr, sync::Arc};

use crate::config::{Action, Cluster, Config, Fault, HttpSettings, RouteTable, Thresholds, VirtualHost};

/// One feature.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
#[non_exhaustive]
pub enum Feature {
    /// Endpoints that fail are left out.
    OutlierDetection,
    /// Limits of what may be under way.
    CircuitBreaking,
    /// Endpoints are asked whether they are well.
    HealthChecks,
    /// What failed is tried again by a policy.
    Retries,
    /// Several attempts are made at once.
    Hedging,
    /// Copies are sent elsewhere.
    Mirroring,
    /// Delays and errors are injected.
    Faults,
}

impl Feature {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::OutlierDetection,
        Self::CircuitBreaking,
        Self::HealthChecks,
        Self::Retries,
        Self::Hedging,
        Self::Mirroring,
        Self::Faults,
    ];

    /// As it is named to people: `outlier_detection`.
    pub fn name(self) -> &'static str {
        match self {
            Self::OutlierDetection => "outlier_detection",
            Self::CircuitBreaking => "circuit_breaking",
            Self::HealthChecks => "health_checks",
            Self::Retries => "retries",
            Self::Hedging => "hedging",
            Self::Mirroring => "mirroring",
            Self::Faults => "faults",
        }
    }
}

impl fmt::Display for Feature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Feature {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|feature| feature.name() == name).ok_or_else(|| {
            let names = Self::ALL.map(Self::name).join(", ");
            format!("there is no feature {name:?} to switch; there are {names}")
        })
    }
}

/// Which features are off. Default: none.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Switches(u32);

impl Switches {
    /// Is it off?
    pub fn is_off(self, feature: Feature) -> bool {
        self.0 & 1 << feature as u32 != 0
    }

    /// The same with one of them off, or on again.
    #[must_use]
    pub fn with(self, feature: Feature, is_off: bool) -> Self {
        let bit = 1 << feature as u32;
        Self(if is_off { self.0 | bit } else { self.0 & !bit })
    }

    /// A configuration without what is off; `None` where nothing is.
    pub fn apply(self, config: &Config) -> Option<Config> {
        if self.0 == 0 {
            return None;
        }
        let mut config = config.clone();
        config.outbound.values_mut().for_each(|table| self.routes(table));
        config.http.values_mut().for_each(|http| self.http(http));
        for target in config.targets.values_mut() {
            self.routes(&mut target.routes);
            self.http(&mut target.http);
        }
        for cluster in config.clusters.values_mut() {
            if self.changes(cluster) {
                let cluster = Arc::make_mut(cluster);
                if self.is_off(Feature::OutlierDetection) {
                    cluster.outlier_detection = None;
                }
                if self.is_off(Feature::HealthChecks) {
                    cluster.health_check = None;
                }
                if self.is_off(Feature::CircuitBreaking) {
                    (cluster.thresholds, cluster.high_thresholds) = (UNLIMITED, UNLIMITED);
                }
            }
        }
        Some(config)
    }

    fn changes(self, cluster: &Cluster) -> bool {
        (self.is_off(Feature::OutlierDetection) && cluster.outlier_detection.is_some())
            || (self.is_off(Feature::HealthChecks) && cluster.health_check.is_some())
            || self.is_off(Feature::CircuitBreaking)
    }

    fn http(self, http: &mut Arc<HttpSettings>) {
        if self.is_off(Feature::Faults) && http.fault.is_some() {
            Arc::make_mut(http).fault = None;
        }
    }

    fn routes(self, table: &mut Arc<RouteTable>) {
        let of_routes = [Feature::Retries, Feature::Hedging, Feature::Mirroring, Feature::Faults];
        if !of_routes.into_iter().any(|feature| self.is_off(feature)) {
            return;
        }
        let table = Arc::make_mut(table);
        if self.is_off(Feature::Mirroring) {
            table.mirrors.clear();
        }
        table.virtual_hosts.iter_mut().for_each(|host| self.host(Arc::make_mut(host)));
    }

    fn host(self, host: &mut VirtualHost) {
        if self.is_off(Feature::Retries) {
            host.retry = None;
        }
        if self.is_off(Feature::Mirroring) {
            host.mirrors.clear();
        }
        for route in &mut host.routes {
            self.fault(&mut route.fault);
            let Action::Forward(forward) = &mut route.action else { continue };
            if self.is_off(Feature::Retries) {
                forward.retry = None;
            }
            if self.is_off(Feature::Hedging) {
                forward.hedge = None;
            }
            if self.is_off(Feature::Mirroring) {
                forward.mirrors.clear();
            }
            forward.clusters.iter_mut().for_each(|cluster| self.fault(&mut cluster.fault));
        }
    }

    fn fault(self, fault: &mut Option<Fault>) {
        if self.is_off(Feature::Faults) {
            *fault = None;
        }
    }
}

/// As many as there are.
const UNLIMITED: Thresholds = Thresholds {
    max_connections: u32::MAX,
    max_pending_requests: u32::MAX,
    max_requests: u32::MAX,
    max_retries: u32::MAX,
    retry_budget: None,
    max_requests_per_endpoint: u32::MAX,
};

#[cfg(test)]
mod tests {
    use super::*;

    /// OP14: names are those that people write, and switching one off and on again leaves the others.
    #[test]
    fn features_are_switched_by_name() {
        for feature in Feature::ALL {
            assert_eq!(feature.name().parse(), Ok(feature));
            let off = Switches::default().with(feature, true);
            assert!(off.is_off(feature));
            assert_eq!(Feature::ALL.into_iter().filter(|other| off.is_off(*other)).count(), 1);
            assert_eq!(off.with(feature, false), Switches::default());
        }
        assert!("authorization".parse::<Feature>().is_err(), "who may do what is not to be switched off");
        assert!(Switches::default().apply(&Config::default()).is_none());
    }
}
