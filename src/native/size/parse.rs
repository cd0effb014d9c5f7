//! The exporter's expressions: what sympy prints.
//!
//! Invariant: nothing of the text is skipped; what is not understood is an error. What is
//! written here reads back as the same size.

use super::{Atom, Monomial, Size};

/// Nesting of parentheses: texts come from outside.
const DEEPEST: usize = 64;

impl Size {
    /// Reads `2*s0 + 1`, `Max(1, s0)`, `(s0//2)`, `FloorDiv(s0, 2)`: `names`
    /// has the symbols in order.
    pub fn parse(text: &str, names: &[&str]) -> Result<Self, String> {
        let mut reader = Reader { text, left: text, names, depth: 0 };
        let size = reader.sum()?;
        match reader.peek() {
            None => Ok(size),
            Some(_) => Err(reader.wrong()),
        }
    }
}

impl Size {
    /// Writes it as the exporter has sizes: `64*s0`, `2*s0 + 1`. `names` has the symbols in
    /// order; loop variables and computed values have no such form.
    pub fn formula(&self, names: &[&str]) -> String {
        let mut out = String::new();
        for (Monomial(atoms), factor) in self.terms.iter().rev() {
            let atoms = atoms.iter().map(|atom| atom.formula(names));
            let number = (factor.unsigned_abs() != 1).then(|| factor.unsigned_abs().to_string());
            let parts: Vec<String> = number.into_iter().chain(atoms).collect();
            out += match (*factor < 0, out.is_empty()) {
                (true, true) => "-",
                (true, false) => " - ",
                (false, true) => "",
                (false, false) => " + ",
            };
            out += &if parts.is_empty() { "1".to_owned() } else { parts.join("*") };
        }
        if out.is_empty() { "0".to_owned() } else { out }
    }
}

impl Atom {
    fn formula(&self, names: &[&str]) -> String {
        let both = |parts: &[Size; 2]| (parts[0].formula(names), parts[1].formula(names));
        match self {
            Self::Symbol(symbol) => {
                names.get(*symbol).map_or_else(|| format!("?{symbol}"), |name| (*name).to_owned())
            }
            Self::Var(var) => format!("?i{var}"),
            Self::Value(value) => format!("?v{value}"),
            Self::Floor(parts) => {
                let (a, b) = both(parts);
                format!("(({a})//({b}))")
            }
            Self::Max(parts) => {
                let (a, b) = both(parts);
                format!("Max({a}, {b})")
            }
            Self::Min(parts) => {
                let (a, b) = both(parts);
                format!("Min({a}, {b})")
            }
        }
    }
}

struct Reader<'a> {
    text: &'a str,
    left: &'a str,
    names: &'a [&'a str],
    depth: usize,
}

impl<'a> Reader<'a> {
    fn sum(&mut self) -> Result<Size, String> {
        self.depth += 1;
        if self.depth > DEEPEST {
            return Err(self.wrong());
        }
        let mut sum = if self.take("-") { -&self.product()? } else { self.product()? };
        loop {
            if self.take("+") {
                sum = &sum + &self.product()?;
            } else if self.take("-") {
                sum = &sum - &self.product()?;
            } else {
                self.depth -= 1;
                return Ok(sum);
            }
        }
    }

    fn product(&mut self) -> Result<Size, String> {
        let mut product = self.factor()?;
        loop {
            if self.take("**") {
                let power = self.factor()?.known().filter(|power| (1..=4).contains(power));
                let base = product.clone();
                for _ in 1..power.ok_or_else(|| self.wrong())? {
                    product = &product * &base;
                }
            } else if self.take("*") {
                product = &product * &self.factor()?;
            } else if self.take("//") || self.take("/") {
                let by = self.divisor()?;
                product = product.div_floor(&by);
            } else if self.take("%") {
                let by = self.divisor()?;
                product = product.modulo(&by);
            } else {
                return Ok(product);
            }
        }
    }

    fn factor(&mut self) -> Result<Size, String> {
        if self.take("(") {
            let inner = self.sum()?;
            return if self.take(")") { Ok(inner) } else { Err(self.wrong()) };
        }
        let word = self.word();
        if word.is_empty() {
            return Err(self.wrong());
        }
        if let Ok(number) = word.parse::<i64>() {
            return Ok(Size::from(number));
        }
        if self.take("(") {
            return self.call(word);
        }
        let symbol = self.names.iter().position(|name| *name == word);
        symbol.map(Size::symbol).ok_or_else(|| format!("{word:?} in {:?} is no symbol", self.text))
    }

    fn call(&mut self, name: &str) -> Result<Size, String> {
        let mut args = vec![self.sum()?];
        while self.take(",") {
            args.push(self.sum()?);
        }
        if !self.take(")") {
            return Err(self.wrong());
        }
        let fold = |f: fn(&Size, &Size) -> Size| {
            args.iter().skip(1).fold(args[0].clone(), |a, b| f(&a, b))
        };
        match (name, args.len()) {
            ("Max", _) => Ok(fold(Size::max_of)),
            ("Min", _) => Ok(fold(Size::min_of)),
            ("FloorDiv" | "CleanDiv" | "IntTrueDiv", 2) if !args[1].is(0) => {
                Ok(args[0].div_floor(&args[1]))
            }
            ("CeilDiv", 2) if !args[1].is(0) => Ok(args[0].div_ceil(&args[1])),
            ("Mod" | "PythonMod" | "ModularIndexing", 2) if !args[1].is(0) => {
                Ok(args[0].modulo(&args[1]))
            }
            ("Identity", 1) => Ok(args.remove(0)),
            _ => Err(format!("{name} in {:?} is not understood", self.text)),
        }
    }

    fn divisor(&mut self) -> Result<Size, String> {
        let by = self.factor()?;
        match by.known() {
            Some(number) if number <= 0 => Err(self.wrong()),
            _ => Ok(by),
        }
    }

    fn peek(&mut self) -> Option<char> {
        self.left = self.left.trim_start();
        self.left.chars().next()
    }

    fn take(&mut self, token: &str) -> bool {
        self.peek();
        // `*` is not the start of `**`.
        if token == "*" && self.left.starts_with("**") {
            return false;
        }
        match self.left.strip_prefix(token) {
            Some(left) => {
                self.left = left;
                true
            }
            None => false,
        }
    }

    fn word(&mut self) -> &'a str {
        self.peek();
        let end = self.left.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
        let (word, left) = self.left.split_at(end.unwrap_or(self.left.len()));
        self.left = left;
        word
    }

    fn wrong(&self) -> String {
        format!("{:?} is no size: not understood from {:?} on", self.text, self.left)
    }
}
