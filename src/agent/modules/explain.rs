//! Why a program could not be started. The system says "No such file or directory" of the program, whichever file is
//! missing: the program, the folder to start it in, or the interpreter that a script names.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// As much of a script as its first line may have.
const FIRST_LINE: u64 = 512;

/// Checks the folder to start a program in.
pub(super) fn check_folder(cwd: &Path) -> Result<(), String> {
    match cwd.metadata() {
        Ok(found) if found.is_dir() => Ok(()),
        Ok(_) => Err(format!("cwd: \"{}\" is not a folder", cwd.display())),
        Err(error) => Err(format!("cwd: \"{}\": {error}", cwd.display())),
    }
}

/// Why this program was not started.
pub(super) fn not_started(program: &Path, error: &io::Error) -> String {
    let of_script = match error.kind() {
        io::ErrorKind::NotFound => first_line(program).and_then(|line| interpreter(&line)),
        _ => None,
    };
    of_script.unwrap_or_else(|| error.to_string())
}

fn first_line(program: &Path) -> Option<Vec<u8>> {
    let mut start = Vec::new();
    File::open(program).ok()?.take(FIRST_LINE).read_to_end(&mut start).ok()?;
    let end = start.iter().position(|byte| *byte == b'\n').unwrap_or(start.len());
    start.truncate(end);
    Some(start)
}

/// What is wrong with the interpreter that a script's first line names.
fn interpreter(line: &[u8]) -> Option<String> {
    let line = String::from_utf8_lossy(line.strip_prefix(b"#!")?).into_owned();
    if line.ends_with('\r') {
        return Some("its lines end in \\r\\n, so that its interpreter is not found: write it with \\n".to_owned());
    }
    let name = line.split_whitespace().next()?;
    Some(format!("its first line names the interpreter \"{}\", which is not there", name.escape_debug()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_missing_file_is_the_one_that_is_named() {
        let dir = tempfile::tempdir().expect("a folder");
        let missing = io::Error::from_raw_os_error(2);
        let script = |text: &str| {
            let path = dir.path().join("script");
            std::fs::write(&path, text).expect("written");
            not_started(&path, &missing)
        };
        assert!(script("#!/bin/sh\r\necho\r\n").contains("\\r\\n"));
        assert!(script("#!/opt/no-python -u\nprint()\n").contains("\"/opt/no-python\", which is not there"));
        assert!(script("#! /opt/no-python\n").contains("\"/opt/no-python\""));
        assert_eq!(script("\u{7f}ELF"), missing.to_string());
        assert_eq!(not_started(&dir.path().join("none"), &missing), missing.to_string());
        let file = dir.path().join("script");
        assert!(check_folder(dir.path()).is_ok());
        assert!(check_folder(&file).expect_err("a file").contains("is not a folder"));
        let none = check_folder(&dir.path().join("none")).expect_err("nothing");
        assert!(none.starts_with("cwd: ") && none.contains("none\": No such file"), "{none}");
    }
}
