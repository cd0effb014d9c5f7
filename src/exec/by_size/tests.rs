//! Folders with artifacts for static sizes, run through the whole of `kiln exec`, and those
//! for a GPU as far as that needs none.

use std::fs;

use kiln_native::{eager::Eager, lower_parsed, read_graph, static_size::fixed};
use kiln_proto::{
    ArtifactKey, Target,
    graph::{Graph, InputKind},
};

use safetensors::{Dtype, SafeTensors, tensor::TensorView};

use super::*;
use crate::exec::{Exec, exec_main, program::Program};

fn graph(name: &str) -> Graph {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures");
    read_graph(&fs::read(format!("{folder}/{name}")).unwrap()).unwrap()
}

const DYNAMIC: &str = "block_f32_dynamic.new.pt2";

/// By name.
type Files = Vec<(String, Vec<u8>)>;

fn eager(graph: &Graph) -> Files {
    Eager::new(graph).unwrap().files().unwrap()
}

/// What looks like an artifact for a GPU.
fn native(graph: &Graph) -> Files {
    let lowered = lower_parsed(graph, &Default::default(), Target::cubin(90)).unwrap();
    let plan = serde_json::to_vec(&lowered.plan).unwrap();
    vec![(layout::PLAN.to_owned(), plan), (layout::CUBIN.to_owned(), b"\x7fELF".to_vec())]
}

fn write(dir: &Path, files: Files) {
    fs::create_dir_all(dir).unwrap();
    files.into_iter().for_each(|(name, bytes)| fs::write(dir.join(name), bytes).unwrap());
}

/// The block for all sizes, and for two of them.
fn artifact(files: fn(&Graph) -> Files) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let graph = graph(DYNAMIC);
    write(folder.path(), files(&graph));
    for size in [2, 5] {
        let place = layout::size_dir(folder.path(), size);
        write(&place, files(&fixed(&graph, "", size).unwrap()));
    }
    name_sizes(folder.path(), &[2, 5]);
    folder
}

fn name_sizes(dir: &Path, sizes: &[u64]) {
    let key = ArtifactKey::from_bytes([7; 32]);
    let sizes: Vec<SizeKey> = sizes.iter().map(|size| SizeKey { size: *size, key }).collect();
    fs::write(dir.join(SIZES), layout::sizes_file(&sizes)).unwrap();
}

/// Runs it for so many rows; which code that was, and what came out.
fn run(dir: &Path, rows: usize) -> Result<(Option<u64>, Vec<u8>), String> {
    let (hidden, inner) = (72, 136);
    let shapes: [&[usize]; 5] =
        [&[hidden], &[inner, hidden], &[inner, hidden], &[hidden, inner], &[rows, 9, hidden]];
    let numbers = shapes.map(|shape| -> Vec<u8> {
        let count: usize = shape.iter().product();
        (0..count).flat_map(|i| ((i * 37 % 101) as f32 / 50.0 - 1.0).to_le_bytes()).collect()
    });
    let views = shapes.iter().zip(&numbers).enumerate().map(|(at, (shape, bytes))| {
        (format!("in{at}"), TensorView::new(Dtype::F32, shape.to_vec(), bytes).unwrap())
    });
    let (inputs, output) = (dir.join("in.safetensors"), dir.join("out.safetensors"));
    fs::write(&inputs, safetensors::serialize(views, None).unwrap()).unwrap();
    let split = kiln_native::split::Settings::default();
    let dir = dir.to_owned();
    let state = None;
    let exec = Exec { dir, inputs, output, state, device: 0, repeat: 0, verify: None, split };
    let report = exec_main(&exec).map_err(|e| e.to_string())?;
    let bytes = fs::read(&exec.output).unwrap();
    let out = SafeTensors::deserialize(&bytes).unwrap().tensor("out0").unwrap().data().to_vec();
    Ok((report.size, out))
}

#[test]
fn the_inputs_choose_and_the_numbers_are_the_same() {
    let folder = artifact(eager);
    let alone = tempfile::tempdir().unwrap();
    write(alone.path(), eager(&graph(DYNAMIC)));
    for (rows, size) in [(2, Some(2)), (5, Some(5)), (3, None), (64, None)] {
        let (chosen, out) = run(folder.path(), rows).unwrap();
        assert_eq!(chosen, size, "{rows} rows");
        let (none, expected) = run(alone.path(), rows).unwrap();
        assert!(none.is_none() && out == expected, "{rows} rows");
    }
    let refused = run(folder.path(), 65).unwrap_err();
    assert!(refused.contains("compiled for 2 to 64"), "{refused}");
    // What no list names is not there.
    name_sizes(folder.path(), &[2]);
    assert_eq!(run(folder.path(), 5).unwrap().0, None);
    fs::remove_file(folder.path().join(SIZES)).unwrap();
    assert_eq!(run(folder.path(), 2).unwrap().0, None);
}

