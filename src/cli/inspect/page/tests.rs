//! Pages of artifacts that Kiln made, and of those that it would never make: judged by a parser
//! of XML, which is stricter than any browser.

mod parsed;

use std::{collections::BTreeMap, path::PathBuf};

use kiln_native::{
    eager::Eager,
    lower, numbered,
    plan::{Plan, VERSION},
    read_graph, signature,
    split::{Settings, split, stitch},
};
use kiln_proto::{Component, KeyField, Target};
use parsed::{Element, judged};

use super::*;
use crate::cli::inspect::{Files, pieces};

/// The cells of the row with that id.
fn row<'p>(page: &'p str, id: &str) -> &'p str {
    let start = page.find(&format!("<tr id=\"{id}\">")).unwrap_or_else(|| panic!("no {id}"));
    let end = page[start..].find("</tr>").unwrap();
    &page[start..start + end]
}

fn fixture_path(name: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures")).join(name)
}

fn fixture(name: &str) -> Vec<u8> {
    std::fs::read(fixture_path(name)).unwrap()
}

/// The files of what `native` makes of an archive, with machine code of something else.
fn native(plan: &Plan, names: Option<&[u8]>) -> Files {
    let mut files: Files = [
        ("plan.json".to_owned(), serde_json::to_vec(plan).unwrap()),
        ("module.cubin".to_owned(), fixture("resources_13_sm90.cubin")),
    ]
    .into();
    if let Some(archive) = names {
        let names = signature(archive).unwrap();
        files.insert("signature.json".to_owned(), serde_json::to_vec(&names).unwrap());
    }
    files
}

fn plan_of(archive: &[u8]) -> Plan {
    lower(archive, &BTreeMap::new(), Target::cubin(90)).unwrap().plan
}

fn page(found: Vec<Found>, graph: Option<&Path>, times: Option<&Path>) -> Result<String, CliError> {
    let pieces = pieces::of(&found[0].files, None)?;
    Page { name: "out", found, left: 0, key: None, pieces, graph, times }.text()
}

fn whole(files: Files) -> Vec<Found> {
    vec![Found::of(String::new(), None, files)]
}

/// Writes a measurement of these launches.
fn measured(times: &[(String, f64)], more: serde_json::Value) -> tempfile::NamedTempFile {
    let mut report = serde_json::json!({
        "device": "a GPU", "repeat": 20, "eager_us": 9.0, "graph_us": 7.5, "kernels": times,
    });
    if let serde_json::Value::Object(more) = more {
        report.as_object_mut().unwrap().extend(more);
    }
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), report.to_string()).unwrap();
    file
}

#[test]
fn a_page_says_what_the_plan_and_the_program_say() {
    let archive = fixture("block_bf16.211.pt2");
    let (plan, graph) = (plan_of(&archive), read_graph(&archive).unwrap());
    let path = fixture_path("block_bf16.211.pt2");
    let found = whole(native(&plan, Some(&archive)));
    let page = page(found, Some(&path), None).unwrap();
    let all = judged(&page);
    for (number, (at, op)) in numbered(&graph).iter().enumerate() {
        let node = &graph.nodes[*at];
        let row = row(&page, &format!("p0-n{number}"));
        assert!(row.contains(&format!("<td>{}</td>", node.name)), "{row}");
        assert!(row.contains(&format!("<td>{op}</td>")), "{row}");
        let ty = &graph.value(node.outputs[0]).ty;
        assert!(row.contains(&format!("<td>{} [", ty.dtype)), "{row}");
        // In the groups that say that they compute it, and in no other.
        for (index, kernel) in plan.kernels.iter().enumerate() {
            let own = kernel.computes.contains(&format!("{number} {op}"));
            assert_eq!(row.contains(&format!("\"#p0-k{index}\"")), own, "{index}: {row}");
        }
    }
    for (index, kernel) in plan.kernels.iter().enumerate() {
        let row = row(&page, &format!("p0-k{index}"));
        assert!(row.contains(&kernel.name) && row.contains(&kernel.kind), "{row}");
    }
    let rects: Vec<&Element> = all.iter().filter(|element| element.tag == "rect").collect();
    assert_eq!(rects.len(), plan.buffers.len());
    for (i, buffer) in plan.buffers.iter().enumerate() {
        let said = format!("kernel {} to {}", buffer.from, buffer.to);
        let own = rects.iter().find(|rect| rect.text.starts_with(&format!("b{i} ")));
        assert!(own.is_some_and(|rect| rect.text.ends_with(&said)), "{i}: {own:?}");
        assert!(row(&page, &format!("p0-b{i}")).contains(&buffer.offset.to_string()));
    }
    // Parameters by the program's own names, linked from the kernels that read them.
    assert!(row(&page, "p0-i0").contains("p_norm_weight"));
    assert!(page.contains("Not measured"));
    // Without the program there are its numbers and operations.
    let found = whole(native(&plan, None));
    let bare = super::tests::page(found, None, None).unwrap();
    judged(&bare);
    assert!(bare.contains("--graph MODEL.pt2") && row(&bare, "p0-n0").contains("aten."));
}

