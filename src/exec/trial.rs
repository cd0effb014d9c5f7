//! Inputs for a program of which only shapes and types are known.
//!
//! Invariant: the same plan, seed and bound give the same bytes on every machine,
//! and no float is larger than one: what a program makes of them is rarely at the
//! end of its type.

use half::{bf16, f16};
use kiln_native::plan::{CONSTANT, Plan, Tensor as Wanted};
use kiln_proto::{graph::DType, numbers::Numbers};

use super::{ExecError, Tensor};

/// Most elements of one input.
const MOST: usize = 1 << 31;

/// How to make inputs up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trial {
    /// Other seeds give other numbers.
    pub seed: u64,
    /// What a symbolic size is, where its range allows that.
    pub size: i64,
    /// Whole numbers are below: they may be positions in something.
    pub bound: u64,
}

impl Trial {
    /// For `plan`: small sizes, and positions that are in whatever has a size.
    pub fn of(plan: &Plan) -> Self {
        let sizes = plan.inputs.iter().flat_map(|input| &input.shape);
        let known = sizes.filter_map(|size| size.known()).filter(|size| *size > 1);
        let symbols = plan.symbols.iter().map(|symbol| symbol.min.max(1));
        let least = symbols.chain(known).min().unwrap_or(1);
        Self { seed: 0x6b69_6c6e, size: 5, bound: least.max(1) as u64 }
    }

    /// How many elements all inputs have, those without a size left out.
    pub fn elements(&self, plan: &Plan) -> u64 {
        let sizes = self.sizes(plan);
        let inputs = plan.inputs.iter().filter(|wanted| wanted.kind != CONSTANT);
        let shapes = inputs.filter_map(|wanted| wanted.layout(&sizes)).map(|layout| layout.shape);
        let count = |shape: Vec<usize>| {
            shape.iter().fold(1u64, |count, size| count.saturating_mul(*size as u64))
        };
        shapes.map(count).fold(0, u64::saturating_add)
    }

    fn sizes(&self, plan: &Plan) -> Vec<i64> {
        let range = plan.symbols.iter().map(|symbol| (symbol.min, symbol.max.unwrap_or(i64::MAX)));
        range.map(|(min, max)| self.size.min(max).max(min)).collect()
    }

    /// One input for each of the plan's, nothing for constants.
    pub fn inputs(&self, plan: &Plan) -> Result<Vec<Tensor<'static>>, ExecError> {
        let sizes = self.sizes(plan);
        let mut numbers = Numbers::new(self.seed);
        let input = |wanted: &Wanted| self.input(wanted, &sizes, &mut numbers);
        plan.inputs.iter().map(input).collect()
    }

    fn input(
        &self,
        wanted: &Wanted,
        sizes: &[i64],
        numbers: &mut Numbers,
    ) -> Result<Tensor<'static>, ExecError> {
        if wanted.kind == CONSTANT {
            return Ok(Tensor::nothing());
        }
        let shape = wanted.layout(sizes).map(|layout| layout.shape);
        let sized = shape.and_then(|shape| {
            let count = shape.iter().try_fold(1, |n: usize, size| n.checked_mul(*size))?;
            (count <= MOST).then_some((count, shape))
        });
        let Some((count, shape)) = sized else {
            return Err(ExecError::Inputs(format!("{} has no size to try", wanted.name)));
        };
        // Sums along a weight's rows stay about as large as what is summed.
        let row = shape.last().filter(|_| wanted.kind == "parameter" && shape.len() > 1);
        let scale = row.map_or(1.0, |row| (*row).max(1) as f64).sqrt().recip();
        let mut bytes = Vec::with_capacity(count * wanted.dtype.bytes() as usize);
        for _ in 0..count {
            write(&mut bytes, wanted.dtype, numbers, scale, self.bound)
                .ok_or_else(|| ExecError::Inputs(format!("no {} to try", wanted.dtype)))?;
        }
        Tensor::new(wanted.dtype, &shape, bytes)
    }
}

