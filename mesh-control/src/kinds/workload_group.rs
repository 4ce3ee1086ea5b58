//! Istio `WorkloadGroup`: what workloads that register themselves have in common.
//!
//! A workload whose metadata names a group (`AUTO_REGISTER_GROUP`) is registered with the group's template, under its own labels.
//! Source: `istio.networking.v1.WorkloadGroup`.

use std::collections::BTreeMap;

use mesh_core::config::Labels;

use super::{
    read::{Fields, Reader},
    workload_entry::WorkloadEntry,
};

/// A `WorkloadGroup`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct WorkloadGroup {
    /// Labels of its workloads: those of `metadata` over those of the template.
    pub labels: Labels,
    /// Port names and their numbers.
    pub ports: BTreeMap<String, u16>,
    /// The rest of the template; its address is empty, its labels are in `labels`.
    pub template: WorkloadEntry,
}

impl WorkloadGroup {
    pub(crate) fn read(fields: &mut Fields<'_>, reader: &mut Reader<'_>) -> Self {
        let mut out = Self::default();
        match fields.take("template") {
            Some((node, path)) => {
                if let Some(mut template) = reader.fields(node, &path) {
                    if let Some((node, path)) = template.take("address") {
                        reader.invalid(node.at, format!("{path} is each workload's own"));
                    }
                    out.template = WorkloadEntry::read_without_address(&mut template, reader);
                    template.close(reader);
                }
            }
            None => reader.missing(fields, "template"),
        }
        out.labels = std::mem::take(&mut out.template.labels);
        out.ports.clone_from(&out.template.ports);
        if let Some((node, path)) = fields.take("metadata")
            && let Some(mut metadata) = reader.fields(node, &path)
        {
            let labels = metadata.read("labels", |node, path| Some(reader.labels(node, path))).unwrap_or_default();
            out.labels.extend(labels);
            metadata.skip(&["annotations"]);
            metadata.close(reader);
        }
        fields.ignored(
            reader,
            &["probe"],
            "a workload tells its own health over its stream, and one that lost it is tried at its first port",
        );
        out
    }
}
