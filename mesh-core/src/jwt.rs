//! Which tokens a request must have, which of those it brings count, and what becomes of them on the way to the application.
//!
//! Verifying a signature and parsing a token are somebody else's ([`Verify`], in `mesh-tower`); here are the rules: where a
//! token may be, what it must say, how requirements combine, what is taken off and what the application is told. Whatever
//! cannot be decided refuses the request; what a failed requirement had found does not count. Source: Envoy `jwt_authn`,
//! compared with Envoy 1.40 by `tests/envoy/jwt.rs`.

use std::{collections::BTreeSet, sync::Arc};

use http::{HeaderName, HeaderValue, Method, header, request::Parts};

use crate::{
    claims::{Claim, Claims},
    config::{JwtAuthn, JwtProvider, JwtRequirement, Name},
    error::CompileError,
    request::RequestView,
    route::Matcher,
};

mod place;
mod token;

use place::Place;
pub use token::{JwtError, Token};

/// Requirements within requirements that are followed.
const DEPTH: usize = 16;

/// Reads tokens and proves them.
pub trait Verify {
    /// What a token says, whoever made it.
    ///
    /// # Errors
    ///
    /// It is none.
    fn read(&self, token: &str) -> Result<Arc<Token>, JwtError>;

    /// Has a provider signed it?
    ///
    /// # Errors
    ///
    /// It has not, or that cannot be told: [`JwtError::KeysPending`] when it can be soon.
    fn prove(&self, provider: &Name, text: &str, token: &Token) -> Result<(), JwtError>;
}

/// What becomes of a request.
#[derive(Clone, Debug, PartialEq)]
pub enum Decision {
    /// It goes on, changed so.
    Pass(Proven),
    /// It is refused.
    Refuse(JwtError),
    /// To be asked again when the keys of these providers are there.
    Wait(Vec<Name>),
}

/// What was proven of a request, and what is to be changed of it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Proven {
    /// What its tokens say.
    pub claims: Claims,
    clear: Vec<Place>,
    /// Headers that only we may set.
    own: Vec<HeaderName>,
    set: Vec<(HeaderName, HeaderValue)>,
}

impl Proven {
    /// Takes tokens off, and tells the application what it is to know.
    pub fn apply(&self, parts: &mut Parts) {
        for place in &self.clear {
            place.clear(parts);
        }
        for name in &self.own {
            parts.headers.remove(name);
        }
        for (name, value) in &self.set {
            parts.headers.insert(name, value.clone());
        }
    }
}

/// The compiled form of a [`JwtAuthn`].
#[derive(Debug)]
pub struct Jwt {
    config: Arc<JwtAuthn>,
    providers: Vec<Provider>,
    rules: Vec<(Matcher, Option<Need>)>,
    own: Vec<HeaderName>,
}

#[derive(Debug)]
struct Provider {
    name: Name,
    config: Arc<JwtProvider>,
    places: Vec<Place>,
    payload_header: Option<HeaderName>,
    claim_headers: Vec<(HeaderName, Vec<String>)>,
}

/// A compiled [`JwtRequirement`].
#[derive(Debug)]
enum Need {
    Tokens(Ask),
    Any(Vec<Self>),
    All(Vec<Self>),
}

/// Tokens that are looked for.
#[derive(Debug)]
struct Ask {
    /// Whose, by their place in [`Jwt::providers`].
    of: Vec<usize>,
    audiences: Option<Vec<String>>,
    /// Any of them, by issuer, and there need be none.
    optional: bool,
    /// Those that are not good are passed over.
    lenient: bool,
}

