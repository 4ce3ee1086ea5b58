//! It keeps serving: whatever the control plane does, or does not, what is known is served, and what is well again is used soon.
//!
//! A program with clients of each kind runs against a control plane of the real protocol that is killed, flaps, hangs, trickles
//! or talks nonsense. No request fails on what was known; the status says what is the matter; recovery takes less than two
//! seconds. `MESH_LONG=1` makes the flapping last a minute, and the
//! authority change twenty times.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "serving/authority.rs"]
mod authority;
#[path = "serving/cold.rs"]
mod cold;
#[path = "serving/content.rs"]
mod content;
#[path = "serving/csds.rs"]
mod csds;
#[path = "traffic/harness.rs"]
mod harness;
#[path = "serving/losing.rs"]
mod losing;
#[path = "serving/plane.rs"]
mod plane;
