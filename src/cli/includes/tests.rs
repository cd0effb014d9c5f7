use super::*;

fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (path, text) in files {
        let path = dir.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    dir
}

fn sent(dir: &tempfile::TempDir, file: &str, text: &str, folders: &[&str]) -> Sent {
    let folders: Vec<_> = folders.iter().map(|f| dir.path().join(f)).collect();
    let given = Given { folders: &folders, defines: &[], pre_includes: &[], beside: true };
    collect(&dir.path().join(file), text.as_bytes(), &given).unwrap()
}

fn names(dir: &tempfile::TempDir, text: &str, folders: &[&str]) -> Vec<String> {
    sent(dir, "k.cu", text, folders).headers.into_keys().collect()
}

#[test]
fn headers_come_from_beside_the_file_and_from_the_folders() {
    let dir = tree(&[("p/a.h", ""), ("inc/b.h", ""), ("inc/c.h", ""), ("p/d.h", "")]);
    let text = "#include \"a.h\"\n # include <b.h>\n#include \"c.h\"\n#include <d.h>\n\
                #include <cuda_fp16.h>\n";
    let found = sent(&dir, "p/k.cu", text, &["inc"]);
    let names: Vec<_> = found.headers.keys().collect();
    assert_eq!(names, ["kiln-0/a.h", "kiln-1/b.h", "kiln-1/c.h"]);
    let tree = found.tree.unwrap();
    assert_eq!((tree.source.as_str(), &tree.include[..]), ("kiln-0", &["kiln-1".to_owned()][..]));
    let found = sent(&dir, "p/k.cu", text, &[]);
    assert!(found.headers.keys().eq(["kiln-0/a.h"]), "an angled header is not beside the file");
}

#[test]
fn headers_of_headers_and_circles_end() {
    let dir = tree(&[
        ("inc/top.h", "#include \"sub/low.h\""),
        ("inc/sub/low.h", "#include \"beside.h\"\n#include <top.h>"),
        ("inc/sub/beside.h", ""),
    ]);
    let found = names(&dir, "#include <top.h>", &["inc"]);
    assert_eq!(found, ["kiln-0/sub/beside.h", "kiln-0/sub/low.h", "kiln-0/top.h"]);
}

#[test]
fn what_this_machine_calls_the_folders_is_not_sent() {
    let text = "#include <x.h>\n#include \"../common/y.h\"\n#include \"z.h\"";
    let requests = ["here", "elsewhere/deeper"].map(|place| {
        let file = |path: &str| format!("{place}/{path}");
        let dir = tree(&[
            (&file("lib/x.h"), "#include \"../x/w.h\""),
            (&file("x/w.h"), ""),
            (&file("common/y.h"), ""),
            (&file("p/z.h"), ""),
        ]);
        fs::create_dir_all(dir.path().join(file("p"))).unwrap();
        let found = sent(&dir, &file("p/k.cu"), text, &[&file("lib")]);
        (found.headers, found.tree)
    });
    assert_eq!(requests[0], requests[1]);
}

#[test]
fn a_computed_name_sends_what_the_words_can_make_and_no_more() {
    let dir = tree(&[
        ("inc/impl_90.h", "#include NEXT"),
        ("inc/other.h", ""),
        ("inc/low.inc", ""),
        ("inc/sub/deep.cuh", ""),
        ("p/unrelated.h", ""),
    ]);
    let text = "#define NEXT <low.inc>\n#define NAME(n) STR(impl_##n.h)\n#include NAME(90)";
    let names = |text: &str| {
        let found = sent(&dir, "p/k.cu", text, &["inc"]);
        found.headers.into_keys().collect::<Vec<_>>()
    };
    assert_eq!(names(text), ["kiln-0/impl_90.h", "kiln-0/low.inc"]);
    let text = "#define sub_ sub/deep.cuh\n#include STR(sub_)";
    assert_eq!(names(text), ["kiln-0/sub/deep.cuh"]);
}

#[test]
fn two_names_of_one_file_are_told() {
    let dir = tree(&[("inc/a.h", "#pragma once")]);
    std::os::unix::fs::symlink("a.h", dir.path().join("inc/b.h")).unwrap();
    let found = sent(&dir, "k.cu", "#include <a.h>\n#include <b.h>", &["inc"]);
    assert!(found.headers.keys().eq(["kiln-0/a.h"]));
    assert_eq!(found.tree.unwrap().same, [("kiln-0/a.h".to_owned(), "kiln-0/b.h".to_owned())]);
}
