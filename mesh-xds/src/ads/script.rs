//! Plays the conversations in `testdata/`: commands to a machine, and after each the lines it must answer with.
//!
//! A line that begins with `>` is what must go out, with `!` what must have become of a resource; every other line is a
//! command. Files whose names begin with `delta` are of the incremental variant. `MESH_REGENERATE=1` writes the answers anew, to be read before they are committed.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{collections::BTreeMap, fmt::Write, fs, path::PathBuf, sync::Arc, time::Duration};

use bytes::Bytes;
use mesh_core::{config::Name, rng::RequestRng, time::Time};

use super::{
    DataErrors, DeltaRequest, DeltaResponse, Event, Item, Problem, Request, ResourceSet, Response, Subscription,
    TypeUrl,
    back_off::BackOff,
    client::{Client, Variant},
    server::{self, Outcome},
};
use crate::proto::Any;

/// XD1: node in the first request only, nonce of the stream, version kept over streams.
#[test]
fn node_nonce_and_version() {
    play("client_node_nonce_version");
}

/// XD3, XD4: good resources of a bad response are used, every bad one is named, the version is the last accepted.
#[test]
fn refusal_names_every_bad_resource() {
    play("client_refusal");
}

/// XD5: absence deletes in LDS and CDS only.
#[test]
fn absence_deletes_full_state_types_only() {
    play("client_absence");
}

/// XD6: unsubscribing is no wildcard; what is not wanted any more is forgotten.
#[test]
fn unsubscribing_is_not_wildcard() {
    play("client_unsubscribe");
}

/// XD7: the timer runs from the request on a connected stream, only for what was never there, anew on a new stream.
#[test]
fn does_not_exist_timer() {
    play("client_timer");
}

/// XD8, XD9: back-off only when nothing was delivered; what is in force stays.
#[test]
fn streams_are_reopened() {
    play("client_reopen");
}

/// XD15: unchanged resources are not delivered again, changes of subscription are coalesced.
#[test]
fn unchanged_resources_are_not_delivered_again() {
    play("client_dedupe");
}

/// XD12: the server sends clusters, endpoints, listeners, routes, and only what changed.
#[test]
fn server_sends_what_changed_in_order() {
    play("server_order");
}

/// XD3: the server ignores a stale nonce and hears of refusals.
#[test]
fn server_ignores_stale_nonce() {
    play("server_nonce");
}

/// XD6: the server tells an empty list after names from a wildcard.
#[test]
fn server_subscriptions() {
    play("server_subscriptions");
}

/// XD10, XD7: what data errors do to a resource in force is the bootstrap's choice.
#[test]
fn data_errors_keep_or_drop() {
    for name in ["client_data_errors", "client_data_errors_drop", "client_data_errors_keep", "delta_client_data_errors"]
    {
        play(name);
    }
}

/// XD16: wrapped resources are read; a time to live ends them unless a heartbeat renews it.
#[test]
fn time_to_live_ends_a_resource() {
    play("client_ttl");
    play("delta_client_ttl");
}

/// XD15: names that become wanted one by one are asked for in few requests.
#[test]
fn subscriptions_are_gathered() {
    play("client_gather");
}

/// XD2: only changes are said; answers and changes of subscription never share a request.
#[test]
fn delta_says_what_has_changed() {
    play("delta_client_subscribe");
}

/// XD2: a new stream begins with what is held; what is gone since is said to be removed.
#[test]
fn delta_streams_resume() {
    play("delta_client_resume");
}

/// XD2, XD3, XD4: the good resources of a bad response are used, the answer names each bad one.
#[test]
fn delta_refusal_names_every_bad_resource() {
    play("delta_client_refusal");
}

/// XD2, XD7: removal is said for every type, silence is bounded by the timer.
#[test]
fn delta_removal_is_said() {
    play("delta_client_removal");
}

/// XD2: the server sends what differs from what the client says to have, and what it asks for again.
#[test]
fn delta_server_sends_what_differs() {
    play("delta_server_differs");
}

/// XD2, XD6: everything, names, both, and what unsubscribing leaves of them.
#[test]
fn delta_server_subscriptions() {
    play("delta_server_subscriptions");
}

/// XD12, XD13: the server sends clusters before endpoints, and the endpoints of a changed cluster once more.
#[test]
fn endpoints_of_changed_clusters_come_again() {
    play("server_warming");
    play("delta_server_warming");
}

