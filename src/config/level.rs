//! Which lines the log has: a level, and levels of parts.
//!
//! Invariant: a word that is no level is refused, and never silences the log: the
//! library's filter takes an unknown word for the name of a module, and shows that alone.

use tracing_subscriber::EnvFilter;

use super::LogConfig;

const LEVELS: &str = "error, warn, info, debug, trace or off";

impl LogConfig {
    /// What decides whether a line is written.
    pub fn filter(&self) -> Result<EnvFilter, String> {
        let directives: Result<Vec<String>, String> = self
            .level
            .split(',')
            .map(str::trim)
            .filter(|part| !part.is_empty())
            .map(directive)
            .collect();
        let directives = directives?;
        if directives.is_empty() {
            return Err(format!("log.level is empty: write {LEVELS}"));
        }
        EnvFilter::try_new(directives.join(","))
            .map_err(|e| format!("log.level: {e}; write info, or info,kiln=debug"))
    }
}

/// One part of the setting as the library reads it: `warning` is `warn`.
fn directive(part: &str) -> Result<String, String> {
    // With a span or a field of one: nothing that is written in a hurry.
    if part.contains(['[', '{']) {
        return Ok(part.to_owned());
    }
    match part.split_once('=') {
        None => match level(part) {
            Some(level) => Ok(level.to_owned()),
            None => Err(format!(
                "log.level: {part:?} is no level: write {LEVELS}, or TARGET=LEVEL for a part of it, \
                 such as info,kiln=debug"
            )),
        },
        Some((target, word)) => match level(word) {
            Some(level) => Ok(format!("{target}={level}")),
            None => Err(format!("log.level: {word:?} in {part:?} is no level: write {LEVELS}")),
        },
    }
}

/// The level that a word means: loggers spell them differently.
fn level(word: &str) -> Option<&'static str> {
    Some(match word.to_ascii_lowercase().as_str() {
        "error" | "err" | "critical" | "fatal" => "error",
        "warn" | "warning" => "warn",
        "info" | "information" | "notice" => "info",
        "debug" => "debug",
        "trace" | "verbose" | "all" => "trace",
        "off" | "none" | "quiet" => "off",
        _ => return None,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn filter(level: &str) -> Result<String, String> {
        let config = LogConfig { level: level.into(), ..LogConfig::default() };
        config.filter().map(|filter| filter.to_string())
    }

    #[test]
    fn common_spellings_are_levels() {
        let spelled = [("warning", "warn"), ("WARN", "warn"), ("Info", "info"), ("err", "error")];
        for (written, meant) in spelled {
            assert_eq!(filter(written), filter(meant), "{written}");
            assert_eq!(filter(written).unwrap(), meant, "{written}");
        }
        let parts = filter("Information, kiln=WARNING").unwrap();
        assert!(parts.contains("info") && parts.contains("kiln=warn"), "{parts}");
        assert!(filter(&LogConfig::default().level).is_ok());
        assert!(filter("info,kiln[call]=debug").is_ok());
    }

    #[test]
    fn what_is_no_level_is_refused_with_the_levels() {
        for wrong in ["inof", "warnign", "kiln", "info,debgu", "kiln=inof", "", " , ", "a=b=c"] {
            let refused = filter(wrong).unwrap_err();
            assert!(
                refused.contains("log.level") && refused.contains("warn"),
                "{wrong}: {refused}"
            );
        }
    }
}
