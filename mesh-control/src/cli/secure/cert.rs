//! `meshctl cert`: certificates issued, looked at, revoked, and the authority behind them changed.
//!
//! A certificate is issued here, with the keys in the state directory, and not asked for over the API: whoever may read those files
//! may be any workload, and nobody else. Everything else goes through the control plane, which tells its members at once.

use std::{
    fs,
    io::Read,
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use clap::{Subcommand, ValueEnum};
use mesh_control::{
    api::IssuedList,
    ca::{Ca, CaError, CaStatus, RevokeRequest, Role, RotateRequest, ServiceAccount, Step, save_identity},
    compile::MeshSettings,
};
use rustls_pki_types::{CertificateDer, pem::PemObject};
use x509_parser::{certificate::X509Certificate, extensions::GeneralName, prelude::FromDer};

use crate::cli::{BAD_INPUT, FAILURE, Failure, TOO_LATE, client::Server, output, proxy_config, values};

/// Between two tries of a step that some workload is not ready for.
const WAIT: Duration = Duration::from_millis(200);

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Cert {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Write a new key with a certificate for a service account into a directory.
    Issue(Issue),
    /// Show certificates in files, or what the authority has issued and revoked.
    Inspect(Inspect),
    /// Take the next step of changing the authority: add, activate, remove.
    Rotate(Rotate),
    /// Let a workload or a certificate in no more.
    Revoke(Revoke),
}

#[derive(Debug, clap::Args)]
struct Issue {
    /// The service account, such as bookinfo-reviews.
    service_account: String,
    /// The state directory of the control plane, whose key signs.
    #[arg(long, value_name = "DIR")]
    state_dir: PathBuf,
    /// How long it is good for.
    #[arg(long, default_value = "24h", value_name = "DURATION", value_parser = values::duration)]
    ttl: Duration,
    /// Where to write cert-chain.pem, key.pem and root-cert.pem.
    #[arg(short, long, value_name = "DIR")]
    output_dir: PathBuf,
}

#[derive(Debug, clap::Args)]
struct Inspect {
    /// Files of certificates in PEM; - is standard input. Without any, the authority is asked.
    files: Vec<PathBuf>,
    /// Only certificates of this SPIFFE id.
    #[arg(long, value_name = "SPIFFE-ID", conflicts_with = "files")]
    id: Option<String>,
    /// How to print.
    #[arg(short, long, value_enum, default_value_t = Format::Short)]
    output: Format,
}

#[derive(Debug, clap::Args)]
struct Rotate {
    /// Which step; without it the next.
    #[arg(value_enum)]
    step: Option<StepName>,
    /// The new authority's files, with the names ca-cert.pem, ca-key.pem, root-cert.pem and cert-chain.pem; without it one is made.
    #[arg(long, value_name = "DIR")]
    from: Option<PathBuf>,
    /// Remove the old authority although some workload may have no certificate of the new one yet.
    #[arg(long)]
    force: bool,
    /// Take all steps, waiting for the workloads between them.
    #[arg(long, conflicts_with_all = ["step", "force"])]
    all: bool,
    /// With --all: how long to wait for the workloads.
    #[arg(long, default_value = "1m", value_name = "DURATION", value_parser = values::duration)]
    timeout: Duration,
    /// How to print.
    #[arg(short, long, value_enum, default_value_t = Format::Short)]
    output: Format,
}

#[derive(Debug, clap::Args)]
struct Revoke {
    /// SPIFFE ids, or serial numbers in hexadecimal.
    #[arg(required = true, value_name = "SPIFFE-ID|SERIAL")]
    what: Vec<String>,
    /// Let them in again.
    #[arg(long)]
    undo: bool,
    /// How to print.
    #[arg(short, long, value_enum, default_value_t = Format::Short)]
    output: Format,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
enum Format {
    /// A table.
    Short,
    Json,
    Yaml,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
enum StepName {
    /// Trust a new root beside the old one.
    Add,
    /// Sign with the new authority.
    Activate,
    /// Trust the old root no more.
    Remove,
    /// Go back one step.
    Abort,
}

impl Cert {
    pub(in crate::cli) async fn run(self, server: &Server) -> Result<(), Failure> {
        match self.verb {
            Verb::Issue(issue) => issue.run(server.namespace()),
            Verb::Inspect(inspect) => inspect.run(server).await,
            Verb::Rotate(rotate) => rotate.run(server).await,
            Verb::Revoke(revoke) => revoke.run(server).await,
        }
    }
}

impl Issue {
    fn run(self, namespace: &str) -> Result<(), Failure> {
        let failure = |error: CaError| Failure::new(FAILURE, error.to_string());
        if !self.state_dir.join("token-key.pem").exists() {
            let message = format!(
                "{} is not the state directory of a control plane; give the one of `meshctl dev --state-dir DIR`",
                self.state_dir.display()
            );
            return Err(Failure::new(FAILURE, message));
        }
        let account = ServiceAccount::new(namespace, &self.service_account).map_err(failure)?;
        let ca = Ca::open(&self.state_dir, &MeshSettings::default().trust_domain).map_err(failure)?;
        let (chain, key) = ca.issue(&account, Some(self.ttl), SystemTime::now()).map_err(failure)?;
        save_identity(&self.output_dir, &chain, &key, &ca.root_pem()).map_err(failure)?;
        let id = account.spiffe_id(ca.trust_domain());
        output::note(&format!("{id} is in {}, good for {} s.", self.output_dir.display(), self.ttl.as_secs()));
        Ok(())
    }
}

impl Inspect {
    async fn run(self, server: &Server) -> Result<(), Failure> {
        if !self.files.is_empty() {
            return self.files();
        }
        if let Some(id) = &self.id {
            if !id.chars().all(|c| c.is_ascii_alphanumeric() || ":/-._".contains(c)) {
                return Err(Failure::new(crate::cli::USAGE, format!("{id:?} is no SPIFFE id")));
            }
            let issued: IssuedList = server.get(&format!("/ca/issued?id={id}")).await?;
            return print(self.output, &issued, || issued_table(&issued));
        }
        let status: CaStatus = server.get("/ca").await?;
        print(self.output, &status, || status_text(&status))
    }

    fn files(&self) -> Result<(), Failure> {
        let mut found = Vec::new();
        for file in &self.files {
            let bad = |why: String| Failure::new(BAD_INPUT, format!("{}: {why}", file.display()));
            let text = read(file).map_err(|error| bad(format!("it cannot be read: {error}")))?;
            for certificate in CertificateDer::pem_slice_iter(&text) {
                let der = certificate.map_err(|error| bad(format!("it is not PEM: {error:?}")))?;
                found.push(Shown::of(file, &der).map_err(bad)?);
            }
            if !found.iter().any(|shown| shown.file == file.display().to_string()) {
                return Err(bad("it holds no certificate".to_owned()));
            }
        }
        print(self.output, &found, || {
            let header = ["FILE", "NAME", "CA", "VALID", "SERIAL NUMBER", "NOT AFTER", "NOT BEFORE", "ISSUER"];
            let rows: Vec<Vec<String>> = found.iter().map(Shown::row).collect();
            output::table(&header, &rows)
        })
    }
}

impl Rotate {
    async fn run(self, server: &Server) -> Result<(), Failure> {
        let from = self.from.as_ref().map(|from| from.canonicalize().unwrap_or_else(|_| from.clone()));
        if !self.all {
            let step = self.step.map(StepName::step);
            let request = RotateRequest { step, from, force: self.force };
            let status: CaStatus = server.post("/ca/rotate", &request).await?;
            return print(self.output, &status, || status_text(&status));
        }
        let deadline = tokio::time::Instant::now() + self.timeout;
        let mut status: CaStatus = server.get("/ca").await?;
        if status.authorities.len() > 1 && from.is_some() {
            return Err(Failure::new(FAILURE, "a change is under way; finish or abort it before another is begun"));
        }
        loop {
            let step = status.next.unwrap_or(Step::Add);
            let from = if step == Step::Add { from.clone() } else { None };
            let request = RotateRequest { step: Some(step), from, force: false };
            match server.post::<_, CaStatus>("/ca/rotate", &request).await {
                Ok(next) => {
                    output::note(&format!("{}: done", word(step)));
                    status = next;
                    if step == Step::Remove {
                        return print(self.output, &status, || status_text(&status));
                    }
                }
                // Some workload is not ready.
                Err(_) if step == Step::Remove && tokio::time::Instant::now() < deadline => {}
                Err(failure) if step == Step::Remove => return Err(Failure { code: TOO_LATE, ..failure }),
                Err(failure) => return Err(failure),
            }
            tokio::time::sleep(WAIT).await;
        }
    }
}

impl Revoke {
    async fn run(self, server: &Server) -> Result<(), Failure> {
        let (ids, serials) = self.what.into_iter().partition(|what| what.contains("://"));
        let request = RevokeRequest { ids, serials, lift: self.undo };
        let status: CaStatus = server.post("/ca/revoke", &request).await?;
        print(self.output, &status, || status_text(&status))
    }
}

impl StepName {
    const fn step(self) -> Step {
        match self {
            Self::Add => Step::Add,
            Self::Activate => Step::Activate,
            Self::Remove => Step::Remove,
            Self::Abort => Step::Abort,
        }
    }
}

/// A certificate of a file, for people. Times are in Unix seconds.
#[derive(serde::Serialize)]
struct Shown {
    file: String,
    names: Vec<String>,
    subject: String,
    issuer: String,
    is_ca: bool,
    serial: String,
    not_before: i64,
    not_after: i64,
}

impl Shown {
    fn of(file: &Path, der: &CertificateDer<'_>) -> Result<Self, String> {
        let parsed =
            X509Certificate::from_der(der).map_err(|error| format!("a certificate cannot be read: {error}"))?;
        let certificate = parsed.1;
        let names = certificate.subject_alternative_name().ok().flatten().map(|names| {
            let names = names.value.general_names.iter();
            names.map(|name| match name {
                GeneralName::URI(name) | GeneralName::DNSName(name) => (*name).to_owned(),
                other => other.to_string(),
            })
        });
        let serial: String = certificate.raw_serial().iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Self {
            file: file.display().to_string(),
            names: names.map(Iterator::collect).unwrap_or_default(),
            subject: certificate.subject().to_string(),
            issuer: certificate.issuer().to_string(),
            is_ca: certificate.is_ca(),
            serial,
            not_before: certificate.validity().not_before.timestamp(),
            not_after: certificate.validity().not_after.timestamp(),
        })
    }

    fn row(&self) -> Vec<String> {
        let name = self.names.first().unwrap_or(&self.subject);
        let now = seconds_now();
        let valid = (self.not_before..self.not_after).contains(&now);
        vec![
            self.file.clone(),
            name.clone(),
            self.is_ca.to_string(),
            valid.to_string(),
            self.serial.clone(),
            date(self.not_after),
            date(self.not_before),
            self.issuer.clone(),
        ]
    }
}

fn status_text(status: &CaStatus) -> String {
    let header = ["AUTHORITY", "ROLE", "ISSUED", "SERIAL NUMBER", "NOT AFTER", "NOT BEFORE", "SUBJECT"];
    let row = |authority: &mesh_control::ca::AuthorityStatus| {
        let role = match authority.role {
            Role::Active => "active",
            Role::Coming => "coming",
            Role::Leaving => "leaving",
        };
        vec![
            authority.id.clone(),
            role.to_owned(),
            authority.issued.to_string(),
            authority.serial.clone(),
            date(authority.not_after.try_into().unwrap_or(i64::MAX)),
            date(authority.not_before.try_into().unwrap_or(i64::MAX)),
            authority.subject.clone(),
        ]
    };
    let rows: Vec<_> = status.authorities.iter().map(row).collect();
    let mut text = output::table(&header, &rows);
    let denied = status.denied_ids.iter().map(|denied| ("id", denied));
    let denied = denied.chain(status.denied_serials.iter().map(|denied| ("serial", denied)));
    let rows: Vec<_> = denied
        .map(|(kind, (what, since))| vec![what.clone(), kind.to_owned(), date((*since).try_into().unwrap_or(i64::MAX))])
        .collect();
    if !rows.is_empty() {
        text.push('\n');
        text.push_str(&output::table(&["REVOKED", "KIND", "SINCE"], &rows));
    }
    if let (Some(next), true) = (status.next, status.authorities.len() > 1) {
        text.push_str(&format!("\nA change of the authority is under way; the next step is `{}`.\n", word(next)));
    }
    text
}

fn issued_table(issued: &IssuedList) -> String {
    let seconds = |at: u64| date(at.try_into().unwrap_or(i64::MAX));
    let row = |one: &mesh_control::ca::Issued| {
        vec![one.id.clone(), one.serial.clone(), seconds(one.not_after), seconds(one.not_before), one.authority.clone()]
    };
    let rows: Vec<_> = issued.items.iter().map(row).collect();
    output::table(&["NAME", "SERIAL NUMBER", "NOT AFTER", "NOT BEFORE", "AUTHORITY"], &rows)
}

fn print<T: serde::Serialize>(format: Format, value: &T, table: impl FnOnce() -> String) -> Result<(), Failure> {
    output::data(&match format {
        Format::Short => table(),
        Format::Json => output::json(value)?,
        Format::Yaml => output::yaml(value)?,
    })
}

const fn word(step: Step) -> &'static str {
    match step {
        Step::Add => "add",
        Step::Activate => "activate",
        Step::Remove => "remove",
        Step::Abort => "abort",
    }
}

fn read(file: &Path) -> std::io::Result<Vec<u8>> {
    if file.as_os_str() != "-" {
        return fs::read(file);
    }
    let mut text = Vec::new();
    std::io::stdin().read_to_end(&mut text)?;
    Ok(text)
}

pub(in crate::cli) fn seconds_now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

/// As certificates are dated: `2026-11-23T02:00:00Z`.
pub(in crate::cli) fn date(seconds: i64) -> String {
    x509_parser::time::ASN1Time::from_timestamp(seconds).map_or_else(|_| "-".to_owned(), proxy_config::time)
}
