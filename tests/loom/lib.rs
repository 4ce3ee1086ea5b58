//! Nothing but its tests: models of mesh-core's live cells, see `cells.rs`.
