//! Compares `api.proto` with `wire.txt`, the list of everything that is visible on the wire. The list was
//! made from cri-api's own descriptor, so a slip of the pen in `api.proto` fails here.

use std::path::{Path, PathBuf};

use protox::prost_reflect::{
    Cardinality, DescriptorPool, EnumDescriptor, FieldDescriptor, Kind, MessageDescriptor, MethodDescriptor, ServiceDescriptor,
};

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../proto/cri/v1")
}

fn type_of(field: &FieldDescriptor) -> String {
    if field.is_map() {
        let Kind::Message(entry) = field.kind() else { unreachable!("a map is a message") };
        return format!("map<{}, {}>", name_of(entry.map_entry_key_field().kind()), name_of(entry.map_entry_value_field().kind()));
    }
    let label = match field.cardinality() {
        Cardinality::Repeated => "repeated ",
        Cardinality::Required => "required ",
        Cardinality::Optional if field.field_descriptor_proto().proto3_optional() => "optional ",
        Cardinality::Optional => "",
    };
    format!("{label}{}", name_of(field.kind()))
}

fn name_of(kind: Kind) -> String {
    match kind {
        Kind::Message(message) => message.full_name().to_owned(),
        Kind::Enum(enumeration) => enumeration.full_name().to_owned(),
        scalar => format!("{scalar:?}").to_lowercase(),
    }
}

fn is_deprecated(field: &FieldDescriptor) -> bool {
    field.field_descriptor_proto().options.as_ref().is_some_and(|options| options.deprecated())
}

fn service(service: &ServiceDescriptor) -> Vec<String> {
    let stream = |streams| if streams { "stream " } else { "" };
    let call = |method: MethodDescriptor| {
        let (input, output) = (method.input(), method.output());
        let (client, server) = (stream(method.is_client_streaming()), stream(method.is_server_streaming()));
        format!("  {}({client}{}) {server}{}", method.name(), input.full_name(), output.full_name())
    };
    std::iter::once(format!("service {}", service.full_name())).chain(service.methods().map(call)).collect()
}

fn message(message: &MessageDescriptor) -> Vec<String> {
    let field = |field: FieldDescriptor| {
        let mark = if is_deprecated(&field) { " [deprecated]" } else { "" };
        format!("  {} = {} {}{mark}", field.name(), field.number(), type_of(&field))
    };
    std::iter::once(format!("message {}", message.full_name())).chain(message.fields().map(field)).collect()
}

fn enumeration(enumeration: &EnumDescriptor) -> Vec<String> {
    let values = enumeration.values().map(|value| format!("  {} = {}", value.name(), value.number()));
    std::iter::once(format!("enum {}", enumeration.full_name())).chain(values).collect()
}

/// Everything a peer can see, one line each.
fn wire(pool: &DescriptorPool) -> Vec<String> {
    let services = pool.services().flat_map(|found| service(&found));
    let messages = pool.all_messages().filter(|found| !found.is_map_entry()).flat_map(|found| message(&found));
    let enums = pool.all_enums().flat_map(|found| enumeration(&found));
    services.chain(messages).chain(enums).collect()
}

fn golden() -> Vec<String> {
    std::fs::read_to_string(directory().join("wire.txt")).unwrap_or_default().lines().map(str::to_owned).collect()
}

#[test]
fn our_proto_says_on_the_wire_what_cri_api_says() {
    let files = protox::compile(["api.proto"], [directory()]).unwrap();
    let ours = wire(&DescriptorPool::from_file_descriptor_set(files).unwrap());
    for (ours, golden) in ours.iter().zip(&golden()) {
        assert_eq!(ours, golden);
    }
    assert_eq!(ours.len(), golden().len());
}

#[test]
fn the_contract_has_forty_three_calls() {
    assert_eq!(golden().iter().filter(|line| line.starts_with("  ") && line.contains('(')).count(), 43);
}
