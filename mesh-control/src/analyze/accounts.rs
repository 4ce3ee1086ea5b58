//! Who is left out because of the account it runs as: keys that nobody is given, and workloads that stand behind no service.

use std::sync::Arc;

use mesh_core::config::Labels;

use super::name_of;
use crate::{
    compile::accounts::named,
    diagnostic::{Diagnostic, Level, codes},
    kinds::{Object, ServerTls, Spec},
    registry::Registered,
};

/// Everything found among `all` and those who run.
pub(super) fn accounts(all: &[Arc<Object>], running: &[Arc<Registered>], found: &mut Vec<Diagnostic>) {
    for object in all {
        match &object.spec {
            Spec::Gateway(gateway) => {
                let own = |tls: &ServerTls| matches!(tls, ServerTls::Own(tls) if !tls.credentials.is_empty());
                let asks = gateway.servers.iter().any(|server| server.tls.as_ref().is_some_and(own));
                let deployed = deployments(all).any(|(_, labels, _)| includes(labels, &gateway.selector));
                if asks && !deployed && named(object).next().is_none() {
                    let message = "no service account is given the keys of its Secrets";
                    let mut it = object.diagnostic(codes::NO_KEYS, Level::Warning, name_of(object), message);
                    it.help = Some(
                        "name the account that the gateway runs as: metadata.annotations \
                         {gateway.istio.io/service-account: NAME}, or a Deployment whose pods the selector selects"
                            .to_owned(),
                    );
                    found.push(it);
                }
            }
            Spec::Service(service) if !service.selector.is_empty() => {
                let namespace = &object.key.namespace;
                let mut announced: Vec<&str> = deployments(all)
                    .filter(|(at, labels, _)| *at == namespace && includes(labels, &service.selector))
                    .map(|(.., account)| account)
                    .collect();
                if announced.is_empty() {
                    continue;
                }
                announced.extend(groups(all, namespace, &service.selector));
                announced.dedup();
                let selected =
                    |it: &&Arc<Registered>| it.namespace == *namespace && includes(&it.labels, &service.selector);
                for stranger in running.iter().filter(selected) {
                    if announced.contains(&stranger.service_account.as_str()) {
                        continue;
                    }
                    let (name, account) = (&stranger.name, &stranger.service_account);
                    let message = format!("{name} has its labels and runs as {account:?}, so that it is sent nothing");
                    let mut it = object.diagnostic(codes::OTHER_ACCOUNT, Level::Warning, name_of(object), &message);
                    it.note = Some(format!("by the Deployments behind it the account is {}", announced.join(" or ")));
                    found.push(it);
                }
            }
            _ => {}
        }
    }
}

fn deployments(all: &[Arc<Object>]) -> impl Iterator<Item = (&String, &Labels, &str)> {
    all.iter().filter_map(|object| match &object.spec {
        Spec::Deployment(hint) => Some((&object.key.namespace, &hint.labels, hint.service_account.as_str())),
        _ => None,
    })
}

fn groups<'a>(all: &'a [Arc<Object>], namespace: &str, selector: &Labels) -> impl Iterator<Item = &'a str> {
    all.iter().filter_map(move |object| match &object.spec {
        Spec::WorkloadGroup(group) if object.key.namespace == namespace && includes(&group.labels, selector) => {
            Some(group.template.service_account.as_str())
        }
        _ => None,
    })
}

fn includes(labels: &Labels, wanted: &Labels) -> bool {
    wanted.iter().all(|(key, value)| labels.get(key) == Some(value))
}