#[test]
fn another_programs_archive_names_nothing() {
    let plan = plan_of(&fixture("block_bf16.211.pt2"));
    for other in ["block_f32.211.pt2", "ops.211.pt2", "block_bf16_core.211.pt2"] {
        let found = whole(native(&plan, None));
        let refused = page(found, Some(&fixture_path(other)), None).unwrap_err();
        assert!(refused.to_string().contains("not what was compiled"), "{refused}");
        assert_eq!(refused.exit_code(), 13, "{refused}");
    }
}

/// The same operations on tensors of other sizes, or given and left elsewhere.
#[test]
fn an_archive_with_the_same_operations_is_told_apart() {
    let name = "block_bf16.211.pt2";
    let graph = fixture_path(name);
    let plan = plan_of(&fixture(name));
    let why = |change: &dyn Fn(&mut Plan)| {
        let mut plan = plan.clone();
        change(&mut plan);
        page(whole(native(&plan, None)), Some(&graph), None).unwrap_err().to_string()
    };
    let other = |plan: &mut Plan| {
        let last = plan.inputs.last_mut().unwrap();
        last.shape[0] = kiln_native::plan::Expr::from(last.shape[0].known().unwrap() + 1);
    };
    assert!(why(&other).contains("is not the artifact's input"), "{}", why(&other));
    let more = |plan: &mut Plan| plan.outputs.push(plan.outputs[0].clone());
    assert!(why(&more).contains("outputs, the artifact"), "{}", why(&more));
    let wider = |plan: &mut Plan| {
        let size = &mut plan.outputs[0].shape[0];
        *size = kiln_native::plan::Expr::from(size.known().unwrap() + 1);
    };
    assert!(why(&wider).contains("its output 0 is not the artifact's"), "{}", why(&wider));
    let kept = |plan: &mut Plan| {
        plan.version = VERSION;
        plan.inputs.last_mut().unwrap().updated = true;
    };
    assert!(why(&kept).contains("is not the artifact's input"), "{}", why(&kept));
    // A key says which graph it is of, whatever the plan says.
    let of_key = |archive: &str, form: Option<&str>| {
        let (own, _) = kiln_native::components(&read_graph(&fixture(archive)).unwrap());
        let mut fields = own.fields;
        fields.splice(0..0, form.map(|form| KeyField::new("form", form)));
        let key = Component::new("graph", fields);
        let found = whole(native(&plan, None));
        let (pieces, key) = (Vec::new(), Some(&key));
        let graph = Some(graph.as_path());
        Page { name: "a key", found, left: 0, key, pieces, graph, times: None }.text()
    };
    of_key(name, None).unwrap();
    of_key(name, Some("canonical")).unwrap();
    let refused = of_key("block_f32.211.pt2", None).unwrap_err().to_string();
    assert!(refused.contains("the artifact's key is of another graph"), "{refused}");
    of_key("block_f32.211.pt2", Some("as exported")).unwrap();
}

