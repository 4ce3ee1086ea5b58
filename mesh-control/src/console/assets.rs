//! The built pages, within the program: what `mesh-control/console/build.mjs` made of the sources beside it.

use axum::{
    extract::Path,
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};

use crate::api::Refusal;

/// The page; `{{token}}` in it is to be replaced.
pub(super) const INDEX: &str = include_str!("../../console/dist/index.html");
const SCRIPT: &str = include_str!("../../console/dist/app.js");
/// Of the packages that are in the script.
const LICENCES: &str = include_str!("../../console/dist/LICENSES.txt");
const STYLE: &str = include_str!("../../console/dist/app.css");

/// Nothing comes from, goes to, or is shown within a page of elsewhere; nothing is kept that a newer program would contradict.
pub(super) fn headers() -> HeaderMap {
    let policy = "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; frame-ancestors 'none'; \
                  base-uri 'none'; form-action 'self'";
    let pairs = [
        (header::CONTENT_SECURITY_POLICY, policy),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-cache"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    ];
    pairs.into_iter().map(|(name, value)| (name, HeaderValue::from_static(value))).collect()
}

/// A file of the pages.
pub(super) async fn serve(Path(asset): Path<String>) -> Result<Response, Refusal> {
    let (kind, text) = match asset.as_str() {
        "app.js" => ("text/javascript; charset=utf-8", SCRIPT),
        "app.css" => ("text/css; charset=utf-8", STYLE),
        "LICENSES.txt" => ("text/plain; charset=utf-8", LICENCES),
        _ => return Err(Refusal::new(StatusCode::NOT_FOUND, format!("there is no {asset:?}"))),
    };
    let mut headers = headers();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    Ok((headers, text).into_response())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// TE20: whoever gets the pages gets the licences of what is in them.
    #[test]
    fn licences_come_with_the_pages() {
        let packages =
            ["preact", "@preact/signals", "@preact/signals-core", "@dagrejs/dagre", "@dagrejs/graphlib", "uplot"];
        for package in packages {
            assert!(LICENCES.lines().any(|line| line.starts_with(&format!("{package} "))), "{package}");
        }
        assert_eq!(LICENCES.matches("Permission is hereby granted").count(), packages.len());
    }
}
