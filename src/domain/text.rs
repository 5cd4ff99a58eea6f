//! Checks of texts: NUL, and mail addresses.
//!
//! NUL is the one character that no text may contain, because PostgreSQL can't store it.
//! In texts that people write, it is an error that names the place. In texts from agents, it is
//! replaced by U+FFFD: a program's output must not keep its result from being stored.

use serde_json::{Map, Value};

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

/// The same in all texts and keys of a JSON object.
pub fn replace_nul_in(map: &mut Map<String, Value>) {
    if map.keys().any(|key| has_nul(key)) {
        *map = std::mem::take(map).into_iter().map(|(key, value)| (key.replace(NUL, INSTEAD), value)).collect();
    }
    map.values_mut().for_each(replace_nul_in_value);
}

fn replace_nul_in_value(value: &mut Value) {
    match value {
        Value::String(text) => replace_nul(text),
        Value::Array(items) => items.iter_mut().for_each(replace_nul_in_value),
        Value::Object(map) => replace_nul_in(map),
        _ => {}
    }
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
    use serde_json::json;

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
    fn it_is_replaced_wherever_it_is() {
        let mut facts = json!({"a\0": ["x\0y", {"b": {"\0": 1}}], "c": "d", "n": null});
        replace_nul_in(facts.as_object_mut().expect("an object"));
        assert_eq!(facts, json!({"a\u{FFFD}": ["x\u{FFFD}y", {"b": {"\u{FFFD}": 1}}], "c": "d", "n": null}));
    }
}
