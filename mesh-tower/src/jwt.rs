//! Verifying tokens: what a token says, whether its provider has signed it, and remembering those that were.
//!
//! Which tokens a request must have is decided in `mesh-core/src/jwt.rs`; this reads and proves them for it. A token that was
//! proven is remembered with the key set that did it, so that the next request with it costs a lookup; whether it is still
//! valid, and for whom it is, is asked each time. Only proven tokens are remembered, and not many: nobody fills this with
//! tokens of his own making.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, UNIX_EPOCH},
};

use hashbrown::HashMap;
use http::request::Parts;
use mesh_core::{
    claims::Claim,
    config::{JwtAuthn, JwtProvider, Name},
    jwt::{Decision, Jwt, JwtError, Proven, Token, Verify},
    request::RequestView,
};
use rand::RngCore;
use tokio::time::timeout;

use crate::{side::SideCalls, source::Source};

mod issuer;
mod keys;

use issuer::{Get, Issuer};

/// Longer than any token that is read.
const LONGEST: usize = 16 * 1024;
/// How many proven tokens are remembered, and how long they may be for it.
const REMEMBERED: (usize, usize) = (1024, 4096);
/// How many configurations have their keys kept: of each port one, and of updates the latest.
const KEPT: usize = 16;
/// How often a request waits for keys.
const WAITS: usize = 2;

/// Verifies the tokens of a server.
pub(crate) struct Tokens {
    get: Get,
    clock: Source,
    /// By configuration, the latest last.
    kept: Mutex<VecDeque<(Arc<JwtAuthn>, Arc<Verifier>)>>,
}

impl Tokens {
    pub(crate) fn new(side: SideCalls, clock: Source) -> Self {
        Self { get: issuer::over(side), clock, kept: Mutex::default() }
    }

    /// Has the request on `port` what it must have? Waits for keys that are on their way.
    pub(crate) async fn decide(&self, jwt: &Jwt, parts: &Parts, port: u16) -> Result<Proven, JwtError> {
        let verifier = self.verifier(jwt.config());
        let bits = self.clock.next_request().next_u64();
        let mut patience = WAITS;
        loop {
            let now = self.clock.wall().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
            let asked = Asked { verifier: &verifier, patient: patience > 0 };
            // Before deciding, so that keys that come meanwhile are not missed.
            let attempts: BTreeMap<Name, _> = verifier.attempts();
            match jwt.decide(&RequestView::of(parts, Some(port)), bits, now, &asked) {
                Decision::Pass(proven) => return Ok(proven),
                Decision::Refuse(error) => return Err(error),
                Decision::Wait(_) if patience == 0 => return Err(JwtError::KeysNotFetched),
                Decision::Wait(providers) => {
                    for name in providers {
                        let (Some(issuer), Some(attempts)) = (verifier.issuers.get(&name), attempts.get(&name)) else {
                            continue;
                        };
                        let mut attempts = attempts.clone();
                        // Late or gone: then it is decided by what is there.
                        let _ = timeout(issuer.patience() + Duration::from_secs(1), attempts.changed()).await;
                    }
                    patience -= 1;
                }
            }
        }
    }

    /// Begins to fetch keys, before the first request needs them.
    pub(crate) fn prepare(&self, config: &Arc<JwtAuthn>) {
        self.verifier(config);
    }

    /// What verifies for a configuration; keys of providers that did not change go on.
    fn verifier(&self, config: &Arc<JwtAuthn>) -> Arc<Verifier> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, verifier)) = kept.iter().rev().find(|(own, _)| Arc::ptr_eq(own, config)) {
            return Arc::clone(verifier);
        }
        let known = |name: &Name, provider: &Arc<JwtProvider>| {
            kept.iter().rev().find_map(|(_, verifier)| verifier.issuers.get(name).filter(|it| it.config == *provider))
        };
        let issuers = config.providers.iter().map(|(name, provider)| {
            let issuer = known(name, provider).cloned();
            (Arc::clone(name), issuer.unwrap_or_else(|| Arc::new(Issuer::start(name, provider, &self.get))))
        });
        let verifier = Arc::new(Verifier { issuers: issuers.collect(), remembered: Mutex::default() });
        if kept.len() == KEPT {
            kept.pop_front();
        }
        kept.push_back((Arc::clone(config), Arc::clone(&verifier)));
        verifier
    }
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokens").finish_non_exhaustive()
    }
}

