//! Who is part of Bookinfo, and where each listens: one value that the supervisor makes and the control plane reads.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use axum::BoxError;
use mesh_control::WorkloadSpec;
use serde::{Deserialize, Serialize};

/// Where the services listen when each workload has an address of its own.
const PORT: u16 = 9080;
/// Where metrics are served then, as by an Istio sidecar.
const ADMIN_PORT: u16 = 15000;
/// The last number of the gateway's own address; the workloads follow.
const FIRST: u8 = 10;
/// The port by which the gateway is known to `Gateway` resources.
pub(crate) const GATEWAY_PORT: u16 = 8080;
/// The file in the directory of a run that holds its layout.
const FILE: &str = "layout.json";

/// What the services of Istio's Bookinfo copy by hand from request to request, but for the trace.
const PROPAGATED: [&str; 12] = [
    "x-request-id",
    "x-ot-span-context",
    "x-datadog-trace-id",
    "x-datadog-parent-id",
    "x-datadog-sampling-priority",
    "x-cloud-trace-context",
    "grpc-trace-bin",
    "sw8",
    "user-agent",
    "cookie",
    "authorization",
    "jwt",
];

/// The whole of one run.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Layout {
    /// Where workloads find the control plane.
    pub(crate) xds: SocketAddr,
    /// Where `meshctl` finds it.
    pub(crate) api: SocketAddr,
    /// The gateway first, then the six workloads.
    pub(crate) members: Vec<Member>,
}

/// One process of the data plane.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Member {
    /// `reviews-v1`.
    pub(crate) name: String,
    /// `reviews`: the subcommand, the label `app`, and the end of the service account's name.
    pub(crate) app: String,
    /// `v1`: the label `version`.
    pub(crate) version: String,
    /// Where it takes requests.
    pub(crate) listen: SocketAddr,
    /// Where it serves its metrics.
    pub(crate) admin: SocketAddr,
    /// What its environment holds besides the mesh's own variables.
    pub(crate) environment: BTreeMap<String, String>,
}

impl Layout {
    /// The usual six workloads behind a gateway. With `base` each has a loopback address of its own, the gateway's metrics at
    /// 10 and the workloads from 11 on; without, they are at `ports`, two for each member, of the one loopback address.
    pub(crate) fn new(gateway: SocketAddr, xds: SocketAddr, api: SocketAddr, place: Place) -> Self {
        let members = [
            ("gateway", "", &[][..]),
            ("productpage", "v1", &[]),
            ("details", "v1", &[]),
            ("ratings", "v1", &[]),
            ("reviews", "v1", &[("ENABLE_RATINGS", "false")]),
            ("reviews", "v2", &[("ENABLE_RATINGS", "true")]),
            ("reviews", "v3", &[("ENABLE_RATINGS", "true"), ("STAR_COLOR", "red")]),
        ];
        let members = (FIRST..).zip(members).map(|(number, (app, version, environment))| {
            let (listen, admin) = place.of(number);
            let is_gateway = app == "gateway";
            let name = if is_gateway { "ingressgateway".to_owned() } else { format!("{app}-{version}") };
            let environment =
                environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
            let listen = if is_gateway { gateway } else { listen };
            Member { name, app: app.to_owned(), version: version.to_owned(), listen, admin, environment }
        });
        Self { xds, api, members: members.collect() }
    }

    /// Reads the layout of the run in `dir`.
    pub(crate) fn read(dir: &Path) -> Result<Self, BoxError> {
        Ok(serde_json::from_slice(&std::fs::read(dir.join(FILE))?)?)
    }

    /// Writes it there.
    pub(crate) fn write(&self, dir: &Path) -> Result<(), BoxError> {
        Ok(std::fs::write(dir.join(FILE), serde_json::to_vec_pretty(self)?)?)
    }

    /// The gateway's address.
    pub(crate) fn gateway(&self) -> SocketAddr {
        self.members[0].listen
    }
}

impl Member {
    /// Whether this is the ingress gateway, and not a workload.
    pub(crate) fn is_gateway(&self) -> bool {
        self.app == "gateway"
    }

    /// The bootstrap of this member in the directory of the run.
    pub(crate) fn bootstrap(&self, dir: &Path) -> PathBuf {
        dir.join(format!("{}.json", self.name))
    }

    /// The headers that travel with a request through it, the mesh's own and the trace's aside.
    pub(crate) fn propagated(&self) -> String {
        // Who the end user is, productpage alone says, by its session: whatever arrives there is not believed.
        let end_user = ["end-user"].into_iter().filter(|_| self.app != "productpage");
        end_user.chain(PROPAGATED).collect::<Vec<_>>().join(",")
    }

    /// What the control plane is told of it.
    pub(crate) fn spec(&self) -> WorkloadSpec {
        let labels = |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let spec = WorkloadSpec::new(&self.name, self.listen.ip());
        if self.is_gateway() {
            let labels = labels(&[("app", "istio-ingressgateway"), ("istio", "ingressgateway")]);
            let (namespace, name) = ("istio-system".to_owned(), "istio-ingressgateway".to_owned());
            return WorkloadSpec {
                namespace,
                service_account: name.clone(),
                workload: name,
                labels,
                gateway: true,
                ..spec
            };
        }
        WorkloadSpec {
            service_account: format!("bookinfo-{}", self.app),
            labels: labels(&[("app", &self.app), ("version", &self.version)]),
            ports: vec![self.listen.port()],
            ..spec
        }
    }
}

/// How the members are kept apart.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Place {
    /// Each at its own address of the /24 network that begins here.
    Addresses(Ipv4Addr),
    /// All at 127.0.0.1, each at its own ports.
    Ports,
}

impl Place {
    fn of(self, number: u8) -> (SocketAddr, SocketAddr) {
        match self {
            Self::Addresses(base) => {
                let [a, b, c, _] = base.octets();
                let ip = IpAddr::from([a, b, c, number]);
                (SocketAddr::new(ip, PORT), SocketAddr::new(ip, ADMIN_PORT))
            }
            Self::Ports => {
                let (ip, number) = (IpAddr::V4(Ipv4Addr::LOCALHOST), u16::from(number - FIRST));
                (SocketAddr::new(ip, PORT + number), SocketAddr::new(ip, ADMIN_PORT + number))
            }
        }
    }
}
