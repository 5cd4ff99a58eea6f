//! Files that people write: settings, tokens, passwords, documents.

use crate::domain::text::{bytes_without_mark, without_mark};
use std::io;
use std::path::Path;

/// Reads a text, without the byte-order mark that some editors put before it. Blocks.
///
/// # Errors
/// Those of the file system, or if it isn't UTF-8.
pub(crate) fn read(path: &Path) -> io::Result<String> {
    let text = std::fs::read_to_string(path)?;
    Ok(match without_mark(&text) {
        plain if plain.len() == text.len() => text,
        plain => plain.to_owned(),
    })
}

/// The same for bytes.
///
/// # Errors
/// Those of the file system.
pub(crate) fn read_bytes(path: &Path) -> io::Result<Vec<u8>> {
    std::fs::read(path).map(|bytes| bytes_without_mark(&bytes).to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_byte_order_mark_is_no_part_of_a_text() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        for (written, text) in [("\u{feff}secret\n", "secret\n"), ("secret", "secret"), ("\u{feff}", "")] {
            std::fs::write(file.path(), written).expect("written");
            assert_eq!(read(file.path()).expect("a text"), text);
            assert_eq!(read_bytes(file.path()).expect("bytes"), text.as_bytes());
        }
    }
}
