//! The exporter's symbolic sizes: sympy's constructor calls to formulas.
//!
//! Invariant: `infix(text)` is a formula over the same symbols with the same
//! value, or `None`: nothing of the text is skipped but a symbol's assumptions.

/// Nesting of calls: texts come from outside.
const DEEPEST: usize = 64;

/// `Add(Mul(Integer(2), Symbol('s0', integer=True)), Integer(1))` as `2*s0 + 1`.
pub(super) fn infix(text: &str) -> Option<String> {
    let mut reader = Reader { left: text, depth: 0 };
    let term = reader.term()?;
    reader.left.trim().is_empty().then_some(term.text)
}

/// How tightly a formula holds together.
#[derive(Clone, Copy, PartialEq, PartialOrd)]
enum Binding {
    Sum,
    Product,
    Atom,
}

struct Term {
    text: String,
    binding: Binding,
}

impl Term {
    fn inside(self, binding: Binding) -> String {
        if self.binding < binding { format!("({})", self.text) } else { self.text }
    }
}

struct Reader<'a> {
    left: &'a str,
    depth: usize,
}

impl<'a> Reader<'a> {
    fn term(&mut self) -> Option<Term> {
        self.depth += 1;
        if self.depth > DEEPEST {
            return None;
        }
        let name = self.word();
        let atom = |text: String| Term { text, binding: Binding::Atom };
        if !self.take("(") {
            // Newer exporters may print formulas: one symbol or number is one in both.
            self.depth -= 1;
            return (!name.is_empty()).then(|| atom(name.to_owned()));
        }
        let term = match name {
            "Symbol" => {
                let quote = if self.take("'") { "'" } else { self.take("\"").then_some("\"")? };
                let symbol = self.word();
                if symbol.is_empty() || !self.take(quote) {
                    return None;
                }
                while self.take(",") {
                    let (assumption, value) = (self.word(), self.take("=").then(|| self.word())?);
                    if assumption.is_empty() || value.is_empty() {
                        return None;
                    }
                }
                atom(symbol.to_owned())
            }
            "Integer" => {
                let minus = self.take("-");
                let number: u64 = self.word().parse().ok()?;
                match minus {
                    true => Term { text: format!("-{number}"), binding: Binding::Sum },
                    false => atom(number.to_string()),
                }
            }
            _ => {
                let args = self.args()?;
                combined(name, args)?
            }
        };
        self.depth -= 1;
        self.take(")").then_some(term)
    }

    fn args(&mut self) -> Option<Vec<Term>> {
        let mut args = vec![self.term()?];
        while self.take(",") {
            args.push(self.term()?);
        }
        Some(args)
    }

    fn take(&mut self, token: &str) -> bool {
        self.left = self.left.trim_start();
        match self.left.strip_prefix(token) {
            Some(left) => {
                self.left = left;
                true
            }
            None => false,
        }
    }

    fn word(&mut self) -> &'a str {
        self.left = self.left.trim_start();
        let end = self.left.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
        let (word, left) = self.left.split_at(end.unwrap_or(self.left.len()));
        self.left = left;
        word
    }
}

fn combined(name: &str, args: Vec<Term>) -> Option<Term> {
    let joined = |args: Vec<Term>, by: &str, binding| {
        let args: Vec<String> = args.into_iter().map(|arg| arg.inside(binding)).collect();
        args.join(by)
    };
    Some(match name {
        "Add" => {
            // A negative number may follow a plus only in parentheses.
            let text = joined(args, " + ", Binding::Product);
            Term { text, binding: Binding::Sum }
        }
        "Mul" => Term { text: joined(args, "*", Binding::Atom), binding: Binding::Product },
        "Pow" if args.len() == 2 => {
            Term { text: joined(args, "**", Binding::Atom), binding: Binding::Product }
        }
        "Max" | "Min" | "FloorDiv" | "CleanDiv" | "CeilDiv" | "Mod" | "PythonMod" => {
            let args = joined(args, ", ", Binding::Sum);
            Term { text: format!("{name}({args})"), binding: Binding::Atom }
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::infix;

    #[test]
    fn calls_become_formulas() {
        let s = "Symbol('s0', positive=True, integer=True)";
        for (call, formula) in [
            (s.to_owned(), "s0"),
            ("s77".to_owned(), "s77"),
            (format!("Mul(Integer(2), {s})"), "2*s0"),
            (format!("Add({s}, Integer(-1))"), "s0 + (-1)"),
            (format!("Mul(Integer(-1), Add({s}, Integer(3)))"), "(-1)*(s0 + 3)"),
            (format!("FloorDiv(Add({s}, Integer(1)), Integer(2))"), "FloorDiv(s0 + 1, 2)"),
            (format!("Pow({s}, Integer(2))"), "s0**2"),
            (format!("Max(Integer(1), Mul({s}, {s}))"), "Max(1, s0*s0)"),
        ] {
            assert_eq!(infix(&call).as_deref(), Some(formula), "{call}");
        }
        for wrong in
            ["", "Add(", "Symbol('s0'", "Add(s0) x", "Foo(s0)", "Symbol('s0', x)", "Integer(x)"]
        {
            assert_eq!(infix(wrong), None, "{wrong}");
        }
    }
}
