//! Arithmetic of a plan's sizes.
//!
//! Invariant: it never wraps and never panics: a number that cannot be told is
//! no number.

use std::fmt;

use super::Expr;

impl From<i64> for Expr {
    fn from(number: i64) -> Self {
        Self::Known(number)
    }
}

impl From<usize> for Expr {
    fn from(number: usize) -> Self {
        Self::Known(number as i64)
    }
}

impl Expr {
    /// The number, where it depends on no symbol.
    pub fn known(&self) -> Option<i64> {
        self.value(&[])
    }

    /// Its value, where `symbols` has those of all symbols; `None`: a symbol
    /// that is not there, a division by zero or more than `i64` holds.
    pub fn value(&self, symbols: &[i64]) -> Option<i64> {
        let all =
            |parts: &[Expr]| parts.iter().map(|e| e.value(symbols)).collect::<Option<Vec<_>>>();
        match self {
            Self::Known(number) => Some(*number),
            Self::Symbol(symbol) => symbols.get(*symbol).copied(),
            Self::Add(parts) => all(parts)?.into_iter().try_fold(0i64, i64::checked_add),
            Self::Mul(parts) => all(parts)?.into_iter().try_fold(1i64, i64::checked_mul),
            Self::Div(parts) => {
                let (a, b) = (parts[0].value(symbols)?, parts[1].value(symbols)?);
                let (quotient, left) = (a.checked_div(b)?, a.checked_rem(b)?);
                Some(quotient - i64::from(left != 0 && (left < 0) != (b < 0)))
            }
            Self::Mod(parts) => {
                let (a, b) = (parts[0].value(symbols)?, parts[1].value(symbols)?);
                let left = a.checked_rem(b)?;
                Some(if left != 0 && (left < 0) != (b < 0) { left + b } else { left })
            }
            Self::Max(parts) => all(parts)?.into_iter().max(),
            Self::Min(parts) => all(parts)?.into_iter().min(),
        }
    }

    /// The symbols in it, each once, in order.
    pub fn symbols(&self) -> Vec<usize> {
        let mut found: Vec<usize> = match self {
            Self::Known(_) => Vec::new(),
            Self::Symbol(symbol) => vec![*symbol],
            Self::Add(parts) | Self::Mul(parts) | Self::Max(parts) | Self::Min(parts) => {
                parts.iter().flat_map(Self::symbols).collect()
            }
            Self::Div(parts) | Self::Mod(parts) => parts.iter().flat_map(Self::symbols).collect(),
        };
        found.sort_unstable();
        found.dedup();
        found
    }
}

/// As people write it: `2*s0 + 1`, `s1 / 4`.
impl fmt::Display for Expr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A sum within another operation needs brackets.
        let factor = |part: &Self| match part {
            Self::Add(_) | Self::Div(_) | Self::Mod(_) => format!("({part})"),
            _ => part.to_string(),
        };
        let join =
            |parts: &[Self], with: &str| parts.iter().map(factor).collect::<Vec<_>>().join(with);
        let list =
            |parts: &[Self]| parts.iter().map(Self::to_string).collect::<Vec<_>>().join(", ");
        match self {
            Self::Known(number) => write!(f, "{number}"),
            Self::Symbol(symbol) => write!(f, "s{symbol}"),
            Self::Add(parts) => {
                let parts: Vec<String> = parts.iter().map(Self::to_string).collect();
                f.write_str(&parts.join(" + "))
            }
            Self::Mul(parts) => f.write_str(&join(parts, "*")),
            Self::Div(parts) => f.write_str(&join(&parts[..], " / ")),
            Self::Mod(parts) => f.write_str(&join(&parts[..], " % ")),
            Self::Max(parts) => write!(f, "max({})", list(parts)),
            Self::Min(parts) => write!(f, "min({})", list(parts)),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn read(json: &str) -> Expr {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn sizes_read_as_they_were_written() {
        let text = r#"{"add":[{"mul":[2,{"symbol":0}]},{"div":[{"symbol":1},4]},-3]}"#;
        let expr = read(text);
        assert_eq!(serde_json::to_string(&expr).unwrap(), text);
        assert_eq!(expr.value(&[5, 11]), Some(9));
        assert_eq!(expr.to_string(), "2*s0 + s1 / 4 + -3");
        assert_eq!(expr.symbols(), [0, 1]);
        assert_eq!(expr.known(), None);
        assert_eq!(read("7").known(), Some(7));
    }

    #[test]
    fn division_rounds_down_and_its_rest_has_the_divisors_sign() {
        for a in -7i64..8 {
            for b in [-3i64, -1, 1, 2, 3] {
                let value = |name: &str| read(&format!("{{\"{name}\":[{a},{b}]}}")).known();
                let quotient = (a as f64 / b as f64).floor() as i64;
                assert_eq!(value("div"), Some(quotient), "{a} / {b}");
                assert_eq!(value("mod"), Some(a - quotient * b), "{a} % {b}");
            }
        }
    }

    #[test]
    fn what_is_no_number_is_none() {
        assert_eq!(read(r#"{"div":[1,0]}"#).known(), None);
        assert_eq!(read(r#"{"mod":[1,0]}"#).known(), None);
        assert_eq!(read(&format!(r#"{{"mul":[{},2]}}"#, i64::MAX)).known(), None);
        assert_eq!(read(&format!(r#"{{"add":[{},1]}}"#, i64::MAX)).known(), None);
        assert_eq!(read(&format!(r#"{{"div":[{},-1]}}"#, i64::MIN)).known(), None);
        assert_eq!(read(r#"{"max":[]}"#).known(), None);
        assert_eq!(read(r#"{"min":[3,{"symbol":0}]}"#).value(&[2]), Some(2));
    }
}
