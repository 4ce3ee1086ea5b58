//! TLS contexts, both directions. Nothing here is ignored: what cannot be honoured refuses the context.
//!
//! Certificates come by name: `default` is our own workload certificate and `ROOTCA` the mesh's roots, `file-cert:CHAIN~KEY`
//! and `file-root:FILE` are files of this machine, the names under
//! which Istio's sidecars ask their agent; `certs.rs` is the agent here. Files and inline keys are not taken from a control
//! plane. Source: Envoy `UpstreamTlsContext`, `DownstreamTlsContext`.

use std::sync::Arc;

use mesh_core::config::{CertificateFiles, Inbound, StringMatch, TlsVersions, UpstreamTls};

use super::{
    read::{Ignored, Within, Wrong, wrong},
    value,
};
use crate::{
    bootstrap::Files,
    proto::{
        Any,
        envoy::{
            config::core::v3::{TransportSocket, transport_socket::ConfigType},
            extensions::transport_sockets::{
                raw_buffer::v3::RawBuffer,
                tls::v3::{
                    CertificateValidationContext, CommonTlsContext, DownstreamTlsContext, SdsSecretConfig,
                    SubjectAltNameMatcher, TlsParameters, UpstreamTlsContext,
                    certificate_validation_context::SystemRootCerts,
                    common_tls_context::{CombinedCertificateValidationContext, ValidationContextType},
                    subject_alt_name_matcher::SanType,
                    tls_parameters::TlsProtocol,
                },
            },
        },
    },
};

pub(super) mod gateway;

/// The SDS name of our own certificate.
pub const OWN: &str = "default";
/// The SDS name of the mesh's roots.
pub const ROOTS: &str = "ROOTCA";
/// Begins the SDS name of a certificate in files.
const FILE_CERTIFICATE: &str = "file-cert:";
/// Begins the SDS name of roots in a file.
const FILE_ROOTS: &str = "file-root:";
/// The SDS name, and the files, under which control planes mean the roots of the system.
const SYSTEM_ROOTS: [&str; 3] =
    ["file-root:system", "/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt"];

/// Suites of TLS 1.2 that are spoken, by the names control planes have for them.
const SPOKEN: [&str; 6] = [
    "ECDHE-ECDSA-AES256-GCM-SHA384",
    "ECDHE-RSA-AES256-GCM-SHA384",
    "ECDHE-ECDSA-AES128-GCM-SHA256",
    "ECDHE-RSA-AES128-GCM-SHA256",
    "ECDHE-ECDSA-CHACHA20-POLY1305",
    "ECDHE-RSA-CHACHA20-POLY1305",
];

const SOCKET_TLS: &str = "envoy.transport_sockets.tls";
const SOCKET_RAW: &str = "envoy.transport_sockets.raw_buffer";

/// How a server's filter chain takes TLS.
pub(super) struct Downstream {
    pub(super) callers: Vec<StringMatch>,
    pub(super) alpn: Vec<String>,
    pub(super) versions: TlsVersions,
}

impl Downstream {
    /// Demands what another chain of the same port demands, too; false where it is not plain which of them is the stricter.
    pub(super) fn narrow(&mut self, other: Self) -> bool {
        use TlsVersions::{Both, Only12, Only13};
        let same_callers = self.callers.is_empty() || other.callers.is_empty() || self.callers == other.callers;
        if self.callers.is_empty() {
            self.callers = other.callers;
        }
        let versions = match (self.versions, other.versions) {
            (Both, versions) | (versions, Both) => Some(versions),
            (Only12, Only13) | (Only13, Only12) => None,
            (versions, _) => Some(versions),
        };
        self.versions = versions.unwrap_or(self.versions);
        same_callers && versions.is_some()
    }
}

