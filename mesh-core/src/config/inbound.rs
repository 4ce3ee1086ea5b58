//! What a server of this process demands of its callers. Source: Envoy `Listener` `virtualInbound`, filter chains by port.

use std::{net::IpAddr, sync::Arc, time::Duration};

use http::HeaderMap;
use serde::{Deserialize, Serialize};

use super::{GlobalRateLimit, Guard, LocalRateLimit, Name, RouteTable, StringMatch, Telling, TlsVersions};

/// Among what servers demand ([`Config::inbound`](super::Config::inbound)), the port whose policy holds at every port that has
/// none of its own. Envoy `virtualInbound`: the filter chains without a `destination_port`.
pub const EVERY_PORT: u16 = 0;

/// The policy of one listening port.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct Inbound {
    /// The filter chain's name, for people (`0.0.0.0_9080`).
    pub name: Name,
    /// Who may speak at all.
    pub mtls: MtlsMode,
    /// Any one must match the identity of a caller with a certificate; empty lets in every identity of the mesh's roots.
    ///
    /// Envoy `CertificateValidationContext.match_subject_alt_names` of the `DownstreamTlsContext`.
    pub callers: Vec<StringMatch>,
    /// Versions of TLS spoken. Envoy `DownstreamTlsContext.common_tls_context.tls_params`.
    pub tls_versions: TlsVersions,
    /// Protocols offered in the TLS handshake. Istio: `h2`, `http/1.1`.
    pub alpn: Vec<String>,
    /// The routes of what is let in; each is [`Action::NonForwarding`](super::Action) or a direct response.
    pub routes: Arc<RouteTable>,
    /// Why requests are refused, when a filter of the chain demands something this library cannot enforce.
    pub refused: Option<String>,
    /// What a request must pass, in order, before the rate limit and the application. Envoy `http_filters`.
    pub guards: Vec<Guard>,
    /// The form paths are brought into before anything is decided by them. Istio `pathNormalization`.
    pub path: PathNormalization,
    /// How many proxies in front are trusted to have told the caller's address: that many entries from the end of
    /// `x-forwarded-for` are passed over, and the next is the caller. `None` believes nobody but, as the next field says,
    /// members of the mesh.
    ///
    /// Envoy `HttpConnectionManager.xff_num_trusted_hops`, where it is not 0.
    pub trusted_hops: Option<u32>,
    /// Where `trusted_hops` says nothing, a caller with a certificate of the mesh is believed the last entry of
    /// `x-forwarded-for`: a gateway wrote it. Without, the connection alone tells. Default true.
    ///
    /// Envoy `HttpConnectionManager.use_remote_address`, turned round; Envoy believes callers in plaintext too. gRFC A41: false.
    pub members_forward: bool,
    /// Who is believed to tell addresses at all, by the identity of its certificate: the gateways of the mesh. `None` is no such
    /// list: then `trusted_hops` counts whoever calls, and each member is believed as the field before says.
    ///
    /// On the wire in the metadata of the filter chain (`mesh`, `forwarders`), which no Envoy reads.
    pub forwarders: Option<Vec<String>>,
    /// How many requests are let in. Envoy `LocalRateLimit` among the `http_filters`.
    pub rate_limit: Option<Arc<LocalRateLimit>>,
    /// Who counts requests for the whole mesh, in order; asked after `rate_limit`. Envoy `RateLimit` among the `http_filters`.
    pub global_limits: Vec<Arc<GlobalRateLimit>>,
    /// How long a caller may take for the head of an HTTP/1.1 request; `None` is 30 s here. Of HTTP/2 a head comes whole.
    ///
    /// Envoy `HttpConnectionManager.request_headers_timeout`, there without limit by default.
    pub request_headers_timeout: Option<Duration>,
    /// How long a caller may take to send a request, its body included, as long as it is not answered: 408 then. `None` is
    /// no limit. Envoy `HttpConnectionManager.request_timeout`.
    pub request_timeout: Option<Duration>,
    /// How much of heads, streams and bytes one connection may take.
    pub http: HttpLimits,
    /// What becomes of headers with an underscore in their name. Envoy
    /// `common_http_protocol_options.headers_with_underscores_action`.
    pub underscores: Underscores,
    /// What the application is told of the caller's certificate.
    pub client_cert: ClientCertHeader,
    /// How many connections there may be at once; more are closed as soon as they are accepted. `None` is no limit.
    ///
    /// Envoy network filter `ConnectionLimit.max_connections`.
    pub max_connections: Option<u64>,
    /// What is told of requests; `None` is as the process's environment says. Envoy `tracing`, `access_log`.
    pub telling: Option<Arc<Telling>>,
}

