//! Istio's YAML as typed objects, and their compilation.
