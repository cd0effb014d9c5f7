use super::*;

const PLAN: &str = r#"{"version":2,"target":"sm_90",
    "symbols":[{"min":1,"max":64,"input":0,"dim":0,"scale":2,"offset":0}],
    "inputs":[{"name":"in0","kind":"user","dtype":"f32",
        "shape":[{"mul":[2,{"symbol":0}]},4],"strides":[4,1]}],
    "outputs":[{"name":"out0","kind":"output","dtype":"f32","shape":[4],"strides":[1]}],
    "workspace_bytes":{"mul":[1024,{"symbol":0}]},
    "buffers":[{"dtype":"bf16","shape":[{"symbol":0}],"offset":0,"from":0,"to":1}],
    "kernels":[
        {"name":"plain","kind":"map","grid":[{"symbol":0},1,1],"block":[128,1,1],
         "shared_bytes":0,"args":[],"computes":["0 aten.add.Tensor","1 aten.mul.Tensor"]},
        {"name":"stack","kind":"product","variant":"128x64","grid":[8,2,1],"block":[64,1,1],
         "shared_bytes":2048,"args":[],"computes":[]}]}"#;

fn files(list: &[(&str, &[u8])]) -> Files {
    list.iter().map(|(path, bytes)| ((*path).to_owned(), bytes.to_vec())).collect()
}

fn cubin() -> Vec<u8> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures");
    std::fs::read(format!("{folder}/resources_13_sm90.cubin")).unwrap()
}

#[test]
fn a_graphs_artifact_is_shown_whole() {
    let signature = r#"{"version":1,"inputs":[{"name":"x","kind":"user"}],"outputs":["add"]}"#;
    let files = files(&[
        ("plan.json", PLAN.as_bytes()),
        ("module.cubin", &cubin()),
        ("signature.json", signature.as_bytes()),
    ]);
    let view = View::new(&files).unwrap();
    let text = super::super::shown(&view);
    for line in [
        "sm_90, 2 kernels, module 8.9 KiB, 64 B of constants, 256 B of global data, \
         workspace 1024*s0 bytes",
        "s0      1     64  dimension 0 of in0, which is 2*s0",
        "in0     x     user    f32   [2*s0, 4]  [4, 1]",
        "plain   map             s0     128    12    512     0      24      896   \
         0 aten.add.Tensor, 1 aten.mul.Tensor",
        "stack   product 128x64  8 x 2  64     31    0+2048  256    20      2816",
        "0       bf16  [s0]   0       plain       stack",
    ] {
        assert!(text.contains(line), "{line}\nis not in\n{text}");
    }
    let json = serde_json::to_value(&view).unwrap();
    assert_eq!(json["kernels"][0]["registers"], 12);
    assert_eq!(json["kernels"][1]["dynamic_shared_bytes"], 2048);
    assert_eq!(json["kernels"][1]["local_bytes"], 256);
    assert_eq!(json["workspace_bytes"], "1024*s0");
}

#[test]
fn a_kernel_files_artifact_has_its_modules_kernels() {
    let view = View::new(&files(&[("module.cubin", &cubin())])).unwrap();
    let names: Vec<&str> = view.kernels.iter().map(|kernel| kernel.name.as_str()).collect();
    assert_eq!(names, ["plain", "stack"]);
    assert!(super::super::shown(&view).contains("plain   -     -     -      12    512"));
}

#[test]
fn a_broken_artifact_says_which_file() {
    let refused = |name, bytes| View::new(&files(&[(name, bytes)])).unwrap_err();
    assert!(refused("plan.json", b"{}").to_string().contains("plan.json: missing field `version`"));
    assert!(refused("module.cubin", b"text").to_string().contains("module.cubin"));
    assert_eq!(refused("signature.json", b"text").exit_code(), 12);
}
