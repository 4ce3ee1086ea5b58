//! Who hears of a change: streams in memory, given their views by the control plane and driven by the server's machine.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{net::IpAddr, sync::Arc};

use mesh_control::{ControlPlane, store::SourceFile};
use mesh_xds::{
    ads::{ResourceSet, TypeUrl},
    node::Node,
    server::{ConnectionId, Peer, Source},
};
use serde_json::json;
use tokio::sync::watch;

const NAMESPACES: usize = 4;
const SERVICES: usize = 5;

/// In each namespace: workloads of one service, one of them with gRPC's own library, and one that some rule asks for.
const CLIENTS: usize = 3;

struct Client {
    namespace: usize,
    number: usize,
    view: watch::Receiver<Arc<ResourceSet>>,
    source: Arc<dyn Fn(ConnectionId) + Send + Sync>,
    id: ConnectionId,
}

impl Drop for Client {
    fn drop(&mut self) {
        (self.source)(self.id);
    }
}

/// A control plane, and a client in a namespace of its own whose rule changes each time: it connected last and is shown
/// things last, so that what it has heard, all have.
struct Mesh {
    plane: ControlPlane,
    last: Client,
    round: u32,
}

/// OP10, RM16: one changed VirtualService reaches those it concerns, and only those; of what reaches them only the routes are
/// new, and all else is the same value in every view.
#[tokio::test(flavor = "multi_thread")]
async fn a_rule_reaches_those_it_concerns() {
    let any = "127.0.0.1:0".parse().unwrap();
    let plane = ControlPlane::builder().xds_addr(any).api_addr(any).start().await.unwrap();
    let mut services = String::new();
    for namespace in 0..=NAMESPACES {
        for service in 0..SERVICES {
            services.push_str(&format!(
                "---\napiVersion: v1\nkind: Service\nmetadata: {{name: s{service}, namespace: n{namespace}}}\nspec:\n  \
                 selector: {{app: s{service}}}\n  ports: [{{name: http, port: 9080}}]\n"
            ));
        }
    }
    plane.apply(&[SourceFile { name: "services.yaml".to_owned(), text: services }]).unwrap();
    let mut clients: Vec<Client> =
        (0..NAMESPACES * CLIENTS).map(|n| connect(&plane, n / CLIENTS, n % CLIENTS)).collect();
    let last = connect(&plane, NAMESPACES, 0);
    let mut mesh = Mesh { plane, last, round: 0 };
    while !mesh.apply("", &mut clients).await.is_empty() {}

    // Of one namespace, for itself alone.
    let own = rule("n1", "exportTo: [\".\"]", "");
    assert_eq!(mesh.apply(&own, &mut clients).await, [(1, 0), (1, 1), (1, 2)]);
    // The same again is no change.
    assert_eq!(mesh.apply(&own, &mut clients).await, []);
    // For another namespace.
    let other = rule("n1", "exportTo: [\"n2\"]", "");
    assert_eq!(mesh.apply(&other, &mut clients).await, [(1, 0), (1, 1), (1, 2), (2, 0), (2, 1), (2, 2)]);
    // For a gateway that nobody is.
    assert_eq!(mesh.apply(&rule("n3", "gateways: [g]", ""), &mut clients).await, []);
    // For callers with a label, of which there is one in each namespace.
    let labelled = rule("n0", "", "match: [{sourceLabels: {role: tester}}]");
    let heard = mesh.apply(&labelled, &mut clients).await;
    assert!([0, 1, 2, 3].iter().all(|namespace| heard.contains(&(*namespace, 2))), "{heard:?}");

    let views: Vec<Arc<ResourceSet>> = clients.iter().map(|client| client.view.borrow().clone()).collect();
    for kind in [TypeUrl::Cluster, TypeUrl::Endpoint] {
        let mut sidecars = views.iter().enumerate().filter(|(n, _)| n % CLIENTS != 1).map(|(_, view)| view);
        assert!(sidecars.all(|view| view.shares(kind, &views[0])), "{kind} are one value");
    }
    // An endpoint more is told to all, and nothing but endpoints changes.
    let more = connect(&mesh.plane, 0, 0);
    mesh.last.view.changed().await.unwrap();
    for (client, before) in clients.iter().zip(&views) {
        let now = client.view.borrow();
        assert!(now.shares(TypeUrl::Route, before) && now.shares(TypeUrl::Cluster, before));
        assert!(!now.shares(TypeUrl::Endpoint, before));
    }
    drop(more);
}

impl Mesh {
    /// Applies a text, and tells who heard of it, by namespace and number.
    async fn apply(&mut self, text: &str, clients: &mut [Client]) -> Vec<(usize, usize)> {
        self.round += 1;
        let told = rule(&format!("n{NAMESPACES}"), "exportTo: [\".\"]", "").replace("3s", &format!("{}s", self.round));
        let text = format!("{told}---\n{text}");
        self.last.view.mark_unchanged();
        self.plane.apply(&[SourceFile { name: "test.yaml".to_owned(), text }]).unwrap();
        self.last.view.changed().await.unwrap();
        let changed = clients.iter_mut().filter(|client| client.view.has_changed().unwrap());
        changed
            .map(|client| {
                client.view.mark_unchanged();
                (client.namespace, client.number)
            })
            .collect()
    }
}

fn rule(namespace: &str, spec: &str, condition: &str) -> String {
    let condition = if condition.is_empty() { String::new() } else { format!("{condition}, ") };
    format!(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: r, namespace: {namespace}}}\nspec:\n  \
         hosts: [s1.{namespace}.svc.cluster.local]\n  {spec}\n  http:\n  - {{{condition}timeout: 3s, route: [{{destination: {{host: s1}}}}]}}\n  \
         - {{route: [{{destination: {{host: s2}}}}]}}\n"
    )
}

fn connect(plane: &ControlPlane, namespace: usize, number: usize) -> Client {
    static NEXT: std::sync::atomic::AtomicU8 = std::sync::atomic::AtomicU8::new(1);
    let last = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let address = IpAddr::from([10, 0, 0, last]);
    let mut labels = json!({"app": "s1", "pod": last.to_string()});
    if number == 2 {
        labels["role"] = "tester".into();
    }
    let mut metadata = json!({
        "NAME": format!("c{last}"), "NAMESPACE": format!("n{namespace}"), "SERVICE_ACCOUNT": "a", "LABELS": labels,
    });
    if number == 1 {
        metadata["GENERATOR"] = "grpc".into();
    }
    let node: Node =
        serde_json::from_value(json!({"id": format!("sidecar~{address}~c{last}~d"), "metadata": metadata})).unwrap();
    let peer = Peer { identity: Some(format!("spiffe://cluster.local/ns/n{namespace}/sa/a")), ..Peer::default() };
    let source = plane.source();
    let (id, view) = source.connect(&peer, &node).unwrap();
    Client { namespace, number, view, source: Arc::new(move |id| source.disconnect(id)), id }
}
