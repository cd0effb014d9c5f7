//! What people list and remove, and what they are told of the machine.

use std::path::Path;

use kiln_proto::value;
use serde_json::Value;
use tempfile::TempDir;
use tokio::process::Command;

use crate::{
    harness::{NAMESPACE, TestCluster, eventually, saxpy},
    nodes::kiln,
    redis::Redis,
};

/// A node with the values `gemm 0` to `gemm 4`, `norm 0` and `norm 1`.
async fn filled() -> TestCluster {
    let cluster = TestCluster::start(1).await;
    let mut redis = Redis::connect(&cluster.nodes[0]).await;
    for (name, n) in [("gemm", 5), ("norm", 2)] {
        for n in 0..n {
            redis.set(&format!("{name} {n}"), "x".repeat(100 + n)).await;
        }
    }
    cluster
}

/// What a command printed, line by line, and its exit code.
async fn told(cluster: &TestCluster, line: &str) -> (Vec<Value>, Option<i32>) {
    let arguments: Vec<_> = line.split(' ').collect();
    let output = kiln(&arguments, &[&cluster.nodes[0]]).await;
    let text = String::from_utf8(output.stdout).unwrap();
    (text.lines().map(|line| serde_json::from_str(line).unwrap()).collect(), output.status.code())
}

