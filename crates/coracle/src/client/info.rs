//! The runtime itself: `info` and `version`.

use std::io::{self, Write};

use coracle_cri::v1;
use serde_json::json;

use super::connect::Client;
use super::error::Result;
use super::print_line;
use super::render::json;
use super::render::table::Table;
use super::render::units::{UNKNOWN, size};
use crate::cli::Output;

const OWN_VERSION: &str = env!("CARGO_PKG_VERSION");

/// Prints this program's version, which needs no runtime.
pub(crate) fn print_own_version(output: Output) -> Result<()> {
    match output {
        Output::Table => print_line(&format!("client   coracle {OWN_VERSION}")),
        Output::Json => Ok(()),
    }
}

/// Prints the runtime's version.
pub(crate) async fn version(client: &Client, output: Output) -> Result<()> {
    let answer = ask_version(client).await?;
    match output {
        Output::Json => json::write(&mut io::stdout().lock(), &json!({ "client": OWN_VERSION, "runtime": json::value(&answer)? })),
        Output::Table => print_line(&format!("runtime  {}", runtime_name(&answer))),
    }
}

async fn ask_version(client: &Client) -> Result<v1::VersionResponse> {
    Ok(client.runtime.clone().version(v1::VersionRequest { version: "0.1.0".into() }).await?.into_inner())
}

fn runtime_name(version: &v1::VersionResponse) -> String {
    format!("{} {} (CRI {})", version.runtime_name, version.runtime_version, version.runtime_api_version)
}

/// Prints the runtime's version, conditions, handlers and image store.
pub(crate) async fn info(client: &Client, output: Output) -> Result<()> {
    let version = ask_version(client).await?;
    let request = v1::StatusRequest { verbose: output == Output::Json };
    let status = client.runtime.clone().status(request).await?.into_inner();
    let store = client.images.clone().image_fs_info(v1::ImageFsInfoRequest {}).await?.into_inner();
    let mut out = io::stdout().lock();
    if output == Output::Json {
        let value = json!({ "version": json::value(&version)?, "status": json::with_info(&status)?, "imageStore": json::value(&store)? });
        return json::write(&mut out, &value);
    }
    writeln!(out, "runtime      {}", runtime_name(&version))?;
    for usage in &store.image_filesystems {
        writeln!(out, "image store  {}", describe_store(usage))?;
    }
    writeln!(out)?;
    conditions(&status).write(&mut out)?;
    if !status.runtime_handlers.is_empty() {
        writeln!(out)?;
        handlers(&status).write(&mut out)?;
    }
    Ok(())
}

fn describe_store(usage: &v1::FilesystemUsage) -> String {
    let path = usage.fs_id.as_ref().map_or(UNKNOWN, |id| &id.mountpoint);
    let used = usage.used_bytes.map_or(UNKNOWN.into(), |used| size(used.value));
    format!("{path} ({used} used)")
}

fn conditions(answer: &v1::StatusResponse) -> Table<4> {
    let mut table = Table::new(["CONDITION", "MET", "REASON", "MESSAGE"]);
    for condition in answer.status.iter().flat_map(|status| &status.conditions) {
        let v1::RuntimeCondition { r#type, status, reason, message } = condition.clone();
        table.row([r#type, yes_or_no(status), reason, message]);
    }
    table
}

fn handlers(answer: &v1::StatusResponse) -> Table<3> {
    let mut table = Table::new(["HANDLER", "USER NAMESPACES", "RECURSIVE READ-ONLY MOUNTS"]);
    for handler in &answer.runtime_handlers {
        let name = if handler.name.is_empty() { "(default)".into() } else { handler.name.clone() };
        let features = handler.features.unwrap_or_default();
        table.row([name, yes_or_no(features.user_namespaces), yes_or_no(features.recursive_read_only_mounts)]);
    }
    table
}

fn yes_or_no(answer: bool) -> String {
    if answer { "yes" } else { "no" }.into()
}
