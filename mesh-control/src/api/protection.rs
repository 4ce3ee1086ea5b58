//! Which workloads have ports that policies are about and that nobody enforces them at: a program that serves without the mesh's
//! admission looks like any other until somebody asks it.
//!
//! A process says at its admin port which ports the mesh serves for it. One whose admin port is not on this machine, or does not
//! answer, is one of which it is not known.

use std::{net::SocketAddr, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::Request;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use mesh_core::config::EVERY_PORT;
use serde::Deserialize;
use tokio::{task::JoinSet, time::timeout};

use super::wire::{Protection, ProxyStatus};
use crate::{compile::inbound, push::Push, state::State};

/// How long a process may take to answer.
const PATIENCE: Duration = Duration::from_millis(800);
/// Processes asked at once.
const AT_ONCE: usize = 32;
/// The most of an answer that is read.
const MOST: usize = 64 << 10;

/// What a process says it serves.
#[derive(Deserialize)]
struct Served {
    ports: Vec<u16>,
}

/// Finds out of every workload, at once.
pub(super) async fn look(state: &State, push: &Push, items: &mut [ProxyStatus]) {
    let world = state.world().1;
    let workloads = state.workloads();
    let client: Client<HttpConnector, Empty<Bytes>> = Client::builder(TokioExecutor::new()).build_http();
    let (mut asked, mut answers) = (JoinSet::new(), Vec::new());
    for (at, item) in items.iter_mut().enumerate() {
        let Some(node) = push.find(&item.name).filter(|node| !node.gateway) else { continue };
        let listens = |port: &u16| node.ports.is_empty() || node.ports.iter().any(|own| own.number == *port);
        let mut guarded: Vec<u16> = inbound::inbound(&world, &node)
            .filter(|(_, inbound)| !inbound.guards.is_empty())
            .map(|(port, _)| port)
            .filter(|port| *port == EVERY_PORT || listens(port))
            .collect();
        if guarded.is_empty() {
            continue;
        }
        // What is served anywhere is guarded there; that nothing is served at a port nobody knows of is no gap.
        guarded.retain(|port| *port != EVERY_PORT);
        item.protection = Protection::Unknown;
        let own = workloads.iter().find(|it| it.name == node.name && it.namespace == node.namespace);
        let Some(admin) = own.and_then(|own| own.admin) else { continue };
        if asked.len() >= AT_ONCE {
            answers.extend(asked.join_next().await);
        }
        let client = client.clone();
        asked.spawn(async move { (at, guarded, served(client, admin).await) });
    }
    while let Some(answer) = asked.join_next().await {
        answers.push(answer);
    }
    for (at, guarded, served) in answers.into_iter().flatten() {
        let (Some(item), Some(Served { ports })) = (items.get_mut(at), served) else { continue };
        let (declared, serves) = (!guarded.is_empty(), !ports.is_empty());
        let open: Vec<u16> = guarded.into_iter().filter(|port| !ports.contains(port)).collect();
        item.protection = match (open.is_empty(), declared, serves) {
            (false, ..) => Protection::Unprotected(open),
            (true, false, false) => Protection::None,
            (true, ..) => Protection::Enforced,
        };
    }
}

async fn served(client: Client<HttpConnector, Empty<Bytes>>, admin: SocketAddr) -> Option<Served> {
    let request = Request::get(format!("http://{admin}/serving")).body(Empty::new()).ok()?;
    let exchange = async {
        let body = Limited::new(client.request(request).await.ok()?.into_body(), MOST).collect().await.ok()?;
        serde_json::from_slice(&body.to_bytes()).ok()
    };
    timeout(PATIENCE, exchange).await.ok().flatten()
}
