//! What active health checks say beside what requests do.

use super::*;

/// OD1, OD6, OD11: a health check that passes between two failures is not a success of the endpoint's, and does not make
/// it forget how often it was ejected.
#[test]
fn a_passing_check_forgives_only_what_is_ejected() {
    let mut config = ejecting(3, 100, 5);
    config.health_check = Some(Arc::default());
    let detection = config.outlier_detection.as_mut().unwrap();
    (detection.base_ejection_time, detection.interval) = (Duration::from_secs(30), Duration::from_secs(10));
    let cluster = compile(config, None);
    let endpoint = Arc::clone(&cluster.endpoints()[0]);
    let check = |now| cluster.record_check(&endpoint, false, true, now);
    fail(&cluster, 1, 3, Outcome::response(500), at(0));
    check(at(0));
    fail(&cluster, 1, 2, Outcome::response(500), at(0));
    assert_eq!(ejected(&cluster), [1]);
    check(at(1));
    assert!(ejected(&cluster).is_empty());
    // Back since a second; the second ejection would last twice as long, but for the quiet intervals, which checks do not
    // put off.
    (2..=30).for_each(|second| {
        check(at(second));
        cluster.sweep(at(second));
    });
    fail(&cluster, 1, 5, Outcome::response(500), at(31));
    assert_eq!(ejected(&cluster), [1]);
    cluster.sweep(at(71));
    assert!(ejected(&cluster).is_empty(), "the ejection lasted as long as a first one");
}

fn at(seconds: u64) -> Time {
    Time::ZERO + Duration::from_secs(seconds)
}
