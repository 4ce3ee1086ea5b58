//! Plays the conversations in `testdata/`: commands to a machine, and after each the lines it must answer with.
//!
//! A line that begins with `>` is what must go out, with `!` what must have become of a resource; every other line is a
//! command. `MESH_REGENERATE=1` writes the answers anew, to be read before they are committed.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{collections::BTreeMap, fmt::Write, fs, path::PathBuf, sync::Arc, time::Duration};

use bytes::Bytes;
use mesh_core::{config::Name, rng::RequestRng, time::Time};

use super::{
    Request, ResourceSet, Response, Subscription, TypeUrl,
    back_off::BackOff,
    server::{self, Outcome},
    sotw::{Event, Sotw},
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

fn play(name: &str) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("testdata").join(format!("{name}.txt"));
    let script = fs::read_to_string(&path).unwrap();
    let mut player = Player::new();
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
    client: Sotw<String>,
    server: server::Sotw,
    resources: ResourceSet,
    in_force: BTreeMap<(TypeUrl, Name), String>,
    answers: Vec<String>,
    held: bool,
    connects: bool,
}

impl Player {
    fn new() -> Self {
        Self {
            now: Time::ZERO,
            rng: RequestRng::new(1, 1),
            client: Sotw::new(BackOff { jitter: 0.0, ..BackOff::STREAM }),
            server: server::Sotw::new(Arc::default()),
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
            ["response", kind, version, nonce, ref resources @ ..] => {
                let kind = parse_kind(kind);
                let resources = resources.iter().map(|text| resource(kind, text)).collect();
                let response = Response { kind, version: version.into(), nonce: nonce.into(), resources };
                self.client.handle_response(&response, |kind, body| decode(kind, body));
            }
            ["set", kind, ref resources @ ..] => {
                let kind = parse_kind(kind);
                for text in resources {
                    let (name, _) = text.split_once('=').unwrap();
                    self.resources.insert(kind, name, resource(kind, text).value);
                }
            }
            ["clear"] => self.resources = ResourceSet::default(),
            ["push"] => self.server.handle_resources(Arc::new(self.resources.clone())),
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
                Event::Gone(kind, name) => {
                    self.in_force.remove(&(kind, name.clone()));
                    format!("! {kind} {name} gone")
                }
                Event::Synced(kind) => format!("! {kind} synced"),
            });
        }
        while !self.held
            && let Some(request) = self.client.poll_request(self.now)
        {
            answers.push(print_request(&request));
        }
        if self.connects && self.client.poll_connect(self.now) {
            answers.push("> connect".to_owned());
        }
        while let Some(outcome) = self.server.poll_outcome() {
            answers.push(match outcome {
                Outcome::Acked(kind, _) => format!("! {kind} acked"),
                Outcome::Nacked(kind, _, message) => format!("! {kind} nacked: {message}"),
            });
        }
        while let Some(response) = self.server.poll_response() {
            let resources = response.resources.iter().map(|any| text(&any.value)).collect::<Vec<_>>();
            answers.push(format!("> {} nonce={} {}", response.kind, response.nonce, resources.join(" ")));
        }
        answers
    }
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

pub(super) fn decode(kind: TypeUrl, body: &[u8]) -> Result<String, String> {
    let text = text(body);
    let (name, value) = text.split_once('=').unwrap();
    if value.starts_with("bad") { Err(format!("{kind} {name:?}: field value: {value}")) } else { Ok(value.to_owned()) }
}
