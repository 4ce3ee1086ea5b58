//! What a route changes on the way there and back, and what it answers itself.

use mesh_tower::config::{
    Action, CookieMatch, DirectResponse, Forward, HeaderChange, HeaderChanges, HostRewrite, PathMatch, PathRewrite,
    QueryMatch, QueryMatcher, Redirect, RouteMatch, SplitBy, StringMatch, WeightedCluster,
};

use crate::harness::{Kind, Program, Upstream, cluster, config, route, split, to};

fn below(path: &str) -> RouteMatch {
    RouteMatch { path: PathMatch::Prefix { value: path.to_owned(), ignore_case: false }, ..RouteMatch::default() }
}

fn exact(value: &str) -> StringMatch {
    StringMatch::Exact { value: value.to_owned(), ignore_case: false }
}

/// RA11, RA12: path and host are rewritten, and the destination is told what they were.
#[tokio::test]
async fn path_and_host_are_rewritten() {
    for kind in Kind::ALL {
        let up = Upstream::start("up").await;
        let path = |rewrite| Forward { path_rewrite: Some(rewrite), ..to("up") };
        let host = |rewrite| Forward { host_rewrite: Some(rewrite), append_forwarded_host: true, ..to("up") };
        let regex = |text: &str| text.parse().unwrap();
        let rules = [
            ("/api/", path(PathRewrite::Prefix("/".to_owned()))),
            ("/re/", path(PathRewrite::Regex { pattern: regex("^/re/([^/]*)"), substitution: r"/\1/x".to_owned() })),
            ("/host", host(HostRewrite::Literal("new.example".to_owned()))),
            ("/header", host(HostRewrite::Header("x-host".into()))),
            ("/from/", host(HostRewrite::PathRegex { pattern: regex("^/from/(.*)$"), substitution: r"\1".to_owned() })),
        ];
        let rules = rules.map(|(prefix, forward)| route(below(prefix), Action::Forward(forward)));
        let program = Program::new(kind, config([cluster(kind, "up", &[&up])], rules.into())).await;
        for (asked, arrived) in [("/api/a/b?q=1", "/a/b?q=1"), ("/re/a/b?re", "/a/x/b?re")] {
            assert!(program.get(asked).await.is_ok(), "{kind:?}");
            let last = up.last();
            assert_eq!(
                (last.path.as_str(), last.header("x-envoy-original-path").as_str()),
                (arrived, asked),
                "{kind:?}"
            );
            assert_eq!(last.authority, "app", "{kind:?}");
        }
        for (asked, arrived) in
            [("/host", "new.example"), ("/header", "other.example"), ("/from/path.example", "path.example")]
        {
            assert!(program.get_with(asked, &[("x-host", "other.example")]).await.is_ok(), "{kind:?}");
            let last = up.last();
            assert_eq!((last.authority.as_str(), last.path.as_str()), (arrived, asked), "{kind:?}");
            assert_eq!(last.header("x-envoy-original-host"), "app", "{kind:?}");
            assert_eq!(last.header("x-forwarded-host"), "app", "{kind:?}");
        }
    }
}

/// RA13, RA14: headers change on the way there and back, also those of answers the mesh gives itself.
#[tokio::test]
async fn headers_change_there_and_back() {
    for kind in Kind::ALL {
        let up = Upstream::start("up").await;
        let (set, append) = (
            |name: &str, value: &str| HeaderChange::Set { name: name.into(), value: value.parse().unwrap() },
            |name: &str, value: &str| HeaderChange::Append { name: name.into(), value: value.parse().unwrap() },
        );
        let headers = HeaderChanges {
            request: vec![
                set("x-user", "%REQ(x-id)%-%UPSTREAM_CLUSTER%"),
                append("x-list", "more"),
                HeaderChange::Remove { name: "x-gone".to_owned() },
            ],
            response: vec![set("x-answered", "%RESPONSE_CODE%%RESP(x-upstream)%%REQ(x-id)%")],
        };
        let mut here = route(below("/"), Action::Forward(to("up")));
        here.headers = headers.clone();
        let mut gone = route(below("/gone"), Action::Forward(to("nowhere")));
        gone.headers = headers;
        let program = Program::new(kind, config([cluster(kind, "up", &[&up])], vec![gone, here])).await;
        let sent = [("x-id", "7"), ("x-list", "own"), ("x-gone", "1")];
        let answer = program.get_with("/a", &sent).await;
        assert!(answer.is_ok(), "{kind:?}");
        assert_eq!(answer.headers["x-answered"], "200up7", "{kind:?}");
        let last = up.last();
        let arrived = ["x-user", "x-list", "x-gone"].map(|name| last.header(name));
        assert_eq!(arrived, ["7-up", "own,more", ""], "{kind:?}");
        let answer = program.get_with("/gone", &sent).await;
        let status = if kind.is_grpc() { "2007" } else { "5037" };
        assert_eq!(
            (answer.flags.as_str(), answer.headers["x-answered"].as_bytes()),
            ("NC", status.as_bytes()),
            "{kind:?}"
        );
    }
}

