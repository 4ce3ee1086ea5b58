//! What is asked of a service that counts requests, as messages. Source: Envoy `envoy.service.ratelimit.v3`.

use std::time::Duration;

use mesh_core::rate_limit::{LimitAnswer, LimitCodec, LimitQuestion, LimitStatus};
use prost::Message;

use crate::proto::envoy::{
    config::core::v3::HeaderValue,
    extensions::common::ratelimit::v3::{RateLimitDescriptor, rate_limit_descriptor::Entry},
    service::ratelimit::v3::{
        RateLimitRequest, RateLimitResponse,
        rate_limit_response::{Code, DescriptorStatus, rate_limit::Unit},
    },
};

/// Both directions.
pub const CODEC: LimitCodec = LimitCodec { encode, decode };

const MINUTE: u64 = 60;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;

fn encode(question: &LimitQuestion) -> Vec<u8> {
    let entry = |(key, value): &(String, String)| Entry { key: key.clone(), value: value.clone() };
    let descriptors = question.descriptors.iter().map(|descriptor| RateLimitDescriptor {
        entries: descriptor.entries.iter().map(entry).collect(),
        hits_addend: descriptor.hits,
    });
    // 0 is for the service to say: one.
    let request =
        RateLimitRequest { domain: question.domain.clone(), descriptors: descriptors.collect(), hits_addend: 0 };
    request.encode_to_vec()
}

fn decode(message: &[u8]) -> Result<LimitAnswer, String> {
    let message = RateLimitResponse::decode(message).map_err(|error| error.to_string())?;
    let over = match Code::try_from(message.overall_code) {
        Ok(Code::Ok) => false,
        Ok(Code::OverLimit) => true,
        Ok(Code::Unknown) | Err(_) => return Err("it says neither yes nor no".to_owned()),
    };
    Ok(LimitAnswer {
        over,
        statuses: message.statuses.into_iter().map(status).collect(),
        response_headers: message.response_headers_to_add.into_iter().filter_map(header).collect(),
        request_headers: message.request_headers_to_add.into_iter().filter_map(header).collect(),
        body: message.raw_body.to_vec(),
    })
}

fn status(status: DescriptorStatus) -> LimitStatus {
    let seconds = |unit: i32| match Unit::try_from(unit) {
        Ok(Unit::Second) => 1,
        Ok(Unit::Minute) => MINUTE,
        Ok(Unit::Hour) => HOUR,
        Ok(Unit::Day) => DAY,
        Ok(Unit::Week) => 7 * DAY,
        Ok(Unit::Month) => 30 * DAY,
        Ok(Unit::Year) => 365 * DAY,
        Ok(Unit::Unknown) | Err(_) => 0,
    };
    let reset = status.duration_until_reset.and_then(|it| Duration::try_from(it).ok());
    LimitStatus {
        limit: status.current_limit.map(|limit| (limit.name, limit.requests_per_unit, seconds(limit.unit))),
        remaining: status.limit_remaining,
        reset: reset.unwrap_or_default(),
    }
}

fn header(header: HeaderValue) -> Option<(String, String)> {
    let value = if header.value.is_empty() { String::from_utf8(header.raw_value.into()).ok()? } else { header.value };
    Some((header.key, value))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use mesh_core::rate_limit::Descriptor;

    use super::*;
    use crate::proto::envoy::service::ratelimit::v3::rate_limit_response::RateLimit;

    /// RL3: what is asked names the domain and each descriptor; yes, no and neither are told apart.
    #[test]
    fn questions_and_answers() {
        let descriptor = Descriptor { entries: vec![("user".into(), "jason".into())], hits: Some(3) };
        let question =
            LimitQuestion { domain: "bookinfo".into(), descriptors: vec![descriptor, Descriptor::default()] };
        let asked = RateLimitRequest::decode(encode(&question).as_slice()).unwrap();
        assert_eq!((asked.domain.as_str(), asked.descriptors.len(), asked.hits_addend), ("bookinfo", 2, 0));
        let entry = Entry { key: "user".into(), value: "jason".into() };
        assert_eq!((&asked.descriptors[0].entries[..], asked.descriptors[0].hits_addend), (&[entry][..], Some(3)));

        let say = |overall_code: i32| {
            let limit = RateLimit { requests_per_unit: 5, unit: Unit::Hour.into(), name: "five".into() };
            let status = DescriptorStatus {
                code: overall_code,
                current_limit: Some(limit),
                limit_remaining: 2,
                duration_until_reset: Some(prost_types::Duration { seconds: 30, nanos: 0 }),
            };
            let header = HeaderValue { key: "x-a".into(), value: "b".into(), ..HeaderValue::default() };
            let answer = RateLimitResponse {
                overall_code,
                statuses: vec![status],
                response_headers_to_add: vec![header],
                raw_body: "no".into(),
                ..RateLimitResponse::default()
            };
            decode(&answer.encode_to_vec())
        };
        let over = say(Code::OverLimit.into()).unwrap();
        assert!(over.over && over.body == b"no" && over.response_headers == [("x-a".to_owned(), "b".to_owned())]);
        let status =
            LimitStatus { limit: Some(("five".into(), 5, HOUR)), remaining: 2, reset: Duration::from_secs(30) };
        assert_eq!(over.statuses, [status]);
        assert!(!say(Code::Ok.into()).unwrap().over);
        assert!(say(0).is_err() && say(99).is_err() && decode(b"\xff").is_err());
    }
}
