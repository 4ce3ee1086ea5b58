//! The verbs of a group of `--help`. Observe: requests as they are counted and traced.

pub(super) mod edges;
pub(super) mod graph;
pub(super) mod load;
pub(super) mod routes;
pub(super) mod stat;
pub(super) mod tap;
pub(super) mod top;
pub(super) mod trace;
