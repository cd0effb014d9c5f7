//! Expressions to statements, several neighbours at a time.
//!
//! A kernel's innermost variable is split in chunks of `lanes` elements. What is
//! the same for all elements of a chunk is one register, what is not an array
//! over `v`. Loads of neighbours are one wide load.
//!
//! Invariant: a statement stands after those that it needs, and a load is made
//! only where its guards hold.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::{
    core::Domain,
    loops::{Expr, Exprs, Id, Source},
    size::{Atom, Size},
};

use super::table;

/// The chunk of the innermost variable.
pub(super) const CHUNK: usize = 100;
/// The element within a chunk.
pub(super) const LANE: usize = 101;

/// Conditions under which a value is needed: each holds or does not.
type Guards = Vec<(Id, bool)>;

/// What a kernel reads and writes, in the order of its parameters.
#[derive(Debug, Clone, Default)]
pub(super) struct Params {
    /// Place of the first read, where others come before.
    pub(super) first: usize,
    /// Place of the first write, where others come before.
    pub(super) first_write: usize,
    pub(super) reads: Vec<Source>,
    pub(super) writes: Vec<usize>,
    /// Symbols that the text names.
    pub(super) symbols: BTreeSet<usize>,
}

impl Params {
    /// The name of what is read.
    pub(super) fn read(&mut self, source: Source) -> String {
        let place = self.reads.iter().position(|read| *read == source).unwrap_or_else(|| {
            self.reads.push(source);
            self.reads.len() - 1
        });
        format!("r{}", self.first + place)
    }

    /// The name of what is written.
    pub(super) fn write(&mut self, temp: usize) -> String {
        let place = self.writes.iter().position(|write| *write == temp).unwrap_or_else(|| {
            self.writes.push(temp);
            self.writes.len() - 1
        });
        format!("w{}", self.first_write + place)
    }

    /// A size as text; `vars` has the names of variables.
    pub(super) fn size(&mut self, size: &Size, vars: &dyn Fn(&Atom) -> String) -> String {
        size.each_atom(&mut |atom| {
            if let Atom::Symbol(symbol) = atom {
                self.symbols.insert(*symbol);
            }
        });
        size.text(&|atom| match atom {
            Atom::Symbol(symbol) => format!("s{symbol}"),
            other => vars(other),
        })
    }
}

/// A value in the text.
#[derive(Debug, Clone)]
struct Name {
    text: String,
    /// Whether it is an array over the lanes.
    varies: bool,
}

impl Name {
    fn at_lane(&self) -> String {
        if self.varies { format!("{}[v]", self.text) } else { self.text.clone() }
    }
}

/// One statement.
#[derive(Debug, Clone)]
enum Statement {
    Plain(String),
    /// A declaration, and what is done for each lane.
    Lanes(String, String),
}

/// Writes the statements of one kernel.
pub(super) struct Body<'a> {
    pub(super) exprs: &'a Exprs,
    pub(super) params: &'a mut Params,
    pub(super) lanes: i64,
    /// Names of the space's variables, for those that are not split.
    pub(super) vars: BTreeMap<usize, String>,
    /// What results of reductions and products are called; arrays over lanes or not.
    results: HashMap<usize, Name>,
    /// Values whose arrays outlive a loop: name of the array, indexed by `ch`.
    kept: HashMap<Id, String>,
    kept_made: BTreeSet<Id>,
    /// Outside of loops, and inside of the present one.
    outer: Scope,
    inner: Scope,
    next: usize,
}

#[derive(Default)]
struct Scope {
    names: HashMap<(Id, Guards), Name>,
    statements: Vec<Statement>,
}

impl<'a> Body<'a> {
    pub(super) fn new(
        exprs: &'a Exprs,
        params: &'a mut Params,
        lanes: i64,
        vars: BTreeMap<usize, String>,
    ) -> Self {
        Self {
            exprs,
            params,
            lanes,
            vars,
            results: HashMap::new(),
            kept: HashMap::new(),
            kept_made: BTreeSet::new(),
            outer: Scope::default(),
            inner: Scope::default(),
            next: 0,
        }
    }

    /// The result of `temp` is `text`: an array over lanes if it `varies`.
    pub(super) fn define(&mut self, temp: usize, text: &str, varies: bool) {
        self.results.insert(temp, Name { text: text.to_owned(), varies });
    }

    /// Keeps `id` in an array over the chunks of a thread: computed by the first
    /// loop that needs it.
    pub(super) fn keep(&mut self, id: Id) -> String {
        let name = format!("k{}", self.kept.len());
        self.kept.insert(id, name.clone());
        format!("{} {name}[CHUNKS][{}];", table::register(self.exprs.domain(id)), self.lanes)
    }

