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
    DataErrors, DeltaRequest, DeltaResponse, Event, Request, ResourceSet, Response, Subscription, TypeUrl,
    back_off::BackOff,
    client::{Client, Variant},
    script::{decode, resource},
    server::{self, Outcome},
};

#[derive(Clone, Debug)]
enum Step {
    /// The server's resource `name` of a type becomes `value`, 0 is removal.
    Set(TypeUrl, u8, u8),
    /// The client wants the names whose bits are set of EDS or RDS.
    Want(TypeUrl, u8),
    /// That many messages travel towards the server, and towards the client.
    Travel(u8, u8),
    /// What comes of this type next overtakes what comes of others.
    Overtake(TypeUrl),
    /// What comes next comes twice, and so does what goes next.
    Twice,
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
        1 => kind().prop_map(Step::Overtake),
        1 => Just(Step::Twice),
        1 => Just(Step::Break),
        1 => kind().prop_map(Step::Stale),
    ]
}

fn play(variant: Variant, steps: Vec<Step>) {
    let mut pair = Pair::new(variant);
    for step in steps {
        pair.step(step);
    }
    pair.settle();
    for kind in &TypeUrl::ALL[..4] {
        assert_eq!(pair.held(*kind), pair.expected(*kind), "{kind}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    /// XD1, XD3, XD5, XD6: after any history with lost streams, stale nonces, messages that come twice and types that
    /// overtake each other the client holds just what it wants of what the server has.
    #[test]
    fn both_ends_agree_in_the_end(steps in prop::collection::vec(step(), 0..60)) {
        play(Variant::Sotw, steps);
    }

    /// XD2, XD3, XD6: the same of the incremental variant, in which what was removed is gone of every type.
    #[test]
    fn both_ends_of_delta_agree_in_the_end(steps in prop::collection::vec(step(), 0..60)) {
        play(Variant::Delta, steps);
    }
}

#[derive(Clone)]
enum Up {
    Sotw(Request),
    Delta(DeltaRequest),
}

#[derive(Clone)]
enum Down {
    Sotw(Response),
    Delta(DeltaResponse),
}

impl Down {
    fn kind(&self) -> TypeUrl {
        match self {
            Self::Sotw(response) => response.kind,
            Self::Delta(response) => response.kind,
        }
    }
}

enum Server {
    Sotw(server::Sotw),
    Delta(server::Delta),
}

impl Server {
    fn new(variant: Variant, resources: Arc<ResourceSet>) -> Self {
        match variant {
            Variant::Sotw => Self::Sotw(server::Sotw::new(resources)),
            Variant::Delta => Self::Delta(server::Delta::new(resources)),
        }
    }

    fn handle_resources(&mut self, resources: Arc<ResourceSet>) {
        match self {
            Self::Sotw(server) => server.handle_resources(resources),
            Self::Delta(server) => server.handle_resources(resources),
        }
    }

    fn handle_request(&mut self, request: &Up) {
        match (self, request) {
            (Self::Sotw(server), Up::Sotw(request)) => server.handle_request(request),
            (Self::Delta(server), Up::Delta(request)) => server.handle_request(request),
            _ => panic!("of the other variant"),
        }
    }

    fn poll_response(&mut self) -> Option<Down> {
        match self {
            Self::Sotw(server) => server.poll_response().map(Down::Sotw),
            Self::Delta(server) => server.poll_response().map(Down::Delta),
        }
    }

    fn poll_outcome(&mut self) -> Option<Outcome> {
        match self {
            Self::Sotw(server) => server.poll_outcome(),
            Self::Delta(server) => server.poll_outcome(),
        }
    }
}

struct Pair {
    variant: Variant,
    now: Time,
    rng: RequestRng,
    client: Client<String>,
    server: Server,
    resources: ResourceSet,
    up: VecDeque<Up>,
    down: VecDeque<Down>,
    twice: bool,
    held: BTreeMap<(TypeUrl, Name), String>,
    wanted: BTreeMap<TypeUrl, Subscription>,
    values: BTreeMap<(TypeUrl, Name), String>,
}

impl Pair {
    fn new(variant: Variant) -> Self {
        let mut client = Client::new(variant, BackOff::STREAM, DataErrors::default());
        client.subscribe(TypeUrl::Cluster, Subscription::All);
        client.subscribe(TypeUrl::Listener, Subscription::All);
        Self {
            variant,
            now: Time::ZERO,
            rng: RequestRng::new(3, 3),
            client,
            server: Server::new(variant, Arc::default()),
            resources: ResourceSet::default(),
            up: VecDeque::new(),
            down: VecDeque::new(),
            twice: false,
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
            Step::Overtake(kind) => {
                if let Some(at) = self.down.iter().position(|response| response.kind() == kind) {
                    let response = self.down.remove(at).unwrap();
                    self.down.push_front(response);
                }
            }
            Step::Twice => self.twice = true,
            Step::Break => {
                self.client.handle_disconnected(self.now, &mut self.rng);
                self.up.clear();
                self.down.clear();
                self.connect();
            }
            Step::Stale(kind) => {
                let (nonce, names) = ("stale".to_owned(), vec!["r9".into()]);
                let stale = match self.variant {
                    Variant::Sotw => {
                        Up::Sotw(Request { first: false, kind, version: String::new(), nonce, names, error: None })
                    }
                    Variant::Delta => Up::Delta(DeltaRequest {
                        first: false,
                        kind,
                        subscribe: names,
                        unsubscribe: vec!["r9".into()],
                        initial: BTreeMap::new(),
                        nonce,
                        error: Some("stale".to_owned()),
                    }),
                };
                self.server.handle_request(&stale);
            }
        }
    }

    fn connect(&mut self) {
        while !self.client.poll_connect(self.now) {
            self.now = self.client.next_timeout().unwrap();
        }
        self.client.handle_connected();
        self.server = Server::new(self.variant, Arc::new(self.resources.clone()));
    }

    fn publish(&mut self) {
        self.resources = ResourceSet::default();
        for ((kind, name), value) in &self.values {
            let body = resource(*kind, &format!("{name}={value}")).value;
            self.resources.insert(*kind, name.clone(), body);
        }
        self.server.handle_resources(Arc::new(self.resources.clone()));
    }

    fn say(&mut self) -> Option<Up> {
        match &mut self.client {
            Client::Sotw(client) => client.poll_request(self.now).map(Up::Sotw),
            Client::Delta(client) => client.poll_request(self.now).map(Up::Delta),
        }
    }

    fn hear(&mut self, response: &Down) {
        match (&mut self.client, response) {
            (Client::Sotw(client), Down::Sotw(response)) => client.handle_response(response, self.now, decode),
            (Client::Delta(client), Down::Delta(response)) => client.handle_response(response, self.now, decode),
            _ => panic!("of the other variant"),
        }
    }

    fn travel(&mut self, up: usize, down: usize) {
        while let Some(request) = self.say() {
            self.up.push_back(request);
        }
        for request in self.up.drain(..up.min(self.up.len())).collect::<Vec<_>>() {
            self.server.handle_request(&request);
            if self.twice {
                self.server.handle_request(&request);
            }
        }
        while let Some(response) = self.server.poll_response() {
            self.down.push_back(response);
        }
        for response in self.down.drain(..down.min(self.down.len())).collect::<Vec<_>>() {
            self.hear(&response);
            if std::mem::take(&mut self.twice) {
                self.hear(&response);
            }
        }
        while let Some(event) = self.client.poll_event() {
            match event {
                Event::Changed(kind, name, value) => drop(self.held.insert((kind, name), value)),
                Event::Gone(kind, name) => drop(self.held.remove(&(kind, name))),
                Event::Synced(_) => {}
                event => panic!("nothing here is bad: {event:?}"),
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
        for _ in 0..60 {
            self.now = self.now + Duration::from_millis(10);
            self.travel(usize::MAX, usize::MAX);
        }
        assert!(!self.client.is_due(self.now) && self.up.is_empty() && self.down.is_empty(), "they still talk");
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
        if self.variant == Variant::Sotw && !kind.is_full_state() {
            all = self.held(kind);
        }
        let current = self.values.iter().filter(|((of, name), _)| *of == kind && wants(name));
        all.extend(current.map(|((_, name), value)| (name.clone(), value.clone())));
        all
    }
}
