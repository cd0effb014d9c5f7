//! Artifacts for static sizes beside the dynamic one: which of them a call runs.
//!
//! Invariant: what is chosen takes the shapes of the call and gives what the dynamic one
//! would, by type and by shape; where nothing does, it is the dynamic one.

use std::path::{Path, PathBuf};

use kiln_native::plan::{Plan, Tensor};

use super::{
    ExecError,
    layout::{self, SIZES, SizeKey},
};

/// The artifacts for static sizes beside the one in `dir`, in their order: size and folder.
pub(super) fn folders(dir: &Path) -> Result<Vec<(u64, PathBuf)>, ExecError> {
    let path = dir.join(SIZES);
    let sizes: Vec<SizeKey> =
        layout::sizes(dir).map_err(|error| ExecError::File { path, error })?;
    let found = sizes.iter().map(|of| (of.size, layout::size_dir(dir, of.size)));
    found
        .map(|(size, folder)| match folder.is_dir() {
            true => Ok((size, folder)),
            false => {
                let why = format!("it is missing, and {SIZES} names it");
                Err(ExecError::Artifact { path: folder, why })
            }
        })
        .collect()
}

/// Refuses the artifact in `folder` beside one with the plan `dynamic`, if it is another
/// program's, or has sizes beside itself.
pub(super) fn check(dynamic: &Plan, fixed: &Plan, folder: &Path) -> Result<(), ExecError> {
    let same = |a: &[Tensor], b: &[Tensor]| {
        let of = |t: &Tensor| (t.kind.clone(), t.dtype, t.shape.len(), t.updated);
        a.iter().map(of).eq(b.iter().map(of))
    };
    let why = match () {
        () if folder.join(SIZES).exists() => "it has sizes of its own",
        () if fixed.target != dynamic.target => "it is for another target than the dynamic one",
        () if !same(&dynamic.inputs, &fixed.inputs) || !same(&dynamic.outputs, &fixed.outputs) => {
            "it is of another program than the dynamic one"
        }
        () => return Ok(()),
    };
    Err(ExecError::Artifact { path: folder.to_owned(), why: why.to_owned() })
}

/// Which of `sizes` a call with inputs of these shapes runs; none: the dynamic one.
pub(super) fn choose<'p>(
    dynamic: &Plan,
    sizes: impl IntoIterator<Item = &'p Plan>,
    shapes: &[&[usize]],
) -> Option<usize> {
    // Nothing to choose by: the dynamic one says what is wrong.
    let outputs = dynamic.output_shapes(shapes)?;
    sizes.into_iter().position(|fixed| fixed.output_shapes(shapes).as_ref() == Some(&outputs))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
