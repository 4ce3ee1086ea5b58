//! Handlers with services of the mesh's own in front of them: what a server says of itself.

use super::Mesh;
use crate::server::{Health, LoadRecorder, WithHealth, WithLoad};

impl Mesh {
    /// A handler with gRPC's health service (`grpc.health.v1.Health`) in front: it says `SERVING` of the server as a whole
    /// and of these services, and `NOT_SERVING` from the moment serving is to end. Over HTTP the admin port's `/ready` says
    /// the same.
    pub fn with_health<S>(&self, handler: S, services: impl IntoIterator<Item = impl Into<String>>) -> WithHealth<S> {
        let health = Health { ending: self.shared.ending.subscribe(), unwell: self.shared.unwell.subscribe() };
        WithHealth::new(handler, services.into_iter().map(Into::into), health)
    }

    /// A handler whose answers tell clients how busy this process is, as `recorder` and [`record_call`](crate::server::record_call)
    /// say, and which tells it to who asks `xds.service.orca.v3.OpenRcaService` (gRFC A51).
    pub fn with_load<S>(&self, handler: S, recorder: &LoadRecorder) -> WithLoad<S> {
        WithLoad::new(handler, recorder.clone(), self.shared.ending.subscribe())
    }
}
