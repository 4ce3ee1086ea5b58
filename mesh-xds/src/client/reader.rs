//! What reads the resources of one stream: decodes them, notes what became of their fields, and tells people once of each
//! kind of field that has no effect.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use bytes::Bytes;
use mesh_core::config::Name;

use super::Ignored;
use crate::{
    ads::TypeUrl,
    graph::Part,
    profile::{Context, Profile},
    resources::Resources,
    translate::{self, FieldReport},
};

/// Kinds of ignored fields that are written to the log; the report of a resource has them all.
const MOST_TOLD: usize = 1024;

/// Decodes the resources of one stream and remembers which fields of them have no effect.
#[derive(Debug, Default)]
pub(super) struct Reader {
    pub(super) ignored: Ignored,
    resources: Resources,
    context: Context,
    /// Kinds of ignored fields that people have been told of.
    told: BTreeSet<(TypeUrl, String)>,
}

impl Reader {
    /// One that makes its notes there.
    pub(super) fn of(resources: Resources, context: Context) -> Self {
        Self { resources, context, ..Self::default() }
    }

    /// Whether what comes from now on is from a server that is trusted (gRFC A81).
    pub(super) fn trust(&mut self, trusted: bool) {
        self.context.trusted = trusted || self.context.profile == Profile::Envoy;
    }

    pub(super) fn read(&mut self, kind: TypeUrl, version: &Name, body: &Bytes) -> Result<Part, String> {
        let decoded = translate::read(kind, body, &self.context).map_err(|error| {
            let (why, name) = (error.to_string(), error.resource.as_str().into());
            self.resources.refused(kind, &name, version, &why, FieldReport::from(&error));
            why
        })?;
        let fields = translate::fields_of(kind, body, &decoded);
        self.resources.accepted(kind, &decoded.name, version, fields);
        if decoded.ignored.is_empty() {
            self.forget_ignored(kind, &decoded.name);
        } else {
            self.tell(kind, &decoded.ignored);
            let ignored: &mut BTreeMap<_, _> = Arc::make_mut(self.ignored.entry(kind).or_default());
            ignored.insert(decoded.name.to_string(), decoded.ignored);
        }
        Ok(decoded.value)
    }

    /// The resource is there no more.
    pub(super) fn forget(&mut self, kind: TypeUrl, name: &Name) {
        self.resources.gone(kind, name);
        self.forget_ignored(kind, name);
    }

    fn forget_ignored(&mut self, kind: TypeUrl, name: &str) {
        if let Some(ignored) = self.ignored.get_mut(&kind).filter(|ignored| ignored.contains_key(name)) {
            Arc::make_mut(ignored).remove(name);
        }
    }

    fn tell(&mut self, kind: TypeUrl, ignored: &[String]) {
        for field in ignored {
            if self.told.len() < MOST_TOLD && self.told.insert((kind, field.clone())) {
                tracing::info!(%kind, field, "a field of resources has no effect here");
            }
        }
    }
}
