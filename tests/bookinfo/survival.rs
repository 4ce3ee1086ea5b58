//! What happens when parts of it die.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use rustix::process::Signal;

use crate::calls::{client, get};
use crate::front::{Front, PATIENCE, Stars, stars};
use crate::harness::{Bookinfo, turn};
use crate::programs::{Killed, program};

const RETRY: &str = include_str!("../../examples/bookinfo/mesh/reviews-retry.yaml");
const WORKLOADS: [&str; 3] = ["reviews-v1", "reviews-v2", "reviews-v3"];

/// Pages asked for, 8 at a time, until told to stop.
struct Load {
    stop: Arc<AtomicBool>,
    pages: Arc<AtomicUsize>,
    tasks: Vec<tokio::task::JoinHandle<Vec<String>>>,
}

impl Load {
    fn start(bookinfo: &Bookinfo) -> Self {
        let (stop, pages) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let uri = format!("http://{}/productpage", bookinfo.at(10, 9080));
        let tasks = (0..8).map(|_| {
            let (stop, pages, uri) = (stop.clone(), pages.clone(), uri.clone());
            tokio::spawn(async move {
                let (client, mut bad) = (client(), Vec::new());
                while !stop.load(Ordering::Relaxed) {
                    let page = get(&client, &uri, &[]).await;
                    pages.fetch_add(1, Ordering::Relaxed);
                    if page.status != 200
                        || !page.body.contains("Reviews served by:")
                        || !page.body.contains("Publisher")
                    {
                        bad.push(format!("{}: {}", page.status, page.body));
                    }
                }
                bad
            })
        });
        let tasks = tasks.collect();
        Self { stop, pages, tasks }
    }

    /// Waits until so many more pages have been read.
    async fn pages(&self, more: usize) {
        let (begin, until) = (self.pages.load(Ordering::Relaxed), Instant::now() + PATIENCE);
        while self.pages.load(Ordering::Relaxed) < begin + more {
            assert!(Instant::now() < until, "fewer than {more} pages in a minute");
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    }

    /// Ends the load; every page must have had all its parts.
    async fn check(self, bookinfo: &Bookinfo) {
        self.stop.store(true, Ordering::Relaxed);
        let mut bad = Vec::new();
        for task in self.tasks {
            bad.extend(task.await.unwrap());
        }
        let all = self.pages.load(Ordering::Relaxed);
        assert!(
            bad.is_empty(),
            "{} of {all} pages are not whole, such as {}\nBookinfo said:\n{}",
            bad.len(),
            bad[0],
            bookinfo.said()
        );
    }
}

/// RT1: one of three reviews dies under load; with retries no page is without its reviews, and the others take over.
#[tokio::test(flavor = "multi_thread")]
async fn a_killed_workload_costs_no_page() {
    let _turn = turn().await;
    let mut bookinfo = Bookinfo::start(&[], &[]);
    bookinfo.apply(RETRY);
    bookinfo.until_reviews_by(&WORKLOADS, "").await;
    let load = Load::start(&bookinfo);
    load.pages(200).await;
    bookinfo.signal("reviews-v2", Signal::KILL);
    bookinfo.wait_for("reviews-v2 ended");
    load.pages(400).await;
    load.check(&bookinfo).await;
    bookinfo.until_reviews_by(&["reviews-v1", "reviews-v3"], "").await;
}

/// SV7: one of three reviews is told to end under load: it finishes what it began, and without any rule for retries no page is
/// without its reviews.
#[tokio::test(flavor = "multi_thread")]
async fn a_workload_told_to_end_costs_no_page() {
    let _turn = turn().await;
    let mut bookinfo = Bookinfo::start(&[], &[]);
    bookinfo.until_reviews_by(&WORKLOADS, "").await;
    let load = Load::start(&bookinfo);
    load.pages(200).await;
    bookinfo.signal("reviews-v2", Signal::TERM);
    assert!(bookinfo.wait_for("reviews-v2 ended").contains("exit status: 0"));
    load.pages(200).await;
    load.check(&bookinfo).await;
    bookinfo.until_reviews_by(&["reviews-v1", "reviews-v3"], "").await;
}

/// XD8, XD9: the control plane dies under load: every page is whole, before and after it is back, and then it is obeyed again. A
/// workload started meanwhile waits for it and then takes part.
#[tokio::test(flavor = "multi_thread")]
async fn a_killed_control_plane_costs_no_page() {
    let _turn = turn().await;
    let mut bookinfo = Bookinfo::start(&["--restart-after", "3600"], &[]);
    bookinfo.apply(RETRY);
    bookinfo.until_reviews_by(&WORKLOADS, "").await;
    let load = Load::start(&bookinfo);
    load.pages(100).await;
    bookinfo.signal("control-plane", Signal::KILL);
    bookinfo.wait_for("control-plane ended");
    load.pages(200).await;

    bookinfo.signal("reviews-v3", Signal::KILL);
    bookinfo.wait_for("reviews-v3 ended");
    let mut command = Command::new(program("examples/bookinfo"));
    command
        .args(["reviews", &bookinfo.workload("reviews-v3").to_string()])
        .env("GRPC_XDS_BOOTSTRAP", bookinfo.dir().join("reviews-v3.json"))
        .env("HOSTNAME", "started-early");
    let mut waiting = Killed::start(command);
    assert!(std::net::TcpStream::connect(bookinfo.at(9, 15012)).is_err(), "the control plane was to be away still");

    let mut command = Command::new(program("examples/bookinfo"));
    command.arg("control-plane").arg(bookinfo.dir());
    let _control_plane = Killed::start(command);
    bookinfo.until_reviews_by(&["reviews-v1", "reviews-v2", "started-early"], "").await;
    load.pages(100).await;
    load.check(&bookinfo).await;
    assert!(waiting.0.try_wait().unwrap().is_none());

    let dead = "spec: {hosts: [details], http: [{fault: {abort: {percentage: {value: 100}, httpStatus: 555}}, route: [{destination: {host: details}}]}]}";
    bookinfo.apply(&format!(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: details}}\n{dead}\n"
    ));
    bookinfo.until_status("/api/v1/products/0", 555).await;
    assert_ne!(stars(&bookinfo.page("").await), Stars::NoReviews);
}
