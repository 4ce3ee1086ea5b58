//! What is wrong with a response, in one text of bounded length: it goes into a request, a log line and a status page.

/// A refusal is no longer than this, in bytes. A gRPC server takes requests of up to 4 MiB, and a client that made a longer
/// one of the errors of tens of thousands of resources would lose its stream with each refusal.
pub(super) const LONGEST: usize = 16 * 1024;

/// As much of it as fits.
fn beginning(why: &str) -> &str {
    let end = (0..=LONGEST.min(why.len())).rev().find(|end| why.is_char_boundary(*end));
    why.get(..end.unwrap_or(0)).unwrap_or_default()
}

/// The first errors of a response, and how many there are more.
#[derive(Debug, Default)]
pub(super) struct Complaints {
    text: String,
    more: usize,
}

impl Complaints {
    pub(super) fn push(&mut self, why: &str) {
        if self.text.is_empty() {
            self.text.push_str(beginning(why));
        } else if self.more == 0 && self.text.len() + why.len() + 2 <= LONGEST {
            self.text.push_str("; ");
            self.text.push_str(why);
        } else {
            self.more += 1;
        }
    }

    /// What the server is told; `None` if nothing is wrong.
    pub(super) fn finish(mut self) -> Option<String> {
        if self.more > 0 {
            self.text.push_str(&format!("; and {} more", self.more));
        }
        (!self.text.is_empty()).then_some(self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// XD4: however much is wrong, what is said of it is short, names the first, and counts the rest.
    #[test]
    fn a_refusal_is_bounded() {
        assert_eq!(Complaints::default().finish(), None);
        let mut few = Complaints::default();
        ["a: bad", "b: worse"].iter().for_each(|why| few.push(why));
        assert_eq!(few.finish().as_deref(), Some("a: bad; b: worse"));
        let mut many = Complaints::default();
        (0..50_000).for_each(|n| many.push(&format!("cluster {n}: has no name")));
        let said = many.finish().unwrap_or_default();
        assert!(said.starts_with("cluster 0: has no name; cluster 1:") && said.len() < LONGEST + 40, "{}", said.len());
        let told = said.matches("cluster ").count();
        assert!(said.ends_with(&format!("; and {} more", 50_000 - told)));
        let mut long = Complaints::default();
        long.push(&"ä".repeat(LONGEST));
        assert!(long.finish().is_some_and(|said| said.len() <= LONGEST));
    }
}
