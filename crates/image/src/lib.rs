//! Registries, content, layers and snapshots.
//!
//! This crate turns an image's name into directories that overlayfs can mount. It speaks to registries
//! ([`Registries`]), keeps manifests and configs in an OCI image layout, unpacks layers, and gives each
//! container a writable layer of its own. It mounts nothing and knows no pods.
//!
//! ```text
//! <root>/images/       OCI image layout: oci-layout, index.json, blobs/ (manifests and configs)
//! <root>/records/      one record per image: its names and its layers
//! <root>/layers/<key>/ record.json and fs/, the unpacked tree
//! <root>/containers/   <container id>/{upper,work}
//! <root>/tmp/          work under way and things being deleted; emptied when the store opens
//! <root>/quarantine/   the last damaged records, for people
//! <runtime>/           which layers each container's rootfs and volumes stand on; tmpfs, dies with the kernel
//! ```
//!
//! Nothing here needs a database: the catalog is read from the records when the store opens and every
//! answer about images comes from memory after that.

#![forbid(unsafe_code)]

mod content;
mod digest;
mod disk;
mod failure;
mod filesystem;
#[cfg(fuzzing)]
pub mod fuzzing;
mod image;
mod layer;
mod lingering;
mod manifest;
mod merged;
mod pull;
mod record;
mod reference;
mod registry;
mod snapshot;
mod store;
mod tree;
mod usage;
mod volume;

#[cfg(test)]
mod testing;

pub use digest::{Digest, InvalidDigest};
pub use image::Image;
pub use layer::LayerKey;
pub use pull::PullRequest;
pub use reference::{InvalidReference, Reference, Target};
pub use registry::{Credentials, Registries, RegistryOptions, Secret};
pub use snapshot::{Rootfs, read_file};
pub use store::Store;
