//! What a workload has been told, as a `config_dump` in Envoy's JSON form.

use mesh_xds::{
    dump::config_dump,
    translate::{self, Shape},
};
use serde_json::Value;

use super::{Refusal, explain::find};
use crate::{compile::compile, push::Push, state::State};

/// `word` names the workload as in `meshctl explain --from`.
pub(super) fn dump(state: &State, push: &Push, word: &str) -> Result<Value, Refusal> {
    let node = find(state, push, word)?;
    let shape = if node.gateway { Shape::Gateway } else { Shape::Sidecar };
    let resources = translate::encode(&compile(&state.world().1, &node), shape);
    Ok(config_dump(&resources, None, None, ""))
}
