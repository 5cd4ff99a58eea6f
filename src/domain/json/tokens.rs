//! The tokens of JSON text. What is done to text keeps the numbers of others, which are longer than ours, to the letter.

use std::borrow::Cow;

/// How deeply lists and objects may be inside each other. Readers give up at 128, and answers hold what is stored a few
/// levels deeper.
pub const MAX_DEPTH: usize = 64;

/// A token, as it is written. Strings have their quotes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Token<'a> {
    /// `[` or `{`.
    Open(u8),
    /// `]` or `}`.
    Close(u8),
    /// A key of an object.
    Key(&'a str),
    /// A string that is a value.
    Text(&'a str),
    /// A number, `true`, `false` or `null`.
    Atom(&'a str),
}

/// The tokens of valid JSON, each with its offset. Of other text, it finds something or other, and ends.
pub(super) struct Tokens<'a> {
    json: &'a str,
    at: usize,
}

impl<'a> Tokens<'a> {
    pub(super) fn of(json: &'a str) -> Self {
        Self { json, at: 0 }
    }

    fn skip(&mut self, is_skipped: impl Fn(u8) -> bool) {
        let rest = &self.json.as_bytes()[self.at..];
        self.at += rest.iter().position(|byte| !is_skipped(*byte)).unwrap_or(rest.len());
    }

    /// The string whose first quote is at the present place.
    fn string(&mut self) -> &'a str {
        let (start, bytes) = (self.at, self.json.as_bytes());
        self.at += 1;
        while let Some(byte) = bytes.get(self.at) {
            match byte {
                b'"' => {
                    self.at += 1;
                    break;
                }
                // The escaped character may be a quote.
                b'\\' => self.at = (self.at + 2).min(bytes.len()),
                _ => self.at += 1,
            }
        }
        self.json.get(start..self.at).unwrap_or_default()
    }
}

impl<'a> Iterator for Tokens<'a> {
    type Item = (usize, Token<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        let between = |byte: u8| byte.is_ascii_whitespace() || matches!(byte, b',' | b':');
        self.skip(between);
        let start = self.at;
        let token = match *self.json.as_bytes().get(start)? {
            open @ (b'[' | b'{') => {
                self.at += 1;
                Token::Open(open)
            }
            close @ (b']' | b'}') => {
                self.at += 1;
                Token::Close(close)
            }
            b'"' => {
                let string = self.string();
                let after = self.json.as_bytes()[self.at..].iter().find(|byte| !byte.is_ascii_whitespace());
                if after == Some(&b':') { Token::Key(string) } else { Token::Text(string) }
            }
            _ => {
                self.skip(|byte| !between(byte) && !matches!(byte, b'[' | b']' | b'{' | b'}' | b'"'));
                Token::Atom(self.json.get(start..self.at).unwrap_or_default())
            }
        };
        Some((start, token))
    }
}

/// How deeply lists and objects are inside each other: 0 for a text or a number.
pub(super) fn depth(json: &str) -> usize {
    let (mut open, mut most) = (0_usize, 0);
    for (_, token) in Tokens::of(json) {
        match token {
            Token::Open(_) => {
                open += 1;
                most = most.max(open);
            }
            Token::Close(_) => open = open.saturating_sub(1),
            Token::Key(_) | Token::Text(_) | Token::Atom(_) => {}
        }
    }
    most
}

/// The place of an offset: line and column, in characters, from 1.
pub(super) fn place(json: &str, offset: usize) -> (usize, usize) {
    let before = json.get(..offset).unwrap_or(json);
    let line = before.rsplit('\n').next().unwrap_or_default();
    (1 + before.matches('\n').count(), 1 + line.chars().count())
}

