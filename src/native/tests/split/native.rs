//! Pieces through the native compiler: each is a program of its own.

use kiln_proto::Failure;

use super::{model, stitched};
use crate::{
    decompose::decompose,
    eager::Eager,
    fixtures::load,
    interp::{Settings as Run, Tensor},
    lower_parsed, read_graph,
    split::{Settings, split, stitch},
    tests::{EMULATED, emulator::Module},
};

#[test]
fn every_piece_of_every_model_compiles() {
    for fixture in load("models") {
        let graph = read_graph(&fixture.archive).unwrap();
        let split = split(&graph, &Settings::default()).unwrap();
        for (at, piece) in split.pieces.iter().enumerate() {
            let lowered = lower_parsed(split.graph(piece), &Default::default(), EMULATED);
            let lowered = lowered.unwrap_or_else(|e| panic!("{} {at}: {e}", fixture.name));
            let has_attention = split.items[piece.items[0]].estimates.attentions > 0;
            let kernels = lowered.plan.kernels.iter();
            let attends = kernels.filter(|kernel| kernel.kind == "attention").count();
            assert_eq!(attends > 0, has_attention, "{} {at}", fixture.name);
        }
    }
}

#[test]
fn kernels_of_pieces_stitched_give_what_the_interpreter_gives() {
    let name = "qwen3_masked_f32_dynamic_core.new";
    let fixture = load("models").into_iter().find(|f| f.name.starts_with(name)).unwrap();
    let graph = model(name);
    let done = stitched(&graph, &Settings::default()).unwrap();
    let modules = done.split.pieces.iter().map(|piece| {
        let lowered = lower_parsed(done.split.graph(piece), &Default::default(), EMULATED);
        Module::build(&lowered.unwrap())
    });
    let modules: Vec<Module> = modules.collect();
    let whole = Eager::new(&graph).unwrap();
    for call in fixture.calls(&graph, &decompose(&graph).unwrap()).unwrap() {
        let mut run = |piece: usize,
                       args: &[Tensor<'_>]|
         -> Result<Vec<Tensor<'static>>, Failure> {
            let inputs: Vec<Vec<u8>> = args.iter().map(|tensor| tensor.bytes.to_vec()).collect();
            let shapes: Vec<&[usize]> = args.iter().map(|t| t.shape.as_slice()).collect();
            let found = modules[piece].run_shaped(&inputs, &shapes);
            // What the interpreter gives says of which types and sizes.
            let like = done.pieces[piece].run(args, &Run::default())?;
            let found = found.into_iter().zip(like);
            Ok(found.map(|(bytes, like)| Tensor::dense(like.dtype, &like.shape, bytes)).collect())
        };
        let found =
            stitch::run_with(&done.stitching, &call.inputs, &Run::default(), &mut run).unwrap();
        let expected = whole.run(&call.inputs, &Run::default()).unwrap();
        for (found, expected) in found.iter().zip(&expected) {
            let (found, expected) = (found.to_f64().unwrap(), expected.to_f64().unwrap());
            let differ = found.iter().zip(&expected).filter(|(a, b)| a.is_nan() != b.is_nan());
            assert_eq!(differ.count(), 0, "{}: not a number", call.name);
            let number = |x: Vec<f64>| -> Vec<f64> {
                x.into_iter().map(|x| if x.is_nan() { 0.0 } else { x }).collect()
            };
            let (found, expected) = (number(found), number(expected));
            let length = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
            let error = length(&mut found.iter().zip(&expected).map(|(a, b)| a - b));
            let size = length(&mut expected.iter().copied());
            assert!(error <= 1e-5 * size, "{}: {error:e} of {size:e}", call.name);
        }
    }
}

/// Whoever reads a transposed tensor reads through the transposition, on whichever side of a
/// cut it was made.
#[test]
fn cuts_cost_few_kernels() {
    for name in ["qwen3_lm_f32_static.new", "gpt2_block_f32_static.new"] {
        let graph = model(name);
        let split = split(&graph, &Settings::default()).unwrap();
        let kernels =
            |graph| lower_parsed(graph, &Default::default(), EMULATED).unwrap().plan.kernels.len();
        let pieces: Vec<usize> =
            split.pieces.iter().map(|piece| kernels(split.graph(piece))).collect();
        let stitched: usize = split.items.iter().map(|item| pieces[item.piece]).sum();
        let whole = kernels(&graph);
        println!("{name}: {stitched} in {} items, {whole} in one", split.items.len());
        assert!(stitched <= whole + whole / 20 + 2, "{name}: {stitched} of {pieces:?}, {whole}");
    }
}