fn play(name: &str) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("testdata").join(format!("{name}.txt"));
    let script = fs::read_to_string(&path).unwrap();
    let mut player = Player::new(if name.starts_with("delta") { Variant::Delta } else { Variant::Sotw });
    let mut played = String::new();
    for line in script.lines().filter(|line| !line.starts_with(['>', '!'])) {
        writeln!(played, "{line}").unwrap();
        if !line.is_empty() && !line.starts_with('#') {
            player.connects = line.starts_with("wait") || line == "lost";
            player.command(line);
            played.extend(player.answers().iter().map(|answer| format!("{answer}\n")));
        }
    }
    if std::env::var("MESH_REGENERATE").is_ok_and(|value| value == "1") {
        fs::write(&path, &played).unwrap();
    } else {
        assert_eq!(played, script, "{name}");
    }
}

struct Player {
    now: Time,
    rng: RequestRng,
    client: Client<String>,
    server: server::Sotw,
    delta: server::Delta,
    resources: ResourceSet,
    in_force: BTreeMap<(TypeUrl, Name), String>,
    answers: Vec<String>,
    held: bool,
    connects: bool,
}

impl Player {
    fn new(variant: Variant) -> Self {
        Self {
            now: Time::ZERO,
            rng: RequestRng::new(1, 1),
            client: client(variant, DataErrors::default()),
            server: server::Sotw::new(Arc::default()),
            delta: server::Delta::new(Arc::default()),
            resources: ResourceSet::default(),
            in_force: BTreeMap::new(),
            answers: Vec::new(),
            held: false,
            connects: false,
        }
    }

    fn command(&mut self, line: &str) {
        let words: Vec<&str> = line.split(' ').collect();
        match *words {
            ["want", kind, ref names @ ..] => {
                let (kind, wanted) = (parse_kind(kind), subscription(names));
                self.in_force.retain(|(held, name), _| *held != kind || wanted.wants(name));
                self.client.subscribe(kind, wanted);
            }
            ["opened"] => self.client.handle_connected(),
            ["lost"] => self.client.handle_disconnected(self.now, &mut self.rng),
            // The stream takes no more requests for now.
            ["hold"] => self.held = true,
            ["release"] => self.held = false,
            ["wait", seconds] => {
                self.now = self.now + Duration::from_secs_f64(seconds.parse().unwrap());
                self.client.handle_timeout(self.now);
            }
            ["next"] => {
                let next = self.client.next_timeout().map_or_else(|| "never".to_owned(), |time| time.to_string());
                self.answers.push(format!("> next {next}"));
            }
            ["in-force"] => {
                let all = self.in_force.iter().map(|((kind, name), value)| format!("! {kind} {name}={value}"));
                self.answers.extend(all);
            }
            // `fail-on-data-errors` and the like, before anything else is said.
            ["policy", ref words @ ..] => {
                let policy = DataErrors {
                    drop_refused: words.contains(&"drop-refused"),
                    keep_deleted: words.contains(&"keep-deleted"),
                    transient_timer: words.contains(&"transient-timer"),
                };
                let variant = if matches!(self.client, Client::Sotw(_)) { Variant::Sotw } else { Variant::Delta };
                self.client = client(variant, policy);
            }
            ["response", kind, version, nonce, ref words @ ..] => {
                let (kind, version, nonce) = (parse_kind(kind), version.to_owned(), nonce.to_owned());
                let (mut resources, mut removed, mut problems) = (Vec::new(), Vec::new(), Vec::new());
                for word in words {
                    // `-a` is removed, `!a` is a problem, `!-a` one that says that there is no `a`.
                    if let Some(name) = word.strip_prefix('!') {
                        let (missing, name) = (name.starts_with('-'), name.trim_start_matches('-'));
                        problems.push(Problem { name: name.into(), missing, message: "the server's words".to_owned() });
                    } else if let Some(name) = word.strip_prefix('-') {
                        removed.push(name.into());
                    } else {
                        resources.push(item(kind, word, matches!(self.client, Client::Delta(_))));
                    }
                }
                match &mut self.client {
                    Client::Sotw(client) => {
                        let response = Response { kind, version, nonce, resources, problems };
                        client.handle_response(&response, self.now, decode);
                    }
                    Client::Delta(client) => {
                        let response = DeltaResponse { kind, version, nonce, resources, removed, problems };
                        client.handle_response(&response, self.now, decode);
                    }
                }
            }
            ["set", kind, ref resources @ ..] => {
                let kind = parse_kind(kind);
                for text in resources {
                    let (name, _) = text.split_once('=').unwrap();
                    self.resources.insert(kind, name, resource(kind, text).value);
                }
            }
            ["clear"] => self.resources = ResourceSet::default(),
            ["push"] => {
                self.server.handle_resources(Arc::new(self.resources.clone()));
                self.delta.handle_resources(Arc::new(self.resources.clone()));
            }
            // `+a` subscribes, `-a` unsubscribes, `a@1` is had in the version of value 1.
            ["request", kind, nonce, ref words @ ..] if matches!(self.client, Client::Delta(_)) => {
                let kind = parse_kind(kind);
                let mut request = DeltaRequest {
                    first: false,
                    kind,
                    subscribe: Vec::new(),
                    unsubscribe: Vec::new(),
                    initial: BTreeMap::new(),
                    nonce: nonce.trim_start_matches('-').to_owned(),
                    error: None,
                };
                for word in words {
                    if let Some(why) = word.strip_prefix("error=") {
                        request.error = Some(why.to_owned());
                    } else if let Some(name) = word.strip_prefix('+') {
                        request.subscribe.push(name.into());
                    } else if let Some(name) = word.strip_prefix('-') {
                        request.unsubscribe.push(name.into());
                    } else {
                        let text = word.replace('@', "=");
                        let (name, _) = text.split_once('=').unwrap();
                        let mut set = ResourceSet::default();
                        set.insert(kind, name, resource(kind, &text).value);
                        request.initial.insert(name.into(), set.get(kind, name).unwrap().version.clone());
                    }
                }
                self.delta.handle_request(&request);
            }
            ["request", kind, nonce, ref rest @ ..] => {
                let error = rest.iter().find_map(|word| word.strip_prefix("error=")).map(str::to_owned);
                let names = rest.iter().filter(|word| !word.starts_with("error=")).map(|&name| name.into()).collect();
                let nonce = if nonce == "-" { "" } else { nonce };
                let kind = parse_kind(kind);
                let version = String::new();
                self.server.handle_request(&Request { first: false, kind, version, nonce: nonce.into(), names, error });
            }
            _ => panic!("no such command: {line}"),
        }
    }