impl Jwt {
    /// Compiles it.
    ///
    /// # Errors
    ///
    /// It names a provider it does not have, or a header that cannot be one.
    pub fn compile(config: &Arc<JwtAuthn>) -> Result<Self, CompileError> {
        let header = |name: &Name| {
            HeaderName::from_bytes(name.to_ascii_lowercase().as_bytes())
                .map_err(|_| wrong(format!("{name:?} is no header name")))
        };
        let mut providers = Vec::with_capacity(config.providers.len());
        for (name, provider) in &config.providers {
            let named = |(name, path): &(Name, Vec<String>)| Ok((header(name)?, path.clone()));
            providers.push(Provider {
                name: Arc::clone(name),
                config: Arc::clone(provider),
                places: Place::of(provider),
                payload_header: provider.payload_header.as_ref().map(header).transpose()?,
                claim_headers: provider.claim_headers.iter().map(named).collect::<Result<_, _>>()?,
            });
        }
        let own = providers
            .iter()
            .flat_map(|it| it.payload_header.iter().chain(it.claim_headers.iter().map(|(name, _)| name)));
        let own: BTreeSet<&str> = own.map(HeaderName::as_str).collect();
        let own = own.into_iter().filter_map(|name| HeaderName::from_bytes(name.as_bytes()).ok()).collect();
        let mut rules = Vec::with_capacity(config.rules.len());
        for (i, rule) in config.rules.iter().enumerate() {
            let matcher = Matcher::compile(&rule.matches, "JWT authentication", &format!("rules[{i}].match"))?;
            let need = rule.requirement.as_ref().map(|it| need(it, &providers, &[], DEPTH)).transpose()?;
            rules.push((matcher, need));
        }
        Ok(Self { config: Arc::clone(config), providers, rules, own })
    }

    /// As configured.
    pub fn config(&self) -> &Arc<JwtAuthn> {
        &self.config
    }

    /// Decides on a request at a time, in seconds since 1970; `bits` are random.
    pub fn decide(&self, view: &RequestView<'_>, bits: u64, now: u64, verify: &impl Verify) -> Decision {
        // Whatever a caller says in headers that are ours to set, nobody is to believe.
        let mut work = Work { view, now, verify, jwt: self, found: Vec::new(), pending: Vec::new() };
        if self.config.bypass_cors_preflight && is_preflight(view) {
            return Decision::Pass(work.proven());
        }
        let path = view.path_only();
        let rule = self.rules.iter().enumerate().find(|(i, (matcher, _))| matcher.is_match(path, view, bits, *i));
        let Some((_, (_, Some(need)))) = rule else { return Decision::Pass(work.proven()) };
        let met = work.meet(need);
        if !work.pending.is_empty() {
            return Decision::Wait(work.pending);
        }
        match met {
            Ok(()) => Decision::Pass(work.proven()),
            Err(error) => Decision::Refuse(error),
        }
    }
}

fn wrong(message: String) -> CompileError {
    CompileError::new("JWT authentication", "", message)
}

/// `beside` are the providers named next to it, of which those that may be missing are meant.
fn need(config: &JwtRequirement, providers: &[Provider], beside: &[usize], depth: usize) -> Result<Need, CompileError> {
    let Some(depth) = depth.checked_sub(1) else { return Err(wrong("requirements are nested too deeply".to_owned())) };
    let place = |name: &Name| {
        let at = providers.iter().position(|it| it.name == *name);
        at.ok_or_else(|| wrong(format!("a requirement names the provider {name:?}, which is not there")))
    };
    let optional = |lenient| {
        let of = if beside.is_empty() { (0..providers.len()).collect() } else { beside.to_vec() };
        Need::Tokens(Ask { of, audiences: None, optional: true, lenient })
    };
    Ok(match config {
        JwtRequirement::Provider { name, audiences } => {
            Need::Tokens(Ask { of: vec![place(name)?], audiences: audiences.clone(), optional: false, lenient: false })
        }
        JwtRequirement::AllowMissing => optional(false),
        JwtRequirement::AllowMissingOrFailed => optional(true),
        JwtRequirement::Any(list) => {
            let mut beside = Vec::new();
            for one in list {
                if let JwtRequirement::Provider { name, .. } = one {
                    beside.push(place(name)?);
                }
            }
            // What lets pass without a token is asked last, whatever its place.
            let lets = |it: &JwtRequirement| match it {
                JwtRequirement::AllowMissingOrFailed => 2,
                JwtRequirement::AllowMissing => 1,
                _ => 0,
            };
            let mut regular: Vec<&JwtRequirement> = list.iter().filter(|it| lets(it) == 0).collect();
            regular.extend(list.iter().max_by_key(|it| lets(it)).filter(|it| lets(it) > 0));
            Need::Any(regular.into_iter().map(|it| need(it, providers, &beside, depth)).collect::<Result<_, _>>()?)
        }
        JwtRequirement::All(list) => {
            Need::All(list.iter().map(|it| need(it, providers, &[], depth)).collect::<Result<_, _>>()?)
        }
    })
}