/// The TLS of a cluster's transport socket; `None` is plaintext.
pub(super) fn upstream(
    socket: &TransportSocket,
    place: &str,
    ignored: &mut Ignored,
) -> Result<Option<Arc<UpstreamTls>>, Wrong> {
    let Some(any) = typed(socket)? else { return Ok(None) };
    let context: UpstreamTlsContext = ignored.open(any, place).under("typed_config")?;
    decode_upstream(context, place, ignored).map(|tls| Some(Arc::new(tls))).under("typed_config")
}

/// The TLS of a filter chain's transport socket; `None` is plaintext.
pub(super) fn downstream(socket: &TransportSocket, ignored: &mut Ignored) -> Result<Option<Downstream>, Wrong> {
    const PLACE: &str = "filter_chains.transport_socket";
    let Some(any) = typed(socket)? else { return Ok(None) };
    let context: DownstreamTlsContext = ignored.open(any, PLACE).under("typed_config")?;
    if context.require_client_certificate != Some(true) {
        let why = "is not set: only mutual TLS is served, one-sided TLS is not supported";
        return Err(wrong("typed_config.require_client_certificate", why));
    }
    let common = context.common_tls_context.unwrap_or_default();
    let common = decode_common(common, PLACE, ignored).under("typed_config.common_tls_context")?;
    if !(common.certificate == Some(Certificate::Own) && common.roots == Roots::Mesh) {
        let why = format!("must name the certificate {OWN:?} and the roots {ROOTS:?}; others are not supported");
        return Err(wrong("typed_config.common_tls_context", why));
    }
    Ok(Some(Downstream { callers: common.names, alpn: common.alpn, versions: common.versions }))
}

fn typed(socket: &TransportSocket) -> Result<Option<&Any>, Wrong> {
    match &socket.config_type {
        Some(ConfigType::TypedConfig(any)) if any.is::<RawBuffer>() => Ok(None),
        Some(ConfigType::TypedConfig(any)) => Ok(Some(any)),
        None if socket.name == SOCKET_RAW => Ok(None),
        None => Err(wrong("typed_config", format!("is missing in transport socket {:?}", socket.name))),
    }
}

fn decode_upstream(context: UpstreamTlsContext, place: &str, ignored: &mut Ignored) -> Result<UpstreamTls, Wrong> {
    if context.sni.len() > 255 {
        return Err(wrong("sni", "is longer than 255 bytes"));
    }
    if context.allow_renegotiation {
        return Err(wrong("allow_renegotiation", "is not supported"));
    }
    let common = context.common_tls_context.unwrap_or_default();
    let common = decode_common(common, place, ignored).under("common_tls_context")?;
    let (workload_identity, certificate, roots) = match (common.certificate, common.roots) {
        (Some(Certificate::Own), Roots::Mesh) => (true, None, None),
        (Some(Certificate::Files(files)), Roots::File(roots)) => (false, Some(files), Some(roots)),
        (Some(Certificate::Files(files)), Roots::System) => (false, Some(files), None),
        (None, Roots::File(roots)) => (false, None, Some(roots)),
        (None, Roots::System) => (false, None, None),
        // One instance for the certificate and another for the roots: both are files.
        (Some(Certificate::Own), Roots::File(roots))
            if let Some(files) = identity_files(ignored).and_then(own_files) =>
        {
            (false, Some(files), Some(roots))
        }
        (certificate @ (None | Some(Certificate::Files(_))), Roots::Mesh)
            if let Some(roots) = identity_files(ignored).and_then(|files| files.roots.as_ref()) =>
        {
            let files = if let Some(Certificate::Files(files)) = certificate { Some(files) } else { None };
            (false, files, Some(roots.display().to_string()))
        }
        (None, Roots::Unset) => {
            // Envoy would verify nothing then. Verifying all the same refuses more, never less.
            ignored.add(place, "common_tls_context.validation_context (absent: the server is verified all the same)");
            (false, None, None)
        }
        _ => {
            let why = format!(
                "must name the certificate {OWN:?} with the roots {ROOTS:?}, or files or no certificate with the system's \
                 roots or those of a file"
            );
            return Err(wrong("common_tls_context", why));
        }
    };
    let by_host = context.auto_sni_san_validation;
    if by_host && workload_identity {
        return Err(wrong("auto_sni_san_validation", "is not supported with the workload's own certificate"));
    }
    Ok(UpstreamTls {
        sni: context.sni,
        host_sni: context.auto_host_sni,
        alpn: common.alpn,
        workload_identity,
        subject_alt_names: if by_host { Vec::new() } else { common.names },
        certificate,
        roots,
        versions: common.versions,
    })
}

