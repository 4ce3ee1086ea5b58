//! Input: messages with random fields, by the descriptors of the protocol, and mutations of what is good.

use mesh_xds::proto::DESCRIPTORS;
use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, FieldDescriptor, Kind, MapKey, MessageDescriptor, Value};
use rand::{Rng, rngs::SmallRng};

/// Words that mean something somewhere.
const WORDS: [&str; 44] = [
    "",
    "*",
    "*.a",
    "a",
    "a.b.svc.cluster.local",
    "/",
    "/a",
    "/{a}/**",
    "(",
    ".*",
    "(a|b)+",
    "default",
    "ROOTCA",
    "127.0.0.1",
    "::1",
    "0.0.0.0",
    "10.0.0.0/33",
    "istio",
    "mesh",
    "envoy.lb",
    "hash_key",
    "virtualInbound",
    "virtualOutbound",
    "outbound|80||a",
    "inbound|80||",
    ":path",
    ":authority",
    "x-a",
    "x-envoy-retry-on",
    "5xx,reset,retriable-status-codes",
    "%REQ(x-a?:path):3%",
    "%START_TIME%",
    "%",
    "\\1\\2\\0",
    "envoy.filters.http.router",
    "envoy.filters.http.fault",
    "envoy.filters.http.rbac",
    "envoy.transport_sockets.tls",
    "envoy.retry_host_predicates.previous_hosts",
    "type.googleapis.com/a.B",
    "istio-peer-exchange",
    "tlsMode",
    "Ünïcödé",
    "a;b;c;d;e",
];

/// Messages within messages.
const DEPTH: usize = 9;

/// Makes messages.
pub(crate) struct Makers {
    pool: DescriptorPool,
    /// What an `Any` may hold.
    any: Vec<MessageDescriptor>,
}

impl Makers {
    pub(crate) fn new() -> Self {
        let pool = DescriptorPool::decode(DESCRIPTORS).unwrap();
        let of_envoy = |message: &MessageDescriptor| {
            message.full_name().starts_with("envoy.extensions") || message.full_name().ends_with("TypedStruct")
        };
        let any = pool.all_messages().filter(of_envoy).filter(|message| message.parent_message().is_none()).collect();
        Self { pool, any }
    }

    /// A message of this type.
    pub(crate) fn message(&self, name: &str, rng: &mut SmallRng) -> Vec<u8> {
        let descriptor = self.pool.get_message_by_name(name).unwrap_or_else(|| panic!("no message {name}"));
        self.make(&descriptor, rng, 0).encode_to_vec()
    }

    fn make(&self, descriptor: &MessageDescriptor, rng: &mut SmallRng, depth: usize) -> DynamicMessage {
        let mut message = DynamicMessage::new(descriptor.clone());
        if descriptor.full_name() == "google.protobuf.Any" {
            let inner = &self.any[rng.random_range(0..self.any.len())];
            let value = if depth > DEPTH { Vec::new() } else { self.make(inner, rng, depth + 1).encode_to_vec() };
            message.set_field_by_number(1, Value::String(format!("type.googleapis.com/{}", inner.full_name())));
            message.set_field_by_number(2, Value::Bytes(value.into()));
            return message;
        }
        for field in descriptor.fields() {
            // Names and what comes first are seldom absent.
            let likely = match field.number() {
                1 => 0.8,
                2 | 3 => 0.5,
                _ => 0.12,
            };
            let is_message = matches!(field.kind(), Kind::Message(_));
            if rng.random_bool(likely) && (depth < DEPTH || !is_message) {
                message.set_field(&field, self.field(&field, rng, depth));
            }
        }
        message
    }

    fn field(&self, field: &FieldDescriptor, rng: &mut SmallRng, depth: usize) -> Value {
        if field.is_map() {
            let value = match field.kind() {
                Kind::Message(entry) => entry.map_entry_value_field(),
                _ => return Value::Map(Default::default()),
            };
            let entries = (0..rng.random_range(0..3))
                .map(|_| (MapKey::String(word(rng).to_owned()), self.value(&value.kind(), rng, depth)));
            return Value::Map(entries.collect());
        }
        if field.is_list() {
            let most = if rng.random_bool(0.02) { 40 } else { 3 };
            return Value::List(
                (0..rng.random_range(0..=most)).map(|_| self.value(&field.kind(), rng, depth)).collect(),
            );
        }
        self.value(&field.kind(), rng, depth)
    }