/// The question a browser asks before a request to another site. Source: Envoy `isCorsPreflightRequest`.
fn is_preflight(view: &RequestView<'_>) -> bool {
    let has = |name| view.headers.get(name).is_some_and(|value| !value.is_empty());
    view.method == Method::OPTIONS && has(header::ORIGIN) && has(header::ACCESS_CONTROL_REQUEST_METHOD)
}

/// What has been found while deciding.
struct Work<'a, V> {
    view: &'a RequestView<'a>,
    now: u64,
    verify: &'a V,
    jwt: &'a Jwt,
    found: Vec<Found>,
    pending: Vec<Name>,
}

/// A good token.
struct Found {
    provider: usize,
    place: Place,
    token: Arc<Token>,
}

impl<V: Verify> Work<'_, V> {
    fn meet(&mut self, need: &Need) -> Result<(), JwtError> {
        match need {
            Need::Tokens(ask) => self.look(ask),
            Need::All(list) => list.iter().try_for_each(|need| self.meet(need)),
            Need::Any(list) => {
                let before = self.found.len();
                let mut why = JwtError::Missing;
                for need in list {
                    match self.meet(need) {
                        Ok(()) => return Ok(()),
                        Err(error) => {
                            self.found.truncate(before);
                            // That there is none, or nobody's, says least.
                            if why == JwtError::Missing || !matches!(error, JwtError::Missing | JwtError::Issuer) {
                                why = error;
                            }
                        }
                    }
                }
                Err(why)
            }
        }
    }

    fn look(&mut self, ask: &Ask) -> Result<(), JwtError> {
        let (view, providers) = (self.view, &self.jwt.providers);
        let mut places: Vec<&Place> =
            ask.of.iter().filter_map(|at| providers.get(*at)).flat_map(|it| &it.places).collect();
        places.sort();
        places.dedup();
        places.reverse();
        places.sort_by_key(|place| place.rank());
        let mut any = false;
        for place in places {
            // A token that was proven and taken off is not there for the next.
            let is_gone = |found: &Found| {
                found.place == *place && providers.get(found.provider).is_some_and(|it| !it.config.forward)
            };
            if self.found.iter().any(is_gone) {
                continue;
            }
            let Some(text) = place.find(view) else { continue };
            any = true;
            match self.judge(ask, place, &text) {
                Ok((provider, token)) => self.found.push(Found { provider, place: place.clone(), token }),
                Err(_) if ask.lenient => {}
                // All that are there must be good: the application might believe another one than we do.
                Err(error) => return Err(error),
            }
        }
        if any || ask.optional { Ok(()) } else { Err(JwtError::Missing) }
    }

    fn judge(&mut self, ask: &Ask, place: &Place, text: &str) -> Result<(usize, Arc<Token>), JwtError> {
        let token = self.verify.read(text)?;
        let meant = |at: &&usize, exact: bool| {
            self.jwt.providers.get(**at).is_some_and(|provider| {
                let issuer = &provider.config.issuer;
                let suits = if issuer.is_empty() { !exact } else { issuer == token.issuer() };
                suits && provider.places.contains(place)
            })
        };
        // One that names the issuer goes before one that takes any.
        let at = ask.of.iter().find(|at| meant(at, true)).or_else(|| ask.of.iter().find(|at| meant(at, false)));
        let (at, provider) = at.and_then(|at| Some((*at, self.jwt.providers.get(*at)?))).ok_or(JwtError::Issuer)?;
        let audiences = ask.audiences.as_ref().unwrap_or(&provider.config.audiences);
        token.suits(&provider.config, audiences, self.now)?;
        match self.verify.prove(&provider.name, text, &token) {
            Ok(()) => Ok((at, token)),
            Err(error) => {
                if error == JwtError::KeysPending && !self.pending.contains(&provider.name) {
                    self.pending.push(Arc::clone(&provider.name));
                }
                Err(error)
            }
        }
    }

    /// What the good tokens come to.
    fn proven(&self) -> Proven {
        let mut proven = Proven { own: self.jwt.own.clone(), ..Proven::default() };
        for Found { provider, place, token } in &self.found {
            let Some(provider) = self.jwt.providers.get(*provider) else { continue };
            let config = &provider.config;
            if !config.forward {
                proven.clear.push(place.clone());
            }
            if let Some(name) = &config.payload_name {
                proven.claims.insert(name, normal(token.payload(), &config.space_delimited));
            }
            if let Some(name) = &config.header_name {
                proven.claims.insert(name, token.header().clone());
            }
            let padding =
                if config.pad_payload { "=".repeat((4 - token.encoded().len() % 4) % 4) } else { String::new() };
            if let Some(name) = &provider.payload_header
                && let Ok(value) = HeaderValue::try_from(format!("{}{padding}", token.encoded()))
            {
                proven.set.push((name.clone(), value));
            }
            for (name, path) in &provider.claim_headers {
                let claim = token.payload().at(path.iter().map(String::as_str));
                let value = claim.and_then(in_header).and_then(|value| HeaderValue::try_from(value).ok());
                proven.set.extend(value.map(|value| (name.clone(), value)));
            }
        }
        proven
    }
}

