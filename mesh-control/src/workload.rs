//! What a workload is started with: its bootstrap, the root it trusts, and its token.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::SystemTime,
};

use mesh_core::config::Labels;
use mesh_xds::translate;
use serde_json::{Value, json};

use crate::{
    ca::{Ca, CaError, SERVER_NAME, ServiceAccount, Tokens, write_public, write_secret},
    compile::MeshSettings,
};

/// The version of Istio whose conventions the node metadata follows, and what it is known to accept.
pub const ISTIO_VERSION: &str = "1.29.6";

/// A workload to be started.
#[derive(Clone, Debug, PartialEq)]
pub struct WorkloadSpec {
    /// The instance, unique in its namespace: `reviews-v1`.
    pub name: String,
    /// The workload it is an instance of; empty is its name.
    pub workload: String,
    /// `default`.
    pub namespace: String,
    /// `bookinfo-reviews`.
    pub service_account: String,
    /// `app`, `version`, ...: what services and subsets select by.
    pub labels: Labels,
    /// Where it listens.
    pub ip: IpAddr,
    /// The ports it listens on; the first is also called `http`, for services that name their target port.
    pub ports: Vec<u16>,
    /// It is a gateway, which gets the routes of the `Gateway`s that select it.
    pub gateway: bool,
    /// It uses gRPC's own library, and is served in that library's own style. Istio's metadata `GENERATOR: grpc`.
    pub grpc: bool,
}

impl WorkloadSpec {
    /// A workload of namespace and service account `default`, without labels and ports.
    pub fn new(name: impl Into<String>, ip: IpAddr) -> Self {
        Self {
            name: name.into(),
            workload: String::new(),
            namespace: "default".to_owned(),
            service_account: "default".to_owned(),
            labels: Labels::new(),
            ip,
            ports: Vec::new(),
            gateway: false,
            grpc: false,
        }
    }

    fn account(&self) -> Result<ServiceAccount, CaError> {
        ServiceAccount::new(&self.namespace, &self.service_account)
    }
}

/// A token file that is to be kept fresh.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct TokenFile {
    path: PathBuf,
    account: ServiceAccount,
}

impl TokenFile {
    pub(crate) fn write(&self, tokens: &Tokens) -> Result<(), CaError> {
        write_secret(&self.path, &tokens.issue(&self.account, Tokens::DEFAULT_TTL, SystemTime::now())?)
    }

    /// The roots lie beside it.
    pub(crate) fn write_roots(&self, pem: &str) -> Result<(), CaError> {
        write_public(&self.path.with_file_name("root-cert.pem"), pem)
    }
}

/// What a workload is started with, made by whoever may read the keys of a control plane and is not that control plane.
#[derive(Clone, Debug, PartialEq)]
pub struct Joining {
    /// What `GRPC_XDS_BOOTSTRAP` is to hold.
    pub bootstrap: Value,
    token: TokenFile,
}

impl Joining {
    /// How often [`Joining::renew`] is called for as long as the workload runs.
    pub const RENEWAL: std::time::Duration = std::time::Duration::from_secs(Tokens::DEFAULT_TTL.as_secs() / 2);

    /// Writes `root-cert.pem` and `NAME.NAMESPACE.token`, which only the owner can read, into `dir`, for a workload that finds its
    /// control plane at `xds`.
    ///
    /// # Errors
    ///
    /// When a name is not one Kubernetes would allow, or a file cannot be written.
    pub fn write(
        ca: &Ca,
        mesh: &MeshSettings,
        xds: SocketAddr,
        spec: &WorkloadSpec,
        dir: &Path,
    ) -> Result<Self, CaError> {
        bootstrap(ca, mesh, xds, spec, dir).map(|(bootstrap, token)| Self { bootstrap, token })
    }

    /// Writes the root and the token anew.
    ///
    /// # Errors
    ///
    /// When a file cannot be written.
    pub fn renew(&self, ca: &Ca) -> Result<(), CaError> {
        self.token.write(ca.tokens())?;
        self.token.write_roots(&ca.root_pem())
    }
}

/// Writes the root and a token into `dir`; the answer is the bootstrap that names them, and the token file.
pub(crate) fn bootstrap(
    ca: &Ca,
    mesh: &MeshSettings,
    xds: SocketAddr,
    spec: &WorkloadSpec,
    dir: &Path,
) -> Result<(Value, TokenFile), CaError> {
    let account = spec.account()?;
    // The name becomes a file's: it is held to the same letters as an account's.
    ServiceAccount::new(&spec.namespace, &spec.name)?;
    let io = |source| CaError::Io { path: dir.to_owned(), source };
    std::fs::create_dir_all(dir).map_err(io)?;
    let dir = dir.canonicalize().map_err(io)?;
    let root = dir.join("root-cert.pem");
    write_public(&root, &ca.root_pem())?;
    let token = TokenFile { path: dir.join(format!("{}.{}.token", spec.name, spec.namespace)), account };
    token.write(ca.tokens())?;

    let reachable = match xds.ip() {
        ip if !ip.is_unspecified() => xds,
        _ => SocketAddr::from((Ipv4Addr::LOCALHOST, xds.port())),
    };
    let mut bootstrap = json!({
        "xds_servers": [{
            "server_uri": reachable.to_string(),
            "channel_creds": [{
                "type": "tls",
                "config": {"ca_certificate_file": root.to_string_lossy(), "server_name": SERVER_NAME},
            }],
            "call_creds": [{"type": "jwt_token_file", "config": {"jwt_token_file": token.path.to_string_lossy()}}],
            "server_features": ["xds_v3"],
        }],
        "node": node(mesh, spec),
    });
    if spec.grpc {
        bootstrap["server_listener_resource_name_template"] = Value::from(translate::GRPC_SERVERS);
    }
    Ok((bootstrap, token))
}

