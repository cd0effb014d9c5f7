//! What compilers are kept from on this machine.
//!
//! Invariant: it asks the kernel, as a node does, and starts nothing.

use kiln::compiler::Kernel;

use super::Check;

pub(super) fn check() -> Vec<Check> {
    let kernel = Kernel::of_machine();
    vec![of(kernel, &kernel.lacks())]
}

fn of(kernel: Kernel, lacks: &[&str]) -> Check {
    let seccomp = if kernel.seccomp { "seccomp" } else { "no seccomp" };
    let said = match kernel.landlock {
        0 => format!("no Landlock, {seccomp}"),
        version => format!("Landlock {version}, {seccomp}"),
    };
    if lacks.is_empty() {
        return Check::ok("sandbox", said);
    }
    let can = lacks.join("; ");
    Check::off("sandbox", said, format!("with a newer kernel a compile could no longer {can}"))
}

#[cfg(test)]
mod tests {
    use super::{super::State, *};

    #[test]
    fn what_a_compile_can_do_here_is_named() {
        let of = |landlock, seccomp| {
            let kernel = Kernel { landlock, seccomp };
            of(kernel, &kernel.lacks())
        };
        assert_eq!(of(7, true).state, State::Ok);
        let old = of(3, true);
        assert_eq!(old.state, State::Off, "a node works there");
        assert!(old.advice.contains("signal other processes"), "{old:?}");
        assert!(of(0, false).said.starts_with("no Landlock, no seccomp"));
    }
}
