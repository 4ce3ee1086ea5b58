//! TLS contexts of a gateway's chains: one-sided or mutual, with certificates that the control plane gives by name.
//!
//! Source: Envoy `DownstreamTlsContext`, in the shapes of Istio's gateways (`kubernetes://NAME`, `kubernetes://NAME-cacert`).

use std::sync::Arc;

use mesh_core::config::{
    CallerCertificate, GatewayCertificate, GatewayRoots, GatewayTls, KeyPair, RootCertificates, StringMatch,
};

use super::{
    FILE_CERTIFICATE, FILE_ROOTS, OWN, ROOTS, SOCKET_TLS, certificate_files, decode_validation, encode_common,
    encode_versions, secret, socket, typed, versions,
};
use crate::{
    ads::ResourceSet,
    proto::{
        Any,
        envoy::{
            config::core::v3::TransportSocket,
            extensions::transport_sockets::tls::v3::{
                CertificateValidationContext, CommonTlsContext, DownstreamTlsContext, SdsSecretConfig, TlsParameters,
                common_tls_context::{CombinedCertificateValidationContext, ValidationContextType},
            },
        },
    },
    translate::{
        read::{Ignored, Within, Wrong, wrong},
        secret::{encode_certificate, encode_roots},
        value,
    },
};

const PLACE: &str = "filter_chains.transport_socket";

/// The TLS of a chain; `None` leaves the bytes as they are.
pub(in crate::translate) fn decode(
    socket: &TransportSocket,
    ignored: &mut Ignored,
) -> Result<Option<Arc<GatewayTls>>, Wrong> {
    let Some(any) = typed(socket)? else { return Ok(None) };
    let context: DownstreamTlsContext = ignored.open(any, PLACE).under("typed_config")?;
    let required = context.require_client_certificate == Some(true);
    let common = context.common_tls_context.unwrap_or_default();
    let tls = decode_common(common, required, ignored).under("typed_config.common_tls_context")?;
    Ok(Some(Arc::new(tls)))
}

fn decode_common(common: CommonTlsContext, required: bool, ignored: &mut Ignored) -> Result<GatewayTls, Wrong> {
    let (ciphers, versions) = match &common.tls_params {
        None => (Vec::new(), Default::default()),
        Some(parameters) => {
            let rest = TlsParameters { cipher_suites: Vec::new(), ..parameters.clone() };
            (parameters.cipher_suites.clone(), versions(&rest, PLACE, ignored).under("tls_params")?)
        }
    };
    if common.tls_certificate_provider_instance.is_some()
        || common.tls_certificate_certificate_provider_instance.is_some()
    {
        return Err(wrong("tls_certificate_provider_instance", "is not supported at a gateway"));
    }
    let mut certificates = Vec::new();
    for one in &common.tls_certificate_sds_secret_configs {
        certificates.push(match one.name.as_str() {
            OWN => GatewayCertificate::Own,
            name if let Some(files) = certificate_files(name) => GatewayCertificate::Files(files),
            name => {
                is_given(one).under("tls_certificate_sds_secret_configs")?;
                GatewayCertificate::Named(name.into(), None)
            }
        });
    }
    if certificates.is_empty() {
        return Err(wrong("tls_certificate_sds_secret_configs", "is empty: there is no certificate to show"));
    }
    let (roots, names) = match common.validation_context_type {
        None => (None, Vec::new()),
        Some(ValidationContextType::ValidationContextSdsSecretConfig(one)) => {
            (Some(roots(&one).under("validation_context_sds_secret_config")?), Vec::new())
        }
        Some(ValidationContextType::CombinedValidationContext(combined)) => {
            decode_combined(combined, ignored).under("combined_validation_context")?
        }
        Some(_) => {
            let why = "is of a kind that is not supported at a gateway; name the roots by SDS";
            return Err(wrong("validation_context_type", why));
        }
    };
    let callers = match (required, &roots) {
        (true, None) => {
            return Err(wrong("validation_context_type", "is missing, and callers must show a certificate"));
        }
        (true, Some(_)) => CallerCertificate::Required,
        (false, Some(_)) => CallerCertificate::Optional,
        (false, None) => CallerCertificate::None,
    };
    let (subject_alt_names, alpn) = (names, common.alpn_protocols);
    Ok(GatewayTls { certificates, callers, roots, subject_alt_names, alpn, versions, ciphers })
}

