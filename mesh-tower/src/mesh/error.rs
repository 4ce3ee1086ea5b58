//! Why there is no mesh: each a sentence that says what to do.

use std::{fmt, io, net::SocketAddr};

/// Why there is no [`Mesh`](super::Mesh), or it does not serve.
#[non_exhaustive]
pub enum MeshError {
    /// Nothing says where configuration comes from.
    NoSource,
    /// The bootstrap of the control plane cannot be used.
    Bootstrap(String),
    /// An environment variable cannot be understood.
    Variable {
        /// Which.
        name: &'static str,
        /// What is wrong with it, and what it may be.
        message: String,
    },
    /// The configuration given in code or in a file cannot be used.
    Config(String),
    /// The admin port cannot be opened.
    Admin {
        /// Where.
        address: SocketAddr,
        /// Why.
        error: io::Error,
    },
    /// An address cannot be served on.
    Bind {
        /// Which.
        address: String,
        /// Why.
        error: io::Error,
    },
    /// A listener failed.
    Listen(io::Error),
}

impl fmt::Display for MeshError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoSource => f.write_str(
                "nothing says where the mesh's configuration comes from. Tried, in this order:\n  \
                 in code: neither config, config_file, bootstrap nor off was called on the builder\n  \
                 MESH_MODE: not \"off\" (no mesh, requests go where DNS says)\n  \
                 MESH_CONFIG_FILE: not set (the path of a file that is the configuration)\n  \
                 GRPC_XDS_BOOTSTRAP: not set (the path of a bootstrap file, which names the control plane)\n  \
                 GRPC_XDS_BOOTSTRAP_CONFIG: not set (the text of one)",
            ),
            Self::Bootstrap(message) => f.write_str(message),
            Self::Variable { name, message } => write!(f, "{name} {message}"),
            Self::Config(message) => write!(f, "the configuration cannot be used: {message}"),
            Self::Admin { address, error } => {
                write!(
                    f,
                    "the admin port {address} cannot be opened: {error}; set MESH_ADMIN_ADDR to another, or to off"
                )
            }
            Self::Bind { address, error } => write!(f, "cannot serve on {address}: {error}"),
            Self::Listen(error) => write!(f, "cannot listen: {error}"),
        }
    }
}

/// As [`Display`](fmt::Display): a `main` that returns the error prints this.
impl fmt::Debug for MeshError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::error::Error for MeshError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Admin { error, .. } | Self::Bind { error, .. } | Self::Listen(error) => Some(error),
            _ => None,
        }
    }
}
