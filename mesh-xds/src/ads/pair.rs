//! Client and server machine back to back in memory: whatever happens to the stream between them, they end up agreed.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use mesh_core::{config::Name, rng::RequestRng, time::Time};
use proptest::prelude::*;

use super::{
    Request, ResourceSet, Response, Subscription, TypeUrl,
    back_off::BackOff,
    script::{decode, resource},
    server::{self, Outcome},
    sotw::{Event, Sotw},
};

#[derive(Clone, Debug)]
enum Step {
    /// The server's resource `name` of a type becomes `value`, 0 is removal.
    Set(TypeUrl, u8, u8),
    /// The client wants the names whose bits are set of EDS or RDS.
    Want(TypeUrl, u8),
    /// That many messages travel towards the server, and towards the client.
    Travel(u8, u8),
    /// The stream breaks; all that was on its way is lost.
    Break,
    /// A request with a nonce of long ago arrives.
    Stale(TypeUrl),
}

fn step() -> impl Strategy<Value = Step> {
    let kind = || prop::sample::select(&TypeUrl::ALL[..4]);
    let named = prop::sample::select(vec![TypeUrl::Endpoint, TypeUrl::Route]);
    prop_oneof![
        4 => (kind(), 0..4u8, 0..4u8).prop_map(|(kind, name, value)| Step::Set(kind, name, value)),
        3 => (named, 0..16u8).prop_map(|(kind, names)| Step::Want(kind, names)),
        6 => (0..4u8, 0..4u8).prop_map(|(up, down)| Step::Travel(up, down)),
        1 => Just(Step::Break),
        1 => kind().prop_map(Step::Stale),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    /// XD1, XD3, XD5, XD6: after any history with lost streams and stale nonces the client holds just what it wants of
    /// what the server has.
    #[test]
    fn both_ends_agree_in_the_end(steps in prop::collection::vec(step(), 0..60)) {
        let mut pair = Pair::new();
        for step in steps {
            pair.step(step);
        }
        pair.settle();
        for kind in &TypeUrl::ALL[..4] {
            prop_assert_eq!(pair.held(*kind), pair.expected(*kind), "{}", kind);
        }
    }
}

struct Pair {
    now: Time,
    rng: RequestRng,
    client: Sotw<String>,
    server: server::Sotw,
    resources: ResourceSet,
    up: VecDeque<Request>,
    down: VecDeque<Response>,
    held: BTreeMap<(TypeUrl, Name), String>,
    wanted: BTreeMap<TypeUrl, Subscription>,
    values: BTreeMap<(TypeUrl, Name), String>,
}

impl Pair {
    fn new() -> Self {
        let mut client = Sotw::new(BackOff::STREAM);
        client.subscribe(TypeUrl::Cluster, Subscription::All);
        client.subscribe(TypeUrl::Listener, Subscription::All);
        Self {
            now: Time::ZERO,
            rng: RequestRng::new(3, 3),
            client,
            server: server::Sotw::new(Arc::default()),
            resources: ResourceSet::default(),
            up: VecDeque::new(),
            down: VecDeque::new(),
            held: BTreeMap::new(),
            wanted: BTreeMap::new(),
            values: BTreeMap::new(),
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Set(kind, name, value) => {
                let name = Name::from(format!("r{name}"));
                self.values.remove(&(kind, name.clone()));
                if value > 0 {
                    self.values.insert((kind, name), value.to_string());
                }
                self.publish();
            }
            Step::Want(kind, bits) => {
                let names: BTreeSet<Name> =
                    (0..4).filter(|bit| bits >> bit & 1 == 1).map(|bit| format!("r{bit}").into()).collect();
                self.held.retain(|(held, name), _| *held != kind || names.contains(name));
                self.wanted.insert(kind, Subscription::Names(names.clone()));
                self.client.subscribe(kind, Subscription::Names(names));
            }
            Step::Travel(up, down) => self.travel(up.into(), down.into()),
            Step::Break => {
                self.client.handle_disconnected(self.now, &mut self.rng);
                self.up.clear();
                self.down.clear();
                self.connect();
            }
            Step::Stale(kind) => {
                let version = String::new();
                let names = vec!["r9".into()];
                let stale = Request { first: false, kind, version, nonce: "stale".to_owned(), names, error: None };
                self.server.handle_request(&stale);
            }
        }
    }

    fn connect(&mut self) {
        while !self.client.poll_connect(self.now) {
            self.now = self.client.next_timeout().unwrap();
        }
        self.client.handle_connected();
        self.server = server::Sotw::new(Arc::new(self.resources.clone()));
    }

    fn publish(&mut self) {
        self.resources = ResourceSet::default();
        for ((kind, name), value) in &self.values {
            let body = resource(*kind, &format!("{name}={value}")).value;
            self.resources.insert(*kind, name.clone(), body);
        }
        self.server.handle_resources(Arc::new(self.resources.clone()));
    }

    fn travel(&mut self, up: usize, down: usize) {
        self.up.extend(std::iter::from_fn(|| self.client.poll_request(self.now)));
        for request in self.up.drain(..up.min(self.up.len())) {
            self.server.handle_request(&request);
        }
        self.down.extend(std::iter::from_fn(|| self.server.poll_response()));
        for response in self.down.drain(..down.min(self.down.len())) {
            self.client.handle_response(&response, |kind, body| decode(kind, body));
        }
        while let Some(event) = self.client.poll_event() {
            match event {
                Event::Changed(kind, name, value) => drop(self.held.insert((kind, name), value)),
                Event::Gone(kind, name) => drop(self.held.remove(&(kind, name))),
                Event::Refused(..) => panic!("nothing here is bad"),
                Event::Synced(_) => {}
            }
        }
        while let Some(outcome) = self.server.poll_outcome() {
            assert!(matches!(outcome, Outcome::Acked(..)), "{outcome:?}");
        }
    }

    /// A new stream on which everything travels until nothing is left to say.
    fn settle(&mut self) {
        if self.client.poll_connect(self.now) {
            self.client.handle_connected();
        }
        for _ in 0..50 {
            self.now = self.now + Duration::from_millis(1);
            self.travel(usize::MAX, usize::MAX);
        }
        assert!(!self.client.is_due() && self.up.is_empty() && self.down.is_empty(), "they still talk");
    }

    fn held(&self, kind: TypeUrl) -> BTreeMap<Name, String> {
        self.held
            .iter()
            .filter(|((held, _), _)| *held == kind)
            .map(|((_, name), value)| (name.clone(), value.clone()))
            .collect()
    }

    /// What the server has; of types whose absence says nothing only what the client was told and wants, so that a removed
    /// resource may be held in its last form.
    fn expected(&self, kind: TypeUrl) -> BTreeMap<Name, String> {
        let wanted = self.wanted.get(&kind);
        let wants = |name: &Name| kind.is_full_state() || wanted.is_some_and(|wanted| wanted.wants(name));
        let mut all: BTreeMap<Name, String> = BTreeMap::new();
        if !kind.is_full_state() {
            all = self.held(kind);
        }
        let current = self.values.iter().filter(|((of, name), _)| *of == kind && wants(name));
        all.extend(current.map(|((_, name), value)| (name.clone(), value.clone())));
        all
    }
}
