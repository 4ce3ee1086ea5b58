//! The mesh under one name: what a program links, and what its tests use.
//!
//! Everything here is `mesh-tower`'s, re-exported; start at [`Mesh`]. With the feature `testing`, `mesh::testing` makes a mesh of YAML
//! inside a test. This file holds no code: what a request meets is in `mesh-tower`, what YAML means is in `mesh-control`.

pub use mesh_tower::*;

#[cfg(feature = "testing")]
pub mod testing;
