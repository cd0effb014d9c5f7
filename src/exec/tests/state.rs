//! Programs that change their own state, and the file in which it is kept.

use safetensors::SafeTensors;

use super::{artifact, fixture, written};
use crate::exec::*;

/// The golden calls of a program that changes its own state, and its artifact.
struct Stateful {
    folder: tempfile::TempDir,
    golden: Vec<u8>,
    exec: Exec,
}

impl Stateful {
    fn of(archive: &str, golden: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (mut exec, _) = written(folder.path(), &fixture(archive));
        exec.state = Some(folder.path().join("state.safetensors"));
        Self { folder, golden: fixture(golden), exec }
    }

    fn tensor(&self, name: &str) -> Option<(Vec<usize>, Vec<f64>)> {
        numbers(&self.golden, name)
    }

    /// Runs call number `call`; what it wrote.
    fn run(&self, call: usize) -> Vec<u8> {
        let golden = SafeTensors::deserialize(&self.golden).unwrap();
        let count = kiln_native::Signature::read(
            &std::fs::read(self.folder.path().join("signature.json")).unwrap(),
        );
        let inputs = (0..count.unwrap().inputs.len()).map(|i| {
            let own = golden.tensor(&format!("call{call}.in{i}"));
            (format!("in{i}"), own.or_else(|_| golden.tensor(&format!("in{i}"))).unwrap())
        });
        let inputs = safetensors::serialize(inputs.collect::<Vec<_>>(), None).unwrap();
        std::fs::write(&self.exec.inputs, inputs).unwrap();
        let report = exec_main(&self.exec).unwrap();
        assert!(report.wrong().is_none(), "{report}");
        std::fs::read(&self.exec.output).unwrap()
    }
}

/// A tensor of a file, as numbers.
fn numbers(file: &[u8], name: &str) -> Option<(Vec<usize>, Vec<f64>)> {
    let file = SafeTensors::deserialize(file).unwrap();
    let view = file.tensor(name).ok()?;
    let dtype = match view.dtype() {
        safetensors::Dtype::F32 => DType::F32,
        safetensors::Dtype::I64 => DType::I64,
        other => panic!("{other:?}"),
    };
    let tensor = kiln_native::interp::Tensor::dense(dtype, view.shape(), view.data());
    Some((view.shape().to_vec(), tensor.to_f64().unwrap()))
}

fn close(found: &(Vec<usize>, Vec<f64>), golden: &(Vec<usize>, Vec<f64>)) -> bool {
    let near = |(a, b): (&f64, &f64)| (a - b).abs() <= 1e-5 * b.abs().max(1.0);
    found.0 == golden.0 && found.1.iter().zip(&golden.1).all(near)
}

/// Buffers begin as they are given, a run begins with what the one before it left, and
/// without the file with what is given again.
#[test]
fn what_a_program_leaves_in_its_inputs_is_kept_from_run_to_run() {
    let kept: [(&str, &[(usize, &str)]); 2] = [
        ("counting", &[(0, "b_mean"), (1, "b_count")]),
        ("decoding", &[(4, "b_keys"), (5, "b_values")]),
    ];
    for (program, buffers) in kept {
        for form in ["", "_core"] {
            let stateful = Stateful::of(
                &format!("state/{program}{form}.pt2"),
                &format!("state/{program}.safetensors"),
            );
            let mut first = Vec::new();
            for call in 0..3 {
                let out = stateful.run(call);
                let golden = stateful.tensor(&format!("call{call}.out0")).unwrap();
                assert!(close(&numbers(&out, "out0").unwrap(), &golden), "{program}{form} {call}");
                if let Some(left) = stateful.tensor(&format!("call{call}.left.in3")) {
                    assert!(close(&numbers(&out, "total").unwrap(), &left), "{form} {call}");
                }
                if call == 0 {
                    first = out;
                }
            }
            let state = std::fs::read(stateful.exec.state.as_ref().unwrap()).unwrap();
            for (position, name) in buffers {
                let golden = stateful.tensor(&format!("left.in{position}")).unwrap();
                assert!(close(&numbers(&state, name).unwrap(), &golden), "{program}{form} {name}");
            }
            std::fs::remove_file(stateful.exec.state.as_ref().unwrap()).unwrap();
            assert!(stateful.run(0) == first, "{program}{form} begins anew");
        }
    }
}

