//! `meshctl names`: what there is to name at a place of the command line, a line each: what shells complete with. Hidden: people have `get`.

use std::collections::BTreeSet;

use mesh_control::{
    api::{Objects, Workloads},
    kinds::Kind,
};

use crate::cli::{
    Failure,
    client::{Server, escape},
    get, output,
};

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Names {
    /// The words of the command line before the one to be completed, without `meshctl`.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    words: Vec<String>,
}

/// What may stand there.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Wanted {
    Nothing,
    /// The words for kinds, and `workload`.
    Kinds,
    Objects(Kind),
    Workloads,
}

impl Names {
    pub(in crate::cli) async fn run(self, server: &Server) -> Result<(), Failure> {
        let (words, namespace) = plain(&self.words);
        let namespace = namespace.unwrap_or_else(|| server.namespace());
        let names: BTreeSet<String> = match wanted(&words, self.words.last().map(String::as_str)) {
            Wanted::Nothing => BTreeSet::new(),
            Wanted::Kinds => {
                Kind::ALL.iter().map(|kind| kind.to_string().to_lowercase()).chain(["workload".to_owned()]).collect()
            }
            Wanted::Objects(kind) => {
                let path = format!("/objects?kind={kind}&namespace={}", escape(namespace));
                server.get::<Objects>(&path).await?.items.into_iter().map(|item| item.key.name).collect()
            }
            Wanted::Workloads => {
                let workloads = server.get::<Workloads>("/workloads").await?.items;
                workloads.into_iter().filter(|it| it.namespace == namespace).map(|it| it.name).collect()
            }
        };
        output::data(&names.into_iter().map(|name| name + "\n").collect::<String>())
    }
}

/// The words that are no options, and the namespace that one of those names.
fn plain(words: &[String]) -> (Vec<&str>, Option<&str>) {
    let (mut plain, mut namespace) = (Vec::new(), None);
    let mut words = words.iter().map(String::as_str);
    while let Some(word) = words.next() {
        match word {
            "-n" | "--namespace" => namespace = words.next(),
            "--server" | "--color" | "-o" | "--output" => drop(words.next()),
            _ if word.starts_with('-') => {}
            _ => plain.push(word),
        }
    }
    (plain, namespace)
}

fn wanted(words: &[&str], last: Option<&str>) -> Wanted {
    if last == Some("--from") {
        return Wanted::Workloads;
    }
    match words {
        ["get" | "describe" | "delete" | "edit" | "schema"] => Wanted::Kinds,
        ["get" | "describe" | "delete" | "edit", kind, ..] => match get::kind(kind) {
            Ok(kind) => Wanted::Objects(kind),
            Err(_) if kind.starts_with("workload") => Wanted::Workloads,
            Err(_) => Wanted::Nothing,
        },
        ["shift" | "fault" | "timeout" | "retry" | "routes" | "tap" | "top"] | ["stat", "service" | "services"] => {
            Wanted::Objects(Kind::Service)
        }
        ["fields"] | ["authz", "check"] | ["proxy-config", _] | ["stat", "workload" | "workloads"] => Wanted::Workloads,
        _ => Wanted::Nothing,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use super::*;

    /// OP7: what is completed goes by the verb and by what was said before, whatever options stand between.
    #[test]
    fn what_may_stand_there() {
        for (line, expected) in [
            ("", Wanted::Nothing),
            ("get", Wanted::Kinds),
            ("-n shop get", Wanted::Kinds),
            ("get vs", Wanted::Objects(Kind::VirtualService)),
            ("get -o yaml vs", Wanted::Objects(Kind::VirtualService)),
            ("delete dr a", Wanted::Objects(Kind::DestinationRule)),
            ("describe workload", Wanted::Workloads),
            ("get pods", Wanted::Nothing),
            ("shift", Wanted::Objects(Kind::Service)),
            ("shift reviews", Wanted::Nothing),
            ("proxy-config cluster", Wanted::Workloads),
            ("authz check", Wanted::Workloads),
            ("explain GET http://a/ --from", Wanted::Workloads),
        ] {
            let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
            assert_eq!(wanted(&plain(&words).0, words.last().map(String::as_str)), expected, "{line}");
        }
        let words = ["-n", "shop", "get"].map(str::to_owned);
        assert_eq!(plain(&words).1, Some("shop"));
    }
}