    /// The value of `id` at lane `v`, as text.
    pub(super) fn value(&mut self, id: Id) -> String {
        self.whole(id).at_lane()
    }

    /// Operands first, so that the depth of an expression is no depth of calls.
    fn whole(&mut self, id: Id) -> Name {
        for part in self.exprs.unguarded([id]) {
            self.emit(part, &Guards::new());
        }
        self.emit(id, &Guards::new())
    }

    /// Stores `id` at `place` of `temp`'s buffer.
    pub(super) fn store(&mut self, temp: usize, place: &Size, id: Id, element: &str) {
        let value = self.whole(id);
        let to = self.params.write(temp);
        match self.walk(place, &Guards::new()) {
            Walk::Same if !value.varies => {
                let at = self.index(place, &Guards::new());
                let text = format!("kiln_set({to}[{at}], {});", value.text);
                self.statement(true, Statement::Plain(text));
            }
            Walk::Wide(base) => {
                let at = self.index(&base, &Guards::new());
                let text = match value.varies {
                    true => format!("kiln_store<{}>({to} + {at}, {});", self.lanes, value.text),
                    false => format!(
                        "kiln_fill<{}, {element}>({to} + {at}, {});",
                        self.lanes, value.text
                    ),
                };
                self.statement(true, Statement::Plain(text));
            }
            Walk::Same | Walk::Scattered => {
                let at = self.index(place, &Guards::new());
                let each = format!("kiln_set({to}[{at}], {});", value.at_lane());
                self.statement(true, Statement::Lanes(String::new(), each));
            }
        }
    }

    /// A statement for each lane, inside of the loop.
    pub(super) fn for_lanes(&mut self, text: String) {
        self.statement(true, Statement::Lanes(String::new(), text));
    }

    /// What was written outside of loops since the last call.
    pub(super) fn take_outer(&mut self) -> String {
        text_of(&std::mem::take(&mut self.outer.statements), self.lanes)
    }

    /// What was written in the loop, which ends here.
    pub(super) fn take_inner(&mut self) -> String {
        let scope = std::mem::take(&mut self.inner);
        text_of(&scope.statements, self.lanes)
    }

    fn statement(&mut self, inside: bool, statement: Statement) {
        let scope = if inside { &mut self.inner } else { &mut self.outer };
        scope.statements.push(statement);
    }

    fn emit(&mut self, id: Id, guards: &Guards) -> Name {
        let guards = if self.loads(id) { guards.clone() } else { Guards::new() };
        let inside = self.is_inside(id) || guards.iter().any(|(cond, _)| self.is_inside(*cond));
        let key = (id, guards.clone());
        let known = self.outer.names.get(&key).or_else(|| self.inner.names.get(&key));
        if let Some(name) = known {
            return name.clone();
        }
        let name = match self.kept.get(&id).cloned() {
            Some(array) => self.emit_kept(id, &array),
            None => self.emit_new(id, &guards, inside),
        };
        let scope = if inside { &mut self.inner } else { &mut self.outer };
        scope.names.insert(key, name.clone());
        name
    }

    fn emit_kept(&mut self, id: Id, array: &str) -> Name {
        let kept = Name { text: format!("{array}[ch]"), varies: true };
        if self.kept_made.insert(id) {
            let value = self.emit_new(id, &Guards::new(), true);
            let each = format!("{array}[ch][v] = {};", value.at_lane());
            self.statement(true, Statement::Lanes(String::new(), each));
        }
        kept
    }

