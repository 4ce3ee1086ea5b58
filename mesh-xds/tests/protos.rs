//! The generated protobuf code is what the sources under `proto/` say. `MESH_REGENERATE=1` writes it anew.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    collections::BTreeMap,
    fmt::Write,
    fs,
    path::{Path, PathBuf},
};

use prost::Message;
use prost_types::{DescriptorProto, EnumDescriptorProto, FileDescriptorSet, field_descriptor_proto::Type};

/// What of `google.protobuf` is taken from elsewhere: all but `Any`, whose value is to be shared and not copied.
const EXTERNAL: [(&str, &str); 16] = [
    (".google.protobuf.Duration", "::prost_types::Duration"),
    (".google.protobuf.Timestamp", "::prost_types::Timestamp"),
    (".google.protobuf.Empty", "()"),
    (".google.protobuf.Struct", "::prost_types::Struct"),
    (".google.protobuf.Value", "::prost_types::Value"),
    (".google.protobuf.ListValue", "::prost_types::ListValue"),
    (".google.protobuf.NullValue", "::prost_types::NullValue"),
    (".google.protobuf.BoolValue", "bool"),
    (".google.protobuf.BytesValue", "::prost::bytes::Bytes"),
    (".google.protobuf.DoubleValue", "f64"),
    (".google.protobuf.FloatValue", "f32"),
    (".google.protobuf.Int32Value", "i32"),
    (".google.protobuf.Int64Value", "i64"),
    (".google.protobuf.StringValue", "::prost::alloc::string::String"),
    (".google.protobuf.UInt32Value", "u32"),
    (".google.protobuf.UInt64Value", "u64"),
];

#[test]
fn protos_are_up_to_date() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let committed = root.join("src/proto/generated");
    let fresh = tempfile::tempdir().unwrap();

    let descriptors = compile(&root.join("proto"));
    let mut files = generate(descriptors.clone(), fresh.path());
    files.insert("fields.rs".to_owned(), field_table(&descriptors).into_bytes());
    files.insert("descriptors.bin".to_owned(), descriptors.encode_to_vec());

    if std::env::var_os("MESH_REGENERATE").is_some() {
        let _ = fs::remove_dir_all(&committed);
        fs::create_dir_all(&committed).unwrap();
        for (name, content) in &files {
            fs::write(committed.join(name), content).unwrap();
        }
    }

    for (name, content) in &files {
        let have = fs::read(committed.join(name)).unwrap_or_default();
        assert!(have == *content, "src/proto/generated/{name} is not what proto/ says; run with MESH_REGENERATE=1");
    }
    let have = fs::read_dir(&committed).unwrap().count();
    assert_eq!(have, files.len(), "a file in src/proto/generated belongs to no source");
}

fn compile(proto: &Path) -> FileDescriptorSet {
    let mut sources: Vec<PathBuf> = fs::read_dir(proto).unwrap().map(|entry| entry.unwrap().path()).collect();
    sources.sort();
    let mut descriptors = protox::compile(sources, [proto]).unwrap();
    // Where in a source something stands is of no use to who has only the descriptors.
    descriptors.file.iter_mut().for_each(|file| file.source_code_info = None);
    descriptors
}

fn generate(descriptors: FileDescriptorSet, out: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut config = tonic_prost_build::Config::new();
    config
        .bytes(["."])
        .btree_map(["."])
        .disable_comments(["."])
        .enable_type_names()
        .type_name_domain(["."], "type.googleapis.com")
        .compile_well_known_types();
    for (proto, rust) in EXTERNAL {
        config.extern_path(proto, rust);
    }
    tonic_prost_build::configure()
        .build_transport(false)
        .out_dir(out)
        .compile_fds_with_config(descriptors, config)
        .unwrap();
    fs::read_dir(out)
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|entry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap()))
        .filter(|(name, content)| name != "google.protobuf.rs" || !content.is_empty())
        .collect()
}

/// Every message with the number, name and kind of its fields: what `src/proto/fields.rs` walks raw bytes with.
fn field_table(descriptors: &FileDescriptorSet) -> String {
    let mut messages = BTreeMap::new();
    for file in &descriptors.file {
        if file.package() != "google.protobuf" {
            file.message_type.iter().for_each(|message| collect(file.package(), message, &mut messages));
        }
    }
    let mut enums = BTreeMap::new();
    for file in &descriptors.file {
        values_of(file.package(), &file.enum_type, &mut enums);
        file.message_type.iter().for_each(|message| nested_values(file.package(), message, &mut enums));
    }
    let index: BTreeMap<&str, usize> = messages.keys().enumerate().map(|(i, name)| (name.as_str(), i)).collect();

    let mut out = String::from("// This file is @generated from proto/ by tests/protos.rs.\n&[\n");
    for (name, message) in &messages {
        writeln!(out, "    Message {{ name: {name:?}, fields: &[").unwrap();
        let mut fields: Vec<(i32, String)> = Vec::new();
        for field in &message.field {
            let kind = match field.r#type() {
                Type::Message if field.type_name() == ".google.protobuf.Any" => "Kind::Any".to_owned(),
                // Of an enumeration with but one value declared, any number counts, such as the status codes of HTTP.
                Type::Enum => enums
                    .get(field.type_name().trim_start_matches('.'))
                    .filter(|values| values.len() > 1)
                    .map_or_else(|| "Kind::Opaque".to_owned(), |values| format!("Kind::Enum(&{values:?})")),
                Type::Message => index
                    .get(field.type_name().trim_start_matches('.'))
                    .map_or_else(|| "Kind::Opaque".to_owned(), |i| format!("Kind::Message({i})")),
                _ => "Kind::Opaque".to_owned(),
            };
            fields.push((field.number(), format!("({}, {:?}, {kind})", field.number(), field.name())));
        }
        assert_eq!(
            message.reserved_range.len(),
            message.reserved_name.len(),
            "{name}: reserved numbers and names pair up"
        );
        for (range, reserved) in message.reserved_range.iter().zip(&message.reserved_name) {
            assert_eq!(range.end() - range.start(), 1, "{name}: each reserved number stands alone");
            fields.push((range.start(), format!("({}, {reserved:?}, Kind::LeftOut)", range.start())));
        }
        fields.sort();
        for (_, field) in fields {
            writeln!(out, "        {field},").unwrap();
        }
        out.push_str("    ] },\n");
    }
    out.push_str("]\n");
    out
}

/// The numbers of each enumeration.
fn values_of(prefix: &str, of: &[EnumDescriptorProto], enums: &mut BTreeMap<String, Vec<i32>>) {
    for one in of {
        enums.insert(format!("{prefix}.{}", one.name()), one.value.iter().map(|value| value.number()).collect());
    }
}

fn nested_values(prefix: &str, message: &DescriptorProto, enums: &mut BTreeMap<String, Vec<i32>>) {
    let name = format!("{prefix}.{}", message.name());
    values_of(&name, &message.enum_type, enums);
    message.nested_type.iter().for_each(|nested| nested_values(&name, nested, enums));
}

fn collect(prefix: &str, message: &DescriptorProto, messages: &mut BTreeMap<String, DescriptorProto>) {
    let name = format!("{prefix}.{}", message.name());
    message.nested_type.iter().for_each(|nested| collect(&name, nested, messages));
    messages.insert(name, message.clone());
}
