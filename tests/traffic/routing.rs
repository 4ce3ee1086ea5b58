//! Which rule a request meets and which cluster it goes to.

use mesh_tower::config::{Action, HeaderMatch, HeaderMatcher, PathMatch, RouteMatch, StringMatch};

use crate::harness::{Kind, Program, Upstream, cluster, config, route, to};

/// RM1, RM2, RM6, RA1: the first rule that matches decides; no rule is 404, and of gRPC `UNAVAILABLE`.
#[tokio::test]
async fn the_first_matching_rule_decides() {
    for kind in Kind::ALL {
        let (one, two) = (Upstream::start("one").await, Upstream::start("two").await);
        let jason = HeaderMatch {
            name: "end-user".into(),
            matcher: HeaderMatcher::Value(StringMatch::Exact { value: "jason".to_owned(), ignore_case: false }),
            invert: false,
            missing_as_empty: false,
        };
        let path = PathMatch::Prefix { value: "/a".to_owned(), ignore_case: false };
        let rules = vec![
            route(RouteMatch { headers: vec![jason], ..RouteMatch::default() }, Action::Forward(to("two"))),
            route(RouteMatch { path, ..RouteMatch::default() }, Action::Forward(to("one"))),
        ];
        let clusters = [cluster(kind, "one", &[&one]), cluster(kind, "two", &[&two])];
        let program = Program::new(kind, config(clusters, rules)).await;

        assert_eq!(program.get_with("/x", &[("end-user", "jason")]).await.body, "two", "{kind:?}");
        let answer = program.get("/a/b").await;
        assert!(answer.is_ok(), "{kind:?}: {answer:?}");
        assert_eq!((answer.body.as_str(), one.last().path.as_str()), ("one", "/a/b"), "{kind:?}");
        let answer = program.get("/x").await;
        let refused = if kind.is_grpc() { answer.grpc == Some(14) } else { answer.status == 404 };
        assert!(refused, "{kind:?}: {answer:?}");
        assert_eq!((answer.flags.as_str(), one.count(), two.count()), ("NR", 1, 1), "{kind:?}");
    }
}
