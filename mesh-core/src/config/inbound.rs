//! What a server of this process demands of its callers. Source: Envoy `Listener` `virtualInbound`, filter chains by port.

use std::{net::IpAddr, sync::Arc, time::Duration};

use http::HeaderMap;
use serde::{Deserialize, Serialize};

use super::{Guard, LocalRateLimit, Name, RouteTable, StringMatch, TlsVersions};

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
    /// How many requests are let in. Envoy `LocalRateLimit` among the `http_filters`.
    pub rate_limit: Option<Arc<LocalRateLimit>>,
    /// How long a caller may take for the head of an HTTP/1.1 request; `None` is 30 s here. Of HTTP/2 a head comes whole.
    ///
    /// Envoy `HttpConnectionManager.request_headers_timeout`, there without limit by default.
    pub request_headers_timeout: Option<Duration>,
    /// How long a caller may take to send a request, its body included, as long as it is not answered: 408 then. `None` is
    /// no limit. Envoy `HttpConnectionManager.request_timeout`.
    pub request_timeout: Option<Duration>,
    /// How many connections there may be at once; more are closed as soon as they are accepted. `None` is no limit.
    ///
    /// Envoy network filter `ConnectionLimit.max_connections`.
    pub max_connections: Option<u64>,
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
            rate_limit: None,
            request_headers_timeout: None,
            request_timeout: None,
            max_connections: None,
        }
    }
}

impl Inbound {
    /// Where a request comes from, as far as the proxies in front are trusted: `direct` is the other end of the
    /// connection, which a `member` of the mesh has who showed its certificate. `None` if what was believed is no address.
    pub fn remote(&self, direct: IpAddr, member: bool, headers: &HeaderMap) -> Option<IpAddr> {
        let hops = self.trusted_hops.or((member && self.members_forward).then_some(0));
        let Some(hops) = hops.and_then(|hops| usize::try_from(hops).ok()) else { return Some(direct) };
        let lines = headers.get_all("x-forwarded-for").iter().rev();
        let mut entries = lines.flat_map(|line| line.as_bytes().rsplit(|byte| *byte == b','));
        let Some(entry) = entries.nth(hops) else { return Some(direct) };
        std::str::from_utf8(entry).ok()?.trim().parse::<IpAddr>().ok().map(|address| address.to_canonical())
    }

    /// Is there no place for another connection beside so many?
    pub fn is_full(&self, open: usize) -> bool {
        self.max_connections.is_some_and(|most| u64::try_from(open).is_ok_and(|open| open >= most))
    }
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
