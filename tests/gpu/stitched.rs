//! Graphs in pieces, stitched, against the same graphs compiled as a whole, and the
//! pieces against the interpreter.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use kiln::exec::{Module, Session, Tensor, Trial, Verdict, layout, verify_piece};
use kiln_native::{
    lower_parsed, read_graph, slim,
    split::{Settings, Split, split, stitch},
};
use kiln_proto::graph::Graph;
use parking_lot::Mutex;

use crate::{
    compile, expect_none,
    fixtures::{self, Compiled, given, view},
    in_parallel,
    models::{limit, relative_error},
};

/// Measurements of each kind, in turns.
const TURNS: usize = 7;
/// Runs behind one measurement.
const RUNS: usize = 40;
/// How much longer than the full forward the stitched one may take.
const MOST: f64 = 1.05;

/// Pieces as small as a few operations.
fn fine() -> Settings {
    let mut settings = Settings::default();
    settings.budget.most_operations = 12;
    settings
}

/// Compiles the pieces of `graph` and writes the whole into `dir`.
fn write(dir: &Path, graph: &Graph, settings: &Settings) -> Result<Split, String> {
    let split = split(graph, settings).map_err(|e| e.to_string())?;
    let stitching = stitch::stitch(graph, &split).map_err(|e| e.to_string())?;
    for (at, piece) in split.pieces.iter().enumerate() {
        let lowered = lower_parsed(split.graph(piece), &compile::options(), compile::target());
        let lowered = lowered.map_err(|failure| format!("piece {at}: {failure}"))?;
        compile::write(&layout::piece_dir(dir, at), &lowered)?;
    }
    fs::write(dir.join(layout::STITCHING), stitching.to_bytes()).map_err(|e| e.to_string())?;
    Ok(split)
}

/// How two runs' outputs compare: equal bits, or the largest relative error.
fn difference(a: &[Tensor<'_>], b: &[Tensor<'_>]) -> Result<Option<f64>, String> {
    let mut worst = None;
    for (a, b) in a.iter().zip(b) {
        if (a.dtype, &a.shape) != (b.dtype, &b.shape) {
            return Err(format!("{} {:?} and {} {:?}", a.dtype, a.shape, b.dtype, b.shape));
        }
        if a.bytes != b.bytes {
            let numbers = |t| view(t).to_f64().map_err(|failure| failure.message);
            let error = relative_error(&numbers(a)?, &numbers(b)?);
            worst = Some(error.max(worst.unwrap_or(0.0)));
        }
    }
    Ok(worst)
}

