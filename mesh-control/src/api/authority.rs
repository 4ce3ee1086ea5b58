//! What the API says of the certificate authority, and does with it.

use std::{collections::BTreeMap, time::SystemTime};

use axum::{
    Json,
    extract::{Query, State as Shared, rejection::JsonRejection},
    http::StatusCode,
};
use serde::Deserialize;

use super::{Api, IssuedList, Refusal};
use crate::ca::{CaError, CaStatus, RevokeRequest, RotateRequest, Step};

#[derive(Deserialize)]
pub(super) struct Of {
    id: Option<String>,
}

pub(super) async fn status(Shared(api): Shared<Api>) -> Json<CaStatus> {
    Json(api.ca.status(SystemTime::now()))
}

pub(super) async fn issued(Shared(api): Shared<Api>, Query(of): Query<Of>) -> Json<IssuedList> {
    Json(IssuedList { items: api.ca.issued(of.id.as_deref(), SystemTime::now()) })
}

pub(super) async fn rotate(
    Shared(api): Shared<Api>,
    request: Result<Json<RotateRequest>, JsonRejection>,
) -> Result<Json<CaStatus>, Refusal> {
    let Json(RotateRequest { step, from, force }) = request?;
    let step = step.unwrap_or_else(|| api.ca.next_step());
    if step == Step::Remove && !force {
        let behind = behind(&api);
        if !behind.is_empty() {
            return Err(Refusal::new(
                StatusCode::CONFLICT,
                format!(
                    "{} connected workload(s) may have no certificate of the new authority yet: {}; they get one by themselves \
                     soon, or take the step all the same with --force",
                    behind.len(),
                    behind.join(", ")
                ),
            ));
        }
    }
    // Making keys and writing files are not for the threads that serve streams.
    let made = tokio::task::spawn_blocking(move || api.ca.rotate(Some(step), from.as_deref(), SystemTime::now())).await;
    let status = made.map_err(|error| Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
    Ok(Json(status.inspect(|_| tracing::warn!(?step, "the authority was changed"))?))
}

pub(super) async fn revoke(
    Shared(api): Shared<Api>,
    request: Result<Json<RevokeRequest>, JsonRejection>,
) -> Result<Json<CaStatus>, Refusal> {
    let Json(request) = request?;
    let status = api.ca.revoke(&request, SystemTime::now())?;
    let (ids, serials, lifted) = (&request.ids, &request.serials, request.lift);
    tracing::warn!(?ids, ?serials, lifted, "revocations were changed");
    Ok(Json(status))
}

/// The identities of connected workloads for which the authority that signs has signed fewer certificates than there are workloads.
fn behind(api: &Api) -> Vec<String> {
    let status = api.ca.status(SystemTime::now());
    let Some(active) = status.authorities.first() else { return Vec::new() };
    let mut signed: BTreeMap<String, usize> = BTreeMap::new();
    for issued in api.ca.issued(None, SystemTime::now()) {
        if issued.authority == active.id {
            *signed.entry(issued.id).or_default() += 1;
        }
    }
    let connected = api.push.identities().into_iter();
    connected.filter(|(id, count)| signed.get(id).copied().unwrap_or_default() < *count).map(|(id, _)| id).collect()
}

impl From<CaError> for Refusal {
    fn from(error: CaError) -> Self {
        let status = match error {
            CaError::Step(_) => StatusCode::CONFLICT,
            CaError::Root(_) | CaError::Key { .. } | CaError::Revocation(_) => StatusCode::BAD_REQUEST,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self::new(status, error.to_string())
    }
}
