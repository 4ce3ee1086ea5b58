//! Keys and certificates on disk: made complete under another name and then renamed, secrets readable by their owner alone.

use std::{
    fs::{self, OpenOptions},
    io::{ErrorKind, Write},
    path::Path,
};

use zeroize::Zeroizing;

use super::{CaError, key::SecretKey};

/// Makes a directory that only its owner can enter; one that is there is left as it is.
pub(super) fn make_directory(dir: &Path) -> Result<(), CaError> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(dir).map_err(io(dir))
}

/// Writes a certificate chain, its key and the roots into a directory, by the names of Istio's mounted workload certificates.
///
/// # Errors
///
/// When a file cannot be written.
pub fn save_identity(dir: &Path, chain: &str, key: &str, roots: &str) -> Result<(), CaError> {
    make_directory(dir)?;
    write_secret(&dir.join("key.pem"), key)?;
    write_public(&dir.join("root-cert.pem"), roots)?;
    write_public(&dir.join("cert-chain.pem"), chain)
}

/// The text of a file, or `None` when there is none.
pub(super) fn read(path: &Path) -> Result<Option<String>, CaError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(io(path)(error)),
    }
}

/// The P-256 key in a file, made there when there is none.
pub(super) fn key(path: &Path) -> Result<SecretKey, CaError> {
    if let Some(pem) = read(path)?.map(Zeroizing::new) {
        warn_if_others_can_read(path);
        let key = SecretKey::read(path, &pem)?;
        if *key.pair().algorithm() != rcgen::PKCS_ECDSA_P256_SHA256 {
            return Err(CaError::Key { path: path.to_owned(), reason: "it is on another curve".to_owned() });
        }
        return Ok(key);
    }
    let key = SecretKey::generate()?;
    write_secret(path, &key.pem())?;
    Ok(key)
}

/// Writes a file that everybody may read.
pub(crate) fn write_public(path: &Path, text: &str) -> Result<(), CaError> {
    write(path, text, 0o644)
}

/// Writes a file that only its owner may read, from its first byte on.
pub(crate) fn write_secret(path: &Path, text: &str) -> Result<(), CaError> {
    write(path, text, 0o600)
}

fn write(path: &Path, text: &str, mode: u32) -> Result<(), CaError> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.new", std::process::id()));
    let temporary = path.with_file_name(name);
    // One left by a process that died with our id would keep its old mode.
    let _ = fs::remove_file(&temporary);
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, mode);
    #[cfg(not(unix))]
    let _ = mode;
    let written = options.open(&temporary).and_then(|mut file| {
        file.write_all(text.as_bytes())?;
        file.sync_all()
    });
    written.and_then(|()| fs::rename(&temporary, path)).map_err(|error| {
        let _ = fs::remove_file(&temporary);
        io(path)(error)
    })
}

pub(super) fn warn_if_others_can_read(path: &Path) {
    #[cfg(unix)]
    if let Ok(metadata) = fs::metadata(path) {
        use std::os::unix::fs::PermissionsExt;
        if metadata.permissions().mode() & 0o077 != 0 {
            tracing::warn!(path = %path.display(), "a private key can be read by others than its owner; chmod 600 it");
        }
    }
    #[cfg(not(unix))]
    let _ = path;
}

fn io(path: &Path) -> impl FnOnce(std::io::Error) -> CaError {
    let path = path.to_owned();
    |source| CaError::Io { path, source }
}