/// JSON without escapes of what is no text: NUL and halves of surrogate pairs become U+FFFD. Databases and most readers
/// refuse them, and the agent that wrote one would lose its result.
pub fn repaired(json: &str) -> Cow<'_, str> {
    if !["\\u0000", "\\ud", "\\uD"].iter().any(|escape| json.contains(escape)) {
        return json.into();
    }
    const INSTEAD: &str = "\\ufffd";
    let unit = |escape: &str| u16::from_str_radix(escape.strip_prefix("\\u")?.get(..4)?, 16).ok();
    let mut text = String::with_capacity(json.len());
    let mut rest = json;
    while let Some(at) = rest.find('\\') {
        let (before, escape) = rest.split_at(at);
        text.push_str(before);
        let length = match unit(escape) {
            // Of the escapes without digits, none is longer than two characters.
            None => escape.char_indices().nth(2).map_or(escape.len(), |(end, _)| end),
            Some(0 | 0xdc00..=0xdfff) => {
                text.push_str(INSTEAD);
                rest = &escape[6..];
                continue;
            }
            Some(0xd800..=0xdbff) => match escape.get(6..).and_then(unit) {
                Some(0xdc00..=0xdfff) => 12,
                _ => {
                    text.push_str(INSTEAD);
                    rest = &escape[6..];
                    continue;
                }
            },
            Some(_) => 6,
        };
        text.push_str(&escape[..length]);
        rest = &escape[length..];
    }
    text.push_str(rest);
    text.into()
}

/// JSON on one line: without the line ends between its tokens. Its strings hold none.
pub fn on_one_line(json: &str) -> Cow<'_, str> {
    match json.contains(['\n', '\r']) {
        // What separates tokens are commas and colons; spaces separate none.
        true => json.chars().filter(|letter| !matches!(letter, '\n' | '\r')).collect::<String>().into(),
        false => json.into(),
    }
}

/// JSON whose strings, but for keys, have at most `longest` bytes as they are written.
pub(crate) fn shortened(json: &str, longest: usize) -> String {
    let (mut short, mut done) = (String::with_capacity(json.len().min(longest.saturating_mul(4))), 0);
    for (start, token) in Tokens::of(json) {
        let Token::Text(text) = token else { continue };
        if text.len() <= longest.saturating_add(2) {
            continue;
        }
        let Some(inside) = text.get(1..text.len() - 1) else { continue };
        short.push_str(&json[done..=start]);
        short.push_str(&inside[..whole_letters(inside, longest)]);
        short.push('"');
        done = start + text.len();
    }
    short.push_str(&json[done..]);
    short
}

/// The length of the longest beginning of up to `most` bytes that splits neither a character nor an escape.
fn whole_letters(text: &str, most: usize) -> usize {
    let mut end = 0;
    while end < text.len() {
        let rest = &text[end..];
        let letters = match rest.as_bytes() {
            // Both halves of a pair are one character.
            [b'\\', b'u', b'd' | b'D', b'8' | b'9' | b'a' | b'A' | b'b' | b'B', ..] => 12,
            [b'\\', b'u', ..] => 6,
            [b'\\', ..] => 2,
            _ => 1,
        };
        let length = rest.char_indices().nth(letters).map_or(rest.len(), |(end, _)| end);
        if end + length > most {
            break;
        }
        end += length;
    }
    end
}

