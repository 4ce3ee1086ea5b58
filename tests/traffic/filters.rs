//! HTTP filters that a program brings along.

use std::sync::Arc;

use http::{HeaderMap, HeaderValue, StatusCode, request::Parts};
use mesh_tower::{
    config::{Action, FilterOverride, Forward, HttpSettings, OwnFilter, PathMatch, Route, RouteMatch},
    filter::{self, FilterAnswer, HttpFilter},
};

use crate::harness::{Kind, Program, Upstream, cluster, config, route, to};

/// Signs what passes, and answers by itself who asks it to.
#[derive(Debug)]
struct Signs(String);

impl Signs {
    fn sign(&self, name: &'static str, headers: &mut HeaderMap) {
        let before = headers.get(name).map_or("", |value| value.to_str().unwrap());
        let after = format!("{before}{}", self.0);
        headers.insert(name, HeaderValue::try_from(after).unwrap());
    }
}

impl HttpFilter for Signs {
    fn request(&self, head: &mut Parts) -> Option<FilterAnswer> {
        self.sign("x-signed", &mut head.headers);
        let asked = head.headers.get("x-stop-at").is_some_and(|at| at.as_bytes() == self.0.as_bytes());
        asked.then(|| FilterAnswer { status: 403, body: format!("stopped at {}", self.0) })
    }

    fn response(&self, _: StatusCode, headers: &mut HeaderMap) {
        self.sign("x-returned", headers);
    }
}

fn of(name: &str, disabled: bool) -> OwnFilter {
    let config = name.as_bytes().to_vec();
    OwnFilter { name: name.into(), message: "test.traffic.Signs".into(), config, disabled }
}

fn below(path: &str, filters: Vec<FilterOverride>) -> Route {
    let path = PathMatch::Prefix { value: path.to_owned(), ignore_case: false };
    let matches = RouteMatch { path, ..RouteMatch::default() };
    route(matches, Action::Forward(Forward { filters, ..to("app") }))
}

/// RA17, RA16: filters see requests in their order and responses in the opposite one, may answer by themselves, and are what the
/// route says of them.
#[tokio::test]
async fn filters_see_requests_in_order() {
    filter::register("test.traffic.Signs", |config| {
        let name = std::str::from_utf8(config).map_err(|error| error.to_string())?;
        Ok(Arc::new(Signs(name.to_owned())))
    });
    for kind in Kind::ALL {
        let app = Upstream::start("app").await;
        let off = FilterOverride { name: "a".into(), disabled: true, config: None };
        let on = FilterOverride { name: "b".into(), disabled: false, config: None };
        let otherwise = FilterOverride {
            name: "c".into(),
            disabled: false,
            config: Some(("test.traffic.Signs".into(), b"z".to_vec())),
        };
        let routes = vec![below("/own", vec![off, on, otherwise]), below("/", Vec::new())];
        let mut config = config([cluster(kind, "app", &[&app])], routes);
        let filters = vec![of("a", false), of("b", true), of("c", false)];
        config.http.insert(80, Arc::new(HttpSettings { filters, ..HttpSettings::default() }));
        let program = Program::new(kind, config).await;

        let answer = program.get("/").await;
        assert!(answer.is_ok(), "{kind:?}: {answer:?}");
        assert_eq!((app.last().header("x-signed").as_str(), answer.header("x-returned").as_str()), ("ac", "ca"));
        let answer = program.get("/own").await;
        assert_eq!((app.last().header("x-signed").as_str(), answer.header("x-returned").as_str()), ("bz", "zb"));
        let arrived = app.count();
        let stopped = program.get_with("/", &[("x-stop-at", "a")]).await;
        assert!(stopped.is(kind, 403), "{kind:?}: {stopped:?}");
        assert_eq!((app.count(), stopped.header("x-returned").as_str()), (arrived, "ca"), "{kind:?}");
        if !kind.is_grpc() {
            assert_eq!(stopped.body, "stopped at a");
        }
    }
}