    fn answers(&mut self) -> Vec<String> {
        let mut answers = std::mem::take(&mut self.answers);
        while let Some(event) = self.client.poll_event() {
            answers.push(match event {
                Event::Changed(kind, name, value) => {
                    self.in_force.insert((kind, name.clone()), value.clone());
                    format!("! {kind} {name} is {value}")
                }
                Event::Refused(kind, name, why) => format!("! {kind} {name} refused: {why}"),
                Event::Ambient(kind, name, why) => format!("! {kind} {name} stays, but: {why}"),
                Event::Failed(kind, name, why) => {
                    self.in_force.remove(&(kind, name.clone()));
                    format!("! {kind} {name} failed: {why}")
                }
                Event::Gone(kind, name) => {
                    self.in_force.remove(&(kind, name.clone()));
                    format!("! {kind} {name} gone")
                }
                Event::Synced(kind) => format!("! {kind} synced"),
            });
        }
        while !self.held
            && let Some(request) = match &mut self.client {
                Client::Sotw(client) => client.poll_request(self.now).map(|request| print_request(&request)),
                Client::Delta(client) => client.poll_request(self.now).map(|request| print_delta(&request)),
            }
        {
            answers.push(request);
        }
        if self.connects && self.client.poll_connect(self.now) {
            answers.push("> connect".to_owned());
        }
        while let Some(outcome) = self.server.poll_outcome().or_else(|| self.delta.poll_outcome()) {
            answers.push(match outcome {
                Outcome::Acked(kind, _) => format!("! {kind} acked"),
                Outcome::Nacked(kind, _, message) => format!("! {kind} nacked: {message}"),
            });
        }
        while let Some(response) = self.server.poll_response() {
            answers.push(format!("> {} nonce={} {}", response.kind, response.nonce, print_items(&response.resources)));
        }
        while let Some(response) = self.delta.poll_response() {
            let removed: String = response.removed.iter().map(|name| format!(" -{name}")).collect();
            let items = print_items(&response.resources);
            answers.push(format!("> {} nonce={} {items}{removed}", response.kind, response.nonce));
        }
        answers
    }
}

