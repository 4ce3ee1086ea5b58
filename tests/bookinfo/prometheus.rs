//! A Prometheus as Debian has it, which scrapes Bookinfo every second, and its answers; and dashboards as files.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::calls::{client, get};
use crate::front::PATIENCE;
use crate::harness::Bookinfo;
use crate::peers;
use crate::programs::Killed;

/// What dashboards make of `$__rate_interval` here: four scrapes and more.
const INTERVAL: &str = "15s";

/// A running Prometheus.
pub(crate) struct Prometheus {
    address: SocketAddr,
    _process: Killed,
    _dir: tempfile::TempDir,
}

/// One answer: labels, and a number that is one.
pub(crate) type Sample = (serde_json::Map<String, Value>, f64);

impl Prometheus {
    /// Where the program is, if it is here.
    pub(crate) fn program() -> Option<PathBuf> {
        peers::program("prometheus", "MESH_PROMETHEUS", "apt-get install prometheus")
    }

    /// Starts it, with every process of this Bookinfo to scrape.
    pub(crate) async fn start(program: &Path, bookinfo: &Bookinfo) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let workloads =
            ["gateway", "productpage-v1", "details-v1", "ratings-v1", "reviews-v1", "reviews-v2", "reviews-v3"];
        let targets: Vec<String> = workloads.iter().map(|name| format!("'{}'", bookinfo.admin(name))).collect();
        // The control plane's labels are those that Kubernetes gives istiod's.
        let config = format!(
            "global: {{scrape_interval: 1s}}\n\
             scrape_configs:\n\
             - {{job_name: workloads, static_configs: [{{targets: [{}]}}]}}\n\
             - {{job_name: pilot, static_configs: [{{targets: ['{}'], labels: {{app: istiod, pod: istiod-1}}}}]}}\n",
            targets.join(", "),
            bookinfo.server(),
        );
        fs::write(dir.path().join("prometheus.yml"), config).unwrap();
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let mut command = Command::new(program);
        command
            .arg(format!("--config.file={}", dir.path().join("prometheus.yml").display()))
            .arg(format!("--storage.tsdb.path={}", dir.path().join("data").display()))
            .arg(format!("--web.listen-address={address}"))
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let this = Self { address, _process: Killed::start(command), _dir: dir };
        let until = Instant::now() + PATIENCE;
        while get(&client(), &format!("http://{address}/-/ready"), &[]).await.status != 200 {
            assert!(Instant::now() < until, "Prometheus does not get ready");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        this
    }

    /// What an expression amounts to now.
    pub(crate) async fn ask(&self, expression: &str) -> Result<Vec<Sample>, String> {
        let query: String = expression.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let answer = get(&client(), &format!("http://{}/api/v1/query?query={query}", self.address), &[]).await;
        let json = answer.json();
        if json["status"] != "success" {
            return Err(answer.body);
        }
        let number = |sample: &Value| sample["value"][1].as_str().and_then(|text| text.parse::<f64>().ok());
        let samples = json["data"]["result"].as_array().into_iter().flatten();
        let samples = samples.filter_map(|sample| {
            let labels = sample["metric"].as_object().cloned().unwrap_or_default();
            number(sample).filter(|value| !value.is_nan()).map(|value| (labels, value))
        });
        Ok(samples.collect())
    }

    /// The same of an expression with one number as its answer; 0 when there is none.
    pub(crate) async fn number(&self, expression: &str) -> f64 {
        self.ask(expression).await.unwrap().first().map_or(0.0, |(_, value)| *value)
    }
}

/// A panel of a dashboard.
pub(crate) struct Panel {
    pub(crate) title: String,
    pub(crate) expressions: Vec<String>,
}

/// The panels of a dashboard that ask something, with its variables put in; a variable without a value is anything.
pub(crate) fn panels(file: &Path, variables: &[(&str, &str)]) -> Vec<Panel> {
    let dashboard: Value = serde_json::from_str(&fs::read_to_string(file).unwrap()).unwrap();
    let mut values: Vec<(String, String)> = vec![("__rate_interval".to_owned(), INTERVAL.to_owned())];
    values.extend(variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
    let own = dashboard["templating"]["list"].as_array().into_iter().flatten();
    values.extend(own.filter_map(|variable| Some((variable["name"].as_str()?.to_owned(), ".*".to_owned()))));
    let fill = |expression: &str| {
        let filled = |text: String, (name, value): &(String, String)| text.replace(&format!("${name}"), value);
        values.iter().fold(expression.to_owned(), filled)
    };
    let mut found = Vec::new();
    collect(&dashboard["panels"], &mut |panel| {
        let expressions: Vec<String> = panel["targets"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|target| target["expr"].as_str())
            .map(fill)
            .collect();
        if !expressions.is_empty() {
            found.push(Panel { title: panel["title"].as_str().unwrap_or_default().to_owned(), expressions });
        }
    });
    found
}

/// Rows of panels hold others.
fn collect(panels: &Value, see: &mut impl FnMut(&Value)) {
    for panel in panels.as_array().into_iter().flatten() {
        see(panel);
        collect(&panel["panels"], see);
    }
}