fn launched(session: &mut Session, inputs: &[Tensor<'_>]) -> Result<Vec<Tensor<'static>>, String> {
    session.set_all(inputs).map_err(|e| e.to_string())?;
    session.launch().map_err(|e| e.to_string())?;
    session.outputs().map_err(|e| e.to_string())
}

#[test]
#[ignore = "needs a GPU: make test-gpu"]
fn stitched_models_are_those_compiled_as_a_whole() {
    let found = fixtures::all("models");
    let told = Mutex::new(Vec::new());
    let cases: Vec<(usize, Settings)> =
        (0..found.len()).flat_map(|at| [(at, Settings::default()), (at, fine())]).collect();
    let wrong = in_parallel(cases.len(), |index| {
        let (at, settings) = &cases[index];
        let fixture = &found[*at];
        let context = |why: String| format!("{}: {why}", fixture.name);
        let Compiled { lowered, calls } = fixtures::compile(fixture).map_err(context)?;
        let graph = read_graph(&fixture.archive).map_err(|e| context(e.to_string()))?;
        let dir = tempfile::tempdir().map_err(|e| context(e.to_string()))?;
        let split = write(dir.path(), &graph, settings).map_err(context)?;
        let whole = compile::module(&lowered).map_err(context)?;
        let stitched = Module::load(dir.path(), 0).map_err(|e| context(e.to_string()))?;
        let mut session = stitched.session().map_err(|e| context(e.to_string()))?;
        let (items, pieces) = (split.items.len(), split.pieces.len());
        for call in calls {
            let inputs = given(&lowered, &call.inputs).map_err(context)?;
            let expected = whole.run(&inputs).map_err(|e| context(e.to_string()))?;
            let outputs = launched(&mut session, &inputs).map_err(context)?;
            // As one graph: the same bits.
            session.replay().map_err(|e| context(e.to_string()))?;
            let again = session.outputs().map_err(|e| context(e.to_string()))?;
            if again != outputs {
                return Err(context("as a CUDA graph it gives something else".to_owned()));
            }
            for (wanted, output) in call.outputs.iter().zip(&outputs) {
                let ours = view(output).to_f64().map_err(|failure| context(failure.message))?;
                let error = relative_error(&ours, &wanted.values);
                if wanted.shape != output.shape || error.is_nan() || error > limit(&fixture.name) {
                    let what = format!("{:?} {}", call.name, wanted.name);
                    return Err(context(format!("{what}: error {error:.2e}, {items} items")));
                }
            }
            let differs = difference(&outputs, &expected).map_err(context)?;
            let differs = differs.map_or("bit for bit".to_owned(), |e| format!("{e:.1e} apart"));
            let of = format!("{items} items, {pieces} pieces");
            told.lock().push(format!("{} {:?}: {of}: {differs}", fixture.name, call.name));
        }
        Ok(())
    });
    let mut told = told.into_inner();
    told.sort();
    println!("{}", told.join("\n"));
    expect_none("stitched models", cases.len(), &wrong);
    assert!(told.len() > found.len(), "outputs were compared");
}

#[test]
#[ignore = "needs a GPU: make test-gpu"]
fn each_piece_is_the_interpreters() {
    let names = ["qwen3_block_bf16_dynamic.new", "qwen3_masked_f32_static.new", "gpt2_block_f32"];
    let found = fixtures::all("models");
    let found: Vec<_> =
        found.iter().filter(|f| names.iter().any(|name| f.name.starts_with(name))).collect();
    assert!(found.len() >= names.len(), "{} fixtures", found.len());
    for fixture in found {
        let graph = read_graph(&fixture.archive).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let split = write(dir.path(), &graph, &fine()).unwrap();
        for (at, piece) in split.pieces.iter().enumerate() {
            let folder = layout::piece_dir(dir.path(), at);
            let verdicts = verify_piece(&folder, split.graph(piece), 0).unwrap();
            println!("{} piece {at} of {}: {verdicts:?}", fixture.name, split.pieces.len());
            assert!(!verdicts.is_empty() && verdicts.iter().all(Verdict::holds));
        }
    }
}

/// The archive in `KILN_MODEL` (weights are not read), else sixteen small layers: full
/// against stitched, in turns. `KILN_STITCHED_OUT`: a folder to leave both in.
#[test]
#[ignore = "needs a GPU: tests/gpu/stitched.sh"]
fn stitching_adds_little_to_a_forward() {
    let model = std::env::var_os("KILN_MODEL").map(PathBuf::from);
    let (name, archive) = match &model {
        Some(path) => (path.display().to_string(), slim(fs::File::open(path).unwrap()).unwrap()),
        None => {
            let all = fixtures::all("models");
            let small = all.into_iter().find(|f| f.name.starts_with("qwen3_lm_bf16_dynamic"));
            let small = small.unwrap();
            (small.name.clone(), small.archive)
        }
    };
    let graph = read_graph(&archive).unwrap();
    let scratch = tempfile::tempdir().unwrap();
    let out = std::env::var_os("KILN_STITCHED_OUT").map(PathBuf::from);
    let dir = out.unwrap_or_else(|| scratch.path().to_owned());
    let (full, stitched) = (dir.join("full"), dir.join("stitched"));
    let began = std::time::Instant::now();
    let lowered = lower_parsed(&graph, &compile::options(), compile::target()).unwrap();
    compile::write(&full, &lowered).unwrap();
    let full_seconds = began.elapsed().as_secs_f64();
    let began = std::time::Instant::now();
    let split = write(&stitched, &graph, &Settings::default()).unwrap();
    let pieces_seconds = began.elapsed().as_secs_f64();
    let trial = Trial { size: 256, ..Trial::of(&lowered.plan) };
    let inputs = trial.inputs(&lowered.plan).unwrap();
    let ready = |dir: &Path| {
        let module: Arc<Module> = Module::load(dir, 0).unwrap();
        let mut session = module.session().unwrap();
        let outputs = launched(&mut session, &inputs).unwrap();
        (session, outputs)
    };
    let (mut full, expected) = ready(&full);
    let (mut stitched, outputs) = ready(&stitched);
    let differs = difference(&outputs, &expected).unwrap();
    let launches = [full.call().unwrap().launches.len(), stitched.call().unwrap().launches.len()];
    let mut micros = [Vec::new(), Vec::new()];
    for _ in 0..TURNS {
        for (session, micros) in [&mut full, &mut stitched].into_iter().zip(&mut micros) {
            micros.push(session.graph_micros(RUNS).unwrap());
        }
    }
    let [full, stitched] = micros.map(|mut all| {
        all.sort_by(f64::total_cmp);
        (all[TURNS / 2], all[0], all[TURNS - 1])
    });
    let ratio = stitched.0 / full.0;
    println!("{name}: {} items, {} pieces", split.items.len(), split.pieces.len());
    println!(
        "  lowered and compiled here, one after the other: full {full_seconds:.2} s, pieces {pieces_seconds:.2} s"
    );
    println!("  launches: full {}, stitched {}", launches[0], launches[1]);
    for (what, (median, least, most)) in [("full", full), ("stitched", stitched)] {
        println!("  {what}: {median:.1} us (median of {TURNS}), {least:.1} to {most:.1}");
    }
    println!("  stitched / full: {ratio:.4}");
    println!("  outputs: {differs:?} apart (None: bit for bit)");
    let limit = limit(if model.is_some() { "qwen3_lm_bf16" } else { &name });
    assert!(differs.unwrap_or(0.0) <= limit, "{differs:?}");
    if model.is_some() {
        assert!(ratio <= MOST, "stitching takes {ratio:.4} of the full forward");
    }
}
