//! A mesh by gRPC's rules: how listeners are asked for, in the name of who dials and of who serves.

use std::sync::Arc;

use super::{Asked, Bootstrap, Client};
use crate::{dial::Dialled, live::Live};

/// Nothing in force yet; what is dialled or served on is asked of this client.
pub(super) fn live(bootstrap: &Arc<Bootstrap>, client: &Arc<Client>) -> Live {
    // Whoever holds the mesh's state must not hold the client of its control plane: it is the mesh's to end.
    let (of_targets, of_servers) = (Arc::downgrade(client), Arc::downgrade(client));
    let ended = || "the mesh has ended".to_owned();
    let bootstrap = Arc::clone(bootstrap);
    Live::dialled_by(
        Box::new(move |target| of_targets.upgrade().ok_or_else(ended)?.dial(target).map(dialled)),
        Box::new(move |address| {
            let name = bootstrap.listener_of_server(address).ok_or_else(|| {
                "the bootstrap has no server_listener_resource_name_template, by which a server asks for its listener".to_owned()
            })?;
            Ok(dialled(of_servers.upgrade().ok_or_else(ended)?.want_listener(name)))
        }),
    )
}

fn dialled(asked: Asked) -> Dialled {
    Dialled::new(asked.listener().clone(), asked)
}