/// RA9, RA10: direct responses and redirects come from the mesh; a gRPC caller is told by its own status.
#[tokio::test]
async fn routes_answer_themselves() {
    for kind in Kind::ALL {
        let redirect = Redirect { status: 308, host: Some("new.example".to_owned()), ..Redirect::default() };
        let rules = vec![
            route(below("/teapot"), Action::DirectResponse(DirectResponse { status: 418, body: "short".to_owned() })),
            route(below("/old"), Action::Redirect(redirect)),
        ];
        let program = Program::new(kind, config([], rules)).await;
        let teapot = program.get("/teapot").await;
        let moved = program.get("/old/a?b").await;
        if kind.is_grpc() {
            assert_eq!((teapot.grpc, moved.grpc), (Some(2), Some(2)));
        } else {
            assert_eq!((teapot.status, teapot.body.as_str()), (418, "short"), "{kind:?}");
            assert_eq!(
                (moved.status, &moved.headers["location"]),
                (308, &"http://new.example/old/a?b".parse().unwrap())
            );
        }
    }
}

/// RM13, RM14: routes by query parameter and by cookie; a missing cookie meets the opposite of its condition.
#[tokio::test]
async fn cookies_and_query_parameters_route() {
    for kind in Kind::ALL {
        let ups = [Upstream::start("jason").await, Upstream::start("test").await, Upstream::start("rest").await];
        let cookie = |invert| {
            let cookies = vec![CookieMatch { name: "user".to_owned(), value: exact("jason"), invert }];
            RouteMatch { cookies, ..RouteMatch::default() }
        };
        let query = vec![QueryMatch { name: "test".to_owned(), matcher: QueryMatcher::Value(exact("1")) }];
        let rules = vec![
            route(RouteMatch { query, ..RouteMatch::default() }, Action::Forward(to("test"))),
            route(cookie(false), Action::Forward(to("jason"))),
            route(cookie(true), Action::Forward(to("rest"))),
        ];
        let clusters = ups.each_ref().map(|up| cluster(kind, up.name, &[up]));
        let program = Program::new(kind, config(clusters, rules)).await;
        for (path, cookie, expected) in [
            ("/", "a=b; user=jason", "jason"),
            ("/", "user=mary", "rest"),
            ("/?test=1&test=2", "user=jason", "test"),
            ("/?test=2&test=1", "user=jason", "jason"),
        ] {
            assert_eq!(program.get_with(path, &[("cookie", cookie)]).await.body, expected, "{kind:?} {path} {cookie}");
        }
        assert_eq!(program.get("/").await.body, "rest", "{kind:?}");
    }
}

/// RA2, RA3, RA5: a header can hold a user in one part of a split, or name the cluster itself.
#[tokio::test]
async fn a_header_decides_among_clusters() {
    for kind in Kind::ALL {
        let ups = [Upstream::start("v1").await, Upstream::start("v2").await];
        let sticky = Forward { split_by: SplitBy::Header("x-user".into()), ..split(&[("v1", 90), ("v2", 10)]) };
        let named =
            WeightedCluster { cluster_header: Some("x-cluster".into()), weight: 1, ..WeightedCluster::default() };
        let named = Forward { clusters: vec![named], no_cluster_status: 404, ..Forward::default() };
        let rules = vec![route(below("/named"), Action::Forward(named)), route(below("/"), Action::Forward(sticky))];
        let clusters = ups.each_ref().map(|up| cluster(kind, up.name, &[up]));
        let program = Program::new(kind, config(clusters, rules)).await;
        for (user, expected) in [("0", "v1"), ("89", "v1"), ("90", "v2"), ("199", "v2"), ("1000", "v1")] {
            for _ in 0..3 {
                assert_eq!(program.get_with("/", &[("x-user", user)]).await.body, expected, "{kind:?} {user}");
            }
        }
        assert_eq!(program.get_with("/named", &[("x-cluster", "v2")]).await.body, "v2", "{kind:?}");
        let unknown = program.get_with("/named", &[("x-cluster", "v9")]).await;
        assert_eq!(
            (unknown.flags.as_str(), unknown.status),
            ("NC", if kind.is_grpc() { 200 } else { 404 }),
            "{kind:?}"
        );
    }
}