fn client(variant: Variant, policy: DataErrors) -> Client<String> {
    Client::new(variant, BackOff { jitter: 0.0, ..BackOff::STREAM }, policy)
}

fn print_items(items: &[Item]) -> String {
    items.iter().filter_map(|item| Some(text(&item.body.as_ref()?.value))).collect::<Vec<_>>().join(" ")
}

fn parse_kind(short: &str) -> TypeUrl {
    TypeUrl::ALL.into_iter().find(|kind| kind.short() == short).unwrap()
}

fn subscription(names: &[&str]) -> Subscription {
    match names {
        ["*"] => Subscription::All,
        names => Subscription::Names(names.iter().map(|&name| name.into()).collect()),
    }
}

fn print_request(request: &Request) -> String {
    let mut line = format!(
        "> {} version={} nonce={} names={}",
        request.kind,
        request.version,
        request.nonce,
        request.names.join(",")
    );
    if request.first {
        line.push_str(" node");
    }
    if let Some(error) = &request.error {
        write!(line, " error={error:?}").unwrap();
    }
    line
}

fn print_delta(request: &DeltaRequest) -> String {
    let mut line = format!("> {}", request.kind);
    for (word, names) in [("subscribe", &request.subscribe), ("unsubscribe", &request.unsubscribe)] {
        if !names.is_empty() {
            write!(line, " {word}={}", names.join(",")).unwrap();
        }
    }
    let initial: Vec<String> = request.initial.iter().map(|(name, version)| format!("{name}@{version}")).collect();
    if !initial.is_empty() {
        write!(line, " initial={}", initial.join(",")).unwrap();
    }
    if !request.nonce.is_empty() {
        write!(line, " nonce={}", request.nonce).unwrap();
    }
    if request.first {
        line.push_str(" node");
    }
    if let Some(error) = &request.error {
        write!(line, " error={error:?}").unwrap();
    }
    line
}

/// As [`resource`], or wrapped: `NAME=VALUE;TTL` with seconds to live, `NAME;TTL` for a heartbeat. A wrapped one's version is
/// `v` and its value.
fn item(kind: TypeUrl, word: &str, wrapped: bool) -> Item {
    let (text, ttl) = word.split_once(';').map_or((word, None), |(text, ttl)| (text, Some(ttl)));
    let ttl = ttl.map(|seconds| Duration::from_secs(seconds.parse().unwrap()));
    let body = (text.contains('=') || text == "?").then(|| resource(kind, text));
    let (name, version) = text.split_once('=').unwrap_or((text, ""));
    if ttl.is_none() && !wrapped || text == "?" || text.starts_with("other:") {
        return Item { ttl, ..Item::from(body.unwrap()) };
    }
    Item { name: Some(name.into()), version: format!("v{version}").into(), body, ttl }
}

/// `NAME=VALUE`; `?` is bytes without a name, `other:NAME=VALUE` one of another type.
pub(super) fn resource(kind: TypeUrl, text: &str) -> Any {
    if text == "?" {
        return Any { type_url: kind.as_str().to_owned(), value: Bytes::from_static(&[0xff]) };
    }
    let type_url = if text.starts_with("other:") { "type.example/Other" } else { kind.as_str() };
    let (name, value) = text.trim_start_matches("other:").split_once('=').unwrap();
    let field = |tag: u8, text: &str| [&[tag, u8::try_from(text.len()).unwrap()], text.as_bytes()].concat();
    Any { type_url: type_url.to_owned(), value: [field(0x0a, name), field(0x12, value)].concat().into() }
}

/// The reverse of [`resource`].
fn text(body: &[u8]) -> String {
    let (name, rest) = body[2..].split_at(body[1].into());
    format!("{}={}", String::from_utf8_lossy(name), String::from_utf8_lossy(&rest[2..]))
}

pub(super) fn decode(kind: TypeUrl, body: &Bytes) -> Result<String, String> {
    let text = text(body);
    let (name, value) = text.split_once('=').unwrap();
    if value.starts_with("bad") { Err(format!("{kind} {name:?}: field value: {value}")) } else { Ok(value.to_owned()) }
}
