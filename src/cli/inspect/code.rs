//! The code in an artifact: source, PTX, machine code.
//!
//! Invariant: one kernel's source comes with the comment above it, which names
//! the operations that it computes.

use std::{
    io::Write,
    process::{Command, Stdio},
};

use anyhow::Context;

use super::{super::CliError, Files};

/// The generated CUDA C++: all, or that of `kernel`.
pub(super) fn source(files: &Files, kernel: &str) -> Result<String, CliError> {
    let source = text(files, ".cu", "source")?;
    if kernel.is_empty() {
        return Ok(source);
    }
    let lines: Vec<&str> = source.lines().collect();
    let opens = |line: &&str| line.contains("__global__") && line.contains(&format!(" {kernel}("));
    let Some(head) = lines.iter().position(opens) else {
        let names = lines.iter().filter(|line| line.contains("__global__"));
        let names: Vec<&str> = names.filter_map(|line| name(line)).collect();
        return Err(CliError::NotFound(format!(
            "there is no kernel {kernel:?} in the source; it has {}",
            names.join(", ")
        )));
    };
    // Its types stand before it, and before these the comment: after a blank line,
    // and after the kernel before.
    let own = (0..head).rev().take_while(|at| !lines[*at].contains("__global__"));
    let comment =
        |at: &usize| lines[*at].starts_with("// ") && (*at == 0 || lines[*at - 1].is_empty());
    let first = own.into_iter().find(comment).unwrap_or(head);
    let ends = lines[head..].iter().position(|line| *line == "}");
    let last = ends.map_or(lines.len(), |length| head + length + 1);
    Ok(lines[first..last].join("\n"))
}

/// The word before the parameters.
fn name(line: &str) -> Option<&str> {
    let (head, _) = line.rsplit_once('{').unwrap_or((line, ""));
    // `__launch_bounds__(256) name(const float* x)`: the last word followed by a bracket.
    let mut words = head.match_indices('(').filter_map(|(at, _)| head[..at].rsplit(' ').next());
    words.rfind(|word| !word.starts_with("__") && !word.is_empty())
}

/// The PTX.
pub(super) fn ptx(files: &Files) -> Result<String, CliError> {
    text(files, ".ptx", "PTX: it was compiled to machine code alone")
}

fn text(files: &Files, ending: &str, what: &str) -> Result<String, CliError> {
    let found = files.iter().find(|(path, _)| path.ends_with(ending));
    let (_, bytes) =
        found.ok_or_else(|| CliError::NotFound(format!("the artifact has no {what}")))?;
    Ok(String::from_utf8_lossy(bytes).into_owned())
}

/// The machine code as the CUDA toolkit's tools write it: all, or that of `kernel`.
pub(super) fn sass(files: &Files, kernel: &str) -> Result<String, CliError> {
    let Some(cubin) = files.get("module.cubin") else {
        return Err(CliError::NotFound("the artifact has no machine code".to_owned()));
    };
    let known = kiln_native::cubin::read(cubin)
        .map_err(|why| CliError::failed(kiln_proto::FailureKind::Corrupt, why))?;
    if !kernel.is_empty() && !known.kernels.contains_key(kernel) {
        let names: Vec<&str> = known.kernels.keys().map(String::as_str).collect();
        return Err(CliError::NotFound(format!(
            "there is no kernel {kernel:?} in the machine code; it has {}",
            names.join(", ")
        )));
    }
    let mut file = tempfile::Builder::new().suffix(".cubin").tempfile().context("a file")?;
    file.write_all(cubin).context("write the machine code to a file")?;
    let mut dump = Command::new("cuobjdump");
    dump.arg("-sass");
    if !kernel.is_empty() {
        dump.args(["-fun", kernel]);
    }
    let mut disassemble = Command::new("nvdisasm");
    disassemble.arg("-c");
    for mut tool in [dump, disassemble] {
        let run = tool.arg(file.path()).stdin(Stdio::null()).output();
        let output = match run {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
            run => run.with_context(|| format!("run {}", tool.get_program().display()))?,
        };
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            let tool = tool.get_program().display().to_string();
            return Err(CliError::Refused(format!("{tool} failed: {said}")));
        }
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        return Ok(only(&text, kernel));
    }
    Err(CliError::Refused(
        "neither cuobjdump nor nvdisasm is on PATH: they come with the CUDA toolkit".to_owned(),
    ))
}

/// Of all of nvdisasm's sections, `kernel`'s; anything else as it is.
fn only(text: &str, kernel: &str) -> String {
    let start = format!(".text.{kernel},");
    let mut sections = text.split_inclusive("\n\t.section\t");
    match (kernel.is_empty(), sections.find(|section| section.starts_with(&start))) {
        (false, Some(section)) => section.trim_end_matches("\t.section\t").to_owned(),
        _ => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCE: &str = "struct a {\n};\n\n// 1 aten.add.Tensor, 2 aten.mul.Tensor\n\
        struct k0_write {\n};\nextern \"C\" __global__ void __launch_bounds__(256) k0_map(float* x) {\n  if (x) {\n  }\n}\n\
        \nextern \"C\" __global__ void __launch_bounds__(128) k1_rows(int* y) {\n}\n";

    fn files(name: &str, bytes: &[u8]) -> Files {
        [(name.to_owned(), bytes.to_vec())].into()
    }

    #[test]
    fn a_kernels_source_comes_with_what_it_computes() {
        let files = files("kernels.cu", SOURCE.as_bytes());
        let one = source(&files, "k0_map").unwrap();
        assert!(one.starts_with("// 1 aten.add.Tensor, 2 aten.mul.Tensor\nstruct k0"), "{one}");
        assert!(one.ends_with("(float* x) {\n  if (x) {\n  }\n}"), "{one}");
        assert!(source(&files, "k1_rows").unwrap().starts_with("extern"));
        assert_eq!(source(&files, "").unwrap(), SOURCE);
        let unknown = source(&files, "k").unwrap_err().to_string();
        assert!(unknown.contains("it has k0_map, k1_rows"), "{unknown}");
    }

    #[test]
    fn what_is_not_there_is_named() {
        let files = files("module.cubin", b"text");
        assert!(source(&files, "").unwrap_err().to_string().contains("no source"));
        assert!(ptx(&files).unwrap_err().to_string().contains("no PTX"));
        assert_eq!(sass(&files, "").unwrap_err().exit_code(), 12);
        assert_eq!(sass(&Files::new(), "").unwrap_err().exit_code(), 20);
    }

    #[test]
    fn one_kernel_of_nvdisasms_sections() {
        let text = "head\n\t.section\t.text.a,\"ax\"\n  A;\n\t.section\t.text.ab,\"ax\"\n  B;\n";
        assert_eq!(only(text, "a"), ".text.a,\"ax\"\n  A;\n");
        assert_eq!(only(text, "ab"), ".text.ab,\"ax\"\n  B;\n");
        assert_eq!(only(text, ""), text);
    }
}