impl Default for Inbound {
    /// What a server demands before the control plane has spoken: mutual TLS.
    fn default() -> Self {
        Self {
            name: Name::default(),
            mtls: MtlsMode::Strict,
            callers: Vec::new(),
            tls_versions: TlsVersions::default(),
            alpn: vec!["h2".to_owned(), "http/1.1".to_owned()],
            routes: Arc::default(),
            refused: None,
            guards: Vec::new(),
            path: PathNormalization::BASE,
            trusted_hops: None,
            members_forward: true,
            forwarders: None,
            rate_limit: None,
            global_limits: Vec::new(),
            request_headers_timeout: None,
            request_timeout: None,
            http: HttpLimits::default(),
            underscores: Underscores::Allow,
            client_cert: ClientCertHeader::default(),
            max_connections: None,
            telling: None,
        }
    }
}

impl Inbound {
    /// Where a request comes from, as far as the proxies in front are trusted: `direct` is the other end of the
    /// connection, which a `member` of the mesh has who is [believed](Self::believes). `None` if what was believed is no address.
    pub fn remote(&self, direct: IpAddr, member: bool, headers: &HeaderMap) -> Option<IpAddr> {
        self.remote_behind(direct, member, headers, 0)
    }

    /// The same when so many entries have been appended here.
    pub fn remote_behind(&self, direct: IpAddr, member: bool, headers: &HeaderMap, appended: usize) -> Option<IpAddr> {
        let hops = match (&self.forwarders, member) {
            (Some(_), false) => None,
            _ => self.trusted_hops.or_else(|| (member && self.members_forward).then_some(0)),
        };
        let Some(hops) = hops.and_then(|hops| usize::try_from(hops).ok()) else { return Some(direct) };
        let lines = headers.get_all("x-forwarded-for").iter().rev();
        let mut entries = lines.flat_map(|line| line.as_bytes().rsplit(|byte| *byte == b','));
        let Some(entry) = entries.nth(hops.saturating_add(appended)) else { return Some(direct) };
        std::str::from_utf8(entry).ok()?.trim().parse::<IpAddr>().ok().map(|address| address.to_canonical())
    }

    /// Is a caller believed, where members are, who proved this identity?
    pub fn believes(&self, peer: Option<&str>) -> bool {
        peer.is_some_and(|peer| self.forwarders.as_ref().is_none_or(|known| known.iter().any(|known| known == peer)))
    }

    /// Is there no place for another connection beside so many?
    pub fn is_full(&self, open: usize) -> bool {
        self.max_connections.is_some_and(|most| u64::try_from(open).is_ok_and(|open| open >= most))
    }
}

