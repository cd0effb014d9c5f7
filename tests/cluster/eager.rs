//! Eager artifacts on the nodes: made on one, run from another, on the CPU.

use std::path::Path;

use kiln_native::{
    SIGNATURE_FILE, Signature,
    eager::Eager,
    fixtures::with_weights,
    interp::{Settings, Tensor},
};
use kiln_proto::graph::DType;
use safetensors::SafeTensors;
use tokio::process::Command;

use crate::harness::{TestCluster, TestNode};

fn fixture(name: &str) -> String {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    fixtures.join(name).to_str().unwrap().to_owned()
}

/// Runs `kiln` and returns what it printed.
async fn kiln(arguments: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kiln"));
    command.args(arguments).kill_on_drop(true);
    for name in ["KILN_ENDPOINT", "KILN_SOCKET", "KILN_TARGET", "KILN_NAMESPACE"] {
        command.env_remove(name);
    }
    let done = command.output().await.unwrap();
    let (out, err) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    assert!(done.status.success(), "kiln {arguments:?}: {out}{err}");
    out.into_owned()
}

/// `kiln compile` of a fixture by the eager backend, into `folder`.
async fn compiled(node: &TestNode, name: &str, folder: &Path) -> serde_json::Value {
    let endpoint = format!("http://{}", node.config.grpc_listen);
    let (file, folder) = (fixture(name), folder.to_str().unwrap());
    let arguments = ["compile", &file, "--backend", "eager", "--endpoint", &endpoint];
    let answer = kiln(&[&arguments[..], &["-o", folder, "--json"]].concat()).await;
    serde_json::from_str(&answer).unwrap()
}

/// The limit of a message is less than what many models weigh.
#[tokio::test(flavor = "multi_thread")]
async fn a_program_is_sent_without_its_weights() {
    let cluster = TestCluster::start_with(1, |_, config| {
        config.compile.nvrtc = Some(config.data_dir.join("no-nvrtc-here"));
    })
    .await;
    let home = tempfile::tempdir().unwrap();
    let exported = std::fs::read(fixture("block_bf16.211.pt2")).unwrap();
    let heavy = home.path().join("heavy.pt2");
    std::fs::write(&heavy, with_weights(&exported, 20 << 20)).unwrap();
    assert!(heavy.metadata().unwrap().len() > 80 << 20);
    let node = &cluster.nodes[0];
    let made = compiled(node, "block_bf16.211.pt2", &home.path().join("light")).await;
    // An absolute path stays what it is.
    let again = compiled(node, heavy.to_str().unwrap(), &home.path().join("heavy")).await;
    assert_eq!((&again["outcome"], &again["key"]), (&"hit".into(), &made["key"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn made_on_one_node_and_run_from_another() {
    let cluster = TestCluster::start_with(3, |_, config| {
        config.compile.nvrtc = Some(config.data_dir.join("no-nvrtc-here"));
    })
    .await;
    let home = tempfile::tempdir().unwrap();
    let (first, second) = (home.path().join("first"), home.path().join("second"));
    let made = compiled(&cluster.nodes[0], "block_bf16.211.pt2", &first).await;
    let again = compiled(&cluster.nodes[1], "block_bf16.new.pt2", &second).await;
    assert_eq!((&made["outcome"], &again["outcome"]), (&"compiled".into(), &"hit".into()));
    assert_eq!(made["key"], again["key"]);
    assert_eq!(made["target"], "any");

    let eager = Eager::load(|name| std::fs::read(second.join(name))).unwrap();
    let golden = std::fs::read(fixture("block_bf16.safetensors")).unwrap();
    let golden = SafeTensors::deserialize(&golden).unwrap();
    let inputs: Vec<Tensor<'_>> = (eager.plan().inputs.iter())
        .map(|input| {
            let given = golden.tensor(&input.name).unwrap();
            Tensor::dense(input.dtype, given.shape(), given.data().to_vec())
        })
        .collect();
    let outputs = eager.run(&inputs, &Settings::default()).unwrap();
    near(&outputs[0], &golden, 1e-2);

    // The same from the command line, from file to file, by position and by name.
    let by_position = eager
        .plan()
        .inputs
        .iter()
        .map(|input| (input.name.clone(), golden.tensor(&input.name).unwrap()));
    let names: Signature =
        serde_json::from_slice(&std::fs::read(second.join(SIGNATURE_FILE)).unwrap()).unwrap();
    let by_name = eager
        .plan()
        .inputs
        .iter()
        .zip(&names.inputs)
        .map(|(input, named)| (named.name.clone(), golden.tensor(&input.name).unwrap()));
    let (given, result) = (home.path().join("in"), home.path().join("out"));
    let given = given.to_str().unwrap();
    for views in [by_position.collect::<Vec<_>>(), by_name.collect()] {
        std::fs::write(given, safetensors::serialize(views, None).unwrap()).unwrap();
        let (dir, to) = (second.to_str().unwrap(), result.to_str().unwrap());
        let archive = fixture("block_bf16.new.pt2");
        let arguments = ["exec", dir, "--inputs", given, "-o", to, "--verify", &archive];
        let said = kiln(&arguments).await;
        assert!(said.starts_with("cpu") && said.trim().ends_with("limit 1e-2: ok"), "{said}");
        let written = std::fs::read(&result).unwrap();
        let written = SafeTensors::deserialize(&written).unwrap();
        let out = written.tensor("out0").unwrap();
        assert_eq!((out.dtype(), out.data()), (safetensors::Dtype::BF16, &outputs[0].bytes[..]));
        std::fs::remove_file(&result).unwrap();
    }
}

/// `output` is torch's, up to `limit` of the largest magnitude.
fn near(output: &Tensor<'_>, golden: &SafeTensors<'_>, limit: f64) {
    let expected = golden.tensor("out0").unwrap();
    assert_eq!(output.shape, expected.shape());
    let expected = Tensor::dense(DType::F32, expected.shape(), expected.data().to_vec());
    let (ours, expected) = (output.to_f64().unwrap(), expected.to_f64().unwrap());
    let most = expected.iter().fold(0.0f64, |most, x| most.max(x.abs()));
    for (a, b) in ours.iter().zip(&expected) {
        assert!((a - b).abs() <= limit * most, "{a} is not {b}");
    }
}
