//! The page's files, as they are in this program.
//!
//! Invariant: the page needs nothing that is not in this list: no other host is asked.

/// One file.
#[derive(Debug, Clone, Copy)]
pub struct File {
    /// Below `/ui/`.
    pub path: &'static str,
    /// Its media type.
    pub kind: &'static str,
    /// What it is.
    pub bytes: &'static [u8],
}

const HTML: &str = "text/html; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const STYLE: &str = "text/css; charset=utf-8";
const TEXT: &str = "text/plain; charset=utf-8";
const IMAGE: &str = "image/svg+xml";

macro_rules! files {
    ($($path:literal $kind:ident,)*) => {
        &[$(File {
            path: $path,
            kind: $kind,
            bytes: include_bytes!(concat!("ui/", $path)),
        }),*]
    };
}

/// All of them. `vendor/` is uPlot 1.6.32 as npm has it.
pub const FILES: &[File] = files![
    "index.html" HTML,
    "style.css" STYLE,
    "icon.svg" IMAGE,
    "app.js" SCRIPT,
    "artifact.js" SCRIPT,
    "charts.js" SCRIPT,
    "dom.js" SCRIPT,
    "panels.js" SCRIPT,
    "source.js" SCRIPT,
    "text.js" SCRIPT,
    "vendor/uPlot.iife.min.js" SCRIPT,
    "vendor/uPlot.min.css" STYLE,
    "vendor/uPlot.LICENSE.txt" TEXT,
];

/// The file at `path` below `/ui/`; nothing else of any folder can be named.
pub fn file(path: &str) -> Option<File> {
    let path = if path.is_empty() { "index.html" } else { path };
    FILES.iter().find(|file| file.path == path).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(file: &File) -> &str {
        std::str::from_utf8(file.bytes).unwrap()
    }

    #[test]
    fn a_path_names_a_file_of_the_list_or_nothing() {
        assert_eq!(file("").unwrap().path, "index.html");
        for hostile in ["../mod.rs", "/etc/passwd", "ui/index.html", "vendor/", "INDEX.HTML"] {
            assert!(file(hostile).is_none(), "{hostile}");
        }
    }

    #[test]
    fn no_file_makes_markup_of_text_or_asks_another_host() {
        for file in FILES.iter().filter(|file| !file.path.starts_with("vendor/")) {
            let text = text(file);
            for banned in
                ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("]
            {
                assert!(!text.contains(banned), "{} has {banned}", file.path);
            }
            let urls = text.split("//").skip(1);
            let hosts = urls.filter(|rest| rest.starts_with("www.") && file.path != "icon.svg");
            assert_eq!(hosts.count(), 0, "{} names a host", file.path);
            assert!(!text.contains("https://"), "{} names a host", file.path);
        }
    }

    #[test]
    fn every_file_that_is_imported_or_linked_is_in_the_list() {
        for file in FILES.iter().filter(|file| file.kind == SCRIPT) {
            let folder = file.path.rsplit_once('/').map_or("", |(folder, _)| folder);
            for line in text(file).lines().filter(|line| line.starts_with("import ")) {
                let path = line.rsplit_once("\"./").map(|(_, rest)| rest.trim_end_matches("\";"));
                let path = path.unwrap_or_else(|| panic!("{}: {line}", file.path));
                assert!(super::file(&format!("{folder}{path}")).is_some(), "{}: {line}", file.path);
            }
        }
        let page = text(&file("").unwrap()).to_owned();
        for linked in page.split("href=\"").chain(page.split("src=\"")).skip(1) {
            let path = linked.split('"').next().unwrap();
            let here = path.strip_prefix("./").filter(|path| !path.is_empty());
            assert!(here.is_none_or(|path| file(path).is_some()), "{path}");
        }
    }
}
