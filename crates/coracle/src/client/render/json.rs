//! CRI's answers as JSON, in protobuf's canonical mapping: camelCase names, 64-bit numbers and enum values as
//! strings, bytes in base64, unset fields with their defaults (<https://protobuf.dev/programming-guides/json>).
//!
//! The mapping comes from the descriptors of `api.proto`, so a new field needs no work here. Only answers print:
//! requests may hold secrets and have no [`Answer`] implementation.

use std::io::Write;

use coracle_cri::v1;
use coracle_domain::{During, Refusal};
use prost_reflect::prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, SerializeOptions};
use serde_json::Value;

use crate::client::error::Result;

/// A message that a server answers with.
pub(crate) trait Answer: Message {
    /// Its name in `api.proto`.
    const NAME: &'static str;
}

macro_rules! answers {
    ($($name:ident),* $(,)?) => {
        $(impl Answer for v1::$name { const NAME: &'static str = stringify!($name); })*
        #[cfg(test)]
        const NAMES: &[&str] = &[$(stringify!($name)),*];
    };
}

answers!(
    ContainerStatusResponse,
    ImageFsInfoResponse,
    ImageStatusResponse,
    ListContainerStatsResponse,
    ListContainersResponse,
    ListImagesResponse,
    ListPodSandboxResponse,
    PodSandboxStatusResponse,
    StatusResponse,
    VersionResponse,
);

/// The message as a JSON value.
pub(crate) fn value<A: Answer>(answer: &A) -> Result<Value> {
    const STAGE: &str = "rendering as JSON the message";
    let pool = DescriptorPool::decode(coracle_cri::DESCRIPTORS).during(STAGE, A::NAME)?;
    let descriptor = pool.get_message_by_name(&format!("runtime.v1.{}", A::NAME)).ok_or_else(|| Refusal::not_found("message", A::NAME))?;
    let message = DynamicMessage::decode(descriptor, answer.encode_to_vec().as_slice()).during(STAGE, A::NAME)?;
    let options = SerializeOptions::new().skip_default_fields(false);
    Ok(message.serialize_with_options(serde_json::value::Serializer, &options).during(STAGE, A::NAME)?)
}

/// The same for an answer whose `info` holds texts that are JSON themselves: they become part of the whole.
pub(crate) fn with_info<A: Answer>(answer: &A) -> Result<Value> {
    let mut value = value(answer)?;
    if let Some(info) = value.get_mut("info").and_then(Value::as_object_mut) {
        for entry in info.values_mut() {
            if let Some(parsed) = entry.as_str().and_then(|text| serde_json::from_str(text).ok()) {
                *entry = parsed;
            }
        }
    }
    Ok(value)
}

/// Writes a value, indented.
pub(crate) fn write(out: &mut impl Write, value: &Value) -> Result<()> {
    Ok(writeln!(out, "{value:#}")?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_answer_has_a_descriptor() {
        let pool = DescriptorPool::decode(coracle_cri::DESCRIPTORS).unwrap();
        for name in NAMES {
            assert!(pool.get_message_by_name(&format!("runtime.v1.{name}")).is_some(), "{name}");
        }
    }

    #[test]
    fn messages_follow_protobuf_s_mapping() {
        let container = v1::Container { id: "1".into(), state: 1, created_at: 5, ..Default::default() };
        let json = value(&v1::ListContainersResponse { containers: vec![container] }).unwrap();
        let container = &json["containers"][0];
        assert_eq!(container["state"], "CONTAINER_RUNNING");
        assert_eq!(container["createdAt"], "5");
        assert_eq!(container["podSandboxId"], "");
    }

    #[test]
    fn info_becomes_part_of_the_whole_where_it_is_json() {
        let info = [("a", r#"{"pid":7}"#), ("b", "not json")].map(|(key, text)| (key.to_string(), text.to_string()));
        let json = with_info(&v1::StatusResponse { info: info.into(), ..Default::default() }).unwrap();
        assert_eq!((&json["info"]["a"]["pid"], &json["info"]["b"]), (&Value::from(7), &Value::from("not json")));
    }
}
