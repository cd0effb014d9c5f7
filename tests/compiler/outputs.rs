//! What comes out: modules, names, plans, errors; equal wherever it is compiled.

use super::*;

#[tokio::test]
async fn saxpy_for_several_targets() {
    let node = Node::start().await;
    for target in ["sm_80", "sm_90", "sm_90a"] {
        let output = node.compile(&cuda(SAXPY, target)).await.unwrap();
        let [(path, bytes)] = output.files.as_slice() else { panic!("{:?}", output.files) };
        assert_eq!(path, "module.cubin");
        assert!(bytes.starts_with(b"\x7fELF"));
        assert!(output.compile_seconds > 0.0);
    }
    for target in ["compute_80", "compute_90"] {
        let output = node.compile(&cuda(SAXPY, target)).await.unwrap();
        let text = String::from_utf8(output.files[0].1.to_vec()).unwrap();
        assert_eq!(output.files[0].0, "module.ptx");
        let sm = target.replace("compute", "sm");
        assert!(text.contains(&format!(".target {sm}")) && text.contains("saxpy"), "{text}");
    }
}

#[tokio::test]
async fn names_of_template_instances_are_lowered() {
    let node = Node::start().await;
    let source =
        "#include \"scale.h\"\ntemplate<class T> __global__ void scale(T* x) { x[0] *= S; }";
    let input = cuda_with(source, "sm_90", |cuda| {
        cuda.headers = BTreeMap::from([("scale.h".into(), Bytes::from("#define S FACTOR\n"))]);
        cuda.options = vec!["-DFACTOR=3".into()];
        cuda.name_expressions = vec!["scale<float>".into(), "scale<double>".into()];
    });
    let output = node.compile(&input).await.unwrap();
    let paths: Vec<&str> = output.files.iter().map(|(path, _)| path.as_str()).collect();
    assert_eq!(paths, ["module.cubin", "names.json"]);
    let names = r#"{"scale<float>":"_Z5scaleIfEvPT_","scale<double>":"_Z5scaleIdEvPT_"}"#;
    assert_eq!(output.files[1].1, names);
}

#[tokio::test]
async fn a_broken_source_is_told_in_nvrtcs_words() {
    let node = Node::start().await;
    let failed = node.compile(&cuda("__global__ void k() { oops; }", "sm_90")).await.unwrap_err();
    assert_eq!(failed.kind, FailureKind::CompileError);
    assert!(failed.message.contains("test.cu(1): error"), "{failed}");
    assert!(failed.message.contains("\"oops\" is undefined"), "{failed}");
    let failed = node.compile(&cuda(SAXPY, "sm_199")).await.unwrap_err();
    assert_eq!(failed.kind, FailureKind::Incompatible, "{failed}");
    assert!(failed.message.contains("gpu-architecture"), "{failed}");
}

#[tokio::test]
async fn a_source_cannot_read_the_host() {
    let node = Node::start().await;
    let refused = node.compile(&cuda("#include \"/etc/hostname\"\n", "sm_90")).await.unwrap_err();
    assert_eq!(refused.kind, FailureKind::Incompatible, "{refused}");
    let hidden = "#define FILE \"/etc/hostname\"\n#include FILE\n";
    let refused = node.compile(&cuda(hidden, "sm_90")).await.unwrap_err();
    assert_eq!(refused.kind, FailureKind::CompileError, "{refused}");
    assert!(refused.message.contains("cannot open source file"), "{refused}");
}

#[tokio::test]
async fn bytes_are_equal_across_workers_and_header_folders() {
    let (one, other) = (Node::start().await, Node::start().await);
    let toolchain = one.compilers.toolchain().unwrap();
    if toolchain.headers == Headers::None {
        panic!("{} has no headers: set KILN_NVRTC_DIR to 13.5 or newer", toolchain.version);
    }
    let input = cuda(HALF, "sm_90");
    let first = one.compile(&input).await.unwrap();
    assert!(first.files[0].1.starts_with(b"\x7fELF"));
    assert_eq!(first.files, one.compile(&input).await.unwrap().files);
    assert_eq!(first.files, other.compile(&input).await.unwrap().files);
    let keys = [&one, &other].map(|n| n.prepare(&input).unwrap().components.key());
    assert_eq!(keys[0], keys[1]);

    if toolchain.headers != Headers::Bundled {
        return;
    }
    // The same headers as a toolkit's folder: other key, same bytes.
    let include = Some(PathBuf::from(&toolchain.include[0]));
    let set = |s: &mut CompilerSettings| s.toolchain.include = include;
    let toolkit = Node::with(nvrtc("KILN_NVRTC_DIR"), set).await;
    assert_eq!(first.files, toolkit.compile(&input).await.unwrap().files);
    let (ours, theirs) = (one.prepare(&input).unwrap(), toolkit.prepare(&input).unwrap());
    let found = ours.components.differences(&theirs.components);
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0].field, "headers");
}