#[test]
fn names_of_strangers_stay_text() {
    let hostile = "</td></script><script>alert(1)</script>\"' onload=x \u{0}\u{1b}[2J\u{202e}&amp;";
    let mut plan = plan_of(&fixture("block_bf16.211.pt2"));
    plan.target = hostile.to_owned();
    for kernel in &mut plan.kernels {
        kernel.name = hostile.to_owned();
        kernel.kind = hostile.to_owned();
        kernel.variant = hostile.to_owned();
        kernel.computes.push(format!("0 {hostile}"));
        kernel.computes.push(hostile.to_owned());
    }
    for tensor in plan.inputs.iter_mut().chain(&mut plan.outputs) {
        tensor.name = hostile.to_owned();
        tensor.kind = if tensor.kind == "constant" { "constant" } else { hostile }.to_owned();
    }
    let times: Vec<(String, f64)> =
        plan.kernels.iter().map(|_| (hostile.to_owned(), 2.0)).collect();
    let times = measured(&times, serde_json::json!({ "device": hostile }));
    let mut files = native(&plan, None);
    let names = plan
        .inputs
        .iter()
        .map(|input| serde_json::json!({ "name": hostile, "kind": input.kind, "target": hostile }));
    let names = serde_json::json!({
        "version": 1, "inputs": names.collect::<Vec<_>>(), "outputs": [hostile],
    });
    files.insert("signature.json".to_owned(), names.to_string().into_bytes());
    files.insert(hostile.to_owned(), b"x".to_vec());
    let found = whole(files);
    let (pieces, times) = (Vec::new(), Some(times.path()));
    let made = Page { name: hostile, pieces, found, left: 0, key: None, graph: None, times };
    let page = made.text().unwrap();
    let all = judged(&page);
    let shown = all.iter().any(|element| element.tag == "td" && element.text.contains("</script>"));
    assert!(shown, "it is there, as text");
}

#[test]
fn a_huge_artifact_has_a_bounded_page_that_says_what_is_not_on_it() {
    let mut plan = plan_of(&fixture("block_bf16.211.pt2"));
    let (kernel, buffer) = (plan.kernels[0].clone(), plan.buffers[0].clone());
    plan.kernels = (0..10_000)
        .map(|at: usize| {
            let mut kernel = kernel.clone();
            kernel.computes = (at..at + 40).map(|node| format!("{node} aten.add.Tensor")).collect();
            kernel
        })
        .collect();
    plan.buffers = (0..10_000).map(|at: usize| plan_buffer(&buffer, at)).collect();
    plan.workspace_bytes = (1i64 << 30).into();
    let page = page(whole(native(&plan, None)), None, None).unwrap();
    let all = judged(&page);
    assert!(page.len() < 8 << 20, "{} bytes", page.len());
    for said in [
        "2000 of 10039 nodes are shown, 8039 are left out.",
        "2000 of 10000 kernels are shown, 8000 are left out.",
        "2000 of 10000 buffers are shown, 8000 are left out.",
        "The 2000 largest are drawn, 8000 are left out.",
        " and 16 more",
    ] {
        assert!(page.contains(said), "{said}");
    }
    assert_eq!(all.iter().filter(|element| element.tag == "rect").count(), 2_000);
}

#[test]
fn what_is_not_read_or_not_drawn_is_counted() {
    let mut plan = plan_of(&fixture("block_bf16.211.pt2"));
    plan.buffers.push(plan_buffer(&plan.buffers[0], 1));
    let count = plan.buffers.len();
    assert!(count > 2);
    // A size that is no number, and a buffer of a kernel that is not there.
    plan.buffers[0].shape.push(kiln_native::plan::Expr::Symbol(7));
    plan.buffers[1].from = plan.kernels.len();
    let found = whole(native(&plan, None));
    let (pieces, name) = (Vec::new(), "out");
    let made = Page { name, found, left: 5, key: None, pieces, graph: None, times: None };
    let page = made.text().unwrap();
    let all = judged(&page);
    assert_eq!(all.iter().filter(|element| element.tag == "rect").count(), count - 2);
    for said in [
        format!("1 of {count} buffers are not drawn: their sizes could not be worked out."),
        format!("1 of {} are not drawn: no kernel there is writes them.", count - 1),
        "1 of 6 parts are shown, 5 are left out.".to_owned(),
    ] {
        assert!(page.contains(&said), "{said}");
    }
    // The qualifier is there, however many symbols there are.
    let plan = plan_of(&fixture("block_f32_dynamic.211.pt2"));
    let mut sizes = sizes::Sizes::of(&plan, None).unwrap();
    sizes.call.symbols = vec![i64::MAX; 300];
    assert!(sizes.shown().ends_with(" and 296 more") && sizes.shown().len() < 150);
}