fn decode_combined(
    combined: CombinedCertificateValidationContext,
    ignored: &Ignored,
) -> Result<(Option<GatewayRoots>, Vec<StringMatch>), Wrong> {
    let validation = combined.default_validation_context.unwrap_or_default();
    if validation.trusted_ca.is_some() || validation.system_root_certs.is_some() {
        let why = "is not supported at a gateway; name the roots by SDS";
        return Err(wrong("default_validation_context.trusted_ca", why));
    }
    let (_, names) = decode_validation(validation, ignored).under("default_validation_context")?;
    let one = combined.validation_context_sds_secret_config.map(|one| roots(&one)).transpose();
    Ok((one.under("validation_context_sds_secret_config")?, names))
}

fn is_given(one: &SdsSecretConfig) -> Result<(), Wrong> {
    if one.name.is_empty() {
        return Err(wrong("name", "is missing"));
    }
    value::is_over_ads(one.sds_config.as_ref(), "sds_config")
}

fn roots(one: &SdsSecretConfig) -> Result<GatewayRoots, Wrong> {
    match one.name.as_str() {
        ROOTS => Ok(GatewayRoots::Mesh),
        name if let Some(file) = name.strip_prefix(FILE_ROOTS).filter(|file| !file.is_empty()) => {
            Ok(GatewayRoots::File(file.to_owned()))
        }
        name => is_given(one).map(|()| GatewayRoots::Named(name.into(), None)),
    }
}

pub(in crate::translate) fn encode(tls: &GatewayTls) -> TransportSocket {
    let certificate = |one: &GatewayCertificate| match one {
        GatewayCertificate::Own => secret(OWN),
        GatewayCertificate::Files(files) => secret(&format!("{FILE_CERTIFICATE}{}~{}", files.chain, files.key)),
        GatewayCertificate::Named(name, _) => secret(name),
    };
    let roots = tls.roots.as_ref().map(|roots| match roots {
        GatewayRoots::Mesh => secret(ROOTS),
        GatewayRoots::File(file) => secret(&format!("{FILE_ROOTS}{file}")),
        GatewayRoots::Named(name, _) => secret(name),
    });
    let of_mesh = tls.roots == Some(GatewayRoots::Mesh);
    let names = match encode_common(of_mesh, &tls.subject_alt_names).validation_context_type {
        Some(ValidationContextType::ValidationContext(it)) => it.match_typed_subject_alt_names,
        Some(ValidationContextType::CombinedValidationContext(it)) => {
            it.default_validation_context.map(|it| it.match_typed_subject_alt_names).unwrap_or_default()
        }
        _ => Vec::new(),
    };
    let validation = roots.map(|roots| {
        ValidationContextType::CombinedValidationContext(CombinedCertificateValidationContext {
            default_validation_context: Some(CertificateValidationContext {
                match_typed_subject_alt_names: names,
                ..CertificateValidationContext::default()
            }),
            validation_context_sds_secret_config: Some(roots),
            ..CombinedCertificateValidationContext::default()
        })
    });
    let mut parameters = encode_versions(tls.versions);
    if !tls.ciphers.is_empty() {
        parameters.get_or_insert_default().cipher_suites.clone_from(&tls.ciphers);
    }
    let context = DownstreamTlsContext {
        require_client_certificate: Some(tls.callers == CallerCertificate::Required),
        common_tls_context: Some(CommonTlsContext {
            tls_params: parameters,
            tls_certificate_sds_secret_configs: tls.certificates.iter().map(certificate).collect(),
            validation_context_type: validation,
            alpn_protocols: tls.alpn.clone(),
            ..CommonTlsContext::default()
        }),
    };
    socket(SOCKET_TLS, Any::pack(&context))
}

/// Adds the secrets that the context names, as far as they are known.
pub(in crate::translate) fn encode_secrets(tls: &GatewayTls, set: &mut ResourceSet) {
    for one in &tls.certificates {
        if let GatewayCertificate::Named(name, Some(pair)) = one {
            let KeyPair { chain, key } = &**pair;
            encode_certificate(name, chain, key.expose(), set);
        }
    }
    if let Some(GatewayRoots::Named(name, Some(known))) = &tls.roots {
        let RootCertificates { roots, crls } = &**known;
        encode_roots(name, roots, crls, set);
    }
}
