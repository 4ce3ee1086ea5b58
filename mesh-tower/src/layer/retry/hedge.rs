//! Several tries of one request at once: another begins when the first takes its time, and the first good answer counts.
//!
//! Two forms. Envoy's begins one when a try has taken as long as its own limit, which then ends nothing, while the policy
//! has retries; a bad answer beside tries under way is let go of. gRPC's begins one each `delay`, up to `attempts`; a
//! status that is not fatal begins the next at once, any other ends the call. Both pay for each try from the client's
//! budget, and both wait until the request's body has been read and is at hand as a whole. Sources: Envoy `HedgePolicy`,
//! gRFC A6.

use std::{future::Future, pin::Pin, time::Duration};

use bytes::Bytes;
use futures_util::{StreamExt, stream::FuturesUnordered};
use http_body::Body as HttpBody;
use mesh_core::{
    config::{HedgePolicy, RetryPolicy},
    limit::Slot,
    outcome::Outcome,
    retry::{Ended, Hedged, Verdict, Why, hedged, may_repeat},
};
use tokio::time::{Instant, sleep};

use super::{Attempt, Course, Patience, Retry, Stage, ended, reached};
use crate::{
    body::ResponseBody,
    error::{BoxError, Error},
    source,
};

type Answer<B> = Result<http::Response<ResponseBody<B>>, Error>;
type Try<'a, B> = Pin<Box<dyn Future<Output = (Answer<B>, Option<Slot>)> + Send + 'a>>;

/// gRFC A6: more are not made, whatever is configured.
const MOST: u32 = 5;

/// When another try begins.
#[derive(Clone, Copy, Debug)]
pub(super) enum Pace {
    /// Envoy's form: after each try's own limit.
    TryTimeout(Duration),
    /// gRPC's form: each time this has passed, up to so many tries in all.
    Delay(Duration, u32),
}

impl Pace {
    /// `None` where nothing is hedged.
    pub(super) fn of(hedge: Option<&HedgePolicy>, policy: Option<&RetryPolicy>) -> Option<Self> {
        let hedge = hedge?;
        if let Some(delay) = hedge.delay {
            return (hedge.attempts > 1).then_some(Self::Delay(delay, hedge.attempts.min(MOST)));
        }
        let limit = policy?.per_try_timeout.filter(|_| hedge.on_per_try_timeout)?;
        Some(Self::TryTimeout(limit))
    }

    fn next(self) -> Option<Instant> {
        let (Self::TryTimeout(every) | Self::Delay(every, _)) = self;
        Some(source::instant() + every)
    }
}