fn plan_buffer(buffer: &kiln_native::plan::Buffer, at: usize) -> kiln_native::plan::Buffer {
    let (offset, from) = ((at as i64 * 256).into(), at);
    kiln_native::plan::Buffer { offset, from, to: at + 1, ..buffer.clone() }
}

#[test]
fn open_sizes_are_an_example_or_those_that_were_measured() {
    let archive = fixture("block_f32_dynamic.211.pt2");
    let plan = plan_of(&archive);
    assert!(!plan.symbols.is_empty());
    let found = || whole(native(&plan, Some(&archive)));
    let example = page(found(), None, None).unwrap();
    judged(&example);
    assert!(
        example.contains("Bytes below are an example, as the call decides: for "),
        "{example:.2000}"
    );
    let symbols: Vec<i64> = plan.symbols.iter().map(|symbol| symbol.min.max(3)).collect();
    let shapes: Vec<Vec<usize>> =
        plan.inputs.iter().map(|input| input.layout(&symbols).unwrap().shape).collect();
    let times: Vec<(String, f64)> =
        plan.kernels.iter().map(|kernel| (kernel.name.clone(), 2.0)).collect();
    let more = serde_json::json!({ "shapes": shapes, "peak_gb_s": 0.001 });
    let times = measured(&times, more);
    let page = page(found(), None, Some(times.path())).unwrap();
    judged(&page);
    assert!(
        page.contains("Bytes below are as measured: for ")
            && page.contains("7.5 us as a CUDA graph")
    );
    // 10^3 bytes in 2 us are 0.5 of 10^9 a second.
    let sizes = sizes::Sizes::of(&plan, Some(&shapes)).unwrap();
    let laid = sizes::buffers(&plan, &sizes);
    let held = sizes::held(&plan, 0, Some((&sizes, &laid)));
    let bytes = sizes::bytes(&sizes, &laid, &held).unwrap();
    let share = format!("{:.0}%", bytes as f64 / 2e-6 / 1e6 * 100.0);
    assert!(row(&page, "p0-k0").contains(&share), "{share}: {}", row(&page, "p0-k0"));
}

#[test]
fn times_of_another_artifact_are_refused() {
    let plan = plan_of(&fixture("block_bf16.211.pt2"));
    let own: Vec<(String, f64)> =
        plan.kernels.iter().map(|kernel| (kernel.name.clone(), 1.0)).collect();
    let refused = |times: &[(String, f64)], more: serde_json::Value| {
        let times = measured(times, more);
        page(whole(native(&plan, None)), None, Some(times.path())).unwrap_err()
    };
    let none = || serde_json::json!({});
    let longer = [own.clone(), vec![("k9".to_owned(), 1.0)]].concat();
    for times in [&own[1..], &longer[..], &[("k0".to_owned(), 1.0)]] {
        let why = refused(times, none());
        assert!(why.to_string().contains("of another artifact"), "{why}");
        assert_eq!(why.exit_code(), 13);
    }
    // Kernels of the same names, of inputs that this one does not take.
    let mut shapes: Vec<Vec<usize>> =
        plan.inputs.iter().map(|input| input.layout(&[]).unwrap().shape).collect();
    let takes = measured(&own, serde_json::json!({ "shapes": shapes }));
    page(whole(native(&plan, None)), None, Some(takes.path())).unwrap();
    shapes.last_mut().unwrap()[0] += 1;
    let why = refused(&own, serde_json::json!({ "shapes": shapes }));
    assert!(why.to_string().contains("of another artifact: "), "{why}");
    assert_eq!(why.exit_code(), 13);
    let why = refused(&own, serde_json::json!({ "size": 8 }));
    assert!(why.to_string().contains("the code for size 8 was timed"), "{why}");
    let why = refused(&[], serde_json::json!({ "untimed": "no memory" }));
    assert!(why.to_string().contains("no kernels' times: no memory"), "{why}");
    assert_eq!(why.exit_code(), 2);
}

