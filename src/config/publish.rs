//! What an acknowledgement of a publication promises.
//!
//! Invariant: what can be read is one of the two forms that `deploy/README.md` names, and writes
//! itself in that form again.

use std::{num::NonZero, time::Duration};

use serde::{Deserialize, Serialize};

/// Most nodes that may be asked to keep a copy.
const MOST: usize = 9;

/// Publications.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PublishConfig {
    /// Where the bytes are durable before a publication is acknowledged: a number of
    /// nodes' disks, this one's first, or `object` for this disk and L3. Default: 1.
    pub copies: Copies,
    /// In which a client that publishes must send 64 KiB; one that does not is cut off,
    /// for others wait for the memory. Default: 10 s.
    #[serde(with = "humantime_serde")]
    pub patience: Duration,
}

impl Default for PublishConfig {
    fn default() -> Self {
        Self { copies: Copies::default(), patience: Duration::from_secs(10) }
    }
}

/// See [`PublishConfig::copies`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Text", into = "Text")]
pub enum Copies {
    /// 1 to 9.
    Nodes(NonZero<usize>),
    /// `"object"`.
    Object,
}

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Text {
    Number(usize),
    Word(String),
}

impl Default for Copies {
    fn default() -> Self {
        Self::Nodes(NonZero::<usize>::MIN)
    }
}

impl TryFrom<Text> for Copies {
    type Error = String;

    fn try_from(text: Text) -> Result<Self, String> {
        let number = match &text {
            Text::Word(word) if word == "object" => return Ok(Self::Object),
            Text::Word(word) => word.parse().ok(),
            Text::Number(number) => Some(*number),
        };
        let nodes = number.filter(|n| *n <= MOST).and_then(NonZero::new);
        nodes.map(Self::Nodes).ok_or(format!("1 to {MOST}, or \"object\""))
    }
}

impl From<Copies> for Text {
    fn from(copies: Copies) -> Self {
        match copies {
            Copies::Nodes(n) => Self::Number(n.get()),
            Copies::Object => Self::Word("object".into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_are_a_number_or_the_object_store() {
        let read = |text: &str| toml::from_str::<PublishConfig>(text).map(|c| c.copies);
        assert_eq!(read(""), Ok(Copies::default()));
        assert_eq!(read("copies = 2"), Ok(Copies::Nodes(NonZero::new(2).unwrap())));
        assert_eq!(read("copies = '3'"), Ok(Copies::Nodes(NonZero::new(3).unwrap())));
        assert_eq!(read("copies = 'object'"), Ok(Copies::Object));
        for wrong in ["copies = 0", "copies = 10", "copies = 'disk'", "copies = -1"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
        let written =
            toml::to_string(&PublishConfig { copies: Copies::Object, ..Default::default() });
        assert!(written.unwrap().starts_with("copies = \"object\"\n"));
    }
}
