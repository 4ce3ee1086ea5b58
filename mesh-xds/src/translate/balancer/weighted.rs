//! Weights by reported load. Source: Envoy `ClientSideWeightedRoundRobin`, gRFC A58, A114 (LB7).

use std::time::Duration;

use mesh_core::config::{ClientWeighted, LoadBalancer};

use crate::{
    proto::envoy::extensions::load_balancing_policies::client_side_weighted_round_robin::v3::ClientSideWeightedRoundRobin,
    translate::{
        read::{Wrong, wrong},
        value,
    },
};

/// How often endpoints report by themselves where nothing is said. Source: gRFC A58.
const PERIOD: Duration = Duration::from_secs(10);

pub(super) fn decode(message: ClientSideWeightedRoundRobin) -> Result<LoadBalancer, Wrong> {
    let default = ClientWeighted::default();
    let time = |duration: Option<_>, field: &str, default| match duration {
        Some(duration) => value::duration(duration, field),
        None => Ok(default),
    };
    let error_penalty = message.error_utilization_penalty.map_or(default.error_penalty, f64::from);
    if error_penalty.is_nan() || error_penalty < 0.0 {
        return Err(wrong("error_utilization_penalty", format!("is {error_penalty}, below 0")));
    }
    let period = time(message.oob_reporting_period, "oob_reporting_period", PERIOD)?;
    Ok(LoadBalancer::ClientWeighted(ClientWeighted {
        out_of_band: (message.enable_oob_load_report == Some(true)).then_some(period),
        blackout: time(message.blackout_period, "blackout_period", default.blackout)?,
        expiration: time(message.weight_expiration_period, "weight_expiration_period", default.expiration)?,
        update: time(message.weight_update_period, "weight_update_period", default.update)?,
        error_penalty,
        metrics: message.metric_names_for_computing_utilization,
    }))
}

pub(super) fn encode(config: &ClientWeighted) -> ClientSideWeightedRoundRobin {
    let time = |time| Some(value::encode_duration(time));
    ClientSideWeightedRoundRobin {
        enable_oob_load_report: config.out_of_band.map(|_| true),
        oob_reporting_period: config.out_of_band.and_then(time),
        blackout_period: time(config.blackout),
        weight_expiration_period: time(config.expiration),
        weight_update_period: time(config.update),
        error_utilization_penalty: Some(config.error_penalty as f32),
        metric_names_for_computing_utilization: config.metrics.clone(),
    }
}
