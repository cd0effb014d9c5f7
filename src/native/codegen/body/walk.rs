//! Indices along the lanes of a chunk: their text, and what reads, writes and
//! compares by them.
//!
//! Invariant: an access is wide only where the index goes from neighbour to
//! neighbour on every lane, and begins at a multiple of the lanes.

use std::collections::BTreeMap;

use super::{
    Body, CHUNK, Guards, LANE,
    statement::{Name, Statement},
};
use crate::{
    codegen::table,
    loops::{Domain, Id, Source},
    size::{Atom, Size},
};

/// How an index moves from lane to lane.
enum Walk {
    Same,
    /// From neighbour to neighbour, from an aligned element on.
    Wide(Size),
    Scattered,
}

impl Body<'_> {
    /// Stores `id` at `place` of `temp`'s buffer.
    pub(in crate::codegen) fn store(&mut self, temp: usize, place: &Size, id: Id, element: &str) {
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

    pub(super) fn emit_load(
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
    pub(super) fn emit_below(&mut self, a: &Size, b: &Size, guards: &Guards, inside: bool) -> Name {
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

    /// A value that an index has: it is there already.
    fn named(&self, id: usize, guards: &Guards) -> Option<&Name> {
        [(Id(id), guards.clone()), (Id(id), Guards::new())]
            .iter()
            .find_map(|key| self.inner.names.get(key).or_else(|| self.outer.names.get(key)))
    }

    /// An index as text, at lane `v` where it varies.
    pub(super) fn index(&mut self, index: &Size, guards: &Guards) -> String {
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

    pub(super) fn varies(&self, index: &Size, guards: &Guards) -> bool {
        !matches!(self.walk(index, guards), Walk::Same)
    }
}

fn guarded(condition: &str, load: String) -> String {
    if condition.is_empty() { load } else { format!("({condition}) ? {load} : 0") }
}
