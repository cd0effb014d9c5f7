//! Parts of one launch side by side: each has blocks of its own.
//!
//! Invariant: a part finds its own block in `block`, counted from its first, and
//! runs in just as many as it asked for.

use super::params::Params;
use crate::size::Size;

/// A block that computes one of the blocks after another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Persistent<'a> {
    /// Statements that come first.
    pub(super) begin: &'a str,
    /// Blocks of the launch, at most.
    pub(super) most: i64,
}

/// The text of a kernel that does what its parts do.
#[derive(Debug, Default)]
pub(super) struct Beside {
    parts: Vec<(String, String)>,
    blocks: Size,
}

impl Beside {
    /// Adds the statements `text` of a part with so many blocks.
    pub(super) fn add(&mut self, params: &mut Params, text: String, blocks: &Size) {
        self.parts.push((text, params.size(blocks, &|_| String::new())));
        self.blocks = &self.blocks + blocks;
    }

    /// What a kernel of persistent blocks does, and in how many of them.
    pub(super) fn persistent(self, params: &mut Params, by: Persistent<'_>) -> (String, Size) {
        let all = params.size(&self.blocks, &|_| String::new());
        let Persistent { begin, most } = by;
        let mut kernel = format!(
            "{begin}for (unsigned at = blockIdx.x; at < (unsigned)({all}); at += gridDim.x) {{\n\
             const unsigned start0 = 0;\n"
        );
        for (index, (text, blocks)) in self.parts.iter().enumerate() {
            kernel += &format!(
                "const unsigned end{index} = start{index} + (unsigned)({blocks});\n\
                 if (at < end{index}) {{\nconst unsigned block = at - start{index};\n{text}continue;\n}}\n\
                 const unsigned start{} = end{index};\n",
                index + 1
            );
        }
        (kernel + "}\n", self.blocks.min_of(&Size::from(most)))
    }

    /// What the kernel does, and in how many blocks.
    pub(super) fn done(self) -> (String, Size) {
        if let [(text, _)] = &self.parts[..] {
            let text = format!("const unsigned block = blockIdx.x;\n{text}");
            return (text, self.blocks);
        }
        let mut kernel = "const unsigned start0 = 0;\n".to_owned();
        for (index, (text, blocks)) in self.parts.iter().enumerate() {
            kernel += &format!(
                "const unsigned end{index} = start{index} + (unsigned)({blocks});\n\
                 if (blockIdx.x < end{index}) {{\n\
                 const unsigned block = blockIdx.x - start{index};\n{text}return;\n}}\n\
                 const unsigned start{} = end{index};\n",
                index + 1
            );
        }
        (kernel, self.blocks)
    }
}

/// How many parts a launch has, to show behind what it is.
pub(super) fn shown(parts: usize) -> String {
    if parts == 1 { String::new() } else { format!("; {parts} side by side") }
}
