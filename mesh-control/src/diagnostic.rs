//! Diagnostics: what is wrong with a file, where exactly, and what to do about it.
//!
//! A [`Diagnostic`] is plain data (it travels from the control plane to `meshctl` as JSON) and renders itself in the look of
//! rustc: code, message, `file:line:column`, the line with a caret under the fault, and help. Codes are those of
//! `istioctl analyze` where Istio has one (`IST0101`), our own `MSH....` otherwise; [`codes`] lists them.
//!
//! Source: Istio `galley/pkg/config/analysis/msg`; the renderer is `annotate-snippets`.

use std::{borrow::Cow, fmt};

use annotate_snippets::{AnnotationKind, Level as Title, Renderer, Snippet};
use serde::{Deserialize, Serialize};

/// One finding.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Diagnostic {
    /// `IST0101`, `MSH0005`.
    pub code: Cow<'static, str>,
    /// How bad.
    pub level: Level,
    /// The file as the caller named it; `-` is standard input.
    pub file: String,
    /// 1-based.
    pub line: u32,
    /// 1-based, in characters.
    pub column: u32,
    /// Characters from `column` on that the finding is about, at least 1.
    pub length: u32,
    /// What is wrong, naming resource and field.
    pub message: String,
    /// Said beside the carets, such as `did you mean "v3"?`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// Background, such as where the known names are defined.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// What to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub help: Option<String>,
    /// The source line.
    pub excerpt: String,
}

/// How bad a [`Diagnostic`] is.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Good to know: a field that has no effect here.
    Info,
    /// Accepted, but probably not what was meant.
    Warning,
    /// Refused; nothing of the apply takes effect.
    Error,
}

impl Diagnostic {
    /// Is the apply refused?
    pub fn is_error(&self) -> bool {
        self.level == Level::Error
    }

    /// The finding as a person reads it, with terminal colours or without.
    pub fn render(&self, colours: bool) -> String {
        let renderer = if colours { Renderer::styled() } else { Renderer::plain() };
        let title = match self.level {
            Level::Info => Title::INFO,
            Level::Warning => Title::WARNING,
            Level::Error => Title::ERROR,
        };
        let mut group = title.primary_title(self.message.as_str()).id(self.code.as_ref()).elements([Snippet::source(
            self.excerpt.as_str(),
        )
        .line_start(self.line as usize)
        .path(self.file.as_str())
        .annotation(AnnotationKind::Primary.span(self.byte_span()).label(self.label.as_deref()))]);
        if let Some(note) = &self.note {
            group = group.element(Title::NOTE.message(note.as_str()));
        }
        if let Some(help) = &self.help {
            group = group.element(Title::HELP.message(help.as_str()));
        }
        renderer.render(&[group])
    }

    /// The bytes of the excerpt under the carets.
    fn byte_span(&self) -> std::ops::Range<usize> {
        let from = self.column.saturating_sub(1) as usize;
        let byte_of = |n: usize| self.excerpt.char_indices().nth(n).map_or(self.excerpt.len(), |(byte, _)| byte);
        byte_of(from)..byte_of(from.saturating_add(self.length.max(1) as usize))
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.render(false))
    }
}

/// The codes, each with the one thing it says.
pub mod codes {
    /// A value that the schema allows and that is probably not meant. Istio `SchemaWarning`.
    pub const INVALID_WARNING: &str = "IST0133";
    /// A name refers to something that does not exist. Istio `ReferencedResourceNotFound`.
    pub const NOT_FOUND: &str = "IST0101";
    /// A value that the schema does not allow. Istio `SchemaValidationError`.
    pub const INVALID: &str = "IST0106";
    /// Two virtual services of the mesh for one host; the older one counts. Istio `ConflictingMeshGatewayVirtualServiceHosts`.
    pub const CONFLICTING_HOSTS: &str = "IST0109";
    /// A service of several ports is named without one. Istio `VirtualServiceDestinationPortSelectorRequired`.
    pub const PORT_REQUIRED: &str = "IST0112";
    /// A selector selects no workload. Istio `NoMatchingWorkloadsFound`.
    pub const NO_WORKLOADS: &str = "IST0127";
    /// A rule after one that takes every request. Istio `VirtualServiceUnreachableRule`.
    pub const UNREACHABLE_RULE: &str = "IST0130";
    /// A match that an earlier one repeats. Istio `VirtualServiceIneffectiveMatch`.
    pub const INEFFECTIVE_MATCH: &str = "IST0131";
    /// A host of a virtual service that its gateway does not serve. Istio `VirtualServiceHostNotFoundInGateway`.
    pub const NOT_IN_GATEWAY: &str = "IST0132";
    /// Two gateways claim the same port and host for the same workloads. Istio `ConflictingGateways`.
    pub const CONFLICTING_GATEWAYS: &str = "IST0145";
    /// A destination rule for a host nobody defines. Istio `UnknownDestinationRuleHost`.
    pub const UNKNOWN_HOST: &str = "IST0174";
    /// Two sidecars select the same workloads. Istio `ConflictingSidecarWorkloadSelectors`.
    pub const SIDECARS_OF_ONE_SELECTOR: &str = "IST0110";
    /// Two sidecars of a namespace select nobody in particular. Istio `MultipleSidecarsWithoutWorkloadSelectors`.
    pub const SIDECARS_WITHOUT_SELECTOR: &str = "IST0111";
    /// A port's name does not say its protocol. Istio `PortNameIsNotUnderNamingConvention`.
    pub const PORT_NAME: &str = "IST0118";
    /// An entry of a TCP port without addresses. Istio `ServiceEntryAddressesRequired`.
    pub const ADDRESSES_REQUIRED: &str = "IST0134";
    /// A subset that selects no workload. Istio `DestinationRuleSubsetNotSelectPods`.
    pub const EMPTY_SUBSET: &str = "IST0173";
    /// Two entries of a host that disagree on a port's protocol. Istio `ConflictingServiceEntryProtocol`.
    pub const CONFLICTING_PROTOCOL: &str = "IST0177";
    /// A field or value that still works and should be replaced. Istio `Deprecated`.
    pub const DEPRECATED: &str = "IST0002";
    /// The text is not YAML.
    pub const NOT_YAML: &str = "MSH0001";
    /// The document is not an object with `apiVersion`, `kind` and `metadata.name`.
    pub const NOT_AN_OBJECT: &str = "MSH0002";
    /// A kind or version nobody knows.
    pub const UNKNOWN_KIND: &str = "MSH0003";
    /// A kind of Istio or Kubernetes that this control plane does not take.
    pub const UNSUPPORTED_KIND: &str = "MSH0004";
    /// A field the kind does not have.
    pub const UNKNOWN_FIELD: &str = "MSH0005";
    /// A value of another type than the field's.
    pub const WRONG_TYPE: &str = "MSH0006";
    /// A required field is missing.
    pub const MISSING_FIELD: &str = "MSH0007";
    /// A field that is understood and cannot be acted on, where leaving it out would change what is safe or promised.
    pub const UNSUPPORTED_FIELD: &str = "MSH0008";
    /// A field that is accepted and has no effect here.
    pub const IGNORED_FIELD: &str = "MSH0009";
    /// One object twice in one apply; the later one counts.
    pub const DEFINED_TWICE: &str = "MSH0010";
    /// A gateway names Secrets whose keys nobody is given.
    pub const NO_KEYS: &str = "MSH0011";
    /// A workload has the labels of a service and another account than its Deployments say.
    pub const OTHER_ACCOUNT: &str = "MSH0012";
}
