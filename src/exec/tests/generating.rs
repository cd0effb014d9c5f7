//! Greedy loops over steps of decoders, as eager PyTorch has them with the same weights
//! (`tests/fixtures/decode_export.py`).

use safetensors::{SafeTensors, tensor::TensorView};

use super::{fixture, written};
use crate::exec::*;

const PROGRAMS: [&str; 2] = ["static", "paged"];

/// A step and its prompt; `given` are inputs in place of the file's.
fn step(name: &str, form: &str, given: &[(&str, Tensor<'_>)]) -> (tempfile::TempDir, Exec) {
    let folder = tempfile::tempdir().unwrap();
    let (mut exec, _) = written(folder.path(), &fixture(&format!("decode/{name}{form}.pt2")));
    exec.verify = None;
    set(&exec, name, given);
    (folder, exec)
}

/// Writes the prompt of that program with some inputs changed.
fn set(exec: &Exec, name: &str, given: &[(&str, Tensor<'_>)]) {
    let file = fixture(&format!("decode/{name}.safetensors"));
    let file = SafeTensors::deserialize(&file).unwrap();
    let mut tensors: Vec<(String, TensorView<'_>)> = file.tensors();
    for (name, tensor) in given {
        let dtype = match tensor.dtype {
            DType::I64 => safetensors::Dtype::I64,
            _ => safetensors::Dtype::F32,
        };
        let view = TensorView::new(dtype, tensor.shape.clone(), &tensor.bytes).unwrap();
        tensors.retain(|(own, _)| own != name);
        tensors.push(((*name).to_owned(), view));
    }
    std::fs::write(&exec.inputs, safetensors::serialize(tensors, None).unwrap()).unwrap();
}

fn whole_numbers(file: &[u8], name: &str) -> (Vec<usize>, Vec<i64>) {
    let file = SafeTensors::deserialize(file).unwrap();
    let view = file.tensor(name).unwrap();
    let numbers = view.data().as_chunks().0.iter().map(|bytes| i64::from_le_bytes(*bytes));
    (view.shape().to_vec(), numbers.collect())
}

fn tensor(shape: &[usize], numbers: &[i64]) -> Tensor<'static> {
    let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
    Tensor::new(DType::I64, shape, bytes).unwrap()
}

/// What PyTorch says, row by row.
fn golden(name: &str) -> Vec<Vec<i64>> {
    let file = fixture(&format!("decode/{name}.golden.safetensors"));
    let (shape, numbers) = whole_numbers(&file, "tokens");
    numbers.chunks(shape[1]).map(<[i64]>::to_vec).collect()
}

fn greedy(tokens: usize) -> Generate {
    Generate {
        tokens,
        stop: Vec::new(),
        token: None,
        position: Vec::new(),
        room: None,
        logits: 0,
        halt: Default::default(),
        tell: |said| TOLD.with_borrow_mut(|told| told.push(said.to_owned())),
    }
}

thread_local! {
    /// What the caller was told, of this test alone.
    static TOLD: std::cell::RefCell<Vec<String>> = const { std::cell::RefCell::new(Vec::new()) };
}

#[test]
fn a_loop_says_what_eager_pytorch_says() {
    for name in PROGRAMS {
        for form in ["", "_core"] {
            let (_folder, exec) = step(name, form, &[]);
            let generated = generate_main(&exec, &greedy(8)).unwrap();
            assert_eq!(generated.tokens, golden(name), "{name}{form}");
            assert_eq!((generated.prompt, generated.steps), (3, 10));
            assert!(generated.step_us.is_some_and(|micros| micros > 0.0));
            let (shape, numbers) = whole_numbers(&std::fs::read(&exec.output).unwrap(), "tokens");
            assert_eq!((shape, numbers), (vec![3, 8], golden(name).concat()), "{name}{form}");
        }
    }
}

/// Batch and length are open: one row alone says what it says among others, and so it does
/// with a longer cache and in other blocks.
#[test]
fn a_row_alone_says_the_same() {
    let prompt = whole_numbers(&fixture("decode/static.safetensors"), "token").1;
    let (layers, rows, groups, length, width) = (2, 1, 2, 24, 8);
    let shape = [layers, rows, groups, length, width];
    let bytes = vec![0u8; shape.iter().product::<usize>() * 4];
    let cache = || Tensor::new(DType::F32, &shape, bytes.clone()).unwrap();
    let row = ("token", tensor(&[1, 3], &prompt[3..6]));
    let (_folder, exec) =
        step("static", "", &[row.clone(), ("keys", cache()), ("values", cache())]);
    assert_eq!(generate_main(&exec, &greedy(8)).unwrap().tokens, golden("static")[1..2]);
    let (position, table) = (tensor(&[1], &[0]), tensor(&[1, 3], &[6, 1, 11]));
    let (_folder, exec) = step("paged", "", &[row, ("position", position), ("table", table)]);
    assert_eq!(generate_main(&exec, &greedy(8)).unwrap().tokens, golden("paged")[1..2]);
}

/// A loop that goes on from a state says what one loop says.
#[test]
fn a_loop_goes_on_where_another_ended() {
    let (folder, mut exec) = step("paged", "", &[]);
    exec.state = Some(folder.path().join("cache.safetensors"));
    let first = generate_main(&exec, &greedy(3)).unwrap();
    let last: Vec<i64> = first.tokens.iter().map(|row| row[2]).collect();
    set(&exec, "paged", &[("token", tensor(&[3, 1], &last)), ("position", tensor(&[3], &[5; 3]))]);
    let second = generate_main(&exec, &greedy(5)).unwrap();
    let joined: Vec<Vec<i64>> = first
        .tokens
        .into_iter()
        .zip(second.tokens)
        .map(|(first, second)| [first, second].concat())
        .collect();
    assert_eq!(joined, golden("paged"));
}

#[test]
fn a_row_ends_with_its_last_word_and_the_others_go_on() {
    let (folder, mut exec) = step("static", "", &[]);
    exec.output = folder.path().join("tokens.json");
    let all = golden("static");
    // Of the first two rows a word within, of the third none.
    let stop = vec![all[0][3], all[1][1]];
    assert!(all[2].iter().all(|word| !stop.contains(word)));
    let wanted: Vec<Vec<i64>> = all
        .iter()
        .map(|row| {
            let end = row.iter().position(|word| stop.contains(word));
            row[..end.map_or(row.len(), |end| end + 1)].to_vec()
        })
        .collect();
    let generated = generate_main(&exec, &Generate { stop, ..greedy(8) }).unwrap();
    assert_eq!(generated.tokens, wanted);
    let text = std::fs::read_to_string(&exec.output).unwrap();
    let written: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(written["tokens"], serde_json::json!(wanted));
    // As a tensor rows are filled up, and a loop of which all rows end ends.
    exec.output = folder.path().join("tokens.safetensors");
    let stop: Vec<i64> = all.iter().map(|row| row[0]).collect();
    let generated = generate_main(&exec, &Generate { stop, ..greedy(8) }).unwrap();
    assert_eq!(generated.steps, 3, "those of the prompt");
    assert_eq!(whole_numbers(&std::fs::read(&exec.output).unwrap(), "tokens").0, [3, 1]);
}

#[test]
fn what_is_no_step_is_refused_and_says_what_to_give() {
    let (_folder, exec) = step("paged", "", &[]);
    let why = |exec: &Exec, wanted: Generate| {
        let _ = std::fs::remove_file(&exec.output);
        let why = generate_main(exec, &wanted).unwrap_err().to_string();
        assert!(!exec.output.exists(), "nothing was written");
        why
    };
    let token = |name: &str| Generate { token: Some(name.to_owned()), ..greedy(1) };
    let found = why(&exec, token("words"));
    assert!(found.contains("no argument \"words\"") && found.contains("table"), "{found}");
    let found = why(&exec, Generate { logits: 1, ..greedy(1) });
    assert!(found.contains("there is no output 1: the program has 1"), "{found}");
    let found = why(&exec, Generate { position: vec!["in99".to_owned()], ..greedy(1) });
    assert!(found.contains("no argument \"in99\""), "{found}");
    let twice = vec!["position".to_owned(); 2];
    let found = why(&exec, Generate { position: twice, ..greedy(1) });
    assert!(found.contains("--position position is given twice"), "{found}");
    // What messages call an argument is its name: not its place among others.
    let found = why(&exec, token("in0"));
    assert!(found.contains("no argument \"in0\""), "{found}");
    // More words than the blocks of the table have places.
    let found = why(&exec, Generate { room: Some(16), ..greedy(15) });
    assert!(found.contains("stands at 16 (counted from 0), and there is room for 16"), "{found}");
    let found = why(&exec, greedy(60));
    assert!(found.contains("cannot have more than 48 places"), "{found}");
    let mut exec = exec;
    exec.state = Some(exec.dir.join("there/is/no/such"));
    let found = why(&exec, greedy(1));
    assert!(found.contains("there/is/no/such: No such file"), "{found}");
    exec.state = None;
    // Which of the tables has the words nothing says: more than any of them has are none.
    set(&exec, "paged", &[("token", tensor(&[3, 1], &[5, 1 << 20, 1]))]);
    let found = why(&exec, greedy(1));
    assert!(found.contains("token of row 1 has 1048576, which is not one of "), "{found}");
    set(&exec, "paged", &[("token", tensor(&[3, 1], &[5, 5, -1]))]);
    let found = why(&exec, greedy(1));
    assert!(found.contains("token of row 2 has -1, which is not one of "), "{found}");
    set(&exec, "paged", &[("position", tensor(&[3], &[0, -1, 2]))]);
    let found = why(&exec, greedy(1));
    assert!(found.contains("position is -1"), "{found}");
    set(&exec, "paged", &[("token", tensor(&[3, 0], &[]))]);
    let found = why(&exec, greedy(1));
    assert!(found.contains("token is empty"), "{found}");
    set(&exec, "paged", &[("position", tensor(&[3], &[i64::MAX; 3]))]);
    let found = why(&exec, Generate { room: Some(usize::MAX), ..greedy(2) });
    assert!(found.contains("9223372036854775807"), "{found}");
    // Of a program that is no step.
    let (_folder, exec) = super::artifact("block_f32.new.pt2", "block_f32.safetensors", false);
    let found = why(&exec, greedy(1));
    assert!(found.contains("takes no tokens"), "{found}");
}

/// A loop that a step ends has written what was said.
#[test]
fn what_was_said_is_not_lost_with_a_step_that_fails() {
    let (folder, mut exec) = step("paged", "", &[]);
    exec.output = folder.path().join("tokens.json");
    let entries = || std::fs::read_dir(folder.path()).unwrap().count();
    let before = entries();
    let tokens = || {
        let text = std::fs::read_to_string(&exec.output).unwrap();
        let written: serde_json::Value = serde_json::from_str(&text).unwrap();
        serde_json::from_value::<Vec<Vec<i64>>>(written["tokens"].clone()).unwrap()
    };
    // Of 16 places, three of the prompt.
    let why = generate_main(&exec, &greedy(40)).unwrap_err().to_string();
    assert!(why.contains("position 4 is not in a dimension of 4; after 16 steps"), "{why}");
    assert!(why.contains("tokens.json"), "{why}");
    let said = tokens();
    assert!(said.iter().all(|row| row.len() == 14), "{said:?}");
    for (said, golden) in said.iter().zip(golden("paged")) {
        assert_eq!(said[..8], golden);
    }
    // The caller has it end: the step that runs is the last one.
    let halted = Generate { halt: std::sync::Arc::new(true.into()), ..greedy(8) };
    set(&exec, "paged", &[("token", tensor(&[3, 1], &[5, 6, 7]))]);
    let why = generate_main(&exec, &halted).unwrap_err().to_string();
    assert!(why.contains("told to end; after 1 steps"), "{why}");
    assert!(tokens().iter().all(|row| row.len() == 1));
    assert_eq!(entries(), before + 1, "the tokens, and nothing beside");
}

/// The last position of all is one to stand at: none after it is asked for.
#[test]
fn a_loop_may_end_where_places_end() {
    let (_folder, exec) = step("static", "", &[]);
    let all = generate_main(&exec, &Generate { room: Some(16), ..greedy(14) }).unwrap();
    assert_eq!(all.tokens.iter().map(Vec::len).collect::<Vec<_>>(), [14; 3]);
    // One more has no place: the shape of the cache says so.
    let why = generate_main(&exec, &greedy(15)).unwrap_err().to_string();
    assert!(why.contains("cannot have more than 16 places"), "{why}");
    assert!(why.contains("--room N"), "{why}");
}

/// What a caller should know is told before the first step.
#[test]
fn what_stays_as_given_and_what_is_not_noticed_is_told() {
    let told = |name, room| {
        let (_folder, exec) = step(name, "", &[]);
        generate_main(&exec, &Generate { room, ..greedy(2) }).unwrap();
        TOLD.take()
    };
    assert_eq!(told("paged", Some(16)), ["each step is given the same table"]);
    let all = told("paged", None);
    assert!(all[0].contains("may not be noticed") && all.len() == 2, "{all:?}");
    assert!(told("static", Some(16)).is_empty());
    // The table too: what is named grows, and what is not stays.
    let (_folder, exec) = step("paged", "", &[]);
    let position = vec!["table".to_owned()];
    let wanted = Generate { position, room: Some(99), ..greedy(1) };
    let _ = generate_main(&exec, &wanted);
    assert_eq!(TOLD.take(), ["each step is given the same position"]);
    let wanted = Generate { position: vec!["none".to_owned()], room: Some(99), ..greedy(1) };
    generate_main(&exec, &wanted).unwrap();
    assert_eq!(TOLD.take(), ["each step is given the same position, table"]);
}

#[test]
fn logits_that_are_no_numbers_are_no_token() {
    let file = fixture("decode/static.safetensors");
    let file = SafeTensors::deserialize(&file).unwrap();
    let shape = file.tensor("head.weight").unwrap().shape().to_vec();
    let nan = f32::NAN.to_le_bytes().repeat(shape.iter().product());
    let head = Tensor::new(DType::F32, &shape, nan).unwrap();
    let (_folder, exec) = step("static", "", &[("head.weight", head)]);
    let why = generate_main(&exec, &greedy(2)).unwrap_err().to_string();
    assert!(why.contains("is no number (NaN)"), "{why}");
}