/// Source: Istio's node id and metadata keys.
fn node(mesh: &MeshSettings, spec: &WorkloadSpec) -> Value {
    let WorkloadSpec { name, namespace, ip, .. } = spec;
    let workload = if spec.workload.is_empty() { name } else { &spec.workload };
    let app = spec.labels.get("app").unwrap_or(workload);
    let role = if spec.gateway { "router" } else { "sidecar" };
    // The first is what a Service's `targetPort: http` means.
    let port_name = |index: usize, port: u16| if index == 0 { "http".to_owned() } else { format!("http-{port}") };
    let port = |(index, port): (usize, &u16)| json!({"name": port_name(index, *port), "containerPort": port, "protocol": "TCP"});
    let ports: Vec<Value> = spec.ports.iter().enumerate().map(port).collect();
    let mut node = json!({
        "id": format!("{role}~{ip}~{name}.{namespace}~{namespace}.svc.{}", mesh.domain),
        "cluster": format!("{app}.{namespace}"),
        "metadata": {
            "NAME": name,
            "NAMESPACE": namespace,
            "WORKLOAD_NAME": workload,
            "SERVICE_ACCOUNT": spec.service_account,
            "LABELS": spec.labels,
            "INSTANCE_IPS": ip.to_string(),
            "CLUSTER_ID": mesh.cluster,
            "MESH_ID": mesh.trust_domain,
            "POD_PORTS": Value::from(ports).to_string(),
            "OWNER": format!("kubernetes://apis/apps/v1/namespaces/{namespace}/deployments/{workload}"),
            "PROXY_CONFIG": {},
            "ISTIO_VERSION": ISTIO_VERSION,
        },
    });
    if spec.grpc {
        node["metadata"]["GENERATOR"] = Value::from("grpc");
    }
    node
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use mesh_xds::bootstrap::Bootstrap;

    use super::*;

    /// XD20: what is written is what the client reads, down to the identity it will ask for.
    #[test]
    fn bootstrap_is_read_back_by_the_client() {
        let dir = tempfile::tempdir().unwrap();
        let ca = Ca::in_memory("cluster.local").unwrap();
        let spec = WorkloadSpec {
            service_account: "bookinfo-reviews".to_owned(),
            labels: [("app".to_owned(), "reviews".to_owned()), ("version".to_owned(), "v1".to_owned())].into(),
            ports: vec![9080],
            ..WorkloadSpec::new("reviews-v1", "127.0.0.14".parse().unwrap())
        };
        let any = "0.0.0.0:15012".parse().unwrap();
        let (value, _) = bootstrap(&ca, &MeshSettings::default(), any, &spec, dir.path()).unwrap();
        let bootstrap = Bootstrap::parse(&value.to_string(), "test").unwrap();
        assert!(bootstrap.ignored.is_empty(), "{:?}", bootstrap.ignored);
        assert_eq!(bootstrap.server.address, "127.0.0.1:15012");
        assert_eq!(bootstrap.server.tls.as_ref().unwrap().server_name.as_deref(), Some(SERVER_NAME));
        assert_eq!(bootstrap.node.id, "sidecar~127.0.0.14~reviews-v1.default~default.svc.cluster.local");
        assert_eq!(bootstrap.node.identity(), "spiffe://cluster.local/ns/default/sa/bookinfo-reviews");
        assert_eq!(&*bootstrap.node.workload().version, "v1");
        assert!(bootstrap.ca.is_some());
        let token = std::fs::read_to_string(bootstrap.server.token_file.unwrap()).unwrap();
        assert_eq!(ca.tokens().verify(&token).unwrap().name(), "bookinfo-reviews");
        assert!(!value.to_string().contains(&token));
    }

    #[test]
    fn names_cannot_leave_the_directory() {
        let dir = tempfile::tempdir().unwrap();
        let ca = Ca::in_memory("cluster.local").unwrap();
        let spec = WorkloadSpec::new("../reviews", "127.0.0.1".parse().unwrap());
        let any = "127.0.0.1:15012".parse().unwrap();
        assert!(super::bootstrap(&ca, &MeshSettings::default(), any, &spec, dir.path()).is_err());
    }
}
