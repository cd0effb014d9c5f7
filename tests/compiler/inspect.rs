//! `kiln inspect` on machine code that NVRTC made.

use std::process::Command;

use super::*;

/// Writes what `file` compiles to, and inspects it.
async fn artifact(node: &Node, file: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (path, bytes) in node.compile(&exported(file)).await.unwrap().files {
        std::fs::write(folder.path().join(path), bytes).unwrap();
    }
    folder
}

fn inspect(folder: &Path, given: &[&str]) -> (Option<i32>, String) {
    let output = Command::new(KILN).arg("inspect").arg(folder).args(given).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(text).unwrap())
}

#[tokio::test]
async fn every_kernel_has_its_registers_its_operations_and_its_source() {
    let node = Node::start().await;
    let folder = artifact(&node, "block_bf16.211.pt2").await;
    let (status, text) = inspect(folder.path(), &["--json"]);
    assert_eq!(status, Some(0), "{text}");
    let view: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert!(view["target"].as_str().unwrap().starts_with("sm_90"));
    let kernels = view["kernels"].as_array().unwrap();
    assert!(!kernels.is_empty());
    for kernel in kernels {
        let name = kernel["name"].as_str().unwrap();
        let registers = kernel["registers"].as_u64().unwrap();
        assert!((8..=255).contains(&registers), "{kernel}");
        assert!(kernel["parameter_bytes"].as_u64().unwrap() >= 16, "{kernel}");
        assert!(!kernel["computes"].as_array().unwrap().is_empty(), "{kernel}");
        let (status, source) = inspect(folder.path(), &["--source", name]);
        assert_eq!(status, Some(0), "{source}");
        assert!(source.contains("__global__") && source.contains(name), "{source}");
        let comment = source.lines().next().unwrap();
        for operation in kernel["computes"].as_array().unwrap() {
            assert!(comment.contains(operation.as_str().unwrap()), "{operation}: {comment}");
        }
    }
    let (_, text) = inspect(folder.path(), &[]);
    assert!(text.contains("REGS") && text.contains("workspace"), "{text}");
}

#[tokio::test]
async fn what_an_artifact_does_not_have_is_said() {
    let node = Node::start().await;
    let folder = artifact(&node, "block_f32.new.pt2").await;
    let (status, text) = inspect(folder.path(), &["--ptx"]);
    assert_eq!(status, Some(20));
    assert!(text.contains("no PTX"), "{text}");
    let (status, text) = inspect(folder.path(), &["--source", "k99"]);
    assert_eq!(status, Some(20));
    assert!(text.contains("it has k0_"), "{text}");
    let (status, text) = inspect(Path::new("nonsense"), &[]);
    assert_eq!(status, Some(2));
    assert!(text.contains("no folder, and no key"), "{text}");
}

#[tokio::test]
async fn machine_code_is_disassembled_where_the_toolkit_is() {
    let node = Node::start().await;
    let folder = artifact(&node, "block_f32.new.pt2").await;
    let output =
        Command::new(KILN).arg("inspect").arg(folder.path()).arg("--sass").output().unwrap();
    let (out, err) = (String::from_utf8(output.stdout), String::from_utf8(output.stderr));
    let (out, err) = (out.unwrap(), err.unwrap());
    match output.status.success() {
        true => assert!(out.contains("EXIT") && out.contains("k0_"), "{out}"),
        false => assert!(err.contains("neither cuobjdump nor nvdisasm is on PATH"), "{err}"),
    }
}