impl<S, B> Retry<S>
where
    S: Stage<Attempt, Response = http::Response<ResponseBody<B>>>,
    B: HttpBody<Data = Bytes> + Send + Unpin,
    B::Error: Into<BoxError>,
{
    /// All the tries of a request that is hedged. Those that lost are cancelled by being dropped.
    pub(super) async fn hedge(&self, course: &mut Course<'_>, pace: Pace, policy: Option<&HedgePolicy>) -> Answer<B> {
        let mut under_way = FuturesUnordered::new();
        under_way.push(self.begin(course, None));
        let mut next = pace.next();
        // A bad answer while nothing else is under way: given to the caller if no other try can begin.
        let mut last = None;
        loop {
            let turn = tokio::select! {
                biased;
                Some((answer, slot)) = under_way.next(), if !under_way.is_empty() => {
                    drop::<Option<Slot>>(slot);
                    Some(answer)
                }
                () = reached(next) => None,
            };
            let Some(answer) = turn else {
                next = match self.may_begin(course, pace) {
                    // Beside tries under way, one that cannot be had is no failure.
                    Begin::Now => match self.pay_beside(course, under_way.is_empty()) {
                        Some(slot) => {
                            last = None;
                            course.begin_another(pace);
                            under_way.push(self.begin(course, slot));
                            pace.next()
                        }
                        None => None,
                    },
                    Begin::Later => pace.next(),
                    Begin::Never => None,
                };
                match last.take() {
                    Some(answer) if under_way.is_empty() && next.is_none() => return answer,
                    kept => last = kept,
                }
                continue;
            };
            match pace {
                Pace::Delay(..) => {
                    match self.meaning(course, policy, &answer) {
                        Hedged::Final => return answer,
                        Hedged::Stop => next = None,
                        Hedged::Next(wait) if next.is_some() => next = Some(source::instant() + wait),
                        Hedged::Next(_) => {}
                    }
                    if under_way.is_empty() {
                        if next.is_none() {
                            return answer;
                        }
                        last = Some(answer);
                    }
                }
                Pace::TryTimeout(_) => {
                    let before = course.retries.clone();
                    let (wait, counts) = match self.judge(course, &answer) {
                        Verdict::GiveUp(Why::LimitReached) if !under_way.is_empty() => continue,
                        Verdict::GiveUp(_) => return answer,
                        Verdict::After(wait) => (wait, true),
                        Verdict::AtOnce => (Duration::ZERO, false),
                    };
                    if !under_way.is_empty() {
                        // Envoy: what others may still make good is no reason for yet another.
                        course.retries = before;
                        continue;
                    }
                    if !course.tape.can_replay() {
                        return answer;
                    }
                    let Some(slot) = self.afford(course, counts, super::is_over(&answer)) else { return answer };
                    drop(answer);
                    sleep(wait).await;
                    course.counted += u32::from(counts);
                    course.again(counts, wait);
                    under_way.push(self.begin(course, slot));
                    next = pace.next();
                }
            }
        }
    }

    /// What another try costs. Beside tries under way, one that cannot be had is no failure.
    fn pay_beside(&self, course: &Course<'_>, alone: bool) -> Option<Option<Slot>> {
        if alone { self.afford(course, true, false) } else { self.pay(course, true, false) }
    }

    /// One more try, beside those under way.
    fn begin<'a>(&'a self, course: &mut Course<'_>, slot: Option<Slot>) -> Try<'a, B> {
        let patience = Patience { limit: None, ..course.patience(course.deadline) };
        let attempt = course.attempt(course.deadline);
        Box::pin(async move { (self.send(attempt, patience).await, slot) })
    }

    /// Is it safe, possible and allowed to begin one more beside those under way?
    fn may_begin(&self, course: &Course<'_>, pace: Pace) -> Begin {
        let asked = course.asked();
        // What is under way may yet be processed: only what is safe to repeat is hedged.
        let safe = match course.policy {
            Some(policy) => may_repeat(policy, asked, &Outcome::default()),
            None => asked.is_grpc || asked.method.is_idempotent(),
        };
        let any_left = match pace {
            Pace::TryTimeout(_) => course.policy.is_some_and(|policy| course.retries.any_left(policy)),
            Pace::Delay(_, most) => course.number < most,
        };
        match safe && any_left && course.tape.can_replay() {
            false => Begin::Never,
            true if course.call.progress().is_ended() => Begin::Now,
            true => Begin::Later,
        }
    }

    /// What an answer means where gRPC's form is asked for; HTTP requests go by the conditions of their retry policy.
    fn meaning(&self, course: &mut Course<'_>, policy: Option<&HedgePolicy>, answer: &Answer<B>) -> Hedged {
        if !course.call.plan().is_grpc {
            return match self.judge(course, answer) {
                Verdict::GiveUp(Why::LimitReached) => Hedged::Next(Duration::ZERO),
                Verdict::GiveUp(_) => Hedged::Final,
                Verdict::After(_) | Verdict::AtOnce => Hedged::Next(Duration::ZERO),
            };
        }
        let (Some(policy), Some((outcome, response))) = (policy, ended(course, answer)) else { return Hedged::Final };
        let ended = Ended { outcome: &outcome, response, wall: Duration::ZERO };
        let meaning = hedged(policy, course.asked(), ended);
        let may_follow = course.throttle.as_ref().is_none_or(|throttle| match meaning {
            Hedged::Final => {
                throttle.succeeded();
                true
            }
            Hedged::Next(_) | Hedged::Stop => throttle.failed(),
        });
        if may_follow { meaning } else { Hedged::Stop }
    }
}

/// Whether another try begins.
enum Begin {
    Now,
    /// The request is still being read.
    Later,
    Never,
}

impl Course<'_> {
    /// Counts one more try beside those under way.
    fn begin_another(&mut self, pace: Pace) {
        if let (Pace::TryTimeout(_), Some(policy)) = (pace, self.policy) {
            self.retries.hedge(policy);
        }
        self.counted += 1;
        self.call.journal().again.hedges += 1;
    }
}
