//! Virtual services that leave a part to others: what those say is put in place, once for all who ask.
//!
//! Source: istiod `pilot/pkg/model/virtualservice.go`, `mergeVirtualServicesIfNeeded`.

use std::sync::Arc;

use mesh_core::config::{HeaderMatch, HeaderMatcher, PathMatch, QueryMatcher, StringMatch};

use super::visible;
use crate::kinds::{DelegateTo, Destination, HttpAction, HttpMatch, HttpRoute, Object, Spec, VirtualService};

/// The objects as they count: those that are delegated to are left out, and those that delegate say it all themselves.
pub(super) fn resolve_delegates(objects: &[Arc<Object>]) -> Vec<Arc<Object>> {
    let mut out = Vec::with_capacity(objects.len());
    for object in objects {
        match &object.spec {
            Spec::VirtualService(spec) if spec.is_delegate() => {}
            Spec::VirtualService(spec)
                if spec.http.iter().any(|rule| matches!(rule.action, HttpAction::Delegate(_))) =>
            {
                let mut whole = (**object).clone();
                let mut raw = vec![(*object.raw).clone()];
                let http = spec.http.iter().flat_map(|rule| expand(objects, object, rule, &mut raw)).collect();
                // Two such objects differ when any of those they are made of does.
                whole.raw = Arc::new(raw.into());
                whole.spec = Spec::VirtualService(VirtualService { http, ..spec.clone() });
                out.push(Arc::new(whole));
            }
            _ => out.push(object.clone()),
        }
    }
    out
}

/// The object a rule delegates to, if it is there and lets itself be seen.
pub(crate) fn delegate_of<'a>(
    objects: &'a [Arc<Object>],
    root: &Object,
    to: &DelegateTo,
) -> Option<(&'a Arc<Object>, &'a VirtualService)> {
    let namespace = to.namespace.as_ref().unwrap_or(&root.key.namespace);
    objects.iter().find_map(|object| match &object.spec {
        Spec::VirtualService(spec)
            if spec.is_delegate()
                && object.key.name == to.name.value
                && object.key.namespace == *namespace
                && visible(&spec.export_to, namespace, &root.key.namespace) =>
        {
            Some((object, spec))
        }
        _ => None,
    })
}

/// A missing delegate leaves out this rule only.
fn expand(
    objects: &[Arc<Object>],
    root: &Object,
    rule: &HttpRoute,
    raw: &mut Vec<serde_json::Value>,
) -> Vec<HttpRoute> {
    let HttpAction::Delegate(to) = &rule.action else { return vec![rule.clone()] };
    let Some((object, delegate)) = delegate_of(objects, root, to) else { return Vec::new() };
    raw.push((*object.raw).clone());
    delegate.http.iter().filter_map(|own| merge(rule, own, object)).collect()
}

/// The delegate's rule under the root's; `None` when no request can meet both conditions.
fn merge(root: &HttpRoute, own: &HttpRoute, of: &Object) -> Option<HttpRoute> {
    if matches!(own.action, HttpAction::Delegate(_)) {
        return None;
    }
    let matches = if root.matches.is_empty() {
        own.matches.clone()
    } else if own.matches.is_empty() {
        root.matches.clone()
    } else {
        let pairs = root.matches.iter().flat_map(|outer| own.matches.iter().map(move |inner| (outer, inner)));
        let merged: Vec<HttpMatch> = pairs.filter_map(|(outer, inner)| narrow(outer, inner)).collect();
        if merged.is_empty() {
            return None;
        }
        merged
    };
    let mut out = own.clone();
    out.matches = matches;
    out.name = join(&root.name, &own.name);
    out.path_rewrite = own.path_rewrite.clone().or_else(|| root.path_rewrite.clone());
    out.host_rewrite = own.host_rewrite.clone().or_else(|| root.host_rewrite.clone());
    // The delegate's come later, so that they count where both set one.
    out.headers = root.headers.clone();
    out.headers.request.extend(own.headers.request.iter().cloned());
    out.headers.response.extend(own.headers.response.iter().cloned());
    // Short names in the delegate are of its own namespace, wherever they are put.
    let stay = |destination: &mut Destination| {
        destination.namespace.get_or_insert_with(|| of.key.namespace.clone());
    };
    if let HttpAction::Route(destinations) = &mut out.action {
        destinations.iter_mut().for_each(stay);
    }
    out.mirrors.iter_mut().map(|mirror| &mut mirror.destination).for_each(stay);
    if own.mirrors.is_empty() {
        out.mirrors.clone_from(&root.mirrors);
    }
    out.timeout = own.timeout.or(root.timeout);
    if !own.retry_given && root.retry_given {
        out.retry.clone_from(&root.retry);
    }
    out.fault = own.fault.clone().or_else(|| root.fault.clone());
    Some(out)
}

