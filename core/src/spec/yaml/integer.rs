//! Whole numbers of any size, as Python has them.

use super::Integer;

/// Digits in any base beyond which Python refuses to print an integer; so does this, which bounds
/// the work, too.
const MAX_DIGITS: usize = 4300;
const LIMB: u64 = 1_000_000_000;

/// Why a scalar that looks like a number cannot be one.
pub(super) type Unreadable = &'static str;

impl Integer {
    /// The value, if it fits.
    pub(in crate::spec) fn to_i64(&self) -> Option<i64> {
        self.0.parse().ok()
    }
}

/// A whole number under construction: its value in base 10^9, least first.
pub(super) struct Builder(Vec<u64>);

impl Builder {
    pub(super) fn new() -> Self {
        Self(vec![0])
    }

    /// `self * factor + digit`; both at most 2^32.
    fn push(&mut self, factor: u64, digit: u64) {
        let mut carry = digit;
        for limb in &mut self.0 {
            let value = *limb * factor + carry;
            *limb = value % LIMB;
            carry = value / LIMB;
        }
        if carry > 0 {
            self.0.push(carry);
        }
    }

    /// Appends digits of base `radix` to the number.
    pub(super) fn digits(mut self, digits: &str, radix: u32) -> Result<Self, Unreadable> {
        if digits.is_empty() {
            return Err("a number without digits");
        }
        if digits.len() > MAX_DIGITS {
            return Err("a number of more than 4300 digits");
        }
        for c in digits.chars() {
            let digit = c.to_digit(radix).ok_or("not a number")?;
            self.push(u64::from(radix), u64::from(digit));
        }
        Ok(self)
    }

    /// Appends one sexagesimal place.
    pub(super) fn sixty(&mut self, place: u32) {
        self.push(60, u64::from(place));
    }

    pub(super) fn finish(self, negative: bool) -> Integer {
        let mut limbs = self.0.iter().rev().skip_while(|limb| **limb == 0);
        let Some(first) = limbs.next() else { return Integer("0".to_owned()) };
        let mut text = if negative { format!("-{first}") } else { first.to_string() };
        for limb in limbs {
            text.push_str(&format!("{limb:09}"));
        }
        Integer(text)
    }
}
