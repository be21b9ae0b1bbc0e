//! The gRPC server: translation between CRI v1 and the domain, and status codes.
//!
//! A request is parsed once, here, into the domain's types; past this crate there is no message, no empty
//! text that means "default" and no zero that means "unset". Answers are made from the domain's views.
//! This crate decides nothing about pods and knows no kernel: the engine does.
//!
//! [`v1`] is the contract, generated from `proto/cri/v1/api.proto`; its client half serves the command
//! line. The other modules go by subject:
//!
//! ```text
//! request -> service -> pod, container (mount, security, namespaces, resources, sysctl, check) -> engine
//! answer  <- service <- pod, container_status, image, stats, metrics, status                   <- engine
//! ```

#![forbid(unsafe_code)]

mod check;
mod container;
mod container_status;
mod deadline;
mod ending;
mod filter;
#[cfg(fuzzing)]
pub mod fuzzing;
mod image;
mod metrics;
mod mount;
mod namespaces;
mod pod;
mod redact;
mod resources;
#[cfg(test)]
mod samples;
mod security;
pub mod server;
mod service;
mod signal;
mod stats;
mod status;
mod sysctl;
mod time_offsets;
mod user_namespace;

use std::sync::Arc;

use coracle_engine::Engine;
use coracle_streaming::Urls;
use tonic::service::Routes;

use v1::image_service_server::ImageServiceServer;
use v1::runtime_service_server::RuntimeServiceServer;

pub use deadline::Deadlines;
pub use ending::unless_over;

/// The messages, clients and servers of CRI v1.
#[allow(missing_docs)]
pub mod v1 {
    tonic::include_proto!("runtime.v1");
}

/// The encoded `FileDescriptorSet` of `api.proto`, without comments: what a client needs to print messages by name.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/cri.bin"));

/// The largest message, in bytes, that is taken or sent: what a kubelet's client takes.
pub const MESSAGE_LIMIT: usize = 16 << 20;

/// Both services over `engine`, to be bound to a socket. Streaming sessions wait for their clients at `urls`.
pub fn routes(engine: Arc<Engine>, urls: Urls) -> Routes {
    let runtime = RuntimeServiceServer::new(service::Runtime::new(Arc::clone(&engine), urls));
    let images = ImageServiceServer::new(service::Images::new(engine));
    Routes::new(runtime.max_decoding_message_size(MESSAGE_LIMIT).max_encoding_message_size(MESSAGE_LIMIT))
        .add_service(images.max_decoding_message_size(MESSAGE_LIMIT).max_encoding_message_size(MESSAGE_LIMIT))
}