fn join(outer: &str, inner: &str) -> String {
    match (outer, inner) {
        ("", name) | (name, "") => name.to_owned(),
        (outer, inner) => format!("{outer}-{inner}"),
    }
}

/// Both conditions in one; `None` when they exclude each other, or when that cannot be told.
fn narrow(outer: &HttpMatch, inner: &HttpMatch) -> Option<HttpMatch> {
    let mut out = outer.clone();
    out.at = inner.at;
    out.name = join(&outer.name, &inner.name);
    out.request.path = narrow_path(&outer.request.path, &inner.request.path)?;
    for header in &inner.request.headers {
        let same = |other: &&mut HeaderMatch| other.name == header.name && other.invert == header.invert;
        match out.request.headers.iter_mut().find(same) {
            Some(other) if fits(&other.matcher, &header.matcher) => *other = header.clone(),
            Some(_) => return None,
            None => out.request.headers.push(header.clone()),
        }
    }
    for query in &inner.request.query {
        match out.request.query.iter_mut().find(|other| other.name == query.name) {
            Some(other) if fits_query(&other.matcher, &query.matcher) => *other = query.clone(),
            Some(_) => return None,
            None => out.request.query.push(query.clone()),
        }
    }
    match (outer.port, inner.port) {
        (Some(a), Some(b)) if a != b => return None,
        (a, b) => out.port = b.or(a),
    }
    if !outer.source_namespace.is_empty()
        && !inner.source_namespace.is_empty()
        && outer.source_namespace != inner.source_namespace
    {
        return None;
    }
    if !inner.source_namespace.is_empty() {
        out.source_namespace.clone_from(&inner.source_namespace);
    }
    for (label, value) in &inner.source_labels {
        if out.source_labels.insert(label.clone(), value.clone()).is_some_and(|other| other != *value) {
            return None;
        }
    }
    match (&outer.gateways, &inner.gateways) {
        (Some(outer), Some(inner)) if !inner.iter().all(|name| outer.contains(name)) => return None,
        (_, Some(inner)) => out.gateways = Some(inner.clone()),
        _ => {}
    }
    Some(out)
}

/// The inner path, when everything it means is within the outer one.
fn narrow_path(outer: &PathMatch, inner: &PathMatch) -> Option<PathMatch> {
    if *outer == PathMatch::any() {
        return Some(inner.clone());
    }
    if *inner == PathMatch::any() {
        return Some(outer.clone());
    }
    let within = match (outer, inner) {
        (PathMatch::Exact { value: a, ignore_case: x }, PathMatch::Exact { value: b, ignore_case: y }) => {
            x == y && a == b
        }
        (
            PathMatch::Prefix { value: a, ignore_case: x },
            PathMatch::Exact { value: b, ignore_case: y } | PathMatch::Prefix { value: b, ignore_case: y },
        ) => x == y && b.starts_with(a.as_str()),
        _ => false,
    };
    within.then(|| inner.clone())
}

fn fits(outer: &HeaderMatcher, inner: &HeaderMatcher) -> bool {
    match (outer, inner) {
        (HeaderMatcher::Value(outer), HeaderMatcher::Value(inner)) => fits_text(outer, inner),
        (HeaderMatcher::Present(true), _) => true,
        (outer, inner) => outer == inner,
    }
}

fn fits_query(outer: &QueryMatcher, inner: &QueryMatcher) -> bool {
    match (outer, inner) {
        (QueryMatcher::Value(outer), QueryMatcher::Value(inner)) => fits_text(outer, inner),
        (QueryMatcher::Present(true), _) => true,
        (outer, inner) => outer == inner,
    }
}

/// Is every text the inner means one the outer means? Of patterns that is not known.
fn fits_text(outer: &StringMatch, inner: &StringMatch) -> bool {
    match (outer, inner) {
        (StringMatch::Exact { value: a, .. }, StringMatch::Exact { value: b, .. }) => a == b,
        (
            StringMatch::Prefix { value: a, .. },
            StringMatch::Exact { value: b, .. } | StringMatch::Prefix { value: b, .. },
        ) => b.starts_with(a.as_str()),
        _ => false,
    }
}
