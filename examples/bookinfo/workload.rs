//! A service as a member of the mesh. These few lines are all there is of the mesh in Bookinfo.

use std::net::SocketAddr;

use axum::BoxError;
use mesh_tower::Mesh;

use crate::services::client::HttpClient;
use crate::services::{details, productpage, ratings, reviews};

/// The four services.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Service {
    Productpage,
    Details,
    Reviews,
    Ratings,
}

/// Joins the mesh and serves `service` at `addr` until told to end.
pub(crate) async fn serve(service: Service, addr: SocketAddr) -> Result<(), BoxError> {
    let mesh = Mesh::from_env().await?;
    let client = HttpClient::new(mesh.http());
    let router = match service {
        Service::Productpage => productpage::router(productpage::Settings::from_env(&process_env)?, client),
        Service::Details => details::router(details::Settings::from_env(&process_env), client),
        Service::Reviews => reviews::router(reviews::Settings::from_env(&process_env), client),
        Service::Ratings => ratings::router(ratings::Behaviour::from_env(&process_env), rand::random),
    };
    Ok(mesh.serve(addr, router).await?)
}

/// Joins the mesh as a gateway, which has no service of its own: it listens at `addr` for the `Gateway` server at `port`.
pub(crate) async fn gateway(addr: SocketAddr, port: u16) -> Result<(), BoxError> {
    let mesh = Mesh::from_env().await?;
    Ok(mesh.gateway(addr, port).await?)
}

/// One variable of this process's environment; an empty one is none.
fn process_env(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}
