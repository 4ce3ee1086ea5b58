//! The steps of Istio's tutorial, the same that the embedded control plane is held to, with istiod's translation.

use crate::bookinfo::{Bookinfo, Way, turn};
use crate::front::Front;
use crate::process::{self, Options};
use crate::steps;

async fn tutorial(way: Way) {
    let Some(program) = process::program() else { return };
    let _turn = turn().await;
    let bookinfo = Bookinfo::start(program, way, Options::default()).await;
    let kind = if way.delta { "new delta connection" } else { "new connection" };
    assert!(bookinfo.istiod.streams(kind, "productpage-v1") > 0, "no {kind}; said:\n{}", bookinfo.said());
    steps::all_traffic_goes_to_v1(&bookinfo).await;
    steps::jason_sees_v2(&bookinfo).await;
    steps::weights_are_kept(&bookinfo).await;
    steps::jasons_delay_shows_the_bug_of_the_page(&bookinfo).await;
    steps::jasons_abort_costs_him_the_stars(&bookinfo).await;
    steps::details_can_be_made_to_fail(&bookinfo).await;
    steps::istios_gateway_file_opens_the_gateway(&bookinfo).await;
}

/// XD1: state of the world, in plaintext.
#[tokio::test(flavor = "multi_thread")]
async fn the_tutorial_in_plaintext() {
    tutorial(Way { secure: false, delta: false }).await;
}

/// XD1, XD22: state of the world, by TLS with a token; the processes speak mutual TLS with istiod's certificates.
#[tokio::test(flavor = "multi_thread")]
async fn the_tutorial_with_tls_and_a_token() {
    tutorial(Way { secure: true, delta: false }).await;
}

/// XD2: the incremental protocol, in plaintext.
#[tokio::test(flavor = "multi_thread")]
async fn the_tutorial_by_increments() {
    tutorial(Way { secure: false, delta: true }).await;
}

/// XD2, XD22: the incremental protocol, by TLS with a token.
#[tokio::test(flavor = "multi_thread")]
async fn the_tutorial_by_increments_with_tls_and_a_token() {
    tutorial(Way { secure: true, delta: true }).await;
}