struct Common {
    certificate: Option<Certificate>,
    roots: Roots,
    names: Vec<StringMatch>,
    alpn: Vec<String>,
    versions: TlsVersions,
}

#[derive(PartialEq)]
enum Certificate {
    /// The workload's.
    Own,
    Files(CertificateFiles),
}

#[derive(PartialEq)]
enum Roots {
    Unset,
    Mesh,
    System,
    File(String),
}

fn decode_common(context: CommonTlsContext, place: &str, ignored: &mut Ignored) -> Result<Common, Wrong> {
    let parameters = context.tls_params.as_ref();
    let versions = parameters.map(|parameters| versions(parameters, place, ignored)).transpose().under("tls_params")?;
    if ignored.is_grpc() && context.tls_params.is_some() {
        return Err(wrong("tls_params", "is set, which is not supported"));
    }
    let by_provider =
        match (&context.tls_certificate_provider_instance, &context.tls_certificate_certificate_provider_instance) {
            (Some(provider), _) => {
                Some(certificate_of(&provider.instance_name, ignored).under("tls_certificate_provider_instance")?)
            }
            (None, Some(provider)) => Some(
                certificate_of(&provider.instance_name, ignored)
                    .under("tls_certificate_certificate_provider_instance")?,
            ),
            (None, None) => None,
        };
    let certificates = context.tls_certificate_sds_secret_configs.as_slice();
    let certificate = match certificates {
        [] => by_provider,
        _ if ignored.is_grpc() => {
            let why = "are not supported; name a certificate provider of the bootstrap";
            return Err(wrong("tls_certificate_sds_secret_configs", why));
        }
        [one] if one.name == OWN => Some(Certificate::Own),
        [one] if let Some(files) = certificate_files(&one.name) => Some(Certificate::Files(files)),
        [one, ..] => {
            let why = format!(
                "names {:?}; only the workload's own certificate {OWN:?} and one {FILE_CERTIFICATE}CHAIN~KEY are supported",
                one.name
            );
            return Err(wrong("tls_certificate_sds_secret_configs", why));
        }
    };
    let (roots, names) = match context.validation_context_type {
        None => (Roots::Unset, Vec::new()),
        Some(ValidationContextType::ValidationContext(validation)) => {
            decode_validation(validation, ignored).under("validation_context")?
        }
        Some(ValidationContextType::ValidationContextSdsSecretConfig(_)) if ignored.is_grpc() => {
            let why = "is not supported; name a certificate provider of the bootstrap";
            return Err(wrong("validation_context_sds_secret_config", why));
        }
        Some(ValidationContextType::ValidationContextCertificateProviderInstance(provider)) => {
            let roots = roots_of_provider(&provider.instance_name, ignored);
            (roots.under("validation_context_certificate_provider_instance")?, Vec::new())
        }
        Some(ValidationContextType::ValidationContextSdsSecretConfig(secret)) => {
            (roots_of(&secret).under("validation_context_sds_secret_config")?, Vec::new())
        }
        Some(ValidationContextType::CombinedValidationContext(combined)) => {
            decode_combined(combined, ignored).under("combined_validation_context")?
        }
    };
    let versions = versions.unwrap_or_default();
    Ok(Common { certificate, roots, names, alpn: context.alpn_protocols, versions })
}

