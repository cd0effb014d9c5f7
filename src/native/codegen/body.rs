//! Expressions to statements, several neighbours at a time.
//!
//! A kernel's innermost variable is split in chunks of `lanes` elements. What is
//! the same for all elements of a chunk is one register, what is not an array
//! over `v`. Loads of neighbours are one wide load.
//!
//! Invariant: a statement stands after those that it needs, and a load is made
//! only where its guards hold.

mod statement;
mod walk;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use self::statement::{Name, Scope, Statement, text_of};
use super::{params::Params, table};
use crate::{
    loops::{Domain, Expr, Exprs, Id},
    size::Size,
};

/// The chunk of the innermost variable.
pub(super) const CHUNK: usize = 100;
/// The element within a chunk.
pub(super) const LANE: usize = 101;

/// Conditions under which a value is needed: each holds or does not.
type Guards = Vec<(Id, bool)>;

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

    /// What was written in the loop that is none: what it named stays known.
    pub(super) fn take_straight(&mut self) -> String {
        text_of(&std::mem::take(&mut self.inner.statements), self.lanes)
    }

    /// Loads now what `roots` need, at most `most`, where no result decides whether
    /// or from where.
    pub(super) fn load_early(&mut self, roots: Vec<Id>, most: usize) {
        let mut waiting: Vec<(Id, Guards)> =
            roots.into_iter().map(|root| (root, Guards::new())).collect();
        let mut seen = BTreeSet::new();
        let mut found = BTreeSet::new();
        while let Some((id, guards)) = waiting.pop() {
            if !self.loads(id) || !seen.insert((id, guards.clone())) {
                continue;
            }
            match self.exprs.get(id) {
                Expr::Guard { cond, yes, no } => {
                    let with = |holds| [guards.as_slice(), &[(*cond, holds)]].concat();
                    waiting.extend([(*yes, with(true)), (*no, with(false))]);
                    waiting.push((*cond, guards));
                }
                Expr::Load { .. } => {
                    let conditions = guards.iter().map(|(cond, _)| *cond);
                    let parts = self.exprs.reachable(conditions.chain([id]));
                    let decided =
                        parts.iter().any(|part| matches!(self.exprs.get(*part), Expr::Result(..)));
                    if !decided {
                        found.insert((id, guards));
                    }
                }
                _ => {
                    let operands = self.exprs.operands(id);
                    waiting.extend(operands.into_iter().map(|operand| (operand, guards.clone())));
                }
            }
        }
        for (id, guards) in found.into_iter().take(most) {
            self.emit(id, &guards);
        }
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

fn number(domain: Domain, bits: u64) -> String {
    match domain {
        Domain::Float | Domain::Double => table::literal(domain, f64::from_bits(bits)),
        Domain::Int if bits == i64::MIN as u64 => "KILN_INT_MIN".to_owned(),
        Domain::Int => format!("(kiln_int)({})", bits as i64),
        Domain::Bool => (bits != 0).to_string(),
    }
}