/// A node starts without them: there are thousands of files.
#[tokio::test]
async fn headers_of_the_library_are_there_once_a_source_may_include_one() {
    let broken = HALF.replace("#include", "#inc\\\nlude");
    assert_ne!(broken, HALF);
    for source in [HALF, &broken] {
        let node = Node::start().await;
        let toolchain = node.compilers.toolchain().unwrap();
        if toolchain.headers != Headers::Bundled {
            panic!("{} brings no headers: set KILN_NVRTC_DIR to 13.5 or newer", toolchain.version);
        }
        let half = PathBuf::from(&toolchain.include[0]).join("cuda_fp16.h");
        node.compile(&cuda("__global__ void k(int* x) { *x = 1; }", "sm_90")).await.unwrap();
        assert!(!half.exists());
        let targets = ["sm_90", "sm_80"].map(|target| cuda(source, target));
        let made = targets.each_ref().map(|input| node.compile(input));
        futures::future::try_join_all(made).await.unwrap();
        assert!(half.exists());
    }
}

#[tokio::test]
async fn the_name_of_a_source_changes_nothing() {
    let node = Node::start().await;
    // Names of static variables are mangled with the name of the file.
    let source = "static __device__ int n; namespace { __device__ int m; }\n\
                  __global__ void k(int* x) { *x = n + m; n = 1; m = 2; }";
    let inputs =
        ["one.cu", "two.cu"].map(|name| cuda_with(source, "sm_90", |cuda| cuda.name = name.into()));
    let keys = inputs.each_ref().map(|i| node.prepare(i).unwrap().components.key());
    assert_eq!(keys[0], keys[1]);
    let [one, two] = inputs;
    assert_eq!(node.compile(&one).await.unwrap().files, node.compile(&two).await.unwrap().files);
}

#[tokio::test]
async fn an_exported_block_becomes_a_module_and_a_plan() {
    let node = Node::start().await;
    for file in ["block_f32.new.pt2", "block_bf16.211.pt2"] {
        let output = node.compile(&exported(file)).await.unwrap();
        let paths: Vec<&str> = output.files.iter().map(|(path, _)| path.as_str()).collect();
        assert_eq!(paths, ["kernels.cu", "module.cubin", "plan.json"]);
        assert!(output.files[1].1.starts_with(b"\x7fELF"));
        let plan: serde_json::Value = serde_json::from_slice(&output.files[2].1).unwrap();
        for kernel in plan["kernels"].as_array().unwrap() {
            let name = kernel["name"].as_str().unwrap().as_bytes();
            assert!(output.files[1].1.windows(name.len()).any(|at| at == name), "{kernel}");
        }
        let again = node.compile(&exported(file)).await.unwrap().files;
        assert!(output.files == again, "the bytes of {file} differ between two compiles");
    }
    let failed = node.compile(&exported("unknown.new.pt2")).await.unwrap_err();
    assert_eq!(failed.kind, FailureKind::UnsupportedOp, "{failed}");
}

/// What spot checks rest on: an artifact that another node signed is wrong where it differs.
#[tokio::test]
async fn a_compiler_that_says_so_gives_the_same_bytes_on_every_node_each_time() {
    let nodes = [Node::start().await, Node::start().await];
    if !nodes[0].compilers.toolchain().unwrap().fixed {
        println!("not tried: workers cannot have the same addresses here");
        return;
    }
    // One of them has CUDA's headers on its disk, and the other one not yet.
    nodes[1].compile(&cuda(HALF, "sm_90")).await.unwrap();
    let mut found = Vec::new();
    for input in [
        cuda(SAXPY, "sm_90"),
        cuda(SAXPY, "compute_90"),
        exported("block_f32.new.pt2"),
        exported("block_bf16.211.pt2"),
    ] {
        let compiler = nodes[0].compilers.select("auto", &input).unwrap();
        assert!(compiler.is_deterministic(), "{}", compiler.name());
        found.push(compiler.name());
        let first = nodes[0].compile(&input).await.unwrap().files;
        for node in [&nodes[1], &nodes[0], &nodes[1]] {
            let again = node.compile(&input).await.unwrap().files;
            for ((path, bytes), (_, other)) in first.iter().zip(&again) {
                assert!(bytes == other, "two compiles differ in {path}: {}", compiler.name());
            }
            assert_eq!(first.len(), again.len());
        }
    }
    found.dedup();
    assert_eq!(found, ["cuda", "native"]);
    // Nobody measured the others.
    for other in ["eager", "mixed-eager"] {
        let compiler = nodes[0].compilers.named(other);
        assert!(compiler.is_none_or(|compiler| !compiler.is_deterministic()), "{other}");
    }
}
