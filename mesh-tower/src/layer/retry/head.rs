//! The head of a request, kept for sending it once more: a copy of names and values without a map, which is only made
//! again when there is another try. The list is the thread's, used again by its next request.

use std::cell::RefCell;

use http::{Extensions, HeaderMap, HeaderName, HeaderValue, Method, Uri, Version, request::Parts};

/// What a try is made of, beside the body.
#[derive(Debug)]
pub(super) struct Head {
    method: Method,
    uri: Uri,
    version: Version,
    headers: Vec<(HeaderName, HeaderValue)>,
    extensions: Option<Extensions>,
}

/// Lists a thread keeps.
const SPARE: usize = 64;
/// The longest list worth keeping.
const LONGEST: usize = 64;

thread_local! {
    static LISTS: RefCell<Vec<Vec<(HeaderName, HeaderValue)>>> = const { RefCell::new(Vec::new()) };
}

impl Head {
    pub(super) fn of(parts: &Parts) -> Self {
        let mut headers = LISTS.try_with(|lists| lists.borrow_mut().pop()).ok().flatten().unwrap_or_default();
        headers.extend(parts.headers.iter().map(|(name, value)| (name.clone(), value.clone())));
        Self {
            method: parts.method.clone(),
            uri: parts.uri.clone(),
            version: parts.version,
            headers,
            extensions: (!parts.extensions.is_empty()).then(|| parts.extensions.clone()),
        }
    }

    pub(super) fn method(&self) -> &Method {
        &self.method
    }

    /// As it was.
    pub(super) fn again(&self) -> Parts {
        let mut headers = HeaderMap::with_capacity(self.headers.len());
        for (name, value) in &self.headers {
            headers.append(name, value.clone());
        }
        let (mut parts, ()) = http::Request::new(()).into_parts();
        parts.method = self.method.clone();
        parts.uri = self.uri.clone();
        parts.version = self.version;
        parts.headers = headers;
        parts.extensions = self.extensions.clone().unwrap_or_default();
        parts
    }
}

impl Drop for Head {
    fn drop(&mut self) {
        let mut list = std::mem::take(&mut self.headers);
        list.clear();
        if list.capacity() <= LONGEST {
            let _ = LISTS.try_with(|lists| {
                let mut lists = lists.borrow_mut();
                if lists.len() < SPARE {
                    lists.push(list);
                }
            });
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_head_is_the_same_again() {
        for count in [0, 3, 10, 11, 200] {
            let mut request = http::Request::post("http://reviews/a?b").version(Version::HTTP_2).extension("kept");
            for n in 0..count {
                // Every third name occurs again, with another value.
                request = request.header(format!("x-{}", n / 3), n.to_string());
            }
            let (parts, ()) = request.body(()).unwrap().into_parts();
            let again = Head::of(&parts).again();
            assert_eq!((&again.method, &again.uri, again.version), (&parts.method, &parts.uri, parts.version));
            assert_eq!(again.headers, parts.headers);
            assert_eq!(again.extensions.get::<&str>(), Some(&"kept"));
        }
    }
}
