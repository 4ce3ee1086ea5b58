//! Names of metrics and labels: Istio's, so that its dashboards and Kiali read ours. Counting is the caller's.
