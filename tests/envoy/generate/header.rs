//! Changes of headers, at every level that has them.

use proptest::{collection::vec, prelude::*, sample::select};
use serde_json::{Value, json};

use super::{maybe, object};

/// Of requests: some that requests bring, some that they do not.
const REQUEST: [&str; 6] = ["x-a", "x-b", "x-multi", "x-new", "x-other", "end-user"];
/// Of responses: some that upstreams send, some that they do not.
const RESPONSE: [&str; 6] = ["x-up", "x-kept", "x-empty", "x-new", "x-other", "content-type"];
/// Of requests and responses, some of them told by what the request brought.
const VALUES: [&str; 12] = [
    "v1",
    "v2",
    "50%%",
    "a, b",
    "",
    "x",
    "%REQ(x-a)%",
    "%REQ(x-missing?x-b)%",
    "-%REQ(end-user):3%-",
    "%REQ(:path)%",
    "%REQ(:authority)% %REQ(:method)%",
    "%REQ(x-missing)%",
];
const ACTIONS: [&str; 4] =
    ["APPEND_IF_EXISTS_OR_ADD", "OVERWRITE_IF_EXISTS_OR_ADD", "ADD_IF_ABSENT", "OVERWRITE_IF_EXISTS"];

/// The four lists, each there in so many of a hundred cases.
pub(super) fn changes(percent: u32) -> impl Strategy<Value = Value> {
    let removes = |names: &'static [&'static str]| vec(select(names), 1..3).prop_map(|names| json!(names));
    (
        maybe(percent, adds(&REQUEST)),
        maybe(percent / 2, removes(&REQUEST)),
        maybe(percent, adds(&RESPONSE)),
        maybe(percent / 2, removes(&RESPONSE)),
    )
        .prop_map(|(request_add, request_remove, response_add, response_remove)| {
            object([
                ("request_headers_to_add", request_add),
                ("request_headers_to_remove", request_remove),
                ("response_headers_to_add", response_add),
                ("response_headers_to_remove", response_remove),
            ])
        })
}

fn adds(names: &'static [&'static str]) -> impl Strategy<Value = Value> {
    let one = (select(names), select(&VALUES[..]), maybe(75, select(&ACTIONS[..])), maybe(30, Just(json!(true))));
    let one = one.prop_map(|(name, value, action, keep_empty)| {
        object([
            ("header", Some(json!({"key": name, "value": value}))),
            ("append_action", action.map(|action| json!(action))),
            ("keep_empty_value", keep_empty),
        ])
    });
    vec(one, 1..3).prop_map(|adds| json!(adds))
}