/// JSON with its lists and objects on lines of their own. Numbers and strings stay as they are.
pub fn pretty(json: &str) -> String {
    let mut text = String::with_capacity(json.len() * 2);
    let (mut depth, mut before) = (0_usize, None);
    for (_, token) in Tokens::of(json) {
        let is_end = matches!(token, Token::Close(_));
        if is_end {
            depth = depth.saturating_sub(1);
        }
        match before {
            None | Some(Token::Key(_)) => {}
            // Nothing is in it.
            Some(Token::Open(_)) if is_end => {}
            Some(last) => {
                if !is_end && !matches!(last, Token::Open(_)) {
                    text.push(',');
                }
                text.push('\n');
                text.extend(std::iter::repeat_n("  ", depth));
            }
        }
        match token {
            Token::Open(byte) => {
                depth += 1;
                text.push(char::from(byte));
            }
            Token::Close(byte) => text.push(char::from(byte)),
            Token::Key(key) => {
                text.push_str(key);
                text.push_str(": ");
            }
            Token::Text(value) | Token::Atom(value) => text.push_str(value),
        }
        before = Some(token);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::testing::any_json;
    use super::*;
    use proptest::prelude::*;
    use serde_json::Value;

    #[test]
    fn halves_of_pairs_and_nul_are_replaced_and_all_else_stays() {
        for (json, repaired_json) in [
            (r#""\ud800""#, r#""\ufffd""#),
            (r#""\ud800x\udc00""#, r#""\ufffdx\ufffd""#),
            (r#""\udc00\ud800""#, r#""\ufffd\ufffd""#),
            (r#""\ud83d\u0041""#, r#""\ufffd\u0041""#),
            (r#""\ud800\ud83d\ude00""#, r#""\ufffd\ud83d\ude00""#),
            (r#"{"a\u0000":"\\u0000\u00fc\uD83D\uDE00\n\""}"#, r#"{"a\ufffd":"\\u0000\u00fc\uD83D\uDE00\n\""}"#),
            (r#"["\\ud800",1e400]"#, r#"["\\ud800",1e400]"#),
        ] {
            assert_eq!(repaired(json), repaired_json);
        }
        // What is no JSON is somebody else's error.
        for garbage in ["\\", "\\u", "\\ud8", "\\ud800", "\\ü\\ud", "\"\\ud800"] {
            repaired(garbage);
        }
    }

    #[test]
    fn depths_and_places_are_those_of_the_text() {
        for (json, deep) in [("1", 0), (r#""[[""#, 0), ("[]", 1), (r#"{"a":[1,{"b":"]"}],"c":[]}"#, 3)] {
            assert_eq!(depth(json), deep, "{json}");
        }
        assert_eq!(depth(&"[".repeat(100_000)), 100_000);
        assert_eq!([place("äb\nüx", 6), place("x", 0), place("", 9)], [(2, 2), (1, 1), (1, 1)]);
    }

    #[test]
    fn long_strings_are_cut_and_neither_keys_nor_numbers() {
        let json = r#"{"a long key":"0123456789","n":123456789012345678901234567890,"e":"12345\ud83d\ude00"}"#;
        let short = r#"{"a long key":"01234567","n":123456789012345678901234567890,"e":"12345"}"#;
        assert_eq!(shortened(json, 8), short);
        assert_eq!(shortened(json, 17), json);
        assert_eq!(shortened(r#""ää\n""#, 3), r#""ä""#);
    }

    #[test]
    fn pretty_text_has_a_line_for_each_value() {
        let json = r#"{"a":[],"b":{"c":1.10,"d":["x, y",null]},"e":{}}"#;
        let lines = "{\n  \"a\": [],\n  \"b\": {\n    \"c\": 1.10,\n    \"d\": [\n      \"x, y\",\n      null\n    ]\n  },\n  \"e\": {}\n}";
        assert_eq!(pretty(json), lines);
    }

    proptest! {
        #[test]
        fn what_is_done_to_text_keeps_what_it_says(json in any_json()) {
            let value: Value = serde_json::from_str(&json).expect("JSON");
            prop_assert_eq!(&serde_json::from_str::<Value>(&pretty(&json)).expect("JSON"), &value);
            prop_assert_eq!(&serde_json::from_str::<Value>(&repaired(&json)).expect("JSON"), &value);
            prop_assert_eq!(shortened(&json, usize::MAX), json.as_str());
            let line = on_one_line(&json);
            prop_assert!(!line.contains(['\n', '\r']));
            prop_assert_eq!(serde_json::from_str::<Value>(&line).expect("JSON"), value);
            prop_assert!(serde_json::from_str::<Value>(&shortened(&json, 3)).is_ok());
        }

        #[test]
        fn no_text_makes_them_panic(text in "[\\[\\]{}\":,\\\\ud80a1 ü]{0,40}") {
            for (_, token) in Tokens::of(&text) {
                prop_assert!(!matches!(token, Token::Atom("")));
            }
            let _ = (depth(&text), repaired(&text), pretty(&text), shortened(&text, 2));
        }
    }
}
