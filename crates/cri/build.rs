//! Compiles `proto/cri/v1/api.proto` into client and server code, without a protoc on the machine.

use std::error::Error;
use std::path::Path;

use protox::prost::Message;
use protox::prost_reflect::prost_types::FileDescriptorSet;

/// Messages whose fields hold secrets; their `Debug` is written by hand in `redact.rs`.
const SECRET: [&str; 2] = ["runtime.v1.AuthConfig", "runtime.v1.KeyValue"];

fn main() -> Result<(), Box<dyn Error>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../proto/cri/v1");
    println!("cargo::rerun-if-changed={}", root.display());
    let descriptors = protox::compile(["api.proto"], [&root])?;
    write_descriptors(descriptors.clone())?;
    tonic_prost_build::configure().emit_rerun_if_changed(false).btree_map(".").skip_debug(SECRET).compile_fds(descriptors)?;
    Ok(())
}

/// Writes the descriptors without the comments, for clients that print messages by name (`DESCRIPTORS`).
fn write_descriptors(mut descriptors: FileDescriptorSet) -> Result<(), Box<dyn Error>> {
    for file in &mut descriptors.file {
        file.source_code_info = None;
    }
    let path = Path::new(&std::env::var("OUT_DIR")?).join("cri.bin");
    Ok(std::fs::write(path, descriptors.encode_to_vec())?)
}
