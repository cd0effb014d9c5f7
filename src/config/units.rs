//! Sizes and optional addresses in configuration files.
//!
//! Invariant: what is written reads back as the same value.

/// `"1.5GiB"`, `"500MB"` or plain bytes.
pub(super) mod bytes {
    use bytesize::ByteSize;
    use serde::{Deserialize, Deserializer, Serializer};

    const UNITS: [(&str, u64); 4] =
        [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];

    /// Writes the largest unit that divides the size exactly.
    pub(in crate::config) fn serialize<S: Serializer>(
        bytes: &u64,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        let exact = UNITS.iter().find(|(_, unit)| *bytes != 0 && bytes.is_multiple_of(*unit));
        match exact {
            Some((name, unit)) => serializer.collect_str(&format_args!("{} {name}", bytes / unit)),
            None => serializer.serialize_u64(*bytes),
        }
    }

    /// Reads bytes or a number with a unit.
    pub(in crate::config) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<u64, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            Bytes(u64),
            Text(String),
        }
        match Written::deserialize(deserializer)? {
            Written::Bytes(bytes) => Ok(bytes),
            Written::Text(text) => text.trim().parse().map(|size: ByteSize| size.0).map_err(|_| {
                serde::de::Error::custom(format!("{text:?} is no size; write 500MB or 1.5GiB"))
            }),
        }
    }
}

/// An address, or `off`: an option that is on by default needs a word for none.
pub(super) mod address {
    use std::net::SocketAddr;

    use serde::{Deserialize, Deserializer, Serializer};

    const OFF: &str = "off";

    /// Writes the address or `off`.
    pub(in crate::config) fn serialize<S: Serializer>(
        address: &Option<SocketAddr>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match address {
            Some(address) => serializer.collect_str(address),
            None => serializer.serialize_str(OFF),
        }
    }

    /// Reads what [`serialize`] writes.
    pub(in crate::config) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<SocketAddr>, D::Error> {
        let text = String::deserialize(deserializer)?;
        match text.as_str() {
            OFF => Ok(None),
            text => text.parse().map(Some).map_err(|_| {
                serde::de::Error::custom(format!("{text:?} is no address; write HOST:PORT or off"))
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde::{Deserialize, Serialize};

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Size {
        #[serde(with = "super::bytes")]
        at: u64,
    }

    fn read(text: &str) -> Result<u64, String> {
        toml::from_str(&format!("at = {text}")).map(|s: Size| s.at).map_err(|e| e.to_string())
    }

    #[test]
    fn sizes_come_with_and_without_units() {
        for (text, bytes) in [
            ("7", 7),
            ("\"7\"", 7),
            ("\"2 KiB\"", 2048),
            ("\"1.5GiB\"", 3 << 29),
            ("\"1MB\"", 1_000_000),
        ] {
            assert_eq!(read(text), Ok(bytes), "{text}");
        }
        assert!(read("\"lots\"").unwrap_err().contains("is no size"));
    }

    #[test]
    fn sizes_are_written_exactly() {
        for at in [0, 1, 1023, 1 << 10, (1 << 30) + 1, 3 << 30, 1 << 40, 1_500_000_000] {
            let text = toml::to_string(&Size { at }).unwrap();
            assert_eq!(toml::from_str::<Size>(&text).unwrap(), Size { at }, "{text}");
        }
    }

    #[test]
    fn an_address_can_be_none() {
        #[derive(Debug, PartialEq, Serialize, Deserialize)]
        struct Port {
            #[serde(with = "super::address")]
            at: Option<std::net::SocketAddr>,
        }
        for at in [None, Some(([127, 0, 0, 1], 7).into())] {
            let text = toml::to_string(&Port { at }).unwrap();
            assert_eq!(toml::from_str::<Port>(&text).unwrap(), Port { at }, "{text}");
        }
        let refused = toml::from_str::<Port>("at = \"7403\"").unwrap_err().to_string();
        assert!(refused.contains("HOST:PORT or off"), "{refused}");
    }
}
