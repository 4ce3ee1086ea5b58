//! Sessions are resumed where nothing has changed, and never where anything has: what a caller has saved is worth nothing
//! once its certificate, its CA, its identity or the settings are not what they were.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, SystemTime},
};

use mesh_tower::{
    config::{MtlsMode, Protocol, StringMatch, UpstreamTls},
    tls::{ClientTls, Identity, LiveIdentity, MtlsAcceptor, Sessions, TlsError, Trust, UpstreamTarget},
};
use rustls::{
    ClientConfig, HandshakeKind, NamedGroup,
    client::{ClientSessionStore, Resumption, Tls12ClientSessionValue, Tls13ClientSessionValue},
    crypto::ring,
    version::{TLS12, TLS13},
};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
use tokio_rustls::TlsConnector;

use crate::{
    pki::{Ca, Leaf, RATINGS, REVIEWS},
    tls::Credulous,
};

/// What a caller keeps of its sessions: everything, for ever.
#[derive(Debug, Default)]
struct Saved {
    /// It collects, and uses none.
    hoarding: AtomicBool,
    tls12: Mutex<VecDeque<Tls12ClientSessionValue>>,
    tls13: Mutex<VecDeque<Tls13ClientSessionValue>>,
}

impl Saved {
    /// Forgets all but the last.
    fn keep_last(&self) {
        let (mut tls12, mut tls13) = (self.tls12.lock().unwrap(), self.tls13.lock().unwrap());
        let (first, second) = (tls12.len().saturating_sub(1), tls13.len().saturating_sub(1));
        tls12.drain(..first);
        tls13.drain(..second);
    }

    fn len(&self) -> usize {
        self.tls12.lock().unwrap().len() + self.tls13.lock().unwrap().len()
    }
}

impl ClientSessionStore for Saved {
    fn set_kx_hint(&self, _: ServerName<'static>, _: NamedGroup) {}

    fn kx_hint(&self, _: &ServerName<'_>) -> Option<NamedGroup> {
        None
    }

    fn set_tls12_session(&self, _: ServerName<'static>, value: Tls12ClientSessionValue) {
        self.tls12.lock().unwrap().push_back(value);
    }

    fn tls12_session(&self, _: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        let mut all = self.tls12.lock().unwrap();
        // The next one each time, and round again.
        if self.hoarding.load(Relaxed) {
            return None;
        }
        let next = all.pop_front()?;
        all.push_back(next.clone());
        Some(next)
    }

    fn remove_tls12_session(&self, _: &ServerName<'static>) {}

    fn insert_tls13_ticket(&self, _: ServerName<'static>, value: Tls13ClientSessionValue) {
        self.tls13.lock().unwrap().push_back(value);
    }

    fn take_tls13_ticket(&self, _: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        if self.hoarding.load(Relaxed) { None } else { self.tls13.lock().unwrap().pop_front() }
    }
}

/// A server, a caller with what it has saved, and a clock to turn.
struct Stage {
    ca: Ca,
    server: LiveIdentity,
    acceptor: MtlsAcceptor,
    clock: Arc<AtomicU64>,
    caller: TlsConnector,
    saved: Arc<Saved>,
}

const SERIAL: u64 = 4711;

impl Stage {
    fn new(version: &'static rustls::SupportedProtocolVersion) -> Self {
        let ca = Ca::new();
        let clock = Arc::new(AtomicU64::new(0));
        let (turned, start) = (Arc::clone(&clock), SystemTime::now());
        let server = LiveIdentity::with_clock(move || start + Duration::from_secs(turned.load(Relaxed)));
        server.replace(ca.identity(REVIEWS));
        // For a hundred years less than anything else.
        let (chain, key) = ca.sign(&Leaf { uris: &[RATINGS], until: 2060, serial: Some(SERIAL), ..Leaf::default() });
        let saved = Arc::new(Saved::default());
        let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(&[version])
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Credulous))
            .with_client_auth_cert(chain, key)
            .unwrap();
        config.resumption = Resumption::store(Arc::clone(&saved) as Arc<dyn ClientSessionStore>);
        let caller = TlsConnector::from(Arc::new(config));
        Self { ca, acceptor: MtlsAcceptor::new(server.clone()), server, clock, caller, saved }
    }

    /// One try: how the server came to take it, if it did, with what it proves by answering.
    async fn call(&self) -> Option<HandshakeKind> {
        let (near, far) = duplex(16 << 10);
        let name = ServerName::try_from("reviews").unwrap();
        let answering = async {
            let mut accepted = self.acceptor.accept(far, MtlsMode::Strict).await.ok()?;
            assert_eq!(accepted.peer().unwrap().as_str(), RATINGS);
            accepted.write_all(b"!").await.ok()?;
            accepted.flush().await.ok()
        };
        let (client, answered) = tokio::join!(
            async {
                let mut stream = self.caller.connect(name, near).await.ok()?;
                stream.read_u8().await.ok()?;
                stream.get_ref().1.handshake_kind()
            },
            answering
        );
        assert_eq!(client.is_some(), answered.is_some(), "both have one story");
        client
    }

    /// What was saved is of no use, what is saved from now on is.
    async fn begins_anew(&self, why: &str) {
        assert_eq!(self.call().await, Some(HandshakeKind::Full), "{why}");
        self.saved.keep_last();
        assert_eq!(self.call().await, Some(HandshakeKind::Resumed), "{why}");
    }

    fn trust(&self, change: impl FnOnce(&mut Trust)) {
        let mut trust = Trust::clone(&self.server.trust());
        change(&mut trust);
        self.server.replace_trust(Arc::new(trust)).unwrap();
    }
}

