//! The bridge network's configuration, as the operator writes it. Pure.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::Subnet;

/// The kernel's bound on a link's name, `IFNAMSIZ` less the closing zero.
const LINK_NAME_LENGTH: usize = 15;

/// What the bridge network is to be. Every field has a default.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BridgeConfig {
    /// The bridge's name; the nftables table is called `coracle_` and this.
    pub name: BridgeName,
    /// Where pods get their addresses, until the kubelet names another.
    pub subnet: Subnet,
    /// The largest packet, bytes; absent: that of the link which has the node's default route.
    pub mtu: Option<u32>,
    /// Whether what leaves the node wears the node's address.
    pub masquerade: bool,
}

impl Default for BridgeConfig {
    fn default() -> Self {
        let name = BridgeName("coracle0".to_owned());
        let subnet = Subnet::DEFAULT;
        Self { name, subnet, mtu: None, masquerade: true }
    }
}

/// A name that a link can have: 1 to 15 letters, digits, `-`, `_` or `.`, beginning with a letter or digit.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct BridgeName(String);

impl BridgeName {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for BridgeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The text cannot name a bridge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InvalidBridgeName;

impl fmt::Display for InvalidBridgeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a bridge's name is 1 to {LINK_NAME_LENGTH} letters, digits, '-', '_' or '.', the first a letter or digit")
    }
}

impl std::error::Error for InvalidBridgeName {}

impl TryFrom<String> for BridgeName {
    type Error = InvalidBridgeName;

    fn try_from(text: String) -> Result<Self, InvalidBridgeName> {
        let fits = text.len() <= LINK_NAME_LENGTH && text.starts_with(|first: char| first.is_ascii_alphanumeric());
        let plain = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'));
        if fits && plain { Ok(Self(text)) } else { Err(InvalidBridgeName) }
    }
}

impl std::str::FromStr for BridgeName {
    type Err = InvalidBridgeName;

    fn from_str(text: &str) -> Result<Self, InvalidBridgeName> {
        text.to_owned().try_into()
    }
}

impl From<BridgeName> for String {
    fn from(name: BridgeName) -> Self {
        name.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_table_means_the_defaults() {
        let config: BridgeConfig = toml::from_str("").unwrap();
        assert_eq!(config, BridgeConfig::default());
        assert_eq!((config.name.as_str(), config.subnet.to_string().as_str()), ("coracle0", "10.87.0.0/16"));
    }

    #[test]
    fn an_unknown_key_and_a_bad_value_are_errors() {
        for text in ["bridge = 'x'", "subnet = '10.0.0.1/8'", "name = 'a/b'", "name = 'sixteen-letters-'", "name = ''", "name = '..'"] {
            assert!(toml::from_str::<BridgeConfig>(text).is_err(), "{text}");
        }
        assert_eq!(toml::from_str::<BridgeConfig>("name = 'br-1.x_y'").unwrap().name.as_str(), "br-1.x_y");
    }
}