/// How much one connection may take. Source: Envoy `HttpConnectionManager`, `HttpProtocolOptions`, `Http2ProtocolOptions`.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default)]
pub struct HttpLimits {
    /// The most headers of a request, 100; more are answered 431. Envoy `common_http_protocol_options.max_headers_count`.
    pub max_headers: u32,
    /// The most of a head, in KiB, 60; more is answered 431. No less than 8 over HTTP/1.1. Envoy `max_request_headers_kb`.
    pub max_head_kb: u32,
    /// The most of a request's body, in bytes; more is answered 413. `None` is no limit. Envoy HTTP filter
    /// `Buffer.max_request_bytes`; here nothing is held back meanwhile.
    pub max_body: Option<u32>,
    /// The most streams at once, 1000. Envoy `http2_protocol_options.max_concurrent_streams`.
    pub max_streams: u32,
    /// Bytes a caller may send on a stream before it hears that they were read; `None` goes by what the connection is worth.
    /// Envoy `http2_protocol_options.initial_stream_window_size`.
    pub stream_window: Option<u32>,
    /// The same of all streams of a connection. Envoy `http2_protocol_options.initial_connection_window_size`.
    pub connection_window: Option<u32>,
}

impl Default for HttpLimits {
    fn default() -> Self {
        Self {
            max_headers: 100,
            max_head_kb: 60,
            max_body: None,
            max_streams: 1000,
            stream_window: None,
            connection_window: None,
        }
    }
}

/// What becomes of headers with an underscore in their name, which some applications take for a hyphen. Source: Envoy
/// `HeadersWithUnderscoresAction`.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Underscores {
    /// They are headers like others.
    #[default]
    Allow,
    /// The request is refused (400).
    Reject,
    /// The application does not get them.
    Drop,
}

/// `x-forwarded-client-cert`. Source: Envoy `forward_client_cert_details`, `set_current_client_cert_details` (CT14).
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default)]
pub struct ClientCertHeader {
    /// What becomes of the one that arrives, and whether the caller's own certificate is told.
    pub mode: ForwardClientCert,
    /// With the subject.
    pub subject: bool,
    /// With the certificate itself.
    pub cert: bool,
    /// With the whole chain.
    pub chain: bool,
    /// With names of hosts.
    pub dns: bool,
    /// With the identity.
    pub uri: bool,
}

/// Source: Envoy `ForwardClientCertDetails`.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ForwardClientCert {
    /// Taken off.
    #[default]
    Sanitize,
    /// Passed on as it is if the caller has a certificate; taken off otherwise.
    ForwardOnly,
    /// The caller's certificate is added to what it says; taken off if it has none.
    AppendForward,
    /// The caller's certificate alone; taken off if it has none.
    SanitizeSet,
    /// Passed on whoever calls.
    AlwaysForwardOnly,
}

/// The form of paths. Source: Istio `MeshConfig.pathNormalization`.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default)]
pub struct PathNormalization {
    /// Dot segments are resolved, backslashes are slashes, needless escapes go. Envoy `normalize_path`.
    pub dot_segments: bool,
    /// Repeated slashes are one. Envoy `merge_slashes`.
    pub merge_slashes: bool,
    /// What `%2f` and `%5c` come to. Envoy `path_with_escaped_slashes_action`.
    pub escaped_slashes: EscapedSlashes,
}

impl PathNormalization {
    /// As it came. Istio `NONE`, and what Envoy does where nothing is said.
    pub const NONE: Self = Self { dot_segments: false, merge_slashes: false, escaped_slashes: EscapedSlashes::Keep };
    /// Istio `BASE`, its default.
    pub const BASE: Self = Self { dot_segments: true, ..Self::NONE };
}

impl Default for PathNormalization {
    /// [`BASE`](Self::BASE): rules are worth nothing where a path has many forms.
    fn default() -> Self {
        Self::BASE
    }
}

/// Source: Envoy `HttpConnectionManager.PathWithEscapedSlashesAction`.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum EscapedSlashes {
    /// Nothing is done.
    #[default]
    Keep,
    /// The request is refused (400).
    Reject,
    /// The caller is told to ask for the path without (307).
    Redirect,
    /// They are slashes.
    Forward,
}

/// Source: Istio `PeerAuthentication.mtls.mode`.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum MtlsMode {
    /// Plaintext only.
    Disable,
    /// Both on one port, told apart by the first byte.
    Permissive,
    /// Mutual TLS only.
    #[default]
    Strict,
}