fn labels(entries: &[Value]) -> Vec<&str> {
    entries.iter().map(|entry| entry["label"].as_str().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listing_shows_what_was_asked_for_and_how_much_there_is() {
    let cluster = filled().await;
    let (found, code) = told(&cluster, "ls --label gemm --sort bytes --limit 2 --summary").await;
    assert_eq!((labels(&found[..2]), code), (vec!["gemm 4", "gemm 3"], Some(0)));
    let summary = &found[2]["summary"];
    assert_eq!((&summary["shown"], &summary["entries"]), (&2.into(), &5.into()), "{summary}");
    assert_eq!(summary["bytes"], 100 + 101 + 102 + 103 + 104);
    assert!(found[0]["created_unix_ms"].as_u64().unwrap() > 0);
    assert_eq!(found[0]["last_used_unix_ms"], Value::Null);

    let (all, _) = told(&cluster, "ls --sort label --reverse").await;
    assert_eq!((all.len(), labels(&all)[0]), (7, "norm 1"), "no summary unasked");
    let (limited, _) = told(&cluster, "ls --limit 3 --summary").await;
    assert_eq!((limited.len(), &limited[3]["summary"]["entries"]), (4, &7.into()));
    for (filter, count) in [
        ("--compiler nothing", 0),
        ("--older-than 1h", 0),
        ("--namespace nobody", 0),
        (&*format!("--namespace {NAMESPACE}"), 7),
    ] {
        let (found, code) = told(&cluster, &format!("ls {filter}")).await;
        assert_eq!((found.len(), code), (count, Some(0)), "{filter}");
    }
    for wrong in ["ls --sort size_of_it", "ls --older-than soon"] {
        assert_eq!(told(&cluster, wrong).await.1, Some(2), "{wrong}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_filter_names_goes_once_it_is_agreed_to() {
    let cluster = filled().await;
    let left = async || told(&cluster, "ls --sort label").await.0.len();
    let (would_go, code) = told(&cluster, "rm --label gemm --dry-run").await;
    assert_eq!((would_go.len(), code), (5, Some(0)));
    assert!(would_go.iter().all(|one| one["dry_run"] == true && one["removed"] == false));
    assert_eq!(left().await, 7, "a dry run removes nothing");

    let (refused, code) = told(&cluster, "rm --label gemm --reason wrong").await;
    assert_eq!(code, Some(21), "nobody agreed: {refused:?}");
    assert!(refused[0]["error"]["message"].as_str().unwrap().contains("--yes"), "{refused:?}");
    for wrong in ["rm --reason all --yes", "rm --label gemm --yes", "rm 3f2a91c0 --label x --yes"] {
        assert_eq!(told(&cluster, wrong).await.1, Some(2), "{wrong}");
    }
    assert_eq!(left().await, 7);

    let (removed, code) = told(&cluster, "rm --label gemm --reason wrong --yes").await;
    assert_eq!((removed.len(), code), (5, Some(0)), "{removed:?}");
    assert!(removed.iter().all(|one| one["removed"] == true));
    let (rest, _) = told(&cluster, "ls --sort label").await;
    assert_eq!(labels(&rest), ["norm 0", "norm 1"]);
    let key = value::components(NAMESPACE, b"gemm 1").key();
    let (why, _) = told(&cluster, &format!("why {key}")).await;
    // Why, when, through whom.
    let ended = why[0]["ended"].as_str().unwrap();
    for part in ["wrong (removed 20", "by node 1", "asked from 127.0.0.1"] {
        assert!(ended.contains(part), "{part:?} in {ended:?}");
    }
    let (nothing, code) = told(&cluster, "rm --label gemm --reason wrong --yes").await;
    assert_eq!((nothing.len(), code), (0, Some(0)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_use_is_a_hit_of_its_key_and_a_look_is_none() {
    let cluster = TestCluster::start(1).await;
    let mut redis = Redis::connect(&cluster.nodes[0]).await;
    for name in ["used", "same bytes"] {
        redis.set(name, "value").await;
    }
    let folder = tempfile::tempdir().unwrap();
    let looked = value::components(NAMESPACE, b"same bytes").key();
    let get = format!("get {looked} -o {}", folder.path().display());
    assert_eq!(told(&cluster, &get).await.1, Some(0));
    redis.get("used").await.unwrap();
    let listed = eventually("the hit", async || {
        let listed = told(&cluster, "ls --sort hits").await.0;
        (listed[0]["hits"] != 0).then_some(listed)
    })
    .await;
    assert_eq!(labels(&listed), ["used", "same bytes"]);
    assert_eq!((&listed[0]["hits"], &listed[1]["hits"]), (&1.into(), &0.into()));
    assert!(listed[0]["last_used_unix_ms"].as_u64() > listed[0]["created_unix_ms"].as_u64());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_doctor_knows_the_node_that_runs_here() {
    let cluster = TestCluster::start(1).await;
    let node = &cluster.nodes[0];
    let config = &node.config;
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_kiln"));
    command.args(["doctor", "--json"]);
    for (key, value) in [
        ("data_dir", folder.path().join("data").display().to_string()),
        ("grpc_listen", config.grpc_listen.to_string()),
        ("http_listen", config.http_listen.to_string()),
        ("transfer_listen", config.transfer_listen.to_string()),
        ("resp_listen", config.resp_listen.unwrap().to_string()),
        ("disk.bytes", "1MiB".to_owned()),
        ("compile.python", folder.path().join("no python").display().to_string()),
    ] {
        command.args(["--set", &format!("{key}={value}")]);
    }
    let output = command.output().await.unwrap();
    assert_eq!(output.status.code(), Some(1), "there is no such Python");
    let text = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let state = |name: &str| {
        let found = lines.iter().find(|line| line["name"] == name);
        found.unwrap_or_else(|| panic!("no {name}: {text}"))["state"].clone()
    };
    for ours in
        ["grpc_listen", "http_listen", "transfer_listen", "resp_listen", "cluster", "node 1"]
    {
        assert_eq!(state(ours), "ok", "{text}");
    }
    assert_eq!((state("python"), state("data_dir")), ("problem".into(), "ok".into()), "{text}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "nothing is left behind");
    assert!(lines.last().unwrap()["error"]["message"].as_str().unwrap().contains("checks"));
}

/// What people see of a command: its standard output.
async fn shown(cluster: &TestCluster, line: &str) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kiln"));
    command
        .args(line.split(' '))
        .args(["--endpoint", &cluster.nodes[0].config.grpc_listen.to_string()]);
    String::from_utf8(command.output().await.unwrap().stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_few_entries_are_shown_without_a_count_of_all() {
    let cluster = filled().await;
    let last = async |line: &str| {
        let text = shown(&cluster, line).await;
        text.lines().last().unwrap_or_default().to_owned()
    };
    assert_eq!(
        last("ls --limit 3").await,
        "3 entries shown; there are more: --summary counts them"
    );
    assert!(last("ls --limit 3 --summary").await.starts_with("7 entries, "));
    assert!(last("ls --limit 7").await.starts_with("7 entries, "), "all were seen");
    assert!(last("ls").await.starts_with("7 entries, "));
    assert!(
        last("ls --limit 2 --sort bytes").await.contains("; 2 of them shown"),
        "they were read"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_request_that_is_kept_beside_an_artifact_goes_with_it() {
    let cluster =
        TestCluster::start_with(1, |_, config| config.compile.keep_requests = 1 << 20).await;
    let node = &cluster.nodes[0];
    let mut keys = Vec::new();
    for name in ["first", "second", "third"] {
        keys.push(node.compile(saxpy(name)).await.unwrap().key);
    }
    let kept = async || told(&cluster, "ls --compiler request").await.0.len();
    eventually("all requests to be kept", async || (kept().await == 3).then_some(())).await;
    let (would_go, _) = told(&cluster, &format!("rm {} --dry-run", keys[0])).await;
    assert_eq!(would_go.len(), 2, "{would_go:?}");
    assert_eq!(would_go[0]["key"], keys[0].to_string());
    let (removed, code) = told(&cluster, &format!("rm {} --reason wrong --yes", keys[0])).await;
    assert_eq!((removed.len(), code, kept().await), (1, Some(0), 2), "{removed:?}");
    // A filter that names the artifacts alone.
    let (would_go, _) = told(&cluster, "rm --compiler cuda --dry-run").await;
    assert_eq!(would_go.len(), 4, "{would_go:?}");
    let (removed, code) = told(&cluster, "rm --compiler cuda --reason wrong --yes").await;
    assert_eq!((removed.len(), code), (4, Some(0)), "{removed:?}");
    assert_eq!(told(&cluster, "ls --requests").await.0.len(), 0);
}

/// A folder of somebody else, whose modules leave a file where they are imported.
fn hostile(marker: &Path) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let text = format!("open({:?}, 'a').write(__name__ + '\\n')\nraise SystemExit(3)\n", marker);
    for module in ["torch", "triton", "kiln_torch", "json", "platform", "re", "runpy", "grpc"] {
        std::fs::write(folder.path().join(format!("{module}.py")), &text).unwrap();
    }
    folder
}

#[tokio::test(flavor = "multi_thread")]
async fn no_python_that_is_asked_something_runs_a_file_of_the_current_folder() {
    let cluster = TestCluster::start(1).await;
    let own = tempfile::tempdir().unwrap();
    let marker = own.path().join("imported");
    let folder = hostile(&marker);
    // It is seen where it is imported.
    let python = Command::new("python3").args(["-c", "import torch"]).current_dir(&folder).output();
    assert_eq!(python.await.unwrap().status.code(), Some(3));
    std::fs::remove_file(&marker).unwrap();
    let data = format!("--data-dir={}", own.path().join("data").display());
    let filled = format!("--dir=cache={}", own.path().join("filled").display());
    for arguments in [vec!["doctor", &data], vec!["run", &filled, "--", "true"]] {
        // An empty entry is the current folder to Python.
        for python_path in ["", ":", "/nowhere:"] {
            let output = Command::new(env!("CARGO_BIN_EXE_kiln"))
                .args(&arguments)
                .current_dir(&folder)
                .env("KILN_ENDPOINT", cluster.nodes[0].config.grpc_listen.to_string())
                .env("PYTHONPATH", python_path)
                .env_remove("VIRTUAL_ENV")
                .output();
            let output = output.await.unwrap();
            let imported = std::fs::read_to_string(&marker).unwrap_or_default();
            assert_eq!(imported, "", "{arguments:?} with PYTHONPATH={python_path:?}: {output:?}");
        }
    }
}
