//! What NVRTC takes where a source lies compiles through a node, and to the same code.

use std::{
    fs,
    os::unix::fs::symlink,
    path::Path,
    process::{Output, Stdio},
};

use tokio::process::Command;

use crate::harness::TestCluster;

/// The branch that a compiler takes beside the files, and the one that it must not take.
const RIGHT: &str = "471101";
const WRONG: &str = "471102";
const KERNEL: &str = "\nextern \"C\" __global__ void k(int* x) { x[0] = V; }\n";

/// Files, the source, and what stands after `kiln compile k.cu`.
type Case = (&'static [(&'static str, &'static str)], &'static str, &'static str);

const IMPL: &[(&str, &str)] = &[("inc/impl.h", "#define V 471101\n")];
const COUNTED: &str = "#pragma once\n#ifdef ONCE\n#define TWICE\n#endif\n#define ONCE\n";

#[rustfmt::skip]
const CASES: &[Case] = &[
    (IMPL, "#define IMPL \"impl.h\"\n#include IMPL", "-I inc"),
    (IMPL, "#define S(x) #x\n#define T(x) S(x)\n#define C(a, b) a##b\n#include T(C(im, pl).h)", "-Iinc"),
    (IMPL, "#include IMPL", "-I inc -DIMPL=<impl.h>"),
    (IMPL, "#include IMPL", "-I inc -- -DIMPL=<impl.h>"),
    (IMPL, "#include \\\n    \"impl.h\"", "-I inc"),
    (IMPL, "%:inc\\\r\nlude <im\\\npl.h>", "-I inc"),
    (IMPL, "??=include \"impl.h\"", "-I inc -- --std=c++14"),
    (IMPL, "#/* a */include/* b\n*/\"impl.h\"/* c */", "-I inc"),
    (IMPL, "__device__ const char t[] = R\"(\n/* no comment\n)\";\n#include \"impl.h\"", "-I inc"),
    (IMPL, "#if 0\n#include \"missing.h\"\n#include \"/missing.h\"\n#include \"../missing.h\"\n#endif\n#include \"impl.h\"", "-I inc"),
    (IMPL, "", "-I inc -- --pre-include=impl.h"),
    (IMPL, "", "-I inc -- -include impl.h"),
    (IMPL, "#include <inc/impl.h>", "-I ."),
    (IMPL, "#include \"impl.h\"", "-- -I inc -w"),
    (&[("inc/a/op.h", "#pragma once\n#include \"detail.h\"\n"), ("inc/b/op.h", "#pragma once\n#include \"detail.h\"\n"),
       ("inc/a/detail.h", "#define A 471000\n"), ("inc/b/detail.h", "#define B 101\n")],
     "#include \"a/op.h\"\n#include <b/op.h>\n#define V A + B", "-I inc"),
    (&[("one/n.h", "#define V N + 1\n#include_next <n.h>\n"), ("two/n.h", "#define N 471100\n")], "#include <n.h>", "-I one -I two"),
    (&[("one/n.h", "#define V 471102\n"), ("two/n.h", "#define V 471101\n")], "#include <n.h>", "-I two -I one"),
    (&[("../up.h", "#define V 471101\n")], "#define H \"../up.h\"\n#include H", ""),
    (&[("inc/a.h", COUNTED), ("inc/b.h -> a.h", "")], "#include <a.h>\n#include <b.h>\n#ifdef TWICE\n#define V 471102\n#else\n#define V 471101\n#endif", "-I inc"),
    (&[("inc/a.h", COUNTED), ("inc/b.h", COUNTED)], "#include <a.h>\n#include <b.h>\n#ifdef TWICE\n#define V 471101\n#else\n#define V 471102\n#endif", "-I inc"),
    (&[("inc/l.h -> sub/real.h", ""), ("inc/sub/real.h", "#include \"near.h\"\n"), ("inc/near.h", "#define V 471101\n"), ("inc/sub/near.h", "#define V 471102\n")], "#include <l.h>", "-I inc"),
];

/// What `__has_include` asks for, and whether it is there.
#[rustfmt::skip]
const ASKED: &[(bool, &str, &str)] = &[
    (true, "#if __has_include(\"impl.h\")", "-I inc"),
    (true, "#if defined(__has_include) && __has_include /* ? */ (<impl.h>)", "-I inc"),
    (true, "#if 0\n#elif __has_include(<impl.h>)", "-I inc"),
    (true, "#define H <impl.h>\n#if __has_include(H)", "-I inc"),
    (true, "#define HAS(x) __has_include(x)\n#if HAS(<impl.h>)", "-I inc"),
    (true, "#define PASTE(a, b) a##b\n#if PASTE(__has_, include)(<impl.h>)", "-I inc"),
    (true, "#if HAS(<impl.h>)", "-I inc -DHAS=__has_include"),
    (true, "#if __has_include(\"inc/../k.cu\")", ""),
    (true, "#if __has_include(\"inc/empty.h\")", ""),
    (true, "#if __has_include(<cuda_fp16.h>)", ""),
    (false, "#if __has_include(<impl.h>)", ""),
    (false, "#if __has_include(\"inc\")", ""),
    (false, "#if __has_include(\"none/../k.cu\")", ""),
    // Of the node, not of the source.
    (false, "#if __has_include(\"libnvrtc.so\")", ""),
    (false, "#if __has_include(\"../libnvrtc.so\")", ""),
    (false, "#if __has_include(\"cuda-headers/cuda.h\")", ""),
];

async fn compile(folder: &Path, endpoint: &str, arguments: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kiln"));
    let out = ["compile", "k.cu", "--target", "compute_90", "--endpoint", endpoint, "-o", "out"];
    command.args(out).args(arguments.split_whitespace());
    command.current_dir(folder).stdin(Stdio::null()).kill_on_drop(true).output().await.unwrap()
}

async fn check(endpoint: &str, (files, source, arguments): &Case) {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path().join("here");
    fs::create_dir(&here).unwrap();
    for (path, text) in *files {
        let (path, target) = path.split_once(" -> ").map_or((*path, None), |(p, t)| (p, Some(t)));
        let path = here.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        match target {
            Some(target) => symlink(target, path).unwrap(),
            None => fs::write(path, text).unwrap(),
        }
    }
    fs::write(here.join("k.cu"), format!("{source}{KERNEL}")).unwrap();
    let done = compile(&here, endpoint, arguments).await;
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{source}\n{arguments}\n{said}");
    let ptx = fs::read_to_string(here.join("out/module.ptx")).unwrap();
    assert!(ptx.contains(RIGHT) && !ptx.contains(WRONG), "{source}\n{arguments}\n{ptx}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_include_finds_on_the_node_what_it_finds_here() {
    let cluster = TestCluster::start(1).await;
    let endpoint = format!("http://{}", cluster.nodes[0].config.grpc_listen);
    for case in CASES {
        check(&endpoint, case).await;
    }
    let files = &[("inc/impl.h", ""), ("inc/empty.h", "")];
    for (is_there, question, arguments) in ASKED {
        let (yes, no) = if *is_there { (RIGHT, WRONG) } else { (WRONG, RIGHT) };
        let source = format!("{question}\n#define V {yes}\n#else\n#define V {no}\n#endif");
        check(&endpoint, &(files, Box::leak(source.into_boxed_str()), arguments)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_header_that_appears_is_another_key() {
    let cluster = TestCluster::start(1).await;
    let endpoint = format!("http://{}", cluster.nodes[0].config.grpc_listen);
    let folder = tempfile::tempdir().unwrap();
    let source = "#if __has_include(\"opt.h\")\n#define V 471101\n#else\n#define V 471102\n#endif";
    // Latin-1, as older sources have it.
    let text = [b"// 8 \xb0\n", source.as_bytes(), KERNEL.as_bytes()].concat();
    fs::write(folder.path().join("k.cu"), text).unwrap();
    for number in [WRONG, RIGHT] {
        let done = compile(folder.path(), &endpoint, "").await;
        let said = String::from_utf8_lossy(&done.stdout);
        assert!(said.starts_with("compiled"), "{said}{}", String::from_utf8_lossy(&done.stderr));
        let ptx = fs::read_to_string(folder.path().join("out/module.ptx")).unwrap();
        assert!(ptx.contains(number), "{ptx}");
        fs::write(folder.path().join("opt.h"), "").unwrap();
    }
}
