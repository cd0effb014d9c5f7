//! Pieces through the native compiler: each is a program of its own.

use kiln_proto::{Failure, Target, graph::Graph};

use super::{model, stitched};
use crate::{
    decompose::decompose,
    eager::Eager,
    fixtures::load,
    interp::{Settings as Run, Tensor},
    lower_parsed, read_graph,
    split::{Settings, Split, split, stitch},
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

fn kernels(graph: &Graph) -> usize {
    // As on a device whose products have kernels of their own.
    lower_parsed(graph, &Default::default(), Target::cubin(90)).unwrap().plan.kernels.len()
}

/// Kernels of the whole, and of all items.
fn launches(graph: &Graph) -> (usize, usize, Split) {
    let split = split(graph, &Settings::default()).unwrap();
    let pieces: Vec<usize> = split.pieces.iter().map(|piece| kernels(split.graph(piece))).collect();
    let stitched = split.items.iter().map(|item| pieces[item.piece]).sum();
    (kernels(graph), stitched, split)
}

/// What the compiler fuses in the whole it fuses in the pieces too, in programs as they were
/// traced and in decomposed ones: who reads a transposed tensor reads through the
/// transposition, on whichever side of a cut it was made; weights are transposed where they
/// are read, masks of positions made where they hide.
#[test]
fn cuts_cost_few_kernels() {
    // The test below has those of sixteen layers.
    for fixture in load("models").iter().filter(|model| !model.name.starts_with("qwen3_lm")) {
        let name = &fixture.name;
        let (whole, stitched, split) = launches(&read_graph(&fixture.archive).unwrap());
        println!("{name}: {stitched} in {} items, {whole} in one", split.items.len());
        // One for the first of what crosses, and of each attention at most the mask and a
        // result whose batch the exporter has in another place.
        let most = whole + 1 + 2 * split.cut_at;
        assert!(stitched <= most, "{name}: {stitched}, {whole} in one");
    }
}

#[test]
fn sixteen_layers_launch_one_kernel_more_in_pieces() {
    // Embedding, and the norm of the first layer, which is a piece as that of the others.
    for (name, most) in [
        ("qwen3_lm_f32_static.new", 1),
        ("qwen3_lm_bf16_dynamic.new", 0),
        ("qwen3_lm_f32_dynamic_core.new", 0),
    ] {
        let (whole, stitched, split) = launches(&model(name));
        assert_eq!(split.cut_at, 16, "{name}");
        assert!(stitched <= whole + most, "{name}: {stitched}, {whole} in one");
    }
}

/// `ARCHIVE=..`: which kernels a model becomes as a whole, and which its pieces do.
#[test]
#[ignore = "shows one model"]
fn show_kernels() {
    let archive = std::fs::read(std::env::var("ARCHIVE").unwrap()).unwrap();
    let graph = read_graph(&archive).unwrap();
    let show = |graph: &Graph| {
        let lowered = lower_parsed(graph, &Default::default(), Target::cubin(90)).unwrap();
        for kernel in &lowered.plan.kernels {
            println!("  {} {:?} {}", kernel.kind, kernel.grid, kernel.variant);
            println!("    {}", kernel.computes.join(", "));
        }
    };
    let (whole, stitched, split) = launches(&graph);
    println!("whole");
    show(&graph);
    for (at, piece) in split.pieces.iter().enumerate() {
        println!("piece {at}, {} times", piece.items.len());
        show(split.graph(piece));
    }
    let (items, pieces) = (split.items.len(), split.pieces.len());
    println!("{items} items, {pieces} pieces, {stitched} kernels, {whole} in one");
}
