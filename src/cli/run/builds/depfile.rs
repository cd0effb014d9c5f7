//! Rules as make has them, and as compilers write them: `output: input input`.
//!
//! Invariant: only what stands there literally is a rule: variables, patterns and
//! recipes say nothing.

/// Outputs and inputs of each rule of a depfile or a makefile.
pub(super) fn edges(bytes: &[u8]) -> Vec<(Vec<String>, Vec<String>)> {
    let text = String::from_utf8_lossy(bytes).replace("\\\r\n", " ").replace("\\\n", " ");
    text.lines().filter_map(rule).collect()
}

fn rule(line: &str) -> Option<(Vec<String>, Vec<String>)> {
    if line.starts_with(['\t', '#', '.']) {
        return None;
    }
    // A colon in the middle of a word belongs to it.
    let ends = |at: usize| line[at + 1..].chars().next().is_none_or(char::is_whitespace);
    let colon = line.match_indices(':').map(|(at, _)| at).find(|at| ends(*at))?;
    let (outputs, inputs) = (words(&line[..colon]), words(&line[colon + 1..]));
    let plain = |words: &[String]| {
        words.iter().all(|word| !word.contains(['%', '=']) && !word.contains("$("))
    };
    // What is not said literally may be anything: then the rule is not known.
    (!outputs.is_empty() && plain(&outputs) && plain(&inputs)).then_some((outputs, inputs))
}

/// Words, with a blank, `#` and `$` in them as make escapes those.
fn words(text: &str) -> Vec<String> {
    let (mut words, mut word) = (Vec::new(), String::new());
    let mut left = text.chars().peekable();
    while let Some(c) = left.next() {
        match (c, left.peek().copied()) {
            ('\\', Some(next @ (' ' | '#' | '\\'))) | ('$', Some(next @ '$')) => {
                word.push(next);
                left.next();
            }
            (c, _) if c.is_whitespace() => {
                if !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
            }
            // What follows is a recipe, or what make itself makes first.
            (';', _) => break,
            ('|', _) => {}
            (c, _) => word.push(c),
        }
    }
    if !word.is_empty() {
        words.push(word);
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_compilers_rule_is_read_with_its_escapes() {
        let text = b"a.o b.o: /src/a\\ b.c \\\n  C:/x.h $$y.h\n\n/src/h.h:\n";
        let edges = edges(text);
        assert_eq!(edges[0].0, ["a.o", "b.o"]);
        assert_eq!(edges[0].1, ["/src/a b.c", "C:/x.h", "$y.h"]);
        assert_eq!(edges[1], (vec!["/src/h.h".into()], vec![]));
    }

    #[test]
    fn of_a_makefile_what_is_literal() {
        let text = b"CC := cc\nall: prog\nprog: main.c | dir ; $(CC) x\n\tcc: y\n%.o: %.c\n\
                     lib: $(OBJ)\n.PHONY: all\n# c: d\n";
        let outputs: Vec<_> = edges(text).into_iter().map(|edge| edge.0.concat()).collect();
        assert_eq!(outputs, ["all", "prog"]);
        assert_eq!(edges(text)[1].1, ["main.c", "dir"]);
    }
}
