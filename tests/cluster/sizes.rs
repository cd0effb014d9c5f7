//! Compile sizes: static ones beside the dynamic one, of one request.

use std::path::Path;

use kiln_proto::{Target, pb};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde_json::Value;
use tonic::Code;

use crate::harness::{NAMESPACE, TestCluster, TestNode, kind};

fn fixture(name: &str) -> String {
    format!("{}/tests/fixtures/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// Runs `kiln` with an endpoint of `node`: its exit code, its lines of JSON, its stderr.
pub(crate) async fn kiln(node: &TestNode, arguments: &[&str]) -> (Option<i32>, Vec<Value>, String) {
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_kiln"));
    let endpoint = format!("http://{}", node.config.grpc_listen);
    command.args(arguments).args(["--endpoint", &endpoint, "--json"]).kill_on_drop(true);
    command.env_remove("KILN_TARGET").env_remove("KILN_SOCKET");
    let output = command.output().await.unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    (output.status.code(), lines, String::from_utf8(output.stderr).unwrap())
}

/// `kiln exec` of a folder with so many rows: which code ran, and what came out.
async fn exec(folder: &Path, rows: usize) -> (Value, Vec<u8>) {
    let shapes: [&[usize]; 5] = [&[72], &[136, 72], &[136, 72], &[72, 136], &[rows, 9, 72]];
    let numbers = shapes.map(|shape| -> Vec<u8> {
        let count: usize = shape.iter().product();
        (0..count).flat_map(|i| ((i * 37 % 101) as f32 / 50.0 - 1.0).to_le_bytes()).collect()
    });
    let views = shapes.iter().zip(&numbers).enumerate().map(|(at, (shape, bytes))| {
        (format!("in{at}"), TensorView::new(Dtype::F32, shape.to_vec(), bytes).unwrap())
    });
    let home = tempfile::tempdir().unwrap();
    let (inputs, output) = (home.path().join("in"), home.path().join("out"));
    std::fs::write(&inputs, safetensors::serialize(views, None).unwrap()).unwrap();
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_kiln"));
    command.arg("exec").arg(folder).arg("--inputs").arg(inputs).arg("-o").arg(&output);
    let ran = command.args(["--repeat", "0", "--json"]).output().await.unwrap();
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    let bytes = std::fs::read(output).unwrap();
    let out = SafeTensors::deserialize(&bytes).unwrap().tensor("out0").unwrap().data().to_vec();
    (serde_json::from_slice(&ran.stdout).unwrap(), out)
}

/// Eager needs no compiler: these tests are about who compiles what.
async fn nodes(n: usize) -> TestCluster {
    TestCluster::start_with(n, |_, config| {
        config.compile.nvrtc = Some(config.data_dir.join("no-nvrtc-here"));
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn sizes_come_with_the_dynamic_one_and_the_inputs_choose() {
    let cluster = nodes(3).await;
    let home = tempfile::tempdir().unwrap();
    let (out, alone) = (home.path().join("out"), home.path().join("alone"));
    let dynamic = fixture("block_f32_dynamic.new.pt2");
    let compile = async |node: usize, more: &[&str]| {
        let arguments = ["compile", &dynamic, "--backend", "eager"];
        kiln(&cluster.nodes[node], &[&arguments[..], more].concat()).await
    };
    let into = out.to_str().unwrap();
    let (code, lines, err) = compile(0, &["--compile-sizes", "5,2,5", "-o", into]).await;
    assert_eq!(code, Some(0), "{err}");
    let [view] = &lines[..] else { panic!("{lines:?}") };
    let sizes = view["sizes"].as_array().unwrap();
    let of = |field: &str| sizes.iter().map(|size| size[field].clone()).collect::<Vec<_>>();
    assert_eq!(of("size"), [2, 5]);
    assert_eq!(of("outcome"), ["compiled", "compiled"]);
    assert!(sizes.iter().all(|size| size["compile_seconds"].as_f64().unwrap() > 0.0));
    assert_eq!(cluster.counter("compiler_runs").await, 3);

    // The same program exported for that size is the same artifact.
    let (_, exported, _) =
        kiln(&cluster.nodes[1], &["compile", &fixture("block_f32.211.pt2"), "--backend", "eager"])
            .await;
    assert_eq!((&exported[0]["outcome"], &exported[0]["key"]), (&"hit".into(), &sizes[0]["key"]));

    // Again, at another node and named: nothing is compiled.
    let (code, again, err) = compile(1, &["--compile-sizes", "x.0=2,5"]).await;
    assert_eq!(code, Some(0), "{err}");
    assert_eq!(again[0]["key"], view["key"]);
    for (size, before) in again[0]["sizes"].as_array().unwrap().iter().zip(sizes) {
        assert_eq!((&size["outcome"], &size["key"]), (&"hit".into(), &before["key"]));
    }
    assert_eq!(cluster.counter("compiler_runs").await, 3);

    // What runs is what the inputs ask for, and gives the same numbers.
    compile(0, &["-o", alone.to_str().unwrap()]).await;
    for (rows, size) in [(2, Value::from(2)), (5, 5.into()), (7, Value::Null)] {
        let ((report, got), (_, expected)) = (exec(&out, rows).await, exec(&alone, rows).await);
        assert_eq!(report["size"], size, "{rows} rows");
        assert!(got == expected, "{rows} rows");
    }
    // Written again without sizes, the folder has none.
    compile(0, &["-o", into]).await;
    assert_eq!(exec(&out, 2).await.0["size"], Value::Null);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_size_that_is_wrong_is_refused_before_anything_is_compiled() {
    let cluster = nodes(1).await;
    let node = &cluster.nodes[0];
    let dynamic = fixture("block_f32_dynamic.new.pt2");
    let [fixed, two, source] =
        ["block_f32.new.pt2", "models/qwen3_lm_f32_dynamic_core.new.pt2", "resources.cu"]
            .map(fixture);
    for (file, sizes, backend, said) in [
        (&dynamic, "2,100", "eager", "size 100 is outside of what s77 (x.0, 2 to 64) takes"),
        (&dynamic, "y=2", "eager", "no open size \"y\""),
        (&dynamic, "2", "inductor", "runtime_shape"),
        (&fixed, "2", "eager", "no size open"),
        (&two, "8", "eager", "2 sizes are open"),
        (&source, "8", "auto", "exported programs"),
    ] {
        let arguments = ["compile", file, "--backend", backend, "--compile-sizes", sizes];
        let (code, lines, _) = kiln(node, &arguments).await;
        assert_eq!(code, Some(2), "{lines:?}");
        let told = lines[0]["error"]["message"].as_str().unwrap();
        assert!(told.contains(said), "{said:?} in {told}");
    }
    // A client that does not look for itself.
    let archive = std::fs::read(&dynamic).unwrap();
    let program = pb::ExportedProgram { name: "block".into(), archive: archive.into() };
    let request = |backend: &str, sizes: &[u64]| pb::CompileRequest {
        source: Some(pb::compile_request::Source::Program(program.clone())),
        targets: vec![Target::any().into()],
        backend: backend.into(),
        namespace: NAMESPACE.into(),
        compile_sizes: Some(pb::CompileSizes { sizes: sizes.to_vec(), ..Default::default() }),
        ..Default::default()
    };
    let refused = node.compile(request("eager", &[2, 65])).await.unwrap_err();
    assert_eq!(kind(&refused), Some("invalid_input"), "{refused}");
    let refused = node.compile(request("inductor", &[2])).await.unwrap_err();
    assert_eq!(kind(&refused), Some("incompatible"), "{refused}");
    let refused = node.compile(request("eager", &[2, 2])).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    assert_eq!(cluster.counter("compiler_runs").await, 0);
}

/// With NVRTC, and without a GPU.
#[tokio::test(flavor = "multi_thread")]
async fn models_are_warmed_for_sizes_and_targets_and_then_all_is_there() {
    let cluster = TestCluster::start_with(3, |_, config| config.compile.concurrency = 1).await;
    let models = ["block_f32_dynamic.new.pt2", "models/vit_f32_dynamic.new.pt2"].map(fixture);
    let arguments = ["warm", &models[0], &models[1], "--targets", "sm_80,sm_90"];
    let arguments = [&arguments[..], &["--compile-sizes", "2,8"]].concat();
    let (code, lines, err) = kiln(&cluster.nodes[0], &arguments).await;
    assert_eq!(code, Some(0), "{err}");
    let summary = &lines.last().unwrap()["summary"];
    let of = |names: &[&str]| names.iter().map(|n| summary[n].clone()).collect::<Vec<_>>();
    assert_eq!(of(&["compiled", "sizes_compiled", "failed", "sizes_failed"]), [4, 8, 0, 0]);
    let runs = cluster.counter("compiler_runs").await;
    // Some may have been compiled in pieces.
    assert!(runs >= 12, "{runs}");
    let (code, lines, err) = kiln(&cluster.nodes[1], &arguments).await;
    assert_eq!(code, Some(0), "{err}");
    let summary = &lines.last().unwrap()["summary"];
    assert_eq!((&summary["hits"], &summary["sizes_hit"]), (&4.into(), &8.into()));
    assert_eq!(cluster.counter("compiler_runs").await, runs, "second run: no compile");
}

/// Pieces of all sizes are for all nodes to take, and equal ones are one.
#[tokio::test(flavor = "multi_thread")]
async fn pieces_of_sizes_are_compiled_once_by_all_nodes() {
    let cluster = TestCluster::start_with(3, |_, config| config.compile.concurrency = 1).await;
    let model = fixture("models/qwen3_block_f32_dynamic.new.pt2");
    let home = tempfile::tempdir().unwrap();
    let out = home.path().join("out");
    let arguments = ["compile", &model, "--piecewise", "always", "--compile-sizes", "s27=4,8"];
    let written = [&arguments[..], &["-o", out.to_str().unwrap()]].concat();
    let (code, lines, err) = kiln(&cluster.nodes[0], &written).await;
    assert_eq!(code, Some(0), "{err}");
    let sizes = lines[0]["sizes"].as_array().unwrap();
    let mut keys: Vec<&Value> = lines[0]["pieces"].as_array().unwrap().iter().collect();
    for size in sizes {
        assert_eq!(size["strategy"], "piecewise");
        keys.extend(size["pieces"].as_array().unwrap());
    }
    let keys: std::collections::BTreeSet<&str> =
        keys.iter().map(|piece| piece["key"].as_str().unwrap()).collect();
    assert_eq!(cluster.counter("compiler_runs").await, keys.len() as u64);
    assert!(cluster.counter("pieces_taken").await > 0, "the other nodes helped");
    for place in ["", "sizes/4/", "sizes/8/"] {
        for file in ["stitching.json", "signature.json", "pieces/0/module.cubin"] {
            assert!(out.join(format!("{place}{file}")).is_file(), "{place}{file}");
        }
    }
    let (_, again, _) = kiln(&cluster.nodes[1], &arguments).await;
    let sizes = again[0]["sizes"].as_array().unwrap();
    assert!(sizes.iter().all(|size| size["outcome"] == "hit"), "{again:?}");
    assert_eq!(cluster.counter("compiler_runs").await, keys.len() as u64);
}
