//! A client of container registries (OCI distribution specification 1.1): manifests and blobs, read only.
//!
//! It knows endpoints, credentials, mirrors and retries, and nothing of images or disks. What it hands
//! out has been compared with its digest. Redirects are followed without taking credentials to another
//! host, and nothing travels unencrypted except to loopback and to hosts configured so.

mod auth;
mod challenge;
mod client;
mod config;
mod download;
mod error;
mod source;

pub use auth::{Credentials, Secret};
#[cfg(fuzzing)]
pub(crate) use challenge::parse as parse_challenges;
pub(crate) use client::Client;
pub use config::{Registries, RegistryOptions};
pub(crate) use download::{Blob, Chunk};
pub(crate) use source::{Fetched, Source};

/// The stage at which an absent object means an absent image.
pub(crate) const MANIFEST_STAGE: &str = "fetching the manifest";
