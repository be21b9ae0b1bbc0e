//! Identifiers. A pod's or container's id is 64 lowercase hexadecimal digits from the system's random
//! source; an image's is its config digest, `sha256:` and 64 digits. Every name the runtime gives to a
//! kernel object or a path derives from one of them.

use std::fmt;
use std::marker::PhantomData;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The digits in an id.
pub(crate) const ID_LENGTH: usize = 64;

/// What an id names; keeps a pod's id from being used as a container's.
pub trait IdKind: 'static {
    /// The field's word for the subject, as it stands in error messages.
    const NOUN: &'static str;
}

/// Marks the ids of pods (CRI: pod sandboxes).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PodKind {}
/// Marks the ids of containers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ContainerKind {}

impl IdKind for PodKind {
    const NOUN: &'static str = "pod sandbox";
}
impl IdKind for ContainerKind {
    const NOUN: &'static str = "container";
}

/// The id of a pod.
pub type PodId = Id<PodKind>;
/// The id of a container.
pub type ContainerId = Id<ContainerKind>;

/// 256 random bits, written as 64 lowercase hexadecimal digits.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Id<K>([u8; ID_LENGTH], PhantomData<K>);

impl<K: IdKind> Id<K> {
    /// An id made of 32 bytes of the caller's entropy.
    pub fn from_entropy(entropy: [u8; 32]) -> Self {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let mut text = [0; ID_LENGTH];
        for (pair, byte) in text.chunks_exact_mut(2).zip(entropy) {
            pair[0] = DIGITS[usize::from(byte >> 4)];
            pair[1] = DIGITS[usize::from(byte & 15)];
        }
        Self(text, PhantomData)
    }

    /// All 64 digits.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or_default()
    }

    /// The first 12 digits: what people are shown, and what short kernel names derive from.
    pub fn short(&self) -> &str {
        &self.as_str()[..12]
    }
}

impl<K: IdKind> FromStr for Id<K> {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let bytes: [u8; ID_LENGTH] = text.as_bytes().try_into().map_err(|_| InvalidId)?;
        if bytes.iter().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) { Ok(Self(bytes, PhantomData)) } else { Err(InvalidId) }
    }
}

/// The text is no id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InvalidId;

impl fmt::Display for InvalidId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "an id is {ID_LENGTH} lowercase hexadecimal digits")
    }
}

impl std::error::Error for InvalidId {}

impl<K: IdKind> fmt::Display for Id<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl<K: IdKind> fmt::Debug for Id<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", K::NOUN, self.short())
    }
}

impl<K: IdKind> Serialize for Id<K> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de, K: IdKind> Deserialize<'de> for Id<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// The id of an image: its config's digest, `sha256:` and 64 hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ImageId(String);

impl ImageId {
    /// The whole digest with its algorithm.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The digits without the algorithm.
    pub fn digits(&self) -> &str {
        &self.0["sha256:".len()..]
    }
}

impl TryFrom<String> for ImageId {
    type Error = InvalidId;

    fn try_from(text: String) -> Result<Self, InvalidId> {
        let digits = text.strip_prefix("sha256:").ok_or(InvalidId)?;
        digits.parse::<Id<PodKind>>()?;
        Ok(Self(text))
    }
}

impl FromStr for ImageId {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        Self::try_from(text.to_owned())
    }
}

impl From<ImageId> for String {
    fn from(id: ImageId) -> Self {
        id.0
    }
}

impl fmt::Display for ImageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_sixty_four_lowercase_hexadecimal_digits() {
        let id = PodId::from_entropy([0xa5; 32]);
        assert_eq!(id.as_str(), "a5".repeat(32));
        assert_eq!(id.short(), "a5a5a5a5a5a5");
        assert_eq!(id.as_str().parse::<PodId>(), Ok(id));
        for bad in ["", "a5", &"A5".repeat(32), &"g5".repeat(32), &"a5".repeat(33), "../../../../../../etc/passwd"] {
            assert_eq!(bad.parse::<PodId>(), Err(InvalidId), "{bad}");
        }
    }

    #[test]
    fn an_image_id_names_its_algorithm() {
        let digits = "0f".repeat(32);
        assert_eq!(format!("sha256:{digits}").parse::<ImageId>().map(|id| id.digits().to_owned()), Ok(digits.clone()));
        assert!(digits.parse::<ImageId>().is_err());
    }
}