#[test]
fn a_whole_has_its_pieces_and_what_they_leave_each_other() {
    let name = "block_f32.211.pt2";
    let archive = fixture(name);
    let graph = read_graph(&archive).unwrap();
    let split = split(&graph, &Settings::default()).unwrap();
    let stitching = stitch::stitch(&graph, &split).unwrap();
    let mut files: Files = [("stitching.json".to_owned(), stitching.to_bytes())].into();
    let names = serde_json::to_vec(&signature(&archive).unwrap()).unwrap();
    files.insert("signature.json".to_owned(), names);
    let mut found = whole(files);
    let mut times = Vec::new();
    let plans: Vec<Plan> = split
        .pieces
        .iter()
        .map(|piece| {
            let graph = split.graph(piece);
            kiln_native::lower_parsed(graph, &BTreeMap::new(), Target::cubin(90)).unwrap().plan
        })
        .collect();
    for (at, plan) in plans.iter().enumerate() {
        found.push(Found::of(format!("piece {at}"), Some(at), native(plan, None)));
    }
    for (call, of) in stitching.calls.iter().enumerate() {
        let kernels = &plans[of.piece].kernels;
        times.extend(kernels.iter().map(|kernel| (format!("{call}/{}", kernel.name), 3.0)));
    }
    let times = measured(&times, serde_json::json!({}));
    let page = page(found, Some(&fixture_path(name)), Some(times.path())).unwrap();
    let all = judged(&page);
    assert!(row(&page, "p0-call0").contains("piece 0"));
    assert!(row(&page, "c0").contains("whole of"), "{}", row(&page, "c0"));
    // Every node of the program is in one of the pieces.
    for (at, _) in numbered(&graph) {
        let node = &graph.nodes[at];
        let cell = |element: &&Element| element.tag == "td" && element.text == node.name;
        assert!(all.iter().any(|element| cell(&element)), "{}", node.name);
    }
    assert!(row(&page, "p1-k0").contains("3.00 us"), "{}", row(&page, "p1-k0"));
}

#[test]
fn the_interpreters_artifact_has_its_program() {
    let archive = fixture("block_f32.211.pt2");
    let eager = Eager::new(&read_graph(&archive).unwrap()).unwrap();
    let count = eager.program().nodes.len();
    let files: Files = eager.files().unwrap().into_iter().collect();
    let page = page(whole(files.clone()), None, None).unwrap();
    judged(&page);
    assert!(row(&page, &format!("p0-n{}", count - 1)).contains("f32 ["));
    assert!(page.contains("matmul"), "core operations");
    let named = super::tests::page(whole(files), Some(&fixture_path("block_f32.211.pt2")), None);
    assert!(named.unwrap().contains("aten.linear.default"));
}

#[test]
fn what_has_no_plan_says_what_it_has() {
    let refused = |names: &[&str]| {
        let files = names.iter().map(|name| ((*name).to_owned(), b"{}".to_vec())).collect();
        page(whole(files), None, None).unwrap_err()
    };
    let inductors = refused(&["meta.json", "artifact.bin"]);
    assert!(inductors.to_string().contains("compiled by Inductor"), "{inductors}");
    assert!(inductors.to_string().contains("artifact.bin, meta.json"), "{inductors}");
    assert_eq!(inductors.exit_code(), 20);
    let nothing = refused(&["notes.txt"]).to_string();
    assert!(nothing.contains("no artifact of a graph. It has notes.txt"), "{nothing}");
    let many: Vec<String> = (0..20).map(|at| format!("file{at:02}")).collect();
    let many = refused(&many.iter().map(String::as_str).collect::<Vec<_>>()).to_string();
    assert!(many.contains("file07 and 12 more"), "{many}");
    // A plan of a later program, and what is none.
    let later = format!("{{\"version\":{}}}", VERSION + 1).into_bytes();
    for (plan, codes) in [(later, 13..=13), (b"{}".to_vec(), 12..=13), (b"[".to_vec(), 12..=13)] {
        let mut files = native(&plan_of(&fixture("block_bf16.211.pt2")), None);
        files.insert("plan.json".to_owned(), plan);
        let why = page(whole(files), None, None).unwrap_err();
        assert!(codes.contains(&why.exit_code()) && why.to_string().contains("plan.json"), "{why}");
    }
    // An artifact among others whose piece is not Kiln's.
    let mut found = whole(native(&plan_of(&fixture("block_bf16.211.pt2")), None));
    let files: Files = [("meta.json".to_owned(), b"{}".to_vec())].into();
    found.push(Found::of("piece 0".to_owned(), Some(0), files));
    let shown = page(found, None, None).unwrap();
    judged(&shown);
    assert!(shown.contains("compiled by Inductor") && shown.contains("meta.json"));
}
