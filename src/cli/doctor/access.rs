//! Who may ask a node of these settings for what.
//!
//! Invariant: it says what is in the settings, and asks nobody.

use kiln::config::Config;

use super::Check;

pub(super) fn check(config: &Config) -> Vec<Check> {
    let name = "access.required";
    let open = config.in_plain_text();
    let access = match (config.access.required, open.first()) {
        (false, _) => Check::off(
            name,
            "off: whoever reaches the ports may do everything",
            "give clients tokens (kiln token create), and set access.required",
        ),
        (true, None) => Check::ok(name, "on: clients say who they are"),
        (true, Some((port, address, section))) => Check::problem(
            name,
            format!("on, and {port} {address} takes plain text: tokens can be read on the way"),
            format!("set {section}.mode = \"require\" with certificates (kiln certs)"),
        ),
    };
    let audit = match config.audit.enabled {
        true => Check::ok("audit", "on: kiln audit show, kiln audit verify"),
        false => Check::off("audit", "off: who did what is written nowhere", "set audit.enabled"),
    };
    vec![access, audit]
}

#[cfg(test)]
mod tests {
    use super::{super::State, *};

    #[test]
    fn tokens_in_plain_text_are_a_problem() {
        let state = |change: fn(&mut Config)| {
            let mut config = Config::default();
            change(&mut config);
            check(&config)[0].state
        };
        assert_eq!(state(|_| {}), State::Off);
        assert_eq!(state(|c| c.access.required = true), State::Ok);
        let told = state(|c| {
            c.access.required = true;
            c.grpc_listen = ([0, 0, 0, 0], 7400).into();
        });
        assert_eq!(told, State::Problem);
    }
}
