//! What travels between `meshctl` and the API, both ways.

use std::{collections::BTreeMap, fmt, net::SocketAddr};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    ca::Issued,
    diagnostic::Diagnostic,
    kinds::Key,
    registry::Registered,
    store::{Change, SourceFile},
};

/// Files to apply, all or nothing.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct ApplyRequest {
    /// The files.
    pub files: Vec<SourceFile>,
    /// Only say what would happen.
    #[serde(default)]
    pub dry_run: bool,
}

/// Files to look at, in the company of what is there.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct AnalyzeRequest {
    /// The files; without any, everything that is there.
    #[serde(default)]
    pub files: Vec<SourceFile>,
}

/// What was found.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Analyzed {
    /// The worst first.
    pub diagnostics: Vec<Diagnostic>,
}

/// Objects to delete, by key or by the files they were written in.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct DeleteRequest {
    /// By key.
    #[serde(default)]
    pub keys: Vec<Key>,
    /// Everything these name.
    #[serde(default)]
    pub files: Vec<SourceFile>,
}

/// What a delete did.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Deleted {
    /// What is gone.
    pub changes: Vec<Change>,
    /// What was not there.
    pub missing: Vec<Key>,
    /// Warnings about what is left: names in it that lead nowhere now.
    #[serde(default)]
    pub diagnostics: Vec<Diagnostic>,
}

/// Objects as applied.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Objects {
    /// By kind, namespace and name.
    pub items: Vec<Item>,
}

/// One object.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Item {
    /// Which.
    pub key: Key,
    /// First applied, in Unix milliseconds.
    pub created: u64,
    /// As applied.
    pub object: Value,
}

/// A made-up request to explain.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct ExplainRequest {
    /// `GET`.
    pub method: String,
    /// `http://reviews:9080/reviews/0`.
    pub url: String,
    /// Names and values.
    #[serde(default)]
    pub headers: Vec<(String, String)>,
    /// The workload that would send it: an instance, a workload or its label `app`. Without: one of namespace `default`
    /// that nothing singles out.
    #[serde(default)]
    pub from: Option<String>,
}

/// The decision for a made-up request.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Explained {
    /// The workload whose configuration decided, as `NAME.NAMESPACE`.
    pub from: String,
    /// For people.
    pub text: String,
    /// For programs: `mesh_core`'s `Explanation`.
    pub explanation: Value,
}

/// What became of what was sent.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Proxies {
    /// By name.
    pub items: Vec<ProxyStatus>,
}

/// One connected workload.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct ProxyStatus {
    /// `reviews-v1.default`.
    pub name: String,
    /// Node metadata `ISTIO_VERSION`.
    pub version: String,
    /// Since when, in Unix milliseconds.
    pub connected: u64,
    /// By `CDS`, `LDS`, `EDS`, `RDS`.
    pub types: BTreeMap<String, TypeStatus>,
    /// Whether policies that are about it are enforced.
    #[serde(default)]
    pub protection: Protection,
    /// The version of its program, where that is one of this mesh: node metadata `MESH_VERSION`; empty is another.
    #[serde(default)]
    pub program: String,
    /// What it says it acts on. Node metadata `MESH_FEATURES`.
    #[serde(default)]
    pub features: Vec<String>,
    /// The revision it was made for: its label `istio.io/rev`; empty is any.
    #[serde(default)]
    pub revision: String,
}

/// How a member's version stands to the control plane's. Source: Istio's and Kubernetes' rule of skew: one minor version back, none ahead.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Skew {
    /// The same, one minor version older, or of another make.
    Fine,
    /// Newer than the control plane, which is to be updated first.
    Ahead,
    /// Older by more than one minor version, or by a major one.
    Behind,
}

impl ProxyStatus {
    /// How its program's version stands to a control plane's.
    pub fn skew(&self, plane: &str) -> Skew {
        let parts = |version: &str| {
            let mut numbers = version.split(['.', '-']).map(|part| part.parse::<u64>().unwrap_or_default());
            (numbers.next().unwrap_or_default(), numbers.next().unwrap_or_default())
        };
        if self.program.is_empty() {
            return Skew::Fine;
        }
        let (own, plane) = (parts(&self.program), parts(plane));
        match own.cmp(&plane) {
            std::cmp::Ordering::Equal => Skew::Fine,
            std::cmp::Ordering::Greater => Skew::Ahead,
            std::cmp::Ordering::Less if own.0 == plane.0 && own.1 + 1 == plane.1 => Skew::Fine,
            std::cmp::Ordering::Less => Skew::Behind,
        }
    }
}

/// Whether policies that are about a workload are enforced at its ports.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Protection {
    /// None is about it.
    #[default]
    None,
    /// They are, at every port they are about.
    Enforced,
    /// Its admin port does not say.
    Unknown,
    /// At these ports they are about nobody asks them: the program serves without the mesh's admission, or not at all.
    Unprotected(Vec<u16>),
}

/// One resource type of one workload.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct TypeStatus {
    /// How far it is.
    pub state: SyncState,
    /// The version sent last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sent: Option<String>,
    /// The version it said to use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub acked: Option<String>,
    /// What it said when it refused one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// How many it has refused on this stream.
    #[serde(default)]
    pub refusals: u64,
}

/// How far a type is, in the words of `istioctl proxy-status`.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum SyncState {
    /// It never asked, or there was nothing to send.
    #[default]
    NotSent,
    /// It uses what was sent last.
    Synced,
    /// It has not answered yet.
    Stale,
    /// It refused what was sent last and keeps what it had.
    Error,
}

impl fmt::Display for SyncState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::NotSent => "NOT SENT",
            Self::Synced => "SYNCED",
            Self::Stale => "STALE",
            Self::Error => "ERROR",
        })
    }
}

/// Who runs where.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Workloads {
    /// By namespace and name.
    pub items: Vec<Registered>,
}

/// Certificates that are good.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct IssuedList {
    /// The first to expire first.
    pub items: Vec<Issued>,
}

/// Which control plane this is.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Version {
    /// Of the crate.
    pub version: String,
    /// Where workloads connect.
    pub xds: SocketAddr,
    /// Which of several control planes beside one another it is.
    #[serde(default)]
    pub revision: String,
}

/// What went wrong.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Problem {
    /// In one sentence.
    pub error: String,
    /// Where, if it is about files.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub diagnostics: Vec<Diagnostic>,
}