    fn emit_new(&mut self, id: Id, guards: &Guards, inside: bool) -> Name {
        match self.exprs.get(id).clone() {
            Expr::Load { source, index, .. } => self.emit_load(id, source, &index, guards, inside),
            Expr::Index(index) => {
                for value in self.exprs.operands(id) {
                    self.emit(value, guards);
                }
                let varies = self.varies(&index, guards);
                let text = format!("(kiln_int)({})", self.index(&index, guards));
                self.assign(Domain::Int, &text, varies, inside)
            }
            Expr::Number(domain, bits) => Name { text: number(domain, bits), varies: false },
            Expr::Apply(fun, domain, args) => {
                let args: Vec<Name> = args.iter().map(|arg| self.emit(*arg, guards)).collect();
                let varies = args.iter().any(|arg| arg.varies);
                let args: Vec<String> = args.iter().map(Name::at_lane).collect();
                let text = table::apply(fun, domain, &args);
                self.assign(self.exprs.domain(id), &text, varies, inside)
            }
            Expr::Convert(to, x) => {
                let from = self.exprs.domain(x);
                let x = self.emit(x, guards);
                let text = table::convert(from, to, &x.at_lane());
                self.assign(to, &text, x.varies, inside)
            }
            Expr::Round(dtype, x) => {
                let x = self.emit(x, guards);
                let text = table::round(dtype, &x.at_lane());
                self.assign(self.exprs.domain(id), &text, x.varies, inside)
            }
            Expr::Below(a, b) => {
                for value in self.exprs.operands(id) {
                    self.emit(value, guards);
                }
                self.emit_below(&a, &b, guards, inside)
            }
            Expr::Guard { cond, yes, no } => {
                let name = self.emit(cond, guards);
                let with = |holds| [guards.as_slice(), &[(cond, holds)]].concat();
                let yes = self.emit(yes, &with(true));
                let no = self.emit(no, &with(false));
                let varies = name.varies || yes.varies || no.varies;
                let text = format!("{} ? {} : {}", name.at_lane(), yes.at_lane(), no.at_lane());
                self.assign(self.exprs.domain(id), &text, varies, inside)
            }
            Expr::Result(temp, _) => match self.results.get(&temp) {
                Some(name) => name.clone(),
                None => Name { text: format!("result{temp}"), varies: false },
            },
        }
    }

    fn emit_load(
        &mut self,
        id: Id,
        source: Source,
        index: &Size,
        guards: &Guards,
        inside: bool,
    ) -> Name {
        let domain = self.exprs.domain(id);
        for value in self.exprs.operands(id) {
            self.emit(value, guards);
        }
        let conditions: Vec<Name> =
            guards.iter().map(|(cond, _)| self.emit(*cond, &Guards::new())).collect();
        let guard_varies = conditions.iter().any(|cond| cond.varies);
        let condition = conditions.iter().zip(guards).map(|(name, (_, holds))| {
            format!("{}{}", if *holds { "" } else { "!" }, name.at_lane())
        });
        let condition = condition.collect::<Vec<_>>().join(" && ");
        let from = self.params.read(source);
        match self.walk(index, guards) {
            Walk::Same if !guard_varies => {
                let at = self.index(index, guards);
                let text = guarded(&condition, format!("kiln_widen({from}[{at}])"));
                self.assign(domain, &text, false, inside)
            }
            Walk::Wide(base) if !guard_varies => {
                let at = self.index(&base, guards);
                let name = self.fresh();
                let register = table::register(domain);
                let lanes = self.lanes;
                let clear = if guards.is_empty() { "" } else { " = {}" };
                let test = match guards.is_empty() {
                    true => String::new(),
                    false => format!("if ({condition}) "),
                };
                let text = format!(
                    "{register} {name}[{lanes}]{clear}; {test}kiln_load<{lanes}>({from} + {at}, {name});"
                );
                self.statement(inside, Statement::Plain(text));
                Name { text: name, varies: true }
            }
            _ => {
                let at = self.index(index, guards);
                let text = guarded(&condition, format!("kiln_widen({from}[{at}])"));
                self.assign(domain, &text, true, inside)
            }
        }
    }

    /// Whether `a < b`, once for a chunk where all of its lanes agree.
    fn emit_below(&mut self, a: &Size, b: &Size, guards: &Guards, inside: bool) -> Name {
        let gap = b - a;
        if let Some((factor, rest)) = gap.linear_in(&Atom::Var(LANE))
            && !rest.has_var(LANE)
        {
            let steps = |size: &Size| size.power_of_two(self.lanes) == self.lanes;
            let before = &rest - &Size::from(1);
            let text = match () {
                // 0 < rest - lane, in steps of a chunk
                () if factor.is(-1) && steps(&rest) => {
                    Some(format!("0 < {}", self.index(&rest, guards)))
                }
                // 0 <= before + lane
                () if factor.is(1) && steps(&before) => {
                    Some(format!("0 <= {}", self.index(&before, guards)))
                }
                () => None,
            };
            if let Some(text) = text {
                return self.assign(Domain::Bool, &text, false, inside);
            }
        }
        let varies = self.varies(a, guards) || self.varies(b, guards);
        let text = format!("{} < {}", self.index(a, guards), self.index(b, guards));
        self.assign(Domain::Bool, &text, varies, inside)
    }

    fn assign(&mut self, domain: Domain, text: &str, varies: bool, inside: bool) -> Name {
        let (name, register) = (self.fresh(), table::register(domain));
        let statement = match varies {
            true => Statement::Lanes(
                format!("{register} {name}[{}];", self.lanes),
                format!("{name}[v] = {text};"),
            ),
            false => Statement::Plain(format!("const {register} {name} = {text};")),
        };
        self.statement(inside, statement);
        Name { text: name, varies }
    }