    fn value(&self, kind: &Kind, rng: &mut SmallRng, depth: usize) -> Value {
        match kind {
            Kind::Double => Value::F64(float(rng)),
            Kind::Float => Value::F32(float(rng) as f32),
            Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => Value::I32(whole(rng) as i32),
            Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => Value::I64(whole(rng)),
            Kind::Uint32 | Kind::Fixed32 => Value::U32(whole(rng) as u32),
            Kind::Uint64 | Kind::Fixed64 => Value::U64(whole(rng) as u64),
            Kind::Bool => Value::Bool(rng.random()),
            Kind::String => Value::String(word(rng).to_owned()),
            Kind::Bytes => Value::Bytes(word(rng).as_bytes().to_vec().into()),
            Kind::Enum(kind) => {
                let values: Vec<i32> = kind.values().map(|value| value.number()).collect();
                let known = values[rng.random_range(0..values.len())];
                Value::EnumNumber(if rng.random_bool(0.03) { whole(rng) as i32 } else { known })
            }
            Kind::Message(message) => Value::Message(self.make(message, rng, depth + 1)),
        }
    }
}

fn word(rng: &mut SmallRng) -> &'static str {
    WORDS[rng.random_range(0..WORDS.len())]
}

fn whole(rng: &mut SmallRng) -> i64 {
    const CORNERS: [i64; 16] =
        [0, 1, 2, 3, 80, 100, 101, 200, 503, 65_535, 65_536, 1_000_000, -1, i32::MAX as i64, u32::MAX as i64, i64::MAX];
    if rng.random_bool(0.9) { CORNERS[rng.random_range(0..CORNERS.len())] } else { rng.random() }
}

fn float(rng: &mut SmallRng) -> f64 {
    const CORNERS: [f64; 9] = [0.0, 1.0, 50.0, 100.0, -1.0, f64::INFINITY, f64::NAN, f64::MAX, f64::MIN_POSITIVE];
    if rng.random_bool(0.9) { CORNERS[rng.random_range(0..CORNERS.len())] } else { f64::from_bits(rng.random()) }
}

/// Changes a few places: bits, bytes, lengths, pieces moved, dropped, repeated, taken from another input.
pub(crate) fn mutate(bytes: &mut Vec<u8>, other: &[u8], rng: &mut SmallRng) {
    const CORNERS: [u8; 12] = [0, 1, 0x0a, 0x12, 0x20, 0x25, 0x2f, 0x7b, 0x7f, 0x80, 0xfe, 0xff];
    for _ in 0..=rng.random_range(0..6_usize) {
        let length = bytes.len();
        let at = rng.random_range(0..=length);
        let until = rng.random_range(at..=length.min(at + 32));
        match rng.random_range(0..9) {
            0 if at < length => bytes[at] ^= 1 << rng.random_range(0..8),
            1 if at < length => bytes[at] = CORNERS[rng.random_range(0..CORNERS.len())],
            2 if at < length => bytes[at] = rng.random(),
            3 => bytes.insert(at, rng.random()),
            4 => drop(bytes.drain(at..until)),
            5 => {
                let piece = bytes[at..until].to_vec();
                for _ in 0..rng.random_range(1..4) {
                    bytes.splice(at..at, piece.iter().copied());
                }
            }
            6 => bytes.truncate(at),
            7 if !other.is_empty() => {
                let from = rng.random_range(0..other.len());
                let to = rng.random_range(from..=other.len().min(from + 64));
                bytes.splice(at..until, other[from..to].iter().copied());
            }
            _ => {
                let word = word(rng);
                bytes.splice(at..until, word.bytes());
            }
        }
    }
}