/// AN12: 10,000 tries with saved sessions after the caller's certificate was revoked or ran out, its CA was removed, its
/// identity or serial number denied: none is let in, over TLS 1.2 and 1.3. Before that each was resumed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn saved_sessions_do_not_outlive_trust() {
    const TRIES: usize = 1_000;
    const SAVED: usize = 200;
    type Change = fn(&Stage);
    let changes: [(&str, Change); 5] = [
        ("revoked", |stage| stage.trust(|trust| trust.crls = vec![stage.ca.revoke(&[SERIAL])])),
        ("expired", |stage| stage.clock.store(60 * 366 * 86_400, Relaxed)),
        ("another CA", |stage| stage.server.replace(Ca::new().identity(REVIEWS))),
        ("identity denied", |stage| stage.trust(|trust| trust.denied_ids = [RATINGS.to_owned()].into())),
        ("serial denied", |stage| {
            stage.trust(|trust| trust.denied_serials = [SERIAL.to_be_bytes()[6..].to_vec()].into());
        }),
    ];
    let mut tasks = Vec::new();
    for version in [&TLS12, &TLS13] {
        for (what, change) in changes {
            tasks.push(tokio::spawn(async move {
                let stage = Stage::new(version);
                assert_eq!(stage.call().await, Some(HandshakeKind::Full), "{what}");
                for _ in 0..20 {
                    assert_eq!(stage.call().await, Some(HandshakeKind::Resumed), "{what}");
                }
                // A pocket full of sessions that nobody has used.
                stage.saved.hoarding.store(true, Relaxed);
                while stage.saved.len() < SAVED {
                    assert_eq!(stage.call().await, Some(HandshakeKind::Full), "{what}");
                }
                stage.saved.hoarding.store(false, Relaxed);
                change(&stage);
                let mut accepted = 0;
                for _ in 0..TRIES {
                    accepted += usize::from(stage.call().await.is_some());
                }
                assert_eq!(accepted, 0, "{what}, {:?}", version.version);
                TRIES
            }));
        }
    }
    let mut tries = 0;
    for task in tasks {
        tries += task.await.unwrap();
    }
    assert_eq!(tries, 10_000);
}

/// AN12: what else changes leaves nothing to resume, but whoever is believed still is let in.
#[tokio::test]
async fn a_change_of_identity_trust_or_settings_begins_anew() {
    for version in [&TLS12, &TLS13] {
        let mut stage = Stage::new(version);
        stage.call().await;
        assert_eq!(stage.call().await, Some(HandshakeKind::Resumed));
        stage.server.replace(stage.ca.identity(REVIEWS));
        stage.begins_anew("another certificate of ours").await;
        stage.trust(|trust| trust.denied_serials = [vec![9]].into());
        stage.begins_anew("another trust").await;
        stage.trust(|_| {});
        assert_eq!(stage.call().await, Some(HandshakeKind::Resumed), "the same trust told again");
        stage.acceptor = stage.acceptor.with_alpn(["h2"]);
        stage.begins_anew("other protocols").await;
    }
}

/// AN12: our own callers resume, and judge a server that resumes as one that does not: when it is denied, revoked or over, or
/// is none of those expected any more, it is not believed.
#[tokio::test]
async fn callers_judge_resumed_servers_too() {
    for change in 0..4 {
        let ca = Ca::new();
        let acceptor = MtlsAcceptor::new(ca.live(REVIEWS));
        let clock = Arc::new(AtomicU64::new(0));
        let (turned, start) = (Arc::clone(&clock), SystemTime::now());
        let ours = LiveIdentity::with_clock(move || start + Duration::from_secs(turned.load(Relaxed)));
        let (chain, key) = ca.sign(&Leaf { uris: &[RATINGS], until: 2200, ..Leaf::default() });
        ours.replace(Identity::from_der(chain, key, vec![ca.root()]).unwrap());
        let mut tls = UpstreamTls { workload_identity: true, sni: "reviews".to_owned(), ..UpstreamTls::default() };
        tls.subject_alt_names = vec![StringMatch::Exact { value: REVIEWS.to_owned(), ignore_case: false }];
        let (caller, sessions) = (ClientTls::new(ours.clone()), Sessions::default());
        let call = async |tls: &UpstreamTls| {
            let (near, far) = duplex(16 << 10);
            let server = async {
                let mut accepted = acceptor.accept(far, MtlsMode::Strict).await.ok()?;
                accepted.write_all(b"!").await.ok()?;
                accepted.flush().await.ok()
            };
            let client = async {
                let target = UpstreamTarget { tls, protocol: Protocol::Http1, host: "reviews" };
                let mut stream = caller.connect_again(near, target, &sessions).await?;
                let _ = stream.read_u8().await;
                Ok::<_, TlsError>(stream.get_ref().1.handshake_kind().unwrap())
            };
            tokio::join!(client, server).0
        };
        assert_eq!(call(&tls).await.unwrap(), HandshakeKind::Full);
        assert_eq!(call(&tls).await.unwrap(), HandshakeKind::Resumed);
        let reason = match change {
            0 => {
                let trust = Trust { denied_ids: [REVIEWS.to_owned()].into(), ..Trust::default() };
                ours.replace_trust(Arc::new(trust)).unwrap();
                "denied"
            }
            1 => {
                let trust = Trust { crls: vec![Ca::new().revoke(&[])], ..Trust::default() };
                ours.replace_trust(Arc::new(trust)).unwrap();
                "revocation_unknown"
            }
            2 => {
                clock.store(100 * 366 * 86_400, Relaxed);
                "expired"
            }
            _ => {
                tls.subject_alt_names = vec![StringMatch::Exact { value: RATINGS.to_owned(), ignore_case: false }];
                "unexpected_name"
            }
        };
        for _ in 0..10 {
            assert_eq!(call(&tls).await.unwrap_err().reason().as_str(), reason);
        }
    }
}
