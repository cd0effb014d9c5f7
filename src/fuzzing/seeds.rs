//! Inputs to begin with, where a program writes them better than a person does.

use kiln_proto::{Component, Fingerprint, KeyField, claimed_components};

use super::*;

/// Each with its path below `tests/fuzz/seeds`.
pub(super) fn all() -> Vec<(&'static str, Vec<u8>)> {
    let one = described(&[("module.cubin", b"ELF")]);
    let many = described(&[("a/b.cu", b"__global__"), ("a/c", b""), ("plan.json", b"{}")]);
    let wire = |manifest: &Manifest| pb::Manifest::from(manifest).encode_to_vec();
    let packed = |manifest: &Manifest, pack: &[u8]| {
        let wire = wire(manifest);
        [&(wire.len() as u16).to_le_bytes()[..], &wire, pack].concat()
    };
    let out = Manifest {
        files: vec![kiln_proto::FileEntry { path: "../x".into(), ..one.files[0].clone() }],
        ..one.clone()
    };
    let link = Manifest {
        files: vec![kiln_proto::FileEntry { path: "link/x".into(), ..one.files[0].clone() }],
        ..one.clone()
    };
    let request = pb::CompileRequest {
        targets: vec![Target::cubin(90).into()],
        source: Some(pb::compile_request::Source::Cuda(pb::CudaSource {
            name: "a.cu".into(),
            source: "__global__ void f() {}".into(),
            options: vec!["--std=c++17".into()],
            ..Default::default()
        })),
        options: vec![pb::Field { name: "fuse".into(), value: "on".into() }],
        ..Default::default()
    };
    let asked = pb::TransferRequest {
        subject: Some(pb::transfer_request::Subject::Digest(vec![7; 32].into())),
        node: 2,
        ..Default::default()
    };
    let frame = |side: u8, message: Vec<u8>| {
        [&[side][..], &(message.len() as u32).to_be_bytes(), &message].concat()
    };
    let program = include_bytes!("../../tests/fixtures/ops/reduction_i32.pt2");
    let lowered = kiln_native::lower(program, &Default::default(), Target::cubin(90));
    vec![
        ("plan/reduction.json", serde_json::to_vec(&lowered.unwrap().plan).unwrap()),
        ("manifest/one", wire(&one)),
        ("manifest/many", wire(&many)),
        ("pack/one", packed(&one, b"ELF")),
        ("pack/many", packed(&many, b"__global__{}")),
        ("pack/out", packed(&out, b"ELF")),
        ("pack/link", packed(&link, b"ELF")),
        ("requests/compile", [&[0][..], &request.encode_to_vec()].concat()),
        ("transfer/ask", frame(0, asked.encode_to_vec())),
        ("transfer/long", [1, 255, 255, 255, 255, 0].to_vec()),
    ]
}

fn described(files: &[(&str, &[u8])]) -> Manifest {
    let (fingerprint, target) = (Fingerprint::new("cuda", [("nvrtc", "13.0")]), Target::cubin(90));
    let graph = Component::new("graph", vec![KeyField::of_bytes("structure", b"")]);
    let claims = claimed_components(&fingerprint, &target, "");
    let components = Components::new([graph].into_iter().chain(claims).collect());
    let mut offset = 0;
    let entries = files.iter().map(|(path, bytes)| {
        let (from, size) = (offset, bytes.len() as u64);
        offset += size;
        let digest = Digest::of(bytes);
        kiln_proto::FileEntry { path: (*path).into(), offset: from, size, digest }
    });
    let files = entries.collect();
    Manifest {
        key: components.key(),
        namespace: String::new(),
        components,
        fingerprint,
        target,
        files,
        pack_digest: Digest::of(b"x"),
        pack_size: offset,
        producer: 1,
        compile_seconds: 1.0,
        created_unix_ms: 1,
        label: String::new(),
        pieces: Vec::new(),
        check: None,
    }
}