/// The files of a certificate provider that the bootstrap names, and whether this process's own certificate and the mesh's roots
/// are its; one that the bootstrap does not name is refused (gRFC A29).
fn instance<'a>(name: &str, ignored: &'a Ignored) -> Result<(&'a Files, bool), Wrong> {
    let context = ignored.context();
    let files = context.certificates.get(name);
    let files =
        files.ok_or_else(|| wrong("instance_name", format!("{name:?} is no certificate provider of the bootstrap")))?;
    Ok((files, context.identity.as_deref() == Some(name)))
}

fn certificate_of(name: &str, ignored: &Ignored) -> Result<Certificate, Wrong> {
    match instance(name, ignored)? {
        (_, true) => Ok(Certificate::Own),
        (files, false) => {
            let pair = own_files(files);
            Ok(Certificate::Files(pair.ok_or_else(|| wrong("instance_name", format!("{name:?} has no certificate")))?))
        }
    }
}

fn roots_of_provider(name: &str, ignored: &Ignored) -> Result<Roots, Wrong> {
    match instance(name, ignored)? {
        (_, true) => Ok(Roots::Mesh),
        (Files { roots: Some(file), bundles: None, crl: None, .. }, false) => {
            Ok(Roots::File(file.display().to_string()))
        }
        _ => {
            let why = "has no roots of its own alone: bundles and lists of revoked certificates are read of this process's provider";
            Err(wrong("instance_name", format!("{name:?} {why}")))
        }
    }
}

fn own_files(files: &Files) -> Option<CertificateFiles> {
    let (chain, key) = files.identity.as_ref()?;
    Some(CertificateFiles { chain: chain.display().to_string(), key: key.display().to_string() })
}

/// The files of this process's own provider, where providers are what resources speak of.
fn identity_files(ignored: &Ignored) -> Option<&Files> {
    let context = ignored.context();
    context.certificates.get(context.identity.as_ref()?).filter(|_| ignored.is_grpc())
}

fn decode_combined(
    combined: CombinedCertificateValidationContext,
    ignored: &Ignored,
) -> Result<(Roots, Vec<StringMatch>), Wrong> {
    let validation = combined.default_validation_context.unwrap_or_default();
    let (roots, names) = decode_validation(validation, ignored).under("default_validation_context")?;
    if let Some(provider) = combined.validation_context_certificate_provider_instance {
        let roots = roots_of_provider(&provider.instance_name, ignored);
        return Ok((roots.under("validation_context_certificate_provider_instance")?, names));
    }
    match combined.validation_context_sds_secret_config {
        Some(secret) => Ok((roots_of(&secret).under("validation_context_sds_secret_config")?, names)),
        None => Ok((roots, names)),
    }
}

fn roots_of(secret: &SdsSecretConfig) -> Result<Roots, Wrong> {
    match secret.name.as_str() {
        ROOTS => Ok(Roots::Mesh),
        name if SYSTEM_ROOTS.contains(&name) => Ok(Roots::System),
        name if let Some(file) = name.strip_prefix(FILE_ROOTS).filter(|file| !file.is_empty()) => {
            Ok(Roots::File(file.to_owned()))
        }
        name => Err(wrong("name", format!("is {name:?}; only {ROOTS:?} and {:?} are supported", SYSTEM_ROOTS[0]))),
    }
}

