//! Services as all workloads see them: what objects declare, with who runs there.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use mesh_core::config::{
    Endpoint, EndpointAddress, Endpoints, Health, Labels, Locality, LocalityEndpoints, MtlsMode, Name, Workload,
};

use super::{World, accounts::Behind, inbound};
use crate::{
    kinds::{Key, Object, PortProtocol, Resolution, ServicePort, Spec, TargetPort, WorkloadEntry},
    registry::{Registered, WorkloadPort},
};

/// A service under one host.
#[derive(Clone, Debug)]
pub(crate) struct Service {
    /// `reviews.default.svc.cluster.local`.
    pub(crate) host: Name,
    pub(crate) name: Name,
    pub(crate) namespace: Name,
    pub(crate) ports: Vec<ServicePort>,
    /// `None` is by endpoints.
    pub(crate) resolution: Resolution,
    pub(crate) external: bool,
    /// Declared by Kubernetes' `Service`, so that short names of it work.
    pub(crate) short_names: bool,
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) export_to: Vec<String>,
    /// Names its servers' certificates may show: the accounts behind it.
    pub(crate) accounts: BTreeSet<String>,
    pub(crate) instances: Vec<Instance>,
}

/// Something that runs behind a service.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Instance {
    address: String,
    /// By name of the service's port, as a WorkloadEntry maps them.
    mapped: BTreeMap<String, u16>,
    /// What it says it listens on; empty is not known.
    ports: Vec<WorkloadPort>,
    labels: Labels,
    locality: Locality,
    weight: u32,
    takes_mtls: bool,
    namespace: String,
    workload: Option<Arc<Workload>>,
}

impl Service {
    /// The endpoints of a port among instances with some labels.
    pub(crate) fn endpoints(&self, world: &World, port: &ServicePort, labels: &Labels) -> Endpoints {
        let mut by_locality: BTreeMap<&Locality, Vec<Endpoint>> = BTreeMap::new();
        // Several that claim one address are one endpoint, or it would get their shares together.
        let mut taken = BTreeSet::new();
        for instance in self.instances.iter().filter(|instance| includes(&instance.labels, labels)) {
            let Some(endpoint) = instance.endpoint(world, port) else { continue };
            if taken.insert(endpoint.address.clone()) {
                by_locality.entry(&instance.locality).or_default().push(endpoint);
            }
        }
        let localities = by_locality
            .into_iter()
            .map(|(locality, mut endpoints)| {
                endpoints.sort_by(|a, b| a.address.cmp(&b.address));
                LocalityEndpoints { locality: locality.clone(), priority: 0, weight: None, endpoints }
            })
            .collect();
        Endpoints { localities, ..Default::default() }
    }

    /// The labels of whoever runs at an endpoint.
    pub(crate) fn labels_of(&self, endpoint: &Endpoint) -> Labels {
        let address = match &endpoint.address {
            EndpointAddress::Socket(socket) => socket.ip().to_string(),
            EndpointAddress::Unix(path) => format!("unix://{path}"),
            EndpointAddress::Host(host, _) => host.clone(),
        };
        let instance = self.instances.iter().find(|instance| instance.address == address);
        instance.map(|instance| instance.labels.clone()).unwrap_or_default()
    }

    /// The names to resolve, of a service found by DNS.
    pub(crate) fn dns_names(&self, port: &ServicePort, labels: &Labels) -> Vec<(String, u16)> {
        if self.instances.is_empty() {
            return vec![(self.host.to_string(), number_of(port))];
        }
        let selected = self.instances.iter().filter(|instance| includes(&instance.labels, labels));
        selected.map(|instance| (instance.address.clone(), instance.number(port))).collect()
    }
}

impl Instance {
    fn of_registered(world: &World, registered: &Registered) -> Self {
        Self {
            address: registered.address.to_string(),
            mapped: BTreeMap::new(),
            ports: registered.ports.clone(),
            labels: registered.labels.clone(),
            locality: registered.locality.clone(),
            weight: registered.weight.max(1),
            takes_mtls: true,
            namespace: registered.namespace.clone(),
            workload: Some(Arc::new(workload(
                world,
                &registered.workload,
                &registered.namespace,
                &registered.service_account,
                &registered.labels,
            ))),
        }
    }

