//! Decimal numbers, exact however long they are.

use std::cmp::Ordering;
use std::fmt::{self, Display, Formatter};

/// Texts that count as numbers when compared with a number literal, as a POSIX regular expression; at most
/// [`MAX_NUMBER`] characters. Within these bounds, no database finds a number too long.
pub const NUMBER_PATTERN: &str = r"^-?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]{1,4})?$";
/// The longest text that counts as a number.
pub const MAX_NUMBER: usize = 4_096;

/// A decimal number: ± 0.DIGITS × 10^exponent. The digits begin and end with something other than 0; zero has none, no
/// exponent and no sign.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Number {
    is_negative: bool,
    digits: String,
    exponent: i64,
}

impl Number {
    /// The number that a text contains, if any: see [`NUMBER_PATTERN`].
    pub fn of(text: &str) -> Option<Self> {
        let are_digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let unsigned = text.strip_prefix('-').unwrap_or(text);
        let (mantissa, exponent) = match unsigned.split_once(['e', 'E']) {
            Some((mantissa, exponent)) => (mantissa, exponent),
            None => (unsigned, "0"),
        };
        let (whole, fraction) = match mantissa.split_once('.') {
            Some((whole, fraction)) if are_digits(fraction) => (whole, fraction),
            Some(_) => return None,
            None => (mantissa, ""),
        };
        let power = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
        if text.len() > MAX_NUMBER || !are_digits(whole) || !are_digits(power) || power.len() > 4 {
            return None;
        }
        let exponent: i64 = exponent.parse().ok()?;
        let all = format!("{whole}{fraction}");
        let digits = all.trim_start_matches('0');
        let point = i64::try_from(whole.len()).ok()? - i64::try_from(all.len() - digits.len()).ok()?;
        let digits = digits.trim_end_matches('0').to_owned();
        if digits.is_empty() {
            return Some(Self { is_negative: false, digits, exponent: 0 });
        }
        Some(Self { is_negative: unsigned.len() < text.len(), digits, exponent: point + exponent })
    }

    /// A text whose bytewise order is that of the numbers.
    pub fn sort_key(&self) -> String {
        if self.digits.is_empty() {
            return "1".to_owned();
        }
        // Far from 0 on either side, and of the same length for all: exponents are below 20,000.
        let exponent = 50_000 + self.exponent;
        if !self.is_negative {
            return format!("2{exponent:05}{}", self.digits);
        }
        // The other way round; what is longer comes first.
        let turned: String = self.digits.bytes().map(|digit| char::from(b'0' + b'9' - digit)).collect();
        format!("0{:05}{turned}~", 99_999 - exponent)
    }
}

impl PartialOrd for Number {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Number {
    fn cmp(&self, other: &Self) -> Ordering {
        self.sort_key().cmp(&other.sort_key())
    }
}

impl Display for Number {
    /// As usual, if it isn't longer than usual; else with an exponent. It matches [`NUMBER_PATTERN`].
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let (sign, digits) = (if self.is_negative { "-" } else { "" }, self.digits.as_str());
        let length = i64::try_from(digits.len()).unwrap_or(i64::MAX);
        let zeros = |count: i64| "0".repeat(usize::try_from(count).unwrap_or_default());
        match self.exponent {
            _ if digits.is_empty() => f.write_str("0"),
            point if point >= length && point <= 21 => write!(f, "{sign}{digits}{}", zeros(point - length)),
            point if point > 0 && point < length => {
                let (whole, fraction) = digits.split_at(usize::try_from(point).unwrap_or_default());
                write!(f, "{sign}{whole}.{fraction}")
            }
            point if point <= 0 && point > -6 => write!(f, "{sign}0.{}{digits}", zeros(-point)),
            point => {
                let (first, rest) = digits.split_at(1);
                let dot = if rest.is_empty() { "" } else { "." };
                write!(f, "{sign}{first}{dot}{rest}e{}", point - 1)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn number(text: &str) -> Number {
        Number::of(text).unwrap_or_else(|| panic!("{text}"))
    }

    #[test]
    fn only_whole_texts_are_numbers() {
        for (text, written) in [
            ("0", "0"),
            ("-0.00", "0"),
            ("007", "7"),
            ("5.50", "5.5"),
            ("-3", "-3"),
            ("1e2", "100"),
            ("1.5E+3", "1500"),
            ("0.0001", "0.0001"),
            ("123456e-9", "0.000123456"),
            ("1e-9", "1e-9"),
            ("12345678901234567890123", "1.2345678901234567890123e22"),
            ("9007199254740993", "9007199254740993"),
            ("1e400", "1e400"),
            ("-12.5e9999", "-1.25e10000"),
        ] {
            assert_eq!(number(text).to_string(), written, "{text}");
        }
        let long = "1".repeat(MAX_NUMBER + 1);
        for text in
            ["", "-", "5.", ".5", "+5", " 5", "5 ", "1e", "1e+", "1e12345", "0x5", "five", "1_0", "٥", "NaN", &long]
        {
            assert_eq!(Number::of(text), None, "{text}");
        }
    }

    #[test]
    fn numbers_are_in_order_however_long_they_are() {
        let sorted = [
            "-1e9999",
            "-9007199254740993",
            "-9007199254740992",
            "-1.5",
            "-1",
            "-0.15",
            "-0.1",
            "-1e-9999",
            "0",
            "1e-9999",
            "0.1",
            "0.15",
            "1",
            "1.5",
            "10",
            "9007199254740992",
            "9007199254740993",
            "9007199254740993.0000000000000000000000001",
            "1e400",
            "1e9999",
        ]
        .map(number);
        assert!(sorted.is_sorted_by(|a, b| a < b), "{sorted:?}");
        assert_eq!(number("10.0"), number("1e1"));
    }

    proptest! {
        #[test]
        fn they_compare_as_their_values_do(a in -10_000_000_i64..10_000_000, b in -10_000_000_i64..10_000_000, shift in 0..12_u32) {
            let text = |n: i64| format!("{n}e-{shift}");
            prop_assert_eq!(number(&text(a)).cmp(&number(&text(b))), a.cmp(&b));
        }

        #[test]
        fn what_is_written_is_the_same_number(text in "-?[0-9]{1,30}(\\.[0-9]{1,30})?([eE][+-]?[0-9]{1,3})?") {
            let number = number(&text);
            prop_assert_eq!(Number::of(&number.to_string()), Some(number));
        }
    }
}
