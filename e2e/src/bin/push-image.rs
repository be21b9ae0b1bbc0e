//! Makes an image of busybox and pushes it to a registry that speaks plain HTTP. For demonstrations, where
//! no tool for building images is at hand.

#![forbid(unsafe_code)]

use std::net::SocketAddr;

use clap::Parser;
use coracle_e2e::image::Image;
use coracle_e2e::layer::{Compression, Layer};
use coracle_e2e::registry::Client;
use serde_json::json;

/// Pushes an image made of busybox-static.
#[derive(Debug, Parser)]
struct Arguments {
    /// The registry's address, for instance 127.0.0.1:5000
    registry: SocketAddr,
    /// The repository's name
    name: String,
    /// The tag
    #[arg(default_value = "latest")]
    tag: String,
    /// Add a layer of so many MiB that does not compress, in files of 64 KiB
    #[arg(long, default_value_t = 0)]
    ballast: u64,
    /// How many such layers
    #[arg(long, default_value_t = 1)]
    ballast_layers: u64,
    /// The command of the image
    #[arg(last = true)]
    command: Vec<String>,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments = Arguments::parse();
    let mut image = Image::busybox();
    if !arguments.command.is_empty() {
        image = image.set("Cmd", json!(arguments.command));
    }
    if arguments.ballast > 0 {
        for number in 0..arguments.ballast_layers {
            image = image.layer(&ballast(number, arguments.ballast), Compression::Gzip);
        }
    }
    let pushed = Client::new(arguments.registry).push(&arguments.name, &arguments.tag, &image.build())?;
    println!("{}", pushed.reference);
    Ok(())
}

/// A layer of files whose content is the output of a xorshift generator, the same every time.
fn ballast(number: u64, mebibytes: u64) -> Vec<u8> {
    let directory = format!("ballast-{number}");
    let mut layer = Layer::new().directory(&directory, 0o755, (0, 0));
    let mut state = 0x9e37_79b9_7f4a_7c15_u64.wrapping_add(number);
    for file in 0..mebibytes * 16 {
        let mut content = Vec::with_capacity(64 * 1024);
        while content.len() < 64 * 1024 {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            content.extend_from_slice(&state.to_le_bytes());
        }
        layer = layer.file(&format!("{directory}/{file}"), 0o644, &content);
    }
    layer.into_tar()
}