    fn of_entry(world: &World, entry: &WorkloadEntry, name: &str, namespace: &str) -> Self {
        Self {
            address: entry.address.value.clone(),
            mapped: entry.ports.clone(),
            ports: Vec::new(),
            labels: entry.labels.clone(),
            locality: entry.locality.clone(),
            weight: entry.weight,
            takes_mtls: entry.takes_mtls(),
            namespace: namespace.to_owned(),
            workload: (!name.is_empty())
                .then(|| Arc::new(workload(world, name, namespace, &entry.service_account, &entry.labels))),
        }
    }

    /// The number of a service's port here: mapped, else the target, by name or number; else, where a process could not have
    /// the service's number and has another port of the same name, that one.
    fn number(&self, port: &ServicePort) -> u16 {
        if let Some(number) = self.mapped.get(&port.name) {
            return *number;
        }
        let named = |name: &str| self.ports.iter().find(|own| own.name == name).map(|own| own.number);
        match &port.target {
            TargetPort::Name(name) => named(name).unwrap_or(port.number),
            _ => {
                let number = number_of(port);
                let unknown = self.ports.is_empty() || self.ports.iter().any(|own| own.number == number);
                if unknown { number } else { named(&port.name).unwrap_or(number) }
            }
        }
    }

    fn endpoint(&self, world: &World, port: &ServicePort) -> Option<Endpoint> {
        let number = self.number(port);
        let address = match self.address.strip_prefix("unix://") {
            Some(path) => EndpointAddress::Unix(path.to_owned()),
            None => match self.address.parse::<IpAddr>() {
                Ok(ip) => EndpointAddress::Socket(SocketAddr::new(ip, number)),
                Err(_) => return None,
            },
        };
        let mode = inbound::mode(world, &self.namespace, &self.labels, number);
        Some(Endpoint {
            address,
            weight: self.weight,
            health: Health::Healthy,
            mtls: self.takes_mtls && mode != MtlsMode::Disable,
            workload: self.workload.clone(),
            hostname: "".into(),
            hash_key: None,
            more: None,
        })
    }
}

/// Every service of the objects, Kubernetes' first (they win over entries of the same host), then by age.
pub(crate) fn services(world: &World) -> Vec<Service> {
    let mut services: Vec<Service> = Vec::new();
    let there = There::of(world);
    for object in &world.objects {
        if let Spec::Service(service) = &object.spec {
            services.push(of_service(world, &there, object, service));
        }
    }
    for object in &world.by_age {
        if let Spec::ServiceEntry(entry) = &object.spec {
            let new = of_entry(world, &there, object, entry);
            services.extend(new);
        }
    }
    let mut seen = BTreeSet::new();
    services.retain(|service| seen.insert((service.host.clone(), service.namespace.clone())));
    services
}

/// What may run behind services, by namespace, so that a service does not look at all there is.
struct There<'w> {
    workloads: BTreeMap<&'w str, Vec<&'w Registered>>,
    /// Deployments and WorkloadEntries.
    objects: BTreeMap<&'w str, Vec<&'w Object>>,
}

impl<'w> There<'w> {
    fn of(world: &'w World) -> Self {
        let mut there = Self { workloads: BTreeMap::new(), objects: BTreeMap::new() };
        for registered in &world.workloads {
            there.workloads.entry(&registered.namespace).or_default().push(registered);
        }
        let may_run = |object: &&Arc<Object>| matches!(object.spec, Spec::Deployment(_) | Spec::WorkloadEntry(_));
        for object in world.objects.iter().filter(may_run) {
            there.objects.entry(&object.key.namespace).or_default().push(object);
        }
        there
    }

    fn workloads(&self, namespace: &str) -> impl Iterator<Item = &'w Registered> {
        self.workloads.get(namespace).into_iter().flatten().copied()
    }

    fn objects(&self, namespace: &str) -> impl Iterator<Item = &'w Object> {
        self.objects.get(namespace).into_iter().flatten().copied()
    }
}

fn of_service(world: &World, there: &There<'_>, object: &Object, service: &crate::kinds::Service) -> Service {
    let Key { name, namespace, .. } = &object.key;
    let mut accounts = BTreeSet::new();
    let mut instances = Vec::new();
    if !service.selector.is_empty() {
        registered(world, there, namespace, &service.selector, &mut accounts, &mut instances);
        written(world, there, namespace, &service.selector, &mut accounts, &mut instances);
    }
    Service {
        host: format!("{name}.{namespace}.svc.{}", world.mesh.domain).into(),
        name: name.as_str().into(),
        namespace: namespace.as_str().into(),
        ports: service.ports.clone(),
        resolution: Resolution::Static,
        external: false,
        short_names: true,
        addresses: service.cluster_ip.into_iter().collect(),
        export_to: Vec::new(),
        accounts,
        instances,
    }
}