    fn fresh(&mut self) -> String {
        self.next += 1;
        format!("x{}", self.next)
    }

    /// A value that an index has: it is there already.
    fn named(&self, id: usize, guards: &Guards) -> Option<&Name> {
        [(Id(id), guards.clone()), (Id(id), Guards::new())]
            .iter()
            .find_map(|key| self.inner.names.get(key).or_else(|| self.outer.names.get(key)))
    }

    /// An index as text, at lane `v` where it varies.
    fn index(&mut self, index: &Size, guards: &Guards) -> String {
        let mut names = BTreeMap::new();
        index.each_atom(&mut |atom| {
            if let Atom::Value(id) = atom {
                names.insert(*id, self.named(*id, guards).map(Name::at_lane).unwrap_or_default());
            }
        });
        let vars = &self.vars;
        let text = self.params.size(index, &|atom| match atom {
            Atom::Var(LANE) => "v".to_owned(),
            Atom::Var(CHUNK) => "c".to_owned(),
            Atom::Var(var) => vars.get(var).cloned().unwrap_or_default(),
            Atom::Value(id) => format!("(kiln_index){}", names[id]),
            _ => String::new(),
        });
        format!("({text})")
    }

    fn walk(&self, index: &Size, guards: &Guards) -> Walk {
        // Under guards that vary even a value varies that would not without them.
        let varies = |id| self.named(id, guards).is_some_and(|name| name.varies);
        let has_values = index.any(&|atom| matches!(atom, Atom::Value(id) if varies(*id)));
        if !index.has_var(LANE) && !has_values {
            return Walk::Same;
        }
        match index.linear_in(&Atom::Var(LANE)) {
            Some((factor, base))
                if factor.is(1)
                    && !has_values
                    && !base.has_var(LANE)
                    && base.power_of_two(self.lanes) == self.lanes =>
            {
                Walk::Wide(base)
            }
            _ => Walk::Scattered,
        }
    }

    fn varies(&self, index: &Size, guards: &Guards) -> bool {
        !matches!(self.walk(index, guards), Walk::Same)
    }

    /// Whether the value differs between chunks: it must be computed in the loop.
    pub(super) fn is_inside(&self, id: Id) -> bool {
        let varies = |size: &Size| size.has_var(LANE) || size.has_var(CHUNK);
        self.exprs.reachable([id]).iter().any(|part| match self.exprs.get(*part) {
            Expr::Load { index, .. } | Expr::Index(index) => varies(index),
            Expr::Below(a, b) => varies(a) || varies(b),
            Expr::Result(temp, _) => self.results.get(temp).is_some_and(|name| name.varies),
            _ => false,
        })
    }

    fn loads(&self, id: Id) -> bool {
        let parts = self.exprs.reachable([id]);
        parts.iter().any(|part| matches!(self.exprs.get(*part), Expr::Load { .. }))
    }
}

/// How an index moves from lane to lane.
enum Walk {
    Same,
    /// From neighbour to neighbour, from an aligned element on.
    Wide(Size),
    Scattered,
}

fn guarded(condition: &str, load: String) -> String {
    if condition.is_empty() { load } else { format!("({condition}) ? {load} : 0") }
}

fn number(domain: Domain, bits: u64) -> String {
    match domain {
        Domain::Float => table::literal(f64::from_bits(bits)),
        Domain::Int if bits == i64::MIN as u64 => "KILN_INT_MIN".to_owned(),
        Domain::Int => format!("(kiln_int)({})", bits as i64),
        Domain::Bool => (bits != 0).to_string(),
    }
}

/// Statements as text: neighbours that are for each lane share a loop.
fn text_of(statements: &[Statement], lanes: i64) -> String {
    let mut out = String::new();
    let mut each: Vec<&str> = Vec::new();
    let close = |out: &mut String, each: &mut Vec<&str>| {
        if !each.is_empty() {
            *out += &format!(
                "#pragma unroll\nfor (int v = 0; v < {lanes}; ++v) {{\n{}\n}}\n",
                each.join("\n")
            );
            each.clear();
        }
    };
    for statement in statements {
        match statement {
            Statement::Plain(text) => {
                close(&mut out, &mut each);
                out += text;
                out.push('\n');
            }
            Statement::Lanes(declaration, text) => {
                // A declaration may stand before statements that do not know it.
                if !declaration.is_empty() {
                    out += declaration;
                    out.push('\n');
                }
                each.push(text);
            }
        }
    }
    close(&mut out, &mut each);
    out
}
