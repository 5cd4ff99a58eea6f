//! Cuts an output so that it fits into a frame or a row and still is JSON of the same shape.

use crate::domain::json::shortened;
use crate::domain::protocol::RunResult;
use serde_json::value::RawValue;

/// Shorter strings aren't cut any further; the output is left out instead.
const SHORTEST: usize = 256;

/// An output of at most `limit` bytes, and whether it was cut: long strings (`stdout` …) lose their
/// ends. A large output without long strings is left out.
pub(crate) fn cut(output: Box<RawValue>, limit: usize) -> (Option<Box<RawValue>>, bool) {
    if output.get().len() <= limit {
        return (Some(output), false);
    }
    let (mut text, mut longest) = (String::from(Box::<str>::from(output)), limit);
    while longest >= SHORTEST {
        text = shortened(&text, longest);
        if text.len() <= limit {
            return (RawValue::from_string(text).ok(), true);
        }
        longest /= 2;
    }
    (None, true)
}

/// Cuts a result so that it has at most about `limit` bytes as JSON: all outputs alike.
pub(crate) fn shrink(mut result: RunResult, limit: usize) -> RunResult {
    let size = |result: &RunResult| serde_json::to_string(result).map_or(usize::MAX, |text| text.len());
    if size(&result) <= limit {
        return result;
    }
    let outputs = result.results.iter().filter_map(|operation| operation.output.as_ref());
    let (count, bytes) = outputs.fold((0, 0), |(count, bytes), output| (count + 1, bytes + output.get().len()));
    let rest = size(&result) - bytes;
    let each = limit.saturating_sub(rest) / count.max(1);
    for operation in &mut result.results {
        if let Some(output) = operation.output.take() {
            let (output, was_cut) = cut(output, each);
            (operation.output, operation.truncated) = (output, operation.truncated || was_cut);
        }
    }
    result
}

/// The first characters of a text, up to this many bytes.
pub(crate) fn cut_text(mut text: String, bytes: usize) -> String {
    let mut end = bytes.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::Value;
    use serde_json::value::to_raw_value;

    #[test]
    fn long_strings_lose_their_ends_and_the_shape_stays() {
        let output = serde_json::json!({"exit_code": 0, "stdout": "ä".repeat(5000), "stderr": "short"});
        let (cut, was_cut) = cut(to_raw_value(&output).expect("JSON"), 4000);
        let cut: Value = serde_json::from_str(cut.expect("an output").get()).expect("JSON");
        assert!(was_cut);
        assert_eq!((&cut["exit_code"], &cut["stderr"]), (&output["exit_code"], &output["stderr"]));
        assert!(cut["stdout"].as_str().is_some_and(|text| text.len() > 1000 && text.starts_with("ää")));
    }

    proptest! {
        #[test]
        fn a_cut_output_always_fits(texts in prop::collection::vec(".{0,300}", 0..20), limit in 0_usize..3000) {
            let (output, was_cut) = cut(to_raw_value(&texts).expect("JSON"), limit);
            prop_assert!(output.as_ref().is_none_or(|output| output.get().len() <= limit));
            prop_assert!(was_cut || output.is_some());
        }
    }
}
