//! Who is signed in: the name in the signed cookie `session`. There are no passwords, and nothing is kept on the server.

use std::convert::Infallible;

use axum::extract::{FromRef, FromRequestParts};
use axum::http::HeaderValue;
use axum::http::header::COOKIE;
use axum::http::request::Parts;
use cookie::{Cookie, CookieJar, Key, SameSite};

const NAME: &str = "session";
const LONGEST_USER: usize = 100;

/// The reader of this request, if signed in.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct User(Option<String>);

impl User {
    /// A reader who just said this name: one to 100 printable ASCII characters, so that it can be a header's value.
    pub(super) fn named(name: &str) -> Option<Self> {
        let fits = (1..=LONGEST_USER).contains(&name.len()) && name.bytes().all(|byte| (b' '..=b'~').contains(&byte));
        fits.then(|| Self(Some(name.to_owned())))
    }

    /// The name to show.
    pub(super) fn name(&self) -> Option<&str> {
        self.0.as_deref()
    }

    /// The value of `end-user` on requests made for this reader.
    pub(super) fn header(&self) -> Option<HeaderValue> {
        HeaderValue::from_str(self.0.as_deref()?).ok()
    }

    /// The value of `Set-Cookie` that signs this reader in.
    pub(super) fn cookie(&self, key: &Key) -> String {
        let mut jar = CookieJar::new();
        jar.signed_mut(key).add(cookie(self.0.clone().unwrap_or_default()));
        jar.get(NAME).map(|signed| signed.encoded().to_string()).unwrap_or_default()
    }
}

/// The value of `Set-Cookie` that signs the reader out.
pub(super) fn no_cookie() -> String {
    let mut gone = cookie(String::new());
    gone.make_removal();
    gone.encoded().to_string()
}

fn cookie(value: String) -> Cookie<'static> {
    Cookie::build((NAME, value)).path("/").http_only(true).same_site(SameSite::Lax).build()
}

impl<S> FromRequestParts<S> for User
where
    S: Sync,
    Key: FromRef<S>,
{
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Infallible> {
        let mut jar = CookieJar::new();
        for header in parts.headers.get_all(COOKIE) {
            let cookies = header.to_str().unwrap_or_default();
            Cookie::split_parse_encoded(cookies.to_owned()).flatten().for_each(|cookie| jar.add_original(cookie));
        }
        let signed = jar.signed(&Key::from_ref(state)).get(NAME);
        Ok(signed.and_then(|cookie| Self::named(cookie.value())).unwrap_or_default())
    }
}
