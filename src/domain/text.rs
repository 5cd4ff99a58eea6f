//! Texts: NUL, what a terminal would take for a command, and mail addresses.
//!
//! NUL is the one character that no text may contain, because PostgreSQL can't store it.
//! In texts that people write, it is an error that names the place. In texts from agents, it is
//! replaced by U+FFFD: a program's output must not keep its result from being stored.

use std::borrow::Cow;

const NUL: char = '\0';
const INSTEAD: &str = "\u{FFFD}";

/// Whether a text contains NUL.
pub fn has_nul(text: &str) -> bool {
    text.contains(NUL)
}

/// Replaces NUL by U+FFFD.
pub fn replace_nul(text: &mut String) {
    if has_nul(text) {
        *text = text.replace(NUL, INSTEAD);
    }
}

/// Bytes as text, and whether some of them were none: U+FFFD stands in their place. If the bytes were cut off, a character
/// that the cut splits is left out.
pub fn text_of(bytes: &[u8], was_cut: bool) -> (String, bool) {
    match std::str::from_utf8(bytes) {
        Ok(text) => (text.to_owned(), false),
        Err(error) if was_cut && error.error_len().is_none() => {
            (String::from_utf8_lossy(&bytes[..error.valid_up_to()]).into_owned(), false)
        }
        Err(_) => (String::from_utf8_lossy(bytes).into_owned(), true),
    }
}

/// What editors on some systems put before a text in UTF-8.
const BYTE_ORDER_MARK: &str = "\u{FEFF}";

/// A text without the byte-order mark before it.
pub fn without_mark(text: &str) -> &str {
    text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(text)
}

/// The same for bytes.
pub fn bytes_without_mark(bytes: &[u8]) -> &[u8] {
    bytes.strip_prefix(BYTE_ORDER_MARK.as_bytes()).unwrap_or(bytes)
}

/// Whether a terminal does something with a character instead of showing it: control characters, and those that change
/// the direction of the text around them.
fn is_control(letter: char) -> bool {
    letter.is_control()
        || matches!(letter, '\u{061C}' | '\u{200B}' | '\u{200E}' | '\u{200F}' | '\u{2060}' | '\u{FEFF}' | '\u{2028}'..='\u{202E}' | '\u{2066}'..='\u{2069}')
}

fn escape(text: &str, keeps: fn(char) -> bool) -> Cow<'_, str> {
    let bad = |letter: char| is_control(letter) && !keeps(letter);
    if !text.contains(bad) {
        return text.into();
    }
    let mut escaped = String::with_capacity(text.len() + 16);
    for letter in text.chars() {
        if bad(letter) { escaped.extend(letter.escape_default()) } else { escaped.push(letter) }
    }
    escaped.into()
}

/// A text as a part of one line: for terminals and logs. Control characters are escaped as in Rust: `\u{1b}`, `\n`.
pub fn escaped(text: &str) -> Cow<'_, str> {
    escape(text, |_| false)
}

/// The same, except for line ends and tabs.
pub fn escaped_lines(text: &str) -> Cow<'_, str> {
    escape(text, |letter| matches!(letter, '\n' | '\t'))
}

/// JSON with the control characters escaped that JSON itself allows, such as those of 8-bit terminals. It stays the same
/// JSON.
pub fn escaped_json(json: &str) -> Cow<'_, str> {
    let bad = |letter: char| is_control(letter) && !matches!(letter, '\n' | '\t' | '\r');
    if !json.contains(bad) {
        return json.into();
    }
    let mut escaped = String::with_capacity(json.len() + 16);
    for letter in json.chars() {
        if bad(letter) { escaped.push_str(&format!("\\u{:04x}", u32::from(letter))) } else { escaped.push(letter) }
    }
    escaped.into()
}

/// A cell of CSV. What a spreadsheet would take for a formula gets a `'` before it; numbers stay as they are.
pub fn csv_cell(text: &str) -> Cow<'_, str> {
    let text = escaped_lines(text);
    if text.starts_with(['=', '+', '-', '@', '\t']) && text.parse::<f64>().is_err() {
        return format!("'{text}").into();
    }
    text
}