fn write(
    to: &mut Vec<u8>,
    dtype: DType,
    numbers: &mut Numbers,
    scale: f64,
    bound: u64,
) -> Option<()> {
    let word = numbers.word();
    // Between -1 and 1, of 53 bits.
    let float = ((word >> 11) as f64 / (1u64 << 52) as f64 - 1.0) * scale;
    let whole = word % bound;
    match dtype {
        DType::F64 => to.extend(float.to_le_bytes()),
        DType::F32 => to.extend((float as f32).to_le_bytes()),
        DType::F16 => to.extend(f16::from_f64(float).to_le_bytes()),
        DType::BF16 => to.extend(bf16::from_f64(float).to_le_bytes()),
        DType::I64 => to.extend((whole as i64).to_le_bytes()),
        DType::I32 => to.extend((whole as i32).to_le_bytes()),
        DType::I16 | DType::U16 => to.extend(((whole % (1 << 15)) as u16).to_le_bytes()),
        DType::I8 | DType::U8 => to.push((whole % (1 << 7)) as u8),
        DType::Bool => to.push((word & 1) as u8),
        // Without the exponent's highest bit: less than two, and a number.
        DType::F8E4M3 | DType::F8E5M2 => to.push(word as u8 & 0xbf),
        _ => return None,
    }
    Some(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use kiln_native::plan::{Expr, Symbol, VERSION};

    use super::*;

    fn plan(inputs: &[(&str, DType, &[Expr])]) -> Plan {
        let inputs = inputs.iter().map(|(kind, dtype, shape)| {
            let (shape, strides) = (shape.to_vec(), vec![Expr::Known(1); shape.len()]);
            Wanted {
                name: "in".into(),
                kind: (*kind).into(),
                dtype: *dtype,
                shape,
                strides,
                updated: false,
            }
        });
        let symbol = Symbol { min: 2, max: Some(3), input: 0, dim: 0, scale: 1, offset: 0 };
        Plan {
            version: VERSION,
            target: "any".to_owned(),
            symbols: vec![symbol],
            inputs: inputs.collect(),
            outputs: Vec::new(),
            workspace_bytes: Expr::Known(0),
            buffers: Vec::new(),
            kernels: Vec::new(),
        }
    }

    #[test]
    fn inputs_have_the_plans_shapes_and_small_numbers() {
        let rows = [Expr::Symbol(0), Expr::Known(64)];
        let plan = plan(&[
            ("user", DType::F32, &rows),
            ("parameter", DType::BF16, &rows),
            (CONSTANT, DType::F32, &rows),
            ("user", DType::I64, &rows),
            ("buffer", DType::Bool, &[]),
        ]);
        let trial = Trial::of(&plan);
        let made = trial.inputs(&plan).unwrap();
        let shapes: Vec<&[usize]> = made.iter().map(|tensor| &tensor.shape[..]).collect();
        let rows: &[usize] = &[3, 64];
        assert_eq!(shapes, [rows, rows, &[0], rows, &[]], "a size within its range");
        let floats = made[0].bytes.chunks_exact(4);
        let floats: Vec<f32> =
            floats.map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        assert!(floats.iter().all(|x| x.abs() <= 1.0) && floats[0] != floats[1]);
        assert!(floats.iter().any(|x| *x < -0.5) && floats.iter().any(|x| *x > 0.5));
        let weights = made[1].bytes.chunks_exact(2).map(|b| bf16::from_le_bytes([b[0], b[1]]));
        assert!(weights.map(bf16::to_f32).all(|x| x.abs() <= 0.125));
        let whole =
            made[3].bytes.chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap()));
        assert!(whole.into_iter().all(|n| (0..2).contains(&n)), "the least size is two");
        assert_eq!(made, trial.inputs(&plan).unwrap());
        assert_ne!(made, Trial { seed: 1, ..trial }.inputs(&plan).unwrap());
    }

    #[test]
    fn what_has_no_size_is_no_input() {
        let refused = |size: Expr| {
            let plan = plan(&[("user", DType::F32, &[size])]);
            Trial::of(&plan).inputs(&plan)
        };
        for size in [Expr::Symbol(9), Expr::Known(-1), Expr::Known(i64::MAX)] {
            assert!(matches!(refused(size), Err(ExecError::Inputs(_))));
        }
    }
}
