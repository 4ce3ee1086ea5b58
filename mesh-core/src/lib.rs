//! What a service mesh decides for one request: pure policy, without I/O, clock or async.
//!
//! Everything here is a function of four things: the snapshot, the request, the time and random bits. Nothing reads a clock,
//! logs, waits, opens a connection or verifies a certificate; whoever executes requests (`mesh-tower`) does, and asks here
//! what to do. So every decision can be tested in a table and replayed.
//!
//! Policy comes in three shapes:
//!
//! | shape | receiver | examples |
//! |---|---|---|
//! | *lookup* | `&self`, immutable | [`Snapshot::plan`](snapshot::Snapshot::plan), [`retry::may_repeat`] |
//! | *cell* | `&self` over a few atomics, with the time as an argument | endpoint load and ejection, [`RetryBudget`](retry::RetryBudget) |
//! | *machine* | `&mut self`, one owner, inputs in and outputs polled | the xDS protocol, in `mesh-xds` |
//!
//! # One request
//!
//! ```
//! use mesh_core::{
//!     config::Config, outcome::Outcome, pick::Ask, request::RequestView, rng::RequestRng, snapshot::Snapshot,
//!     time::Time,
//! };
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let config: Config = serde_json::from_str(include_str!("../testdata/reviews.json"))?;
//! let snapshot = Snapshot::compile(&config, None)?; // once a configuration
//! let (head, _body) = http::Request::get("http://reviews:9080/reviews/0").body(())?.into_parts();
//! let (now, mut rng) = (Time::ZERO, RequestRng::new(42, 0)); // the caller's clock and chance
//! let plan = snapshot.plan(&RequestView::of(&head, None), &mut rng)?; // host, rule, split, fault
//! let cluster = plan.cluster().ok_or("the route does not forward")?;
//! let pick = cluster.pick(&Ask::default(), now, &mut rng)?; // limits, priority, endpoint
//! assert_eq!(pick.endpoint().address().to_string(), "127.0.0.13:9080");
//! // ... send it there ...
//! pick.finish(&Outcome::response(200), now); // balancing and ejection learn from it
//! # Ok(())
//! # }
//! ```
//!
//! [`rewrite`] changes the request on its way, [`mirror`] says who gets a copy, [`retry`] says whether to try again, [`timeout`] how long it may take,
//! [`admit`] whether an inbound request is let in, [`authz`] by which rules, and [`explain`] why all that is so.

pub mod admit;
pub mod authz;
pub mod balance;
pub mod claims;
pub mod cluster;
pub mod config;
pub mod endpoint;
pub mod error;
pub mod explain;
pub mod fault;
pub mod filter;
pub mod hash;
pub mod health;
pub mod identity;
pub mod jwt;
pub mod limit;
pub mod load;
mod locality;
pub mod mirror;
pub mod outcome;
pub mod outlier;
pub mod path;
pub mod pick;
pub mod plan;
pub mod rate_limit;
pub mod request;
pub mod retry;
pub mod rewrite;
pub mod rng;
mod roll;
pub mod route;
pub mod session;
pub mod snapshot;
pub mod switches;
mod sync;
pub mod tally;
pub mod telemetry;
pub mod telling;
pub mod time;
pub mod timeout;
pub mod trust;
mod zone;
