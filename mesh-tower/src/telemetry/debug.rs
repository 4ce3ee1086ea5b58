//! What the mesh decided for a request, as headers of its response, for whoever asks by an extension of the request.

use http::{Extensions, HeaderMap, HeaderName, HeaderValue};

use crate::attempt::Call;

/// A request's extension that asks for what was decided: the response has `x-mesh-virtual-host`, `x-mesh-route`, `x-mesh-cluster`,
/// `x-mesh-endpoint` and `x-mesh-attempts`, as far as there are such, and `x-mesh-flags` by Envoy's letters. An extension, so that no
/// caller from elsewhere can ask. Beside Envoy's `x-envoy-upstream-*` headers and Linkerd's `l5d-*`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct DebugHeaders;

impl DebugHeaders {
    /// Was it asked for?
    pub(crate) fn asked(extensions: &Extensions) -> bool {
        extensions.get::<Self>().is_some()
    }

    /// Writes what became of a call.
    pub(crate) fn write(call: &Call, headers: &mut HeaderMap) {
        let plan = call.plan();
        let mut put = |name: &'static str, value: &str| {
            if let Some(value) = HeaderValue::from_str(value).ok().filter(|value| !value.is_empty()) {
                headers.insert(HeaderName::from_static(name), value);
            }
        };
        put("x-mesh-virtual-host", &plan.route.virtual_host);
        put("x-mesh-route", &plan.route.name);
        put("x-mesh-cluster", plan.cluster().map_or("", |cluster| cluster.name()));
        put("x-mesh-endpoint", &call.endpoint().map_or_else(String::new, |it| it.address().to_string()));
        put("x-mesh-attempts", &call.attempts().to_string());
        put("x-mesh-flags", &call.flags().to_string());
    }
}