fn decode_validation(
    validation: CertificateValidationContext,
    ignored: &Ignored,
) -> Result<(Roots, Vec<StringMatch>), Wrong> {
    use crate::proto::envoy::config::core::v3::data_source::Specifier;
    let provider = validation.ca_certificate_provider_instance.as_ref();
    let provider = provider.map(|provider| roots_of_provider(&provider.instance_name, ignored));
    let provider = provider.transpose().under("ca_certificate_provider_instance")?;
    let roots = match (validation.trusted_ca.and_then(|source| source.specifier), provider) {
        (None, Some(roots)) => roots,
        (None, None) if validation.system_root_certs.is_some() => Roots::System,
        (None, None) => Roots::Unset,
        (Some(Specifier::Filename(file)), _) if SYSTEM_ROOTS.contains(&file.as_str()) => Roots::System,
        (Some(_), _) => return Err(wrong("trusted_ca", format!("is not supported; name the roots {ROOTS:?} by SDS"))),
    };
    if validation.crl.is_some() || validation.only_verify_leaf_cert_crl {
        let field = if validation.crl.is_some() { "crl" } else { "only_verify_leaf_cert_crl" };
        return Err(wrong(field, format!("is not taken from a TLS context; it comes with the roots {ROOTS:?} by SDS")));
    }
    let mut names = Vec::new();
    for (i, matcher) in validation.match_subject_alt_names.into_iter().enumerate() {
        names.push(value::string(matcher).within(|| format!("match_subject_alt_names[{i}]"))?);
    }
    for (i, typed) in validation.match_typed_subject_alt_names.into_iter().enumerate() {
        let place = || format!("match_typed_subject_alt_names[{i}]");
        if !matches!(SanType::try_from(typed.san_type), Ok(SanType::Uri | SanType::Dns)) {
            return Err(wrong("san_type", "must be URI or DNS; others are not supported")).within(place);
        }
        let matcher = typed.matcher.ok_or_else(|| wrong("matcher", "is missing")).within(place)?;
        names.push(value::string(matcher).under("matcher").within(place)?);
    }
    Ok((roots, names))
}

/// `file-cert:CHAIN~KEY`, as Istio names files that its agent reads.
fn certificate_files(name: &str) -> Option<CertificateFiles> {
    let (chain, key) = name.strip_prefix(FILE_CERTIFICATE)?.split_once('~')?;
    let whole = !chain.is_empty() && !key.is_empty() && !key.contains('~');
    whole.then(|| CertificateFiles { chain: chain.to_owned(), key: key.to_owned() })
}

/// TLS 1.2 and 1.3 are spoken, with forward-secret authenticated ciphers only; asking for less is met, asking for other
/// ciphers is not.
fn versions(parameters: &TlsParameters, place: &str, ignored: &mut Ignored) -> Result<TlsVersions, Wrong> {
    use TlsProtocol::{TlSv10, TlSv11, TlSv12, TlSv13, TlsAuto};
    // Whoever lists some lists those spoken here among them, or means what cannot be had.
    let spoken = |list: &String| list.split(['|', '[', ']']).any(|suite| SPOKEN.contains(&suite));
    if !parameters.cipher_suites.is_empty() && !parameters.cipher_suites.iter().any(spoken) {
        let list = parameters.cipher_suites.join(", ");
        return Err(wrong("cipher_suites", format!("has none that is spoken here: {list}")));
    }
    if !parameters.cipher_suites.is_empty() {
        ignored.add(place, "common_tls_context.tls_params.cipher_suites");
    }
    if !parameters.ecdh_curves.is_empty() {
        ignored.add(place, "common_tls_context.tls_params.ecdh_curves");
    }
    let least = match TlsProtocol::try_from(parameters.tls_minimum_protocol_version) {
        Ok(TlsAuto | TlSv10 | TlSv11 | TlSv12) => TlSv12,
        Ok(TlSv13) => TlSv13,
        Err(_) => return Err(wrong("tls_minimum_protocol_version", "is no version of TLS")),
    };
    match (least, TlsProtocol::try_from(parameters.tls_maximum_protocol_version)) {
        (TlSv13, Ok(TlsAuto | TlSv13)) => Ok(TlsVersions::Only13),
        (_, Ok(TlsAuto | TlSv13)) => Ok(TlsVersions::Both),
        (TlSv12, Ok(TlSv12)) => Ok(TlsVersions::Only12),
        _ => Err(wrong("tls_maximum_protocol_version", "leaves no version of TLS from 1.2 on")),
    }
}

