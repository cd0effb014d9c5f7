//! What compiles: NVRTC, and Python with torch.
//!
//! Invariant: neither is loaded into this process; a child that takes too long is killed.

use std::{path::PathBuf, process::Stdio, time::Duration};

use kiln::{
    compiler::{Environment, Toolchain, ToolchainSettings},
    config::Config,
};
use serde::Deserialize;

use super::Check;
use crate::cli::python::asking;

/// As `python -m kiln_torch` has it.
const DESCRIBE: &str =
    "import runpy; runpy.run_module('kiln_torch', run_name='__main__', alter_sys=True)";
/// Torch may be on a cold disk.
const IMPORTS: Duration = Duration::from_secs(40);

/// The NVRTC that a node of these settings compiles with, and where it is.
pub(crate) async fn found(nvrtc: Option<PathBuf>) -> Result<Toolchain, String> {
    let folder = tempfile::tempdir().map_err(|e| format!("a temporary folder: {e}"))?;
    let program = std::env::current_exe().map_err(|e| format!("this executable: {e}"))?;
    let settings = ToolchainSettings { nvrtc, ..ToolchainSettings::default() };
    let environment = Environment::of_process();
    let found = Toolchain::find(&settings, &environment, &program, folder.path()).await;
    found.map_err(|failure| failure.message)
}

pub(super) async fn nvrtc(config: &Config) -> Vec<Check> {
    vec![match found(config.compile.nvrtc.clone()).await {
        Ok(found) => {
            Check::ok("nvrtc", format!("{} at {}", found.version, found.library.display()))
        }
        Err(why) => {
            let advice = "without it this node serves what others compiled, and compiles no CUDA";
            Check::problem("nvrtc", why, advice)
        }
    }]
}

/// What `python -m kiln_torch --json` prints.
#[derive(Deserialize)]
struct Told {
    checks: Vec<ToldCheck>,
}

#[derive(Deserialize)]
struct ToldCheck {
    name: String,
    state: String,
    said: String,
    #[serde(default)]
    advice: String,
}

pub(super) async fn python(config: &Config) -> Vec<Check> {
    let set = config.compile.python.clone();
    let in_environment =
        std::env::var_os("VIRTUAL_ENV").map(|v| PathBuf::from(v).join("bin/python"));
    let interpreter = set.clone().or(in_environment).unwrap_or_else(|| "python3".into());
    let shown = interpreter.display().to_string();
    let mut asking = asking(interpreter.as_os_str(), DESCRIBE);
    asking.arg("--json").stdout(Stdio::piped()).stderr(Stdio::piped());
    // Wanted by the settings, it is missed; else it is only told.
    let missing = |said: String, advice: &str| match &set {
        Some(_) => vec![Check::problem("python", said, advice)],
        None => vec![Check::off("python", said, advice)],
    };
    let told = match tokio::time::timeout(IMPORTS, asking.output()).await {
        Err(_) => {
            let said = format!("{shown} -m kiln_torch does not end within {} s", IMPORTS.as_secs());
            return vec![Check::problem("python", said, "run it, and see where it hangs")];
        }
        Ok(Err(e)) => {
            return missing(format!("{shown} cannot be run: {e}"), "set compile.python");
        }
        Ok(Ok(output)) => output,
    };
    let Some(told) = last_json(&told.stdout) else {
        let said = String::from_utf8_lossy(&told.stderr);
        let said = said.trim().lines().last().unwrap_or("it printed nothing");
        let said = match said.ends_with("No module named kiln_torch") {
            true => format!("{shown} has no kiln_torch"),
            false => format!("{shown} -m kiln_torch fails: {said}"),
        };
        return missing(said, "to compile with Inductor, install kiln_torch there");
    };
    let of_python = |check: ToldCheck| {
        let name = format!("python {}", check.name);
        match check.state.as_str() {
            "ok" => Check::ok(&name, check.said),
            "off" => Check::off(&name, check.said, check.advice),
            _ => Check::problem(&name, check.said, check.advice),
        }
    };
    let mut found = vec![Check::ok("python", shown)];
    found.extend(told.checks.into_iter().map(of_python));
    found
}

/// Libraries that are imported may print lines before it.
fn last_json(printed: &[u8]) -> Option<Told> {
    let text = String::from_utf8_lossy(printed);
    text.lines().rev().find_map(|line| serde_json::from_str(line).ok())
}

#[cfg(test)]
mod tests {
    use super::{super::State, *};

    #[tokio::test]
    async fn what_the_settings_name_and_is_not_there_is_a_problem() {
        let folder = tempfile::tempdir().unwrap();
        let mut config = super::super::settings(folder.path());
        config.compile.python = Some(folder.path().join("no python"));
        config.compile.nvrtc = Some(folder.path().join("no nvrtc"));
        for checks in [python(&config).await, nvrtc(&config).await] {
            assert_eq!(checks[0].state, State::Problem, "{checks:?}");
            assert!(!checks[0].advice.is_empty(), "{checks:?}");
        }
    }

    #[test]
    fn what_python_says_is_read_behind_other_lines() {
        let printed = b"a warning\n{\"checks\": [{\"name\": \"kiln\", \"state\": \"ok\", \
            \"said\": \"on\", \"advice\": \"\"}]}\n";
        assert_eq!(last_json(printed).unwrap().checks[0].name, "kiln");
        assert!(last_json(b"Traceback").is_none());
    }
}
