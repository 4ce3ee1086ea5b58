//! A request between the layers: head and body in a box that its thread keeps for the next one.
//!
//! Layers hand requests on by value, each into the future of the next; the box makes that a pointer. It is taken from the
//! thread's spare ones and returned where the request is let go of, so that it costs no allocation.

use std::{cell::RefCell, fmt};

use http::{Extensions, HeaderMap, Method, Uri, Version, request::Parts};

use crate::body::Body;

/// Boxes a thread keeps.
const SPARE: usize = 32;

type Boxes = Vec<Box<Option<Inner>>>;

thread_local! {
    static BOXES: RefCell<Boxes> = const { RefCell::new(Vec::new()) };
}

/// An HTTP request whose moving costs nothing; otherwise as an `http::Request<Body>`.
///
/// The box is there, and full, until the request is taken apart or dropped.
pub struct Message(Option<Box<Option<Inner>>>);

struct Inner {
    parts: Parts,
    body: Body,
}

impl Message {
    /// Of head and body.
    pub fn from_parts(parts: Parts, body: Body) -> Self {
        let inner = Some(Inner { parts, body });
        let spare = BOXES.try_with(|boxes| boxes.borrow_mut().pop()).ok().flatten();
        Self(Some(match spare {
            Some(mut spare) => {
                *spare = inner;
                spare
            }
            None => Box::new(inner),
        }))
    }

    /// Head and body.
    pub fn into_parts(mut self) -> (Parts, Body) {
        match self.0.as_deref_mut().and_then(Option::take) {
            Some(Inner { parts, body }) => (parts, body),
            None => unreachable!("a message is taken apart once, by value"),
        }
    }

    /// As an ordinary request.
    pub fn into_request(self) -> http::Request<Body> {
        let (parts, body) = self.into_parts();
        http::Request::from_parts(parts, body)
    }

    /// The body alone.
    pub fn into_body(self) -> Body {
        self.into_parts().1
    }

    /// The head.
    #[inline]
    pub fn parts(&self) -> &Parts {
        &self.inner().parts
    }

    /// The head, to change.
    #[inline]
    pub fn parts_mut(&mut self) -> &mut Parts {
        &mut self.inner_mut().parts
    }

    /// The body.
    #[inline]
    pub fn body(&self) -> &Body {
        &self.inner().body
    }

    /// The body, to change.
    #[inline]
    pub fn body_mut(&mut self) -> &mut Body {
        &mut self.inner_mut().body
    }

    /// The method.
    #[inline]
    pub fn method(&self) -> &Method {
        &self.parts().method
    }

    /// The URI.
    #[inline]
    pub fn uri(&self) -> &Uri {
        &self.parts().uri
    }

    /// The URI, to change.
    pub fn uri_mut(&mut self) -> &mut Uri {
        &mut self.parts_mut().uri
    }

    /// The version.
    #[inline]
    pub fn version(&self) -> Version {
        self.parts().version
    }

    /// The headers.
    #[inline]
    pub fn headers(&self) -> &HeaderMap {
        &self.parts().headers
    }

    /// The headers, to change.
    #[inline]
    pub fn headers_mut(&mut self) -> &mut HeaderMap {
        &mut self.parts_mut().headers
    }

    /// What rides along.
    #[inline]
    pub fn extensions(&self) -> &Extensions {
        &self.parts().extensions
    }

    /// What rides along, to change.
    pub fn extensions_mut(&mut self) -> &mut Extensions {
        &mut self.parts_mut().extensions
    }

    #[inline]
    fn inner(&self) -> &Inner {
        match self.0.as_deref() {
            Some(Some(inner)) => inner,
            _ => unreachable!("a message is taken apart only by value"),
        }
    }

    #[inline]
    fn inner_mut(&mut self) -> &mut Inner {
        match self.0.as_deref_mut() {
            Some(Some(inner)) => inner,
            _ => unreachable!("a message is taken apart only by value"),
        }
    }
}

impl From<http::Request<Body>> for Message {
    fn from(request: http::Request<Body>) -> Self {
        let (parts, body) = request.into_parts();
        Self::from_parts(parts, body)
    }
}

impl Drop for Message {
    fn drop(&mut self) {
        let Some(mut used) = self.0.take() else { return };
        *used = None;
        // Without the thread's list, when the thread ends, the box goes too.
        let _ = BOXES.try_with(|boxes| {
            let mut boxes = boxes.borrow_mut();
            if boxes.len() < SPARE {
                boxes.push(used);
            }
        });
    }
}

/// Without values of headers: they may be cookies and tokens.
impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.headers().keys().collect();
        let Parts { method, uri, version, .. } = self.parts();
        let mut shown = f.debug_struct("Message");
        shown.field("method", method).field("uri", uri).field("version", version).field("headers", &names);
        shown.field("body", self.body()).finish()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_box_is_used_again_and_says_no_secrets() {
        let request = || http::Request::get("http://a/b").header("cookie", "secret").body(Body::from("x")).unwrap();
        let first = Message::from(request());
        let shown = format!("{first:?}");
        assert!(shown.contains("cookie") && !shown.contains("secret"), "{shown}");
        let address = std::ptr::from_ref(first.inner());
        let request_again = first.into_request();
        assert_eq!(request_again.uri(), "http://a/b");
        let second = Message::from(request());
        assert_eq!(std::ptr::from_ref(second.inner()), address);
        drop(second);
        let many: Vec<_> = (0..2 * SPARE).map(|_| Message::from(request())).collect();
        drop(many);
        assert_eq!(BOXES.with_borrow(Vec::len), SPARE);
    }
}