/// Those who run in a namespace and have the labels asked for, and of accounts that may stand there.
fn registered(
    world: &World,
    there: &There<'_>,
    namespace: &str,
    selector: &Labels,
    accounts: &mut BTreeSet<String>,
    instances: &mut Vec<Instance>,
) {
    let behind = Behind::of(world, there.objects(namespace), namespace, selector);
    accounts.extend(behind.announced().map(|account| world.san(namespace, account)));
    for registered in there.workloads(namespace) {
        if includes(&registered.labels, selector) && behind.takes(registered) {
            accounts.insert(world.san(namespace, &registered.service_account));
            let usable = registered.unhealthy.is_none();
            instances.extend(usable.then(|| Instance::of_registered(world, registered)));
        }
    }
}

/// Those who are written down.
fn written(
    world: &World,
    there: &There<'_>,
    namespace: &str,
    selector: &Labels,
    accounts: &mut BTreeSet<String>,
    instances: &mut Vec<Instance>,
) {
    for other in there.objects(namespace) {
        let Spec::WorkloadEntry(entry) = &other.spec else { continue };
        if includes(&entry.labels, selector) {
            if !entry.service_account.is_empty() {
                accounts.insert(world.san(namespace, &entry.service_account));
            }
            instances.push(Instance::of_entry(world, entry, &other.key.name, namespace));
        }
    }
}

fn of_entry(world: &World, there: &There<'_>, object: &Object, entry: &crate::kinds::ServiceEntry) -> Vec<Service> {
    let namespace = &object.key.namespace;
    let mut accounts: BTreeSet<String> = entry.subject_alt_names.iter().cloned().collect();
    let mut instances = Vec::new();
    for endpoint in &entry.endpoints {
        if !endpoint.service_account.is_empty() {
            accounts.insert(world.san(namespace, &endpoint.service_account));
        }
        instances.push(Instance::of_entry(world, endpoint, "", namespace));
    }
    if !entry.selector.is_empty() {
        written(world, there, namespace, &entry.selector, &mut accounts, &mut instances);
        registered(world, there, namespace, &entry.selector, &mut accounts, &mut instances);
    }
    let suffix = format!(".{namespace}.svc.{}", world.mesh.domain);
    let of_host = |host: &str| {
        // An entry that stands in for a Kubernetes service goes by its short names too.
        let short = host.strip_suffix(&suffix).filter(|name| !name.contains('.'));
        Service {
            host: host.to_ascii_lowercase().into(),
            name: short.unwrap_or(host).into(),
            namespace: namespace.as_str().into(),
            ports: entry.ports.clone(),
            resolution: entry.resolution,
            external: entry.external,
            short_names: short.is_some(),
            addresses: entry.addresses.iter().filter_map(|address| address.parse().ok()).collect(),
            export_to: entry.export_to.clone(),
            accounts: accounts.clone(),
            instances: instances.clone(),
        }
    };
    entry.hosts.iter().map(|host| of_host(&host.value)).collect()
}

/// Who a workload is, for telemetry.
pub(crate) fn workload(world: &World, name: &str, namespace: &str, account: &str, labels: &Labels) -> Workload {
    let label = |key: &str| labels.get(key).map(String::as_str).filter(|value| !value.is_empty());
    Workload {
        name: name.into(),
        namespace: namespace.into(),
        service_account: account.into(),
        canonical_name: label("service.istio.io/canonical-name").or_else(|| label("app")).unwrap_or(name).into(),
        canonical_revision: label("service.istio.io/canonical-revision")
            .or_else(|| label("version"))
            .unwrap_or("latest")
            .into(),
        cluster: world.mesh.cluster.as_str().into(),
        app: label("app").unwrap_or_default().into(),
        version: label("version").unwrap_or_default().into(),
    }
}

/// Has a set of labels all of another?
pub(crate) fn includes(labels: &Labels, wanted: &Labels) -> bool {
    wanted.iter().all(|(key, value)| labels.get(key) == Some(value))
}

fn number_of(port: &ServicePort) -> u16 {
    match port.target {
        TargetPort::Number(number) => number,
        _ => port.number,
    }
}

/// May requests for this port be routed by their head?
pub(crate) fn is_http(port: &ServicePort) -> bool {
    matches!(port.protocol, PortProtocol::Http | PortProtocol::Http2)
}