fn encode_versions(versions: TlsVersions) -> Option<TlsParameters> {
    let (least, most) = match versions {
        TlsVersions::Both => return None,
        TlsVersions::Only12 => (TlsProtocol::TlSv12, TlsProtocol::TlSv12),
        TlsVersions::Only13 => (TlsProtocol::TlSv13, TlsProtocol::TlSv13),
    };
    Some(TlsParameters {
        tls_minimum_protocol_version: least.into(),
        tls_maximum_protocol_version: most.into(),
        ..TlsParameters::default()
    })
}

pub(super) fn encode_upstream(tls: &UpstreamTls) -> TransportSocket {
    let mut common = encode_common(tls.workload_identity, &tls.subject_alt_names);
    common.alpn_protocols.clone_from(&tls.alpn);
    common.tls_params = encode_versions(tls.versions);
    if let Some(CertificateFiles { chain, key }) = &tls.certificate {
        common.tls_certificate_sds_secret_configs = vec![secret(&format!("{FILE_CERTIFICATE}{chain}~{key}"))];
    }
    if let (Some(file), Some(ValidationContextType::ValidationContext(mut validation))) =
        (&tls.roots, common.validation_context_type.clone())
    {
        validation.system_root_certs = None;
        let combined = CombinedCertificateValidationContext {
            default_validation_context: Some(validation),
            validation_context_sds_secret_config: Some(secret(&format!("{FILE_ROOTS}{file}"))),
            ..CombinedCertificateValidationContext::default()
        };
        common.validation_context_type = Some(ValidationContextType::CombinedValidationContext(combined));
    }
    let context = UpstreamTlsContext {
        sni: tls.sni.clone(),
        auto_host_sni: tls.host_sni,
        common_tls_context: Some(common),
        ..UpstreamTlsContext::default()
    };
    socket(SOCKET_TLS, Any::pack(&context))
}

pub(super) fn encode_downstream(inbound: &Inbound) -> TransportSocket {
    let context = DownstreamTlsContext {
        require_client_certificate: Some(true),
        common_tls_context: Some(CommonTlsContext {
            alpn_protocols: inbound.alpn.clone(),
            tls_params: encode_versions(inbound.tls_versions),
            ..encode_common(true, &inbound.callers)
        }),
    };
    socket(SOCKET_TLS, Any::pack(&context))
}

pub(super) fn encode_plaintext() -> TransportSocket {
    socket(SOCKET_RAW, Any::pack(&RawBuffer {}))
}

fn socket(name: &str, any: Any) -> TransportSocket {
    TransportSocket { name: name.to_owned(), config_type: Some(ConfigType::TypedConfig(any)) }
}

fn encode_common(workload_identity: bool, names: &[StringMatch]) -> CommonTlsContext {
    let typed = |name: &StringMatch| {
        let uri = matches!(name, StringMatch::Exact { value, .. } | StringMatch::Prefix { value, .. } if value.contains("://"));
        let san_type = if uri || workload_identity { SanType::Uri } else { SanType::Dns };
        SubjectAltNameMatcher { san_type: san_type.into(), matcher: Some(value::encode_string(name)) }
    };
    let validation = CertificateValidationContext {
        system_root_certs: (!workload_identity).then_some(SystemRootCerts {}),
        match_typed_subject_alt_names: names.iter().map(typed).collect(),
        ..CertificateValidationContext::default()
    };
    let validation_context_type = match workload_identity {
        true => ValidationContextType::CombinedValidationContext(CombinedCertificateValidationContext {
            default_validation_context: Some(validation),
            validation_context_sds_secret_config: Some(secret(ROOTS)),
            ..CombinedCertificateValidationContext::default()
        }),
        false => ValidationContextType::ValidationContext(validation),
    };
    CommonTlsContext {
        tls_certificate_sds_secret_configs: workload_identity.then(|| secret(OWN)).into_iter().collect(),
        validation_context_type: Some(validation_context_type),
        ..CommonTlsContext::default()
    }
}

fn secret(name: &str) -> SdsSecretConfig {
    SdsSecretConfig { name: name.to_owned(), sds_config: Some(value::over_ads()) }
}
