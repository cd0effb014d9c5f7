//! The descriptors that the Python package ships are those of `proto/`.
//!
//! `make python-wire` writes them anew: this test with KILN_WRITE_WIRE set.

use prost::Message;
use prost_types::FileDescriptorSet;

#[test]
fn the_python_package_speaks_this_wire_format() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../python/kiln_torch/kiln.binpb");
    let mut ours = FileDescriptorSet::decode(kiln_proto::pb::DESCRIPTOR_SET).unwrap();
    for file in &mut ours.file {
        // Comments and positions are no part of the format.
        file.source_code_info = None;
    }
    if std::env::var_os("KILN_WRITE_WIRE").is_some() {
        std::fs::write(path, ours.encode_to_vec()).unwrap();
    }
    let theirs = FileDescriptorSet::decode(std::fs::read(path).unwrap().as_slice()).unwrap();
    assert!(theirs == ours, "python/kiln_torch/kiln.binpb is stale: run `make python-wire`");
}