/// A step whose outputs are nowhere is not taken: it is run again from where it began.
#[test]
fn a_run_whose_outputs_cannot_be_written_leaves_the_state_as_it_was() {
    let mut stateful = Stateful::of("state/counting.pt2", "state/counting.safetensors");
    stateful.run(0);
    let state = stateful.exec.state.clone().unwrap();
    let before = std::fs::read(&state).unwrap();
    let output = stateful.exec.output.clone();
    stateful.exec.output = stateful.folder.path().join("no/such/folder.safetensors");
    exec_main(&stateful.exec).unwrap_err();
    assert!(std::fs::read(&state).unwrap() == before);
    stateful.exec.output = output;
    stateful.run(1);
    assert!(std::fs::read(&state).unwrap() != before);
}

/// The state is written beside itself, by no name that may be somebody's.
#[test]
fn a_state_of_any_name_touches_no_other_file() {
    let mut stateful = Stateful::of("state/counting.pt2", "state/counting.safetensors");
    let other = stateful.folder.path().join("cache.new");
    std::fs::write(&other, "somebody's").unwrap();
    for name in ["cache.safetensors", "cache.bin", "other.new"] {
        stateful.exec.state = Some(stateful.folder.path().join(name));
        stateful.run(0);
        stateful.run(1);
    }
    assert_eq!(std::fs::read(&other).unwrap(), b"somebody's");
    let names = std::fs::read_dir(stateful.folder.path()).unwrap();
    let names: Vec<String> =
        names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    assert!(names.iter().all(|name| !name.starts_with('.')), "{names:?}");
    // Nor is it the outputs' own, by whatever path.
    stateful.exec.state = Some(
        stateful
            .folder
            .path()
            .join("../")
            .join(stateful.folder.path().file_name().unwrap())
            .join("out.safetensors"),
    );
    let why = exec_main(&stateful.exec).unwrap_err().to_string();
    assert!(why.contains("and that of the state"), "{why}");
}

/// What a killed run left beside the state is the next one's, and never somebody else's.
#[test]
fn what_a_killed_run_left_is_gone_after_the_next() {
    let stateful = Stateful::of("state/counting.pt2", "state/counting.safetensors");
    let state = stateful.exec.state.clone().unwrap();
    let left = beside(&state);
    let folder = left.parent().unwrap();
    assert_eq!(folder, stateful.folder.path());
    std::fs::write(&left, vec![7; 100_000]).unwrap();
    stateful.run(0);
    let whole = std::fs::read(&state).unwrap();
    assert!(whole.len() < 100_000 && numbers(&whole, "b_count").is_some());
    assert!(!left.exists());
    assert_ne!(left, beside(&folder.join("other.safetensors")));
    // A link in its place leads nowhere.
    let other = folder.join("somebody's");
    std::fs::write(&other, "theirs").unwrap();
    std::os::unix::fs::symlink(&other, &left).unwrap();
    exec_main(&stateful.exec).unwrap_err();
    assert!(std::fs::read(&state).unwrap() == whole);
    assert_eq!(std::fs::read(&other).unwrap(), b"theirs");
}

#[test]
fn a_state_that_is_no_state_of_the_program_is_refused() {
    let stateful = Stateful::of("state/decoding.pt2", "state/decoding.safetensors");
    stateful.run(0);
    let state = stateful.exec.state.clone().unwrap();
    let refused = |bytes: &[u8]| {
        std::fs::write(&state, bytes).unwrap();
        exec_main(&stateful.exec).unwrap_err().to_string()
    };
    assert!(refused(b"nonsense").contains("the state is no safetensors file"));
    let bytes = std::fs::read(&stateful.exec.inputs).unwrap();
    let why = refused(&bytes);
    assert!(why.contains("which is no state of the program"), "{why}");
    // One that leaves nothing anywhere has none.
    let (_folder, mut exec) = artifact("block_f32.new.pt2", "block_f32.safetensors", false);
    exec.state = Some(stateful.folder.path().join("none.safetensors"));
    let why = exec_main(&exec).unwrap_err().to_string();
    assert!(why.contains("it has no state"), "{why}");
}