/// The providers of one configuration.
#[derive(Debug)]
struct Verifier {
    issuers: BTreeMap<Name, Arc<Issuer>>,
    remembered: Mutex<Remembered>,
}

impl Verifier {
    fn attempts(&self) -> BTreeMap<Name, tokio::sync::watch::Receiver<u64>> {
        let remote = self.issuers.iter().filter(|(_, issuer)| issuer.patience() > Duration::ZERO);
        remote.map(|(name, issuer)| (Arc::clone(name), issuer.attempts())).collect()
    }
}

/// Proven tokens, the oldest first.
#[derive(Debug, Default)]
struct Remembered {
    tokens: HashMap<Arc<str>, (Arc<Token>, Name, u64)>,
    order: VecDeque<Arc<str>>,
}

impl Remembered {
    fn keep(&mut self, text: &str, token: Arc<Token>, provider: &Name, generation: u64) {
        if text.len() > REMEMBERED.1 {
            return;
        }
        if let Some(kept) = self.tokens.get_mut(text) {
            *kept = (token, Arc::clone(provider), generation);
            return;
        }
        if self.order.len() >= REMEMBERED.0
            && let Some(oldest) = self.order.pop_front()
        {
            self.tokens.remove(&oldest);
        }
        let text: Arc<str> = text.into();
        self.order.push_back(Arc::clone(&text));
        self.tokens.insert(text, (token, Arc::clone(provider), generation));
    }
}

/// One request's questions.
struct Asked<'a> {
    verifier: &'a Verifier,
    patient: bool,
}

impl Verify for Asked<'_> {
    fn read(&self, token: &str) -> Result<Arc<Token>, JwtError> {
        if token.len() > LONGEST {
            return Err(JwtError::TooLong);
        }
        let remembered = self.verifier.remembered.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((token, ..)) = remembered.tokens.get(token) {
            return Ok(Arc::clone(token));
        }
        drop(remembered);
        read(token).map(Arc::new)
    }

    fn prove(&self, provider: &Name, text: &str, token: &Token) -> Result<(), JwtError> {
        let issuer = self.verifier.issuers.get(provider).ok_or(JwtError::NoKeys)?;
        let generation = issuer.generation();
        {
            let remembered = self.verifier.remembered.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some((_, by, of)) = remembered.tokens.get(text)
                && (by, *of) == (provider, generation)
            {
                return Ok(());
            }
        }
        issuer.prove(text, token, self.patient)?;
        let mut remembered = self.verifier.remembered.lock().unwrap_or_else(PoisonError::into_inner);
        remembered.keep(text, Arc::new(token.clone()), provider, generation);
        Ok(())
    }
}

/// What a token says, whoever made it.
fn read(text: &str) -> Result<Token, JwtError> {
    let mut sections = text.split('.');
    let (Some(header), Some(payload), Some(signature), None) =
        (sections.next(), sections.next(), sections.next(), sections.next())
    else {
        return Err(JwtError::NoToken);
    };
    let json = |bytes: &[u8], error| match serde_json::from_slice(bytes) {
        Ok(claim @ Claim::Map(_)) => Ok(claim),
        _ => Err(error),
    };
    let header = json(&keys::decode(header).ok_or(JwtError::HeaderNoBase64)?, JwtError::HeaderNoJson)?;
    let claims = json(&keys::decode(payload).ok_or(JwtError::PayloadNoBase64)?, JwtError::PayloadNoJson)?;
    let token = Token::new(header, claims, payload)?;
    keys::decode(signature).ok_or(JwtError::SignatureNoBase64)?;
    Ok(token)
}

/// Reads a token and a set of keys as servers do, and looks whether they go together: for who feeds them bytes of any kind.
#[doc(hidden)]
pub fn read_untrusted(token: &str, keys: &str) -> bool {
    match (read(token), keys::KeySet::parse(keys, true)) {
        (Ok(read), Ok(keys)) => keys.prove(token, &read).is_ok(),
        _ => false,
    }
}

#[cfg(test)]
mod tests;