#[test]
fn what_is_not_of_the_program_is_refused_and_what_would_be_wrong_is_not_chosen() {
    let refused = |break_it: &dyn Fn(&Path)| {
        let folder = artifact(eager);
        break_it(folder.path());
        run(folder.path(), 2).unwrap_err()
    };
    let other = refused(&|dir| write(&layout::size_dir(dir, 5), eager(&graph("ops.new.pt2"))));
    assert!(other.contains("sizes/5") && other.contains("another program"), "{other}");
    let missing = refused(&|dir| fs::remove_dir_all(layout::size_dir(dir, 5)).unwrap());
    assert!(missing.contains("sizes/5"), "{missing}");
    let nested = refused(&|dir| name_sizes(&layout::size_dir(dir, 2), &[2]));
    assert!(nested.contains("sizes of its own"), "{nested}");
    let broken = refused(&|dir| fs::write(dir.join(SIZES), "[{}]").unwrap());
    assert!(broken.contains(SIZES), "{broken}");
    let machine_code = refused(&|dir| {
        let place = layout::size_dir(dir, 2);
        fs::remove_file(place.join(kiln_native::eager::GRAPH)).unwrap();
    });
    assert!(machine_code.contains("for a GPU"), "{machine_code}");

    // The same types and shapes, but one of its inputs is written to.
    let changing = refused(&|dir| {
        let mut graph = fixed(&graph(DYNAMIC), "", 5).unwrap();
        let (at, input) =
            graph.inputs.iter().enumerate().find(|(_, i)| i.kind == InputKind::Parameter).unwrap();
        graph.outputs.push(input.value);
        graph.updates.push(at);
        write(&layout::size_dir(dir, 5), eager(&graph));
    });
    assert!(changing.contains("sizes/5") && changing.contains("another program"), "{changing}");

    // A folder that has another size than it says: the shapes decide.
    let folder = artifact(eager);
    write(&layout::size_dir(folder.path(), 2), eager(&fixed(&graph(DYNAMIC), "", 9).unwrap()));
    assert_eq!(run(folder.path(), 2).unwrap().0, None);
}

#[test]
fn kernels_for_a_size_are_found_behind_those_of_the_dynamic_one() {
    let folder = artifact(native);
    let program = Program::read(folder.path()).unwrap();
    let own = |size: Option<u64>| {
        let dir = size.map_or(folder.path().to_owned(), |s| layout::size_dir(folder.path(), s));
        let plan = fs::read(dir.join(layout::PLAN)).unwrap();
        serde_json::from_slice::<Plan>(&plan).unwrap()
    };
    assert_eq!(program.codes.len(), 3);
    let counts = [own(None), own(Some(2)), own(Some(5))].map(|plan| plan.kernels.len());
    assert_eq!(program.kernels.len(), counts.iter().sum::<usize>());
    let ends: Vec<usize> = program.codes.iter().map(|code| code.kernels.end).collect();
    assert_eq!(ends, [counts[0], counts[0] + counts[1], program.kernels.len()]);
    for (rows, size, first) in
        [(3, None, 0), (2, Some(2), counts[0]), (5, Some(5), counts[0] + counts[1])]
    {
        let x: [usize; 3] = [rows, 9, 72];
        let shapes: [&[usize]; 5] = [&[72], &[136, 72], &[136, 72], &[72, 136], &x];
        assert_eq!(program.size_for(&shapes), size);
        let steps = program.steps(&shapes).unwrap();
        let alone = own(size).call(&shapes).unwrap();
        let moved = alone.launches.iter().map(|launch| launch.kernel + first);
        assert!(steps.call.launches.iter().map(|launch| launch.kernel).eq(moved));
        assert_eq!(steps.call.workspace_bytes, alone.workspace_bytes);
        for launch in &steps.call.launches {
            let kernel = &program.kernels[launch.kernel];
            assert!(own(size).kernels.iter().any(|of| of == kernel), "{rows} rows");
        }
    }
}
