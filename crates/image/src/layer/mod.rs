//! Layers: archives of changes, unpacked into directories that overlayfs stacks.
//!
//! A layer passes through here once, as a stream: [`stream`] decompresses and hashes, [`archive`] reads
//! tar, [`apply`] makes the files, and [`implicit`] completes the rare layer that leans on those below.
//! What an archive says is a stranger's word: every path is resolved beneath the layer's own root.

pub(crate) mod apply;
mod archive;
mod implicit;
mod pax;
pub(crate) mod root;
pub(crate) mod stream;
#[cfg(test)]
mod tests;
mod whiteout;

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::{Digest, InvalidDigest};

pub(crate) use apply::Applied;
#[cfg(fuzzing)]
pub(crate) use stream::unpack_unverified;

/// What identifies an unpacked layer, and names its directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum LayerKey {
    /// The archive's own digest: the layer says everything itself and fits on anything.
    Diff(Digest),
    /// The digest of the chain of layers up to it: it was completed from those below.
    Chain(Digest),
}

impl fmt::Display for LayerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Diff(digest) => write!(f, "diff-{}", digest.digits()),
            Self::Chain(digest) => write!(f, "chain-{}", digest.digits()),
        }
    }
}

impl FromStr for LayerKey {
    type Err = InvalidDigest;

    fn from_str(text: &str) -> Result<Self, InvalidDigest> {
        match text.split_once('-') {
            Some(("diff", digits)) => Digest::from_digits(digits).map(Self::Diff),
            Some(("chain", digits)) => Digest::from_digits(digits).map(Self::Chain),
            _ => Err(InvalidDigest),
        }
    }
}

impl TryFrom<String> for LayerKey {
    type Error = InvalidDigest;

    fn try_from(text: String) -> Result<Self, InvalidDigest> {
        text.parse()
    }
}

impl From<LayerKey> for String {
    fn from(key: LayerKey) -> Self {
        key.to_string()
    }
}

/// The chain ids of layers given by their diff ids, the lowest first (OCI image specification, "Layer
/// ChainID").
pub(crate) fn chain_ids(diff_ids: impl IntoIterator<Item = Digest>) -> Vec<Digest> {
    let chain = diff_ids.into_iter().scan(None, |below: &mut Option<Digest>, diff_id| {
        let chain = below.map_or(diff_id, |below| Digest::finish(Sha256::new_with_prefix(format!("{below} {diff_id}"))));
        *below = Some(chain);
        Some(chain)
    });
    chain.collect()
}