/// Whether a text is one mail address without a name: `LOCAL@DOMAIN`, of visible ASCII characters.
///
/// The local part is a dot-atom (RFC 5322, 3.2.3). Quoted local parts and addresses in brackets are
/// rare, and are refused.
pub fn is_mail_address(text: &str) -> bool {
    let Some((local, domain)) = text.rsplit_once('@') else { return false };
    let atom = |part: &str| {
        let fits = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-/=?^_`{|}~".contains(&b);
        !part.is_empty() && part.bytes().all(fits)
    };
    let label = |part: &str| {
        let fits = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
        (1..=63).contains(&part.len()) && part.bytes().all(fits) && !part.starts_with('-') && !part.ends_with('-')
    };
    local.len() <= 64 && domain.len() <= 253 && local.split('.').all(atom) && domain.split('.').all(label)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::Value;

    #[test]
    fn mail_addresses_are_told_from_other_texts() {
        for good in ["a@b", "ops@example.com", "first.last+tag@mail-1.example.com", "o'hara@example.com"] {
            assert!(is_mail_address(good), "{good}");
            #[cfg(feature = "smtp")]
            assert!(good.parse::<lettre::Address>().is_ok(), "{good}");
        }
        let long = format!("{}@example.com", "a".repeat(65));
        for bad in [
            "",
            "@",
            "a@",
            "@b",
            "ops",
            "a b@c",
            "a@b c",
            "a@b\r\nRCPT TO:<x@y>",
            "a@-b",
            "a@b..c",
            ".a@b",
            "a.@b",
            "A <a@b>",
            "<a@b>",
            "a@b,c@d",
            "a@[127.0.0.1]",
            "\"a b\"@c",
            "a@b\0",
            "ü@b",
            &long,
        ] {
            assert!(!is_mail_address(bad), "{bad}");
        }
    }

    #[test]
    fn bytes_that_are_no_text_are_said_to_be_lost_unless_they_were_cut() {
        assert_eq!(text_of("grün".as_bytes(), true), ("grün".to_owned(), false));
        assert_eq!(text_of(b"gr\xc3", true), ("gr".to_owned(), false));
        for was_cut in [false, true] {
            assert_eq!(text_of(b"gr\xfcn", was_cut), ("gr\u{FFFD}n".to_owned(), true));
        }
        assert_eq!(text_of(b"gr\xc3", false), ("gr\u{FFFD}".to_owned(), true));
    }

    #[test]
    fn what_drives_a_terminal_is_escaped_and_what_is_shown_stays() {
        assert_eq!(escaped("a\u{1b}]0;x\u{7}\n"), "a\\u{1b}]0;x\\u{7}\\n");
        assert_eq!(escaped_lines("a\tb\nc\r\u{9b}2J"), "a\tb\nc\\r\\u{9b}2J");
        assert_eq!(escaped("txt.\u{202e}exe"), "txt.\\u{202e}exe");
        assert!(matches!(escaped("grün 你好 👩‍💻"), Cow::Borrowed(_)));
        let json = serde_json::json!({ "a\u{7f}": "\u{9b}31m", "b": [1] }).to_string();
        let shown = escaped_json(&json);
        assert_eq!(shown, "{\"a\\u007f\":\"\\u009b31m\",\"b\":[1]}");
        assert_eq!(serde_json::from_str::<Value>(&shown).ok(), serde_json::from_str(&json).ok());
    }

    #[test]
    fn cells_that_would_be_formulas_are_marked() {
        for (cell, written) in [
            ("=1+1", "'=1+1"),
            ("@SUM(A1)", "'@SUM(A1)"),
            ("-2+3", "'-2+3"),
            ("\t=1", "'\t=1"),
            ("-1.5", "-1.5"),
            ("+7", "+7"),
            ("a=b", "a=b"),
            ("", ""),
        ] {
            assert_eq!(csv_cell(cell), written);
        }
    }

    proptest! {
        #[test]
        fn nothing_that_is_shown_holds_a_control_character(text in any::<String>()) {
            prop_assert!(!escaped(&text).contains(is_control));
            let lines = escaped_lines(&text);
            prop_assert!(!lines.contains(|c| is_control(c) && c != '\n' && c != '\t'));
            let json = serde_json::to_string(&text).expect("JSON");
            let shown = escaped_json(&json);
            prop_assert!(!shown.contains(is_control));
            prop_assert_eq!(serde_json::from_str::<String>(&shown).expect("JSON"), text.clone());
            prop_assert!(!csv_cell(&text).starts_with(['=', '@']));
        }
    }
}