/// A payload whose space-delimited claims are lists.
fn normal(payload: &Claim, space_delimited: &[String]) -> Claim {
    let mut payload = payload.clone();
    if let Claim::Map(map) = &mut payload {
        for name in space_delimited {
            if let Some(Claim::Text(text)) = map.get(name) {
                let words = text.split(' ').filter(|word| !word.is_empty()).map(|word| Claim::Text(word.to_owned()));
                let words = Claim::List(words.collect());
                map.insert(name.clone(), words);
            }
        }
    }
    payload
}

/// A claim as the value of a header; lists and maps as base64 of their JSON. `None` for what cannot be said so. Source: Envoy
/// 1.40 by experiment: whole numbers are written without a point unless they are negative.
fn in_header(claim: &Claim) -> Option<String> {
    match claim {
        Claim::Text(text) => Some(text.clone()).filter(|text| !text.is_empty()),
        Claim::Bool(value) => Some(value.to_string()),
        Claim::Number(value) if value.fract() == 0.0 && (0.0..9e15).contains(value) => Some(value.to_string()),
        Claim::Number(value) => Some(format!("{value:.6}")),
        Claim::List(_) | Claim::Map(_) => Some(base64(claim.to_json().as_bytes())),
        Claim::Null => None,
    }
}

/// With padding (RFC 4648 4).
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for three in bytes.chunks(3) {
        let bits = three.iter().fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - three.len()));
        for place in 0..4 {
            let digit = DIGITS.get((bits >> (18 - 6 * place) & 63) as usize).copied().unwrap_or(b'=');
            out.push(if place > three.len() { '=' } else { char::from(digit) });
        }
    }
    out
}

#[cfg(test)]
mod tests;
