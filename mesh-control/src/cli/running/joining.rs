//! Who a workload is and how it joins: what `run` and `bootstrap` are told, and what they make of it.
//!
//! What is not said is taken from the `Deployment` of that name, if one was applied: the service account, the labels and the ports.

use std::{
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
};

use mesh_control::{
    WorkloadSpec,
    api::{self, Objects},
    ca::{Ca, CaError, CaStatus},
    compile::MeshSettings,
    workload::Joining,
};
use serde_json::Value;

use crate::cli::{
    FAILURE, Failure,
    client::{Server, escape},
    place, values,
};

#[derive(Clone, Debug, clap::Args)]
pub(in crate::cli) struct Member {
    /// What it is: its label app, and with --version the name of the workload.
    app: String,
    /// Its label version.
    #[arg(long)]
    version: Option<String>,
    /// Its service account; without, that of its Deployment, or default.
    #[arg(long, value_name = "NAME")]
    service_account: Option<String>,
    /// Another label; may be repeated.
    #[arg(short, long = "label", value_name = "NAME=VALUE", value_parser = values::label)]
    labels: Vec<(String, String)>,
    /// The name of this instance, when there are several.
    #[arg(long, value_name = "NAME")]
    instance: Option<String>,
    /// The address it listens on.
    #[arg(long, default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    ip: IpAddr,
    /// The ports it listens on, the one called http first; without, those of its Deployment.
    #[arg(short, long = "port", value_delimiter = ',')]
    ports: Vec<u16>,
    /// It is a gateway.
    #[arg(long)]
    gateway: bool,
    /// It uses gRPC's own library, not this mesh's.
    #[arg(long)]
    grpc: bool,
    /// The state directory of the control plane, whose keys sign; known where `meshctl dev` runs for the same user.
    #[arg(long, env = "MESHCTL_STATE_DIR", hide_env_values = true, value_name = "DIR")]
    state_dir: Option<PathBuf>,
}

/// What is needed to join.
pub(in crate::cli) struct Joined {
    pub(in crate::cli) name: String,
    pub(in crate::cli) joining: Joining,
    pub(in crate::cli) environment: Vec<(&'static str, String)>,
    state_dir: PathBuf,
    trust_domain: String,
}

impl Member {
    /// The state directory, as told or as found.
    pub(in crate::cli) fn state_dir(&self, server: &Server) -> Result<PathBuf, Failure> {
        let found = self.state_dir.clone().or_else(|| place::find(server.address()));
        match found {
            Some(dir) if place::has_keys(&dir) => Ok(dir),
            Some(dir) => {
                Err(Failure::new(FAILURE, format!("{} is not the state directory of a control plane", dir.display())))
            }
            None => Err(Failure::new(
                FAILURE,
                "the keys of the control plane are not known; give its state directory with --state-dir DIR or MESHCTL_STATE_DIR",
            )),
        }
    }

    /// Writes what a workload needs into `dir`.
    pub(in crate::cli) async fn join(&self, server: &Server, dir: &Path) -> Result<Joined, Failure> {
        let version: api::Version = server.get("/version").await?;
        let status: CaStatus = server.get("/ca").await?;
        let state_dir = self.state_dir(server)?;
        let spec = self.spec(server).await?;
        let mesh = MeshSettings { trust_domain: status.trust_domain.clone(), ..MeshSettings::default() };
        let ca = Ca::open(&state_dir, &status.trust_domain).map_err(failure)?;
        let joining = Joining::write(&ca, &mesh, version.xds, &spec, dir).map_err(failure)?;
        let file = dir.join(format!("{}.{}.json", spec.name, spec.namespace));
        let text = crate::cli::output::json(&joining.bootstrap)?;
        std::fs::write(&file, text)
            .and_then(|()| file.canonicalize())
            .map_err(|error| Failure::new(FAILURE, format!("{} cannot be written: {error}", file.display())))
            .map(|file| Joined {
                environment: vec![
                    ("GRPC_XDS_BOOTSTRAP", file.to_string_lossy().into_owned()),
                    ("OTEL_EXPORTER_OTLP_ENDPOINT", server.url("")),
                ],
                name: spec.name,
                joining,
                state_dir,
                trust_domain: status.trust_domain,
            })
    }

    async fn spec(&self, server: &Server) -> Result<WorkloadSpec, Failure> {
        let namespace = server.namespace();
        let workload = match &self.version {
            Some(version) => format!("{}-{version}", self.app),
            None => self.app.clone(),
        };
        let path = format!("/objects?kind=deployment&namespace={}", escape(namespace));
        let objects: Objects = server.get(&path).await?;
        let deployment = objects.items.iter().find(|item| item.key.name == workload).map(|item| &item.object);
        let at = |pointer: &str| deployment.and_then(|it| it.pointer(pointer));
        let mut labels = mesh_core::config::Labels::new();
        for (name, value) in at("/spec/template/metadata/labels").and_then(Value::as_object).into_iter().flatten() {
            labels.extend(value.as_str().map(|value| (name.clone(), value.to_owned())));
        }
        labels.insert("app".to_owned(), self.app.clone());
        labels.extend(self.version.iter().map(|version| ("version".to_owned(), version.clone())));
        labels.extend(self.labels.iter().cloned());
        let account = at("/spec/template/spec/serviceAccountName").and_then(Value::as_str);
        let account = self.service_account.as_deref().or(account).unwrap_or("default");
        let mut ports = self.ports.clone();
        if ports.is_empty() {
            let containers = at("/spec/template/spec/containers").and_then(Value::as_array).into_iter().flatten();
            let of = containers.filter_map(|it| it.get("ports")?.as_array()).flatten();
            ports.extend(of.filter_map(|port| u16::try_from(port.get("containerPort")?.as_u64()?).ok()));
        }
        Ok(WorkloadSpec {
            namespace: namespace.to_owned(),
            workload: workload.clone(),
            service_account: account.to_owned(),
            labels,
            ports,
            gateway: self.gateway,
            grpc: self.grpc,
            ..WorkloadSpec::new(self.instance.clone().unwrap_or(workload), self.ip)
        })
    }
}

impl Joined {
    /// Keeps the token and the roots fresh, for as long as it is polled.
    pub(in crate::cli) async fn keep_fresh(&self) {
        loop {
            tokio::time::sleep(Joining::RENEWAL).await;
            let renewed = Ca::open(&self.state_dir, &self.trust_domain).and_then(|ca| self.joining.renew(&ca));
            if let Err(error) = renewed {
                crate::cli::output::note(&format!("the token of {} could not be renewed: {error}", self.name));
            }
        }
    }
}

fn failure(error: CaError) -> Failure {
    Failure::new(FAILURE, error.to_string())
}
