//! What readers say is wrong, in words that don't come from the program's types.

/// What readers call that which they expected, by its beginning.
const EXPECTED: [(&str, &str); 7] = [
    ("struct ", "an object"),
    ("a map", "an object"),
    ("a sequence", "a list"),
    ("tuple ", "a list"),
    ("unit", "null"),
    ("enum ", "a name"),
    ("f64", "a number"),
];
const WHOLE_NUMBERS: [&str; 10] = ["u8", "u16", "u32", "u64", "usize", "i8", "i16", "i32", "i64", "isize"];
/// What readers call that which they found, by its beginning.
const FOUND: [(&str, &str); 5] = [
    ("map", "object"),
    ("sequence", "list"),
    ("floating point", "number"),
    ("integer", "number"),
    ("unit value", "null"),
];
/// What is said of texts that are no numbers, or neither true nor false.
const OF_TEXTS: [(&str, &str); 5] = [
    ("invalid digit found in string", "not a whole number"),
    ("cannot parse integer from empty string", "empty, expected a whole number"),
    ("number too large to fit in target type", "the number is too large"),
    ("number too small to fit in target type", "the number is too small"),
    ("provided string was not `true` or `false`", "neither true nor false"),
];

/// A reader's error in plain words: without types of the program, and without the list of keys that it expected instead
/// of an unknown one, which names aliases, and keys that are ignored.
pub fn plainly(error: &str) -> String {
    let (what, place) = error.rfind(" at line ").map_or((error, ""), |at| error.split_at(at));
    if let Some((_, plain)) = OF_TEXTS.iter().find(|(theirs, _)| *theirs == what) {
        return format!("{plain}{place}");
    }
    if what.starts_with("unknown field ") {
        // The unknown key may hold anything; no key of ours holds a comma.
        let unknown = what.rsplit_once(", expected one of ").or_else(|| what.rsplit_once(", expected `"));
        return format!("{}{place}", unknown.map_or(what, |(unknown, _)| unknown));
    }
    let Some((found, expected)) = what.rsplit_once(", expected ") else { return error.to_owned() };
    let expected = if WHOLE_NUMBERS.contains(&expected) { "a whole number" } else { ours(expected, &EXPECTED).0 };
    let kinds = ["invalid type: ", "invalid value: "];
    let plain = kinds.iter().find_map(|kind| {
        let (name, value) = ours(found.strip_prefix(kind)?, &FOUND);
        Some(format!("{kind}{name}{value}"))
    });
    format!("{}, expected {expected}{place}", plain.as_deref().unwrap_or(found))
}

/// The name that we have for what begins like one of theirs, and what follows theirs; else the text, and nothing.
fn ours<'a>(text: &'a str, names: &[(&str, &'static str)]) -> (&'a str, &'a str) {
    let known = names.iter().find_map(|(theirs, ours)| Some((*ours, text.strip_prefix(theirs)?)));
    known.unwrap_or((text, ""))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code, reason = "only read")]
    struct Document {
        #[serde(default)]
        count: u32,
        #[serde(default)]
        ratio: f64,
        #[serde(default)]
        names: Vec<String>,
        #[serde(default)]
        labels: std::collections::BTreeMap<String, String>,
        #[serde(default)]
        inner: Option<Box<Document>>,
        #[serde(default)]
        kind: Option<Kind>,
    }

    #[derive(Debug, Deserialize)]
    #[serde(rename_all = "snake_case")]
    enum Kind {
        One,
        Other,
    }

    #[test]
    fn no_type_of_the_program_is_named() {
        for (json, plain) in [
            (
                r#"{"count":"x, expected u32"}"#,
                "invalid type: string \"x, expected u32\", expected a whole number at line 1 column 26",
            ),
            (r#"{"count":-1}"#, "invalid value: number `-1`, expected a whole number at line 1 column 11"),
            (r#"{"count":1.5}"#, "invalid type: number `1.5`, expected a whole number at line 1 column 12"),
            (r#"{"ratio":[]}"#, "invalid type: list, expected a number at line 1 column 9"),
            (r#"{"names":{}}"#, "invalid type: object, expected a list at line 1 column 9"),
            (r#"{"names":null}"#, "invalid type: null, expected a list at line 1 column 13"),
            (r#"{"labels":[]}"#, "invalid type: list, expected an object at line 1 column 10"),
            (r#"{"inner":5}"#, "invalid type: number `5`, expected an object at line 1 column 10"),
            (r#"{"kind":"third"}"#, "unknown variant `third`, expected `one` or `other` at line 1 column 15"),
            (r#"{"colour, expected one of":1}"#, "unknown field `colour, expected one of` at line 1 column 26"),
            (r#"{"names":[true]}"#, "invalid type: boolean `true`, expected a string at line 1 column 14"),
        ] {
            let error = serde_json::from_str::<Document>(json).expect_err("refused").to_string();
            assert_eq!(plainly(&error), plain, "{error}");
        }
        for (text, plain) in [
            ("abc", "not a whole number"),
            ("", "empty, expected a whole number"),
            ("99999999999", "the number is too large"),
        ] {
            let error = text.parse::<u32>().expect_err("refused").to_string();
            assert_eq!(plainly(&error), plain);
        }
        assert_eq!(plainly(&"yes".parse::<bool>().expect_err("refused").to_string()), "neither true nor false");
        assert_eq!(plainly("missing field `name`"), "missing field `name`");
    }
}
