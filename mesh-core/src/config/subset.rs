//! Endpoints by what they say of themselves: labels, and picking only those with certain ones. Source: Envoy `LbSubsetConfig`,
//! metadata `envoy.lb`, `RouteAction.metadata_match`.

use serde::{Deserialize, Serialize};

use super::Name;

/// What an endpoint says of itself, or what is asked of one: sorted by key, each key once.
pub type Metadata = Vec<(Name, MetadataValue)>;

/// The value of a label. Source: `google.protobuf.Value`, of which lists and structures are not told apart.
#[derive(Clone, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum MetadataValue {
    /// A text.
    Text(Name),
    /// A number, as it is written in decimal.
    Number(Name),
    /// Yes or no.
    Bool(bool),
}

impl From<&str> for MetadataValue {
    fn from(text: &str) -> Self {
        Self::Text(text.into())
    }
}

/// What endpoints a request is for. Source: Envoy `metadata_match` of a route, and over it of a weighted cluster.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default)]
pub struct Criteria {
    /// Those with all of these labels.
    pub metadata: Metadata,
    /// For clusters with [`Subsets::by_list`]: those with the labels of the first of these that finds any. Envoy's key
    /// `fallback_list` in `envoy.lb`, each entry put over the labels beside it.
    pub list: Vec<Metadata>,
}

impl Criteria {
    /// Any endpoint.
    pub const ANY: &'static Self = &Self { metadata: Vec::new(), list: Vec::new() };
}

/// The subsets of a cluster's endpoints that requests may ask for. Source: Envoy `Cluster.LbSubsetConfig`.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default)]
pub struct Subsets {
    /// By which labels there are subsets: one for each combination of values that endpoints have.
    pub selectors: Vec<SubsetSelector>,
    /// Where requests go that no subset is for. Envoy `fallback_policy`.
    pub fallback: SubsetFallback,
    /// The subset of [`SubsetFallback::Default`]. Envoy `default_subset`.
    pub default: Metadata,
    /// If the default subset has no endpoint that can be used, any endpoint. Envoy `panic_mode_any`.
    pub panic_to_any: bool,
    /// Weights of localities count within subsets; otherwise they count nowhere in the cluster. Envoy `locality_weight_aware`.
    pub locality_weighted: bool,
    /// A locality weighs as much less as it has fewer endpoints in the subset. Envoy `scale_locality_weight`.
    pub scale_locality_weights: bool,
    /// [`Criteria::list`] counts. Envoy `metadata_fallback_policy: FALLBACK_LIST`.
    pub by_list: bool,
}

/// By which labels there are subsets. Source: Envoy `LbSubsetSelector`.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default)]
pub struct SubsetSelector {
    /// Sorted. A request asks for one of these subsets if its criteria have exactly these keys.
    pub keys: Vec<Name>,
    /// Where requests with these keys go that no subset is for; `None` is what the cluster says.
    pub fallback: Option<SelectorFallback>,
    /// Each subset is one endpoint, the first that has its values. Envoy `single_host_per_subset`.
    pub single: bool,
}

/// Where requests go that no subset is for. Source: Envoy `LbSubsetFallbackPolicy`.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SubsetFallback {
    /// Nowhere: 503 with flag `UH`.
    #[default]
    None,
    /// To any endpoint.
    Any,
    /// To the default subset.
    Default,
}

/// Where requests with the keys of one selector go that no subset is for. Source: Envoy `LbSubsetSelectorFallbackPolicy`.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SelectorFallback {
    /// As with a cluster's own.
    To(SubsetFallback),
    /// Once more from the beginning, by only these of the selector's keys. Envoy `KEYS_SUBSET`.
    Keys(Vec<Name>),
}
