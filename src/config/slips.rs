//! Variables that look like settings and are none.
//!
//! Invariant: what is told is one or two letters from a setting that there is: other tools
//! have `KILN_*` variables of their own, about which a node says nothing.

use super::{Layers, environment_names};

/// Letters that may differ.
const MOST: usize = 2;

impl Layers {
    /// What is to be told of the environment: variables that are ignored, and the setting
    /// that each most likely means.
    pub fn slips(&self) -> Vec<String> {
        let known = environment_names();
        let set = self.environment.iter().filter(|(name, value)| {
            name.starts_with("KILN_") && !value.is_empty() && !known.contains(name)
        });
        let meant = |name: &String| {
            let near =
                known.iter().map(|setting| (strsim::damerau_levenshtein(name, setting), setting));
            near.filter(|(distance, _)| *distance <= MOST).min()
        };
        set.filter_map(|(name, _)| {
            let (_, setting) = meant(name)?;
            Some(format!("{name} is no setting and is ignored: is {setting} meant?"))
        })
        .collect()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_of_the_pen_is_told_and_other_tools_are_left_alone() {
        let variables = [
            ("KILN_MEMORY_BYTE", "1GiB"),
            ("KILN_MEMORY_BYTES", "1GiB"),
            ("KILN_OBEJCT_URL", "file:///l3"),
            ("KILN_ENDPOINT", "127.0.0.1:7400"),
            ("KILN_NVRTC_DIR", "/opt"),
            ("KILN_LOG_LEVLE", ""),
            ("MEMORY_BYTE", "1"),
        ];
        let environment = variables.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        let told = Layers { environment, ..Layers::default() }.slips();
        assert_eq!(
            told,
            [
                "KILN_MEMORY_BYTE is no setting and is ignored: is KILN_MEMORY_BYTES meant?",
                "KILN_OBEJCT_URL is no setting and is ignored: is KILN_OBJECT_URL meant?",
            ]
        );
    }
}
