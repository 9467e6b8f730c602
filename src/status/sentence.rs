//! A sentence for people: one cause, and what to do about it.

use crate::words::{cause, plain};

/// The most characters of a sentence.
pub(crate) const LONGEST: usize = 120;

/// A sentence in parts, so that what matters most stays whole where there is too much of it: its beginning and its end do,
/// the cause between them is cut, and what is only good to know is left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sentence {
    head: String,
    extras: Vec<String>,
    cause: String,
    end: String,
}

impl Sentence {
    /// A sentence that begins so.
    pub(crate) fn new(head: impl Into<String>) -> Self {
        Self { head: head.into(), extras: Vec::new(), cause: String::new(), end: String::new() }
    }

    /// Adds what is good to know, behind the beginning.
    pub(crate) fn add(&mut self, extra: impl Into<String>) {
        self.extras.push(extra.into());
    }

    /// Says why; the first cause stays.
    pub(crate) fn because(&mut self, why: &str) {
        if self.cause.is_empty() {
            self.cause = cause(why);
        }
    }

    /// Ends it so.
    pub(crate) fn end(&mut self, end: &str) {
        self.end.push_str(end);
    }

    /// Begins it with more.
    #[must_use]
    pub(crate) fn behind(mut self, more: &str) -> Self {
        self.head.insert_str(0, more);
        self
    }
}

/// The sentence in [`LONGEST`] characters.
impl std::fmt::Display for Sentence {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let length = |text: &str| text.chars().count();
        let mut text = self.head.clone();
        for extra in &self.extras {
            if length(&text) + length(extra) + length(&self.cause) + length(&self.end) <= LONGEST {
                text.push_str(extra);
            }
        }
        let room = LONGEST.saturating_sub(length(&text) + length(&self.end));
        text.push_str(&cut(&self.cause, room));
        text.push_str(&self.end);
        f.write_str(&cut(&text, LONGEST))
    }
}

/// A text of at most so many characters.
fn cut(text: &str, longest: usize) -> String {
    if text.chars().count() <= longest { text.to_owned() } else { plain(text, longest.saturating_sub(1)) }
}

#[cfg(test)]
mod tests {
    use super::{LONGEST, Sentence};

    #[test]
    fn what_matters_most_stays_whole() {
        let mut sentence = Sentence::new("a_to_b: parked: 3 blobs were given up");
        sentence.end("; blobferry failures list a_to_b");
        sentence.because(": no: no: yes");
        sentence.because(": and that");
        sentence.add(", all of them large");
        assert_eq!(
            sentence.to_string(),
            "a_to_b: parked: 3 blobs were given up, all of them large: no: yes; blobferry failures list a_to_b"
        );
        sentence.cause = format!(": {}", "é".repeat(100));
        let text = sentence.to_string();
        assert_eq!(text.chars().count(), LONGEST);
        assert!(text.starts_with("a_to_b: parked: 3 blobs were given up: éé"), "{text}");
        assert!(text.ends_with("é…; blobferry failures list a_to_b"), "{text}");
        let long = Sentence::new("x".repeat(200)).to_string();
        assert_eq!((long.chars().count(), long.ends_with("x…")), (LONGEST, true));
    }
}
