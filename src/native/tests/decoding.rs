//! Steps of decoders, run one after the other as `kiln exec --generate` does: kernels on the
//! emulator against eager PyTorch with the same weights (`tests/fixtures/decode_export.py`).

use kiln_proto::graph::DType;
use safetensors::SafeTensors;

use super::{
    super::{lower, signature},
    EMULATED,
    build::floats,
    emulator::Module,
    fixture, options,
};

fn numbers(bytes: &[u8]) -> Vec<i64> {
    bytes.as_chunks().0.iter().map(|bytes| i64::from_le_bytes(*bytes)).collect()
}

fn bytes(numbers: impl Iterator<Item = i64>) -> Vec<u8> {
    numbers.flat_map(i64::to_le_bytes).collect()
}

/// Tokens are those of PyTorch: a wrong one is seen in its logits and no other.
#[test]
fn steps_give_pytorchs_logits_with_what_the_steps_before_left() {
    for name in ["static", "paged"] {
        let (file, golden) = (
            fixture(&format!("decode/{name}.safetensors")),
            fixture(&format!("decode/{name}.golden.safetensors")),
        );
        let file = SafeTensors::deserialize(&file).unwrap();
        let golden = SafeTensors::deserialize(&golden).unwrap();
        let prompt = numbers(file.tensor("token").unwrap().data());
        let tokens = numbers(golden.tensor("tokens").unwrap().data());
        let logits = floats(DType::F32, golden.tensor("logits").unwrap().data());
        let (rows, steps) = (3, tokens.len() / 3);
        let (given, words) = (prompt.len() / rows, logits.len() / tokens.len());
        for form in ["", "_core"] {
            let archive = fixture(&format!("decode/{name}{form}.pt2"));
            let names = signature(&archive).unwrap();
            let at = |wanted: &str| names.inputs.iter().position(|own| own.name == wanted).unwrap();
            let lowered = lower(&archive, &options(&[]), EMULATED).unwrap();
            let updated = lowered.plan.inputs.iter().filter(|input| input.updated).count();
            assert_eq!(updated, if name == "static" { 2 } else { 4 }, "{name}{form}");
            let module = Module::build(&lowered);
            let (mut inputs, mut shapes) = (Vec::new(), Vec::new());
            for own in &names.inputs {
                let view = file.tensor(own.target.as_ref().unwrap_or(&own.name)).unwrap();
                inputs.push(view.data().to_vec());
                shapes.push(view.shape().to_vec());
            }
            shapes[at("token")] = vec![rows, 1];
            let places = numbers(&inputs[at("position")]).len();
            for step in 0..given + steps - 1 {
                inputs[at("token")] = bytes((0..rows).map(|row| match step.checked_sub(given) {
                    None => prompt[row * given + step],
                    Some(said) => tokens[row * steps + said],
                }));
                inputs[at("position")] = bytes((0..places).map(|_| step as i64));
                let shapes: Vec<&[usize]> = shapes.iter().map(Vec::as_slice).collect();
                let outputs = module.run_shaped(&inputs, &shapes);
                let left = lowered.plan.inputs.iter().zip(&mut inputs);
                let left = left.filter(|(input, _)| input.updated);
                for ((_, input), new) in left.zip(&outputs[1..]) {
                    input.clone_from(new);
                }
                let Some(said) = (step + 1).checked_sub(given) else { continue };
                let found = floats(DType::F32, &outputs[0]);
                for row in 0..rows {
                    let wanted = &logits[(row * steps + said) * words..][..words];
                    for (found, wanted) in found[row * words..][..words].iter().zip(wanted) {
                        let far = (found - wanted).abs() / wanted.abs().max(1.0);
                        assert!(far < 1e-4, "{name}{form} step {step}: {found} for {wanted}");
                    }
                }
            }
        }
    }
}
