//! Rows of certificates out of a `config_dump`.

use std::time::SystemTime;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::Value;
use x509_parser::{pem::Pem, time::ASN1Time};

use super::tables::{field, path, text};

/// A row for each certificate of a secret.
pub(super) fn secret(item: &Value) -> Vec<Vec<String>> {
    let name = text(field(item, "name"));
    let secret = field(item, "secret");
    let chain = path(secret, &["tls_certificate", "certificate_chain", "inline_bytes"]);
    let root = path(secret, &["validation_context", "trusted_ca", "inline_bytes"]);
    // What else is to be trusted has no certificate in it.
    if !field(secret, "generic_secret").is_null() {
        return vec![row(&name, "Generic", "ACTIVE", "", ["", "", ""].map(str::to_owned))];
    }
    let (kind, bytes) = match (chain, root) {
        (Value::String(chain), _) => ("Cert Chain", chain),
        (_, Value::String(root)) => ("CA", root),
        _ => return vec![row(&name, "", "WARMING", "false", ["", "", ""].map(str::to_owned))],
    };
    let pem = STANDARD.decode(bytes).unwrap_or_default();
    let mut rows = Vec::new();
    for pem in Pem::iter_from_buffer(&pem).flatten() {
        let Ok(certificate) = pem.parse_x509() else { continue };
        let validity = certificate.validity();
        let valid = now().is_some_and(|now| validity.is_valid_at(now));
        let serial = certificate.raw_serial_as_string().replace(':', "");
        let times = [serial, time(validity.not_after), time(validity.not_before)];
        rows.push(row(&name, kind, "ACTIVE", if valid { "true" } else { "false" }, times));
        // Of a chain the leaf is the workload's; who signed it is in the roots.
        if kind == "Cert Chain" {
            break;
        }
    }
    if rows.is_empty() {
        rows.push(row(&name, kind, "ACTIVE", "false", ["", "", ""].map(str::to_owned)));
    }
    rows
}

fn row(name: &str, kind: &str, status: &str, valid: &str, [serial, after, before]: [String; 3]) -> Vec<String> {
    let mut row: Vec<String> = [name, kind, status, valid].map(str::to_owned).to_vec();
    row.extend([serial, after, before]);
    row
}

fn now() -> Option<ASN1Time> {
    let seconds = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).ok()?.as_secs();
    ASN1Time::from_timestamp(i64::try_from(seconds).ok()?).ok()
}

/// `2020-01-01T00:00:00Z`.
pub(in crate::cli) fn time(of: ASN1Time) -> String {
    let of = of.to_datetime();
    let (date, time) = (of.date(), of.time());
    format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}Z",
        date.year(),
        u8::from(date.month()),
        date.day(),
        time.hour(),
        time.minute(),
        time.second()
    )
}
