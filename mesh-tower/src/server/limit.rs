//! How many requests are let in: by the buckets of this process, then by services that count for the whole mesh (RL1, RL3).
//!
//! It comes after everything that decides who may ask: what is refused there costs nobody a token. Source: Envoy
//! `envoy.filters.http.local_ratelimit`, `envoy.filters.http.ratelimit`.

use http::{StatusCode, request::Parts};
use mesh_core::{
    identity::SpiffeId,
    outcome::Flags,
    rate_limit::{Counted, GlobalLimit, GlobalLimits, LimitAnswer, LimitQuestion, LimitVerdict},
    request::RequestView,
    snapshot::Snapshot,
};

use super::{Caller, Server, guard::Refusal};
use crate::limits::{METHOD, tell_result};

impl Server {
    /// Counts the request; what is to be written on its answer, or why it is refused.
    pub(super) async fn limit(&self, caller: &Caller, parts: &mut Parts) -> Result<Vec<LimitVerdict>, Box<Refusal>> {
        let port = self.role.port();
        let Some(snapshot) = self.live.load() else { return Ok(Vec::new()) };
        let (limits, services) = snapshot.inbound_limits(&RequestView::of(parts, Some(port)));
        if let Some(limits) = limits {
            // Each connection by itself where it is to be.
            let limits = match limits.is_per_connection() {
                true => limits.counted_in(caller.limits.get_or_init(|| limits.apart())),
                false => limits,
            };
            let now = self.clock.now();
            let mut rng = self.clock.next_request();
            let limited = limits.count(&counted(&snapshot, caller, port, parts), now, &mut rng);
            if let Some(limited) = limited {
                let status = StatusCode::from_u16(limited.status).unwrap_or(StatusCode::TOO_MANY_REQUESTS);
                let mut refusal = Refusal::new(status, Flags::RL, "local_rate_limited");
                (refusal.details, refusal.grpc) = ("local_rate_limited".into(), limited.grpc);
                return Err(refusal);
            }
        }
        match services {
            Some(services) => Box::pin(self.limit_globally(&snapshot, services, caller, port, parts)).await,
            None => Ok(Vec::new()),
        }
    }

    async fn limit_globally(
        &self,
        snapshot: &Snapshot,
        services: GlobalLimits,
        caller: &Caller,
        port: u16,
        parts: &mut Parts,
    ) -> Result<Vec<LimitVerdict>, Box<Refusal>> {
        let mut verdicts = Vec::new();
        for service in services.iter() {
            let mut rng = self.clock.next_request();
            let question = service.question(&counted(snapshot, caller, port, parts), &mut rng);
            let Some(question) = question else { continue };
            let answer = self.ask_limit(service, &question).await;
            let failed = answer.is_none();
            let verdict = service.judge(answer, &mut rng);
            tell_result(&verdict, failed);
            for (name, value) in &verdict.request_headers {
                parts.headers.append(name, value.clone());
            }
            let (refused, flags, details) = (verdict.refused, verdict.flags, verdict.details);
            let body = verdict.body.clone();
            verdicts.push(verdict);
            if let Some(limited) = refused {
                let status = StatusCode::from_u16(limited.status).unwrap_or(StatusCode::TOO_MANY_REQUESTS);
                let mut refusal = Refusal::new(status, flags, body);
                (refusal.details, refusal.grpc) = (details.into(), limited.grpc);
                verdicts.iter().for_each(|verdict| verdict.tell(&mut refusal.headers));
                return Err(refusal);
            }
        }
        verdicts.retain(|verdict| !verdict.is_silent());
        Ok(verdicts)
    }

    /// What a service says; `None` when it could not be asked.
    async fn ask_limit(&self, service: &GlobalLimit, question: &LimitQuestion) -> Option<LimitAnswer> {
        let (config, codec) = (service.config(), self.limit_codec?);
        let cluster = &*config.cluster;
        let authority = if config.authority.is_empty() { cluster } else { config.authority.as_str() };
        let said = self.side.grpc(cluster, authority, METHOD, &(codec.encode)(question), config.timeout).await;
        let read = said.map_err(|error| error.to_string()).and_then(|message| (codec.decode)(&message));
        read.inspect_err(|why| {
            tracing::debug!(target: "mesh::rate_limit", cluster, %why, "no answer of the rate limit service");
        })
        .ok()
    }
}

/// What a request is counted by: who proved to call, and from where, as far as proxies in front are believed.
fn counted<'a>(snapshot: &'a Snapshot, caller: &'a Caller, port: u16, parts: &'a Parts) -> Counted<'a> {
    let direct = caller.address.ip().to_canonical();
    let mut view = RequestView::of(parts, Some(port));
    view.source = match snapshot.inbound(port) {
        Some(inbound) => inbound.remote_behind(
            direct,
            inbound.believes(caller.peer.as_ref().map(SpiffeId::as_str)),
            &parts.headers,
            caller.appended,
        ),
        None => Some(direct),
    };
    let peer = caller.peer.as_ref().map(SpiffeId::as_str);
    Counted { view, own: snapshot.own_cluster(), cluster: "", peer }
}
