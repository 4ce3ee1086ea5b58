//! What people see of the authority, and what they may set.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Role, Step};

/// Whom the mesh believes beside its own members.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TrustSettings {
    /// Names our trust domain had or has elsewhere: their members are judged by our roots. Source: Istio
    /// `MeshConfig.trustDomainAliases`.
    pub aliases: Vec<String>,
    /// Other trust domains, and their roots in PEM. Source: SPIFFE federation; Istio `MeshConfig.caCertificates`.
    pub federated: BTreeMap<String, String>,
}

/// What the authority is and does, for people. Times are in Unix seconds.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct CaStatus {
    /// What stands after `spiffe://` in every identity.
    pub trust_domain: String,
    /// The one that signs first.
    pub authorities: Vec<AuthorityStatus>,
    /// The step of a change that comes next.
    pub next: Option<Step>,
    /// SPIFFE ids that are let in no more, and since when.
    pub denied_ids: BTreeMap<String, u64>,
    /// Serial numbers in hexadecimal that are let in no more, and since when.
    pub denied_serials: BTreeMap<String, u64>,
    /// The lists of revoked certificates in PEM; empty while nothing is revoked.
    pub crl: String,
    /// How many certificates are good at the moment.
    pub issued: usize,
}

/// One authority.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct AuthorityStatus {
    /// The beginning of its key's name.
    pub id: String,
    /// What it is at the moment.
    pub role: Role,
    /// Of the certificate that signs.
    pub subject: String,
    /// Its serial number.
    pub serial: String,
    /// Since when all of its chain is valid.
    pub not_before: u64,
    /// Until when all of its chain is valid.
    pub not_after: u64,
    /// How many certificates there are between a leaf and the root.
    pub intermediates: usize,
    /// How many good certificates it has signed.
    pub issued: usize,
}
