//! `kiln inspect` on machine code that NVRTC made.

use std::{
    os::unix::fs::{FileTypeExt, PermissionsExt},
    process::Command,
};

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

/// The elements of a page, which must be XML.
fn elements(page: &str) -> Vec<String> {
    let mut reader = quick_xml::Reader::from_str(page);
    let mut names = Vec::new();
    loop {
        match reader.read_event().unwrap() {
            quick_xml::events::Event::Start(start) | quick_xml::events::Event::Empty(start) => {
                names.push(String::from_utf8(start.name().as_ref().to_vec()).unwrap());
            }
            quick_xml::events::Event::Eof => return names,
            _ => {}
        }
    }
}

#[tokio::test]
async fn a_page_is_written_whole_or_not_at_all() {
    let node = Node::start().await;
    let folder = artifact(&node, "block_bf16.211.pt2").await;
    let archive = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/block_bf16.211.pt2");
    let archive = archive.to_str().unwrap();
    let place = tempfile::tempdir().unwrap();
    let file = place.path().join("page.html");
    let to = file.to_str().unwrap();
    let (status, text) = inspect(folder.path(), &["--html", to, "--graph", archive]);
    assert_eq!(status, Some(0), "{text}");
    assert!(text.contains("page.html"), "{text}");
    let page = std::fs::read_to_string(&file).unwrap();
    let names = elements(&page);
    assert!(names.iter().any(|name| name == "svg") && !names.iter().any(|name| name == "script"));
    let (_, view) = inspect(folder.path(), &["--json"]);
    let view: serde_json::Value = serde_json::from_str(&view).unwrap();
    for kernel in view["kernels"].as_array().unwrap() {
        assert!(page.contains(&format!("<td>{}</td>", kernel["registers"])), "{kernel}");
        assert!(page.contains(kernel["name"].as_str().unwrap()), "{kernel}");
    }
    // To standard output, the same.
    let (status, printed) = inspect(folder.path(), &["--html", "-", "--graph", archive]);
    assert_eq!((status, printed == page), (Some(0), true));
    // What cannot be made leaves what is there, and nothing beside it.
    let other = archive.replace("bf16", "f32");
    let (status, text) = inspect(folder.path(), &["--html", to, "--graph", &other]);
    assert_eq!(status, Some(13), "{text}");
    std::fs::remove_file(folder.path().join("plan.json")).unwrap();
    let (status, text) = inspect(folder.path(), &["--html", to]);
    assert_eq!(status, Some(20), "{text}");
    assert!(text.contains("It has kernels.cu, module.cubin"), "{text}");
    assert!(std::fs::read_to_string(&file).unwrap() == page);
    assert_eq!(std::fs::read_dir(place.path()).unwrap().count(), 1);
}

#[tokio::test]
async fn a_page_goes_where_it_is_meant_to_and_nowhere_else() {
    let node = Node::start().await;
    let folder = artifact(&node, "block_f32.new.pt2").await;
    let place = tempfile::tempdir().unwrap();
    let refused = |to: &Path, more: &[&str]| {
        let (status, text) =
            inspect(folder.path(), &[&["--html", to.to_str().unwrap()], more].concat());
        assert_eq!(status, Some(2), "{text}");
        text
    };
    assert!(refused(place.path(), &[]).contains("is a folder"));
    let pipe = place.path().join("pipe");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &pipe,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
        0,
    )
    .unwrap();
    assert!(refused(&pipe, &[]).contains("is no ordinary file"));
    assert!(std::fs::symlink_metadata(&pipe).unwrap().file_type().is_fifo());
    assert!(refused(Path::new("-"), &["--json"]).contains("name a file"));
    assert!(refused(Path::new("x"), &["--source"]).contains("--source"));
    // A link that leads nowhere stays one, and nothing that the page is made from is lost.
    let dangling = place.path().join("dangling");
    std::os::unix::fs::symlink(place.path().join("nowhere"), &dangling).unwrap();
    assert!(refused(&dangling, &[]).contains("a link to what is not there"));
    assert!(std::fs::symlink_metadata(&dangling).unwrap().is_symlink());
    let plan = folder.path().join("plan.json");
    let before = std::fs::read(&plan).unwrap();
    assert!(refused(&plan, &[]).contains("what the page is made from"));
    assert_eq!(std::fs::read(&plan).unwrap(), before);
    for flag in ["--graph", "--times"] {
        let own = place.path().join("own");
        std::fs::write(&own, "mine").unwrap();
        let text = refused(&own, &[flag, place.path().join("./own").to_str().unwrap()]);
        assert!(text.contains("what the page is made from"), "{text}");
        assert_eq!(std::fs::read_to_string(&own).unwrap(), "mine");
    }
    let (status, _) = inspect(folder.path(), &["--times", "x.json"]);
    assert_eq!(status, Some(2), "without --html");
    // A link stays one: what it leads to is the page.
    let (link, page) = (place.path().join("link"), place.path().join("page.html"));
    std::fs::write(&page, "old").unwrap();
    std::fs::set_permissions(&page, std::fs::Permissions::from_mode(0o640)).unwrap();
    std::os::unix::fs::symlink(&page, &link).unwrap();
    let (status, text) = inspect(folder.path(), &["--html", link.to_str().unwrap(), "--json"]);
    assert_eq!(status, Some(0), "{text}");
    assert!(std::fs::symlink_metadata(&link).unwrap().is_symlink());
    assert_eq!(std::fs::metadata(&page).unwrap().permissions().mode() & 0o777, 0o640);
    // A new one has the mode of any file that is made here.
    let new = place.path().join("new.html");
    let (status, _) = inspect(folder.path(), &["--html", new.to_str().unwrap()]);
    assert_eq!(status, Some(0));
    let other = place.path().join("other");
    std::fs::write(&other, "").unwrap();
    let mode = |path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&new), mode(&other));
    let written = std::fs::read(&page).unwrap().len();
    let told: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(told["bytes"], written);
    assert_eq!(told["html"], link.to_str().unwrap());
}
