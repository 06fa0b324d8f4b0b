//! What a plain scalar means: the implicit resolvers of PyYAML's `safe_load`, in its own words
//! (`yaml/resolver.py`, `yaml/constructor.py`), without regular expressions.

use super::Value;
use super::integer::{Builder, Unreadable};

/// The value of a plain (unquoted) scalar.
///
/// # Errors
/// If it looks like a number or a date and is none, as `0x_` or `2024-02-30`; PyYAML fails, too.
pub(in crate::spec) fn plain(text: &str) -> Result<Value, Unreadable> {
    if matches!(text, "" | "~" | "null" | "Null" | "NULL") {
        return Ok(Value::Null);
    }
    if let Some(value) = boolean(text) {
        return Ok(Value::Bool(value));
    }
    // Everything else that is not text starts like a number.
    if !text.starts_with(|c: char| c.is_ascii_digit() || matches!(c, '+' | '-' | '.')) {
        return Ok(Value::Text(text.to_owned()));
    }
    if let Some(value) = float(text) {
        return Ok(Value::Float(value));
    }
    if let Some(value) = integer(text) {
        return value;
    }
    if let Some(value) = timestamp(text) {
        return value.map(Value::Timestamp);
    }
    Ok(Value::Text(text.to_owned()))
}

/// `yes`, `on`, `True` and the like; not `y`, which PyYAML leaves text.
pub(super) fn boolean(text: &str) -> Option<bool> {
    let lower = text.to_ascii_lowercase();
    let one_case = text == lower || text == text.to_ascii_uppercase() || {
        let mut chars = text.chars();
        let first = chars.next().is_some_and(|c| c.is_ascii_uppercase());
        first && chars.all(|c| c.is_ascii_lowercase())
    };
    match lower.as_str() {
        "yes" | "true" | "on" if one_case => Some(true),
        "no" | "false" | "off" if one_case => Some(false),
        _ => None,
    }
}

fn split_sign(text: &str) -> (bool, &str) {
    match text.as_bytes().first() {
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        _ => (false, text),
    }
}

fn all(text: &str, test: impl Fn(u8) -> bool) -> bool {
    text.bytes().all(test)
}

fn digit(b: u8) -> bool {
    b.is_ascii_digit()
}

fn digit_or_underscore(b: u8) -> bool {
    b.is_ascii_digit() || b == b'_'
}

/// `[0-9][0-9_]*`
fn digits(text: &str) -> bool {
    text.as_bytes().first().copied().is_some_and(digit) && all(text, digit_or_underscore)
}

/// `[0-5]?[0-9]`
fn below_sixty(text: &str) -> bool {
    matches!(text.as_bytes(), [b'0'..=b'9'] | [b'0'..=b'5', b'0'..=b'9'])
}

/// A float: it has a `.`; an exponent has a sign (so `1e3` and `1e-3` are text).
pub(super) fn float(text: &str) -> Option<f64> {
    let (negative, body) = split_sign(text);
    let signed = |value: f64| Some(if negative { -value } else { value });
    match body {
        ".inf" | ".Inf" | ".INF" => return signed(f64::INFINITY),
        ".nan" | ".NaN" | ".NAN" if body.len() == text.len() => return Some(f64::NAN),
        _ => {}
    }
    let (whole, rest) = body.split_once('.')?;
    if whole.contains(':') {
        return signed(sexagesimal_float(whole, rest)?);
    }
    let (fraction, exponent) = match rest.find(['e', 'E']) {
        Some(at) => (&rest[..at], Some(&rest[at + 1..])),
        None => (rest, None),
    };
    let exponent_good = exponent.is_none_or(|exponent| {
        exponent.starts_with(['+', '-']) && exponent.len() > 1 && all(&exponent[1..], digit)
    });
    let body_good = if whole.is_empty() {
        body.len() == text.len() && digits(fraction)
    } else {
        digits(whole) && all(fraction, digit_or_underscore)
    };
    if !body_good || !exponent_good {
        return None;
    }
    let mut plain = format!("{whole}.{fraction}").replace('_', "");
    if let Some(exponent) = exponent {
        plain.push('e');
        plain.push_str(exponent);
    }
    // Rust reads "1." and ".5" as Python does.
    signed(plain.parse().ok()?)
}

/// `[0-9][0-9_]*(:[0-5]?[0-9])+\.[0-9_]*`, split at the point.
fn sexagesimal_float(whole: &str, fraction: &str) -> Option<f64> {
    let mut places = whole.split(':');
    let first = places.next().filter(|first| digits(first))?;
    if !all(fraction, digit_or_underscore) {
        return None;
    }
    let mut value: f64 = first.replace('_', "").parse().ok()?;
    let places: Vec<&str> = places.collect();
    for (i, place) in places.iter().enumerate() {
        if !below_sixty(place) {
            return None;
        }
        let last = i + 1 == places.len();
        let text = if last { format!("{place}.{fraction}") } else { (*place).to_owned() };
        value = value * 60.0 + text.replace('_', "").parse::<f64>().ok()?;
    }
    Some(value)
}

/// A whole number: binary, octal (`010`), decimal, hexadecimal or sexagesimal (`1:30`).
pub(super) fn integer(text: &str) -> Option<Result<Value, Unreadable>> {
    let (negative, body) = split_sign(text);
    let finish = |builder: Builder| Value::Integer(builder.finish(negative));
    let of = |digits: &str, radix| {
        Some(Builder::new().digits(&digits.replace('_', ""), radix).map(finish))
    };
    if let Some(bits) = body.strip_prefix("0b") {
        let good = !bits.is_empty() && all(bits, |b| matches!(b, b'0' | b'1' | b'_'));
        return if good { of(bits, 2) } else { None };
    }
    if let Some(hex) = body.strip_prefix("0x") {
        let good = !hex.is_empty() && all(hex, |b| b.is_ascii_hexdigit() || b == b'_');
        return if good { of(hex, 16) } else { None };
    }
    if body == "0" {
        return of(body, 10);
    }
    if let Some(octal) = body.strip_prefix('0') {
        let good = !octal.is_empty() && all(octal, |b| matches!(b, b'0'..=b'7' | b'_'));
        return if good { of(body, 8) } else { None };
    }
    let (first, places) = match body.split_once(':') {
        Some((first, places)) => (first, Some(places)),
        None => (body, None),
    };
    if !digits(first) {
        return None;
    }
    let Some(places) = places else { return of(body, 10) };
    if !places.split(':').all(below_sixty) {
        return None;
    }
    let mut builder = match Builder::new().digits(&first.replace('_', ""), 10) {
        Ok(builder) => builder,
        Err(reason) => return Some(Err(reason)),
    };
    if places.len() > 4300 {
        return Some(Err("a number of more than 4300 digits"));
    }
    for place in places.split(':') {
        builder.sixty(place.parse().unwrap_or_default());
    }
    Some(Ok(finish(builder)))
}

/// A date or a date with time, printed as Python's `str()` prints `date` and `datetime`.
pub(super) fn timestamp(text: &str) -> Option<Result<String, Unreadable>> {
    const BAD: &str = "a date that does not exist";
    let number = |text: &str, least: usize, most: usize| -> Option<i32> {
        let good = (least..=most).contains(&text.len()) && all(text, digit);
        if good { text.parse().ok() } else { None }
    };
    let bytes = text.as_bytes();
    if bytes.len() < 8 || bytes[4] != b'-' || !text.is_char_boundary(5) {
        return None;
    }
    let year = number(&text[..4], 4, 4)?;
    let (month, rest) = text[5..].split_once('-')?;
    let day_end = rest.bytes().take_while(|b| digit(*b)).count();
    let (day, clock) = rest.split_at(day_end);
    let date_only = clock.is_empty();
    let least = if date_only { 2 } else { 1 };
    let (month, day) = (number(month, least, 2)?, number(day, least, 2)?);
    let date = i16::try_from(year).ok().and_then(|year| {
        jiff::civil::Date::new(year, i8::try_from(month).ok()?, i8::try_from(day).ok()?).ok()
    });
    let date = if year == 0 { None } else { date };
    if date_only {
        return Some(date.map(|date| date.to_string()).ok_or(BAD));
    }
    let clock = match clock.as_bytes().first()? {
        b'T' | b't' => &clock[1..],
        b' ' | b'\t' => clock.trim_start_matches([' ', '\t']),
        _ => return None,
    };
    let (hour, rest) = clock.split_once(':')?;
    let (minute, rest) = rest.split_once(':')?;
    let second_end = rest.bytes().take_while(|b| digit(*b)).count();
    let (second, rest) = rest.split_at(second_end);
    let (hour, minute) = (number(hour, 1, 2)?, number(minute, 2, 2)?);
    let second = number(second, 2, 2)?;
    let (fraction, zone) = match rest.strip_prefix('.') {
        Some(rest) => rest.split_at(rest.bytes().take_while(|b| digit(*b)).count()),
        None => ("", rest),
    };
    let zone = zone.trim_start_matches([' ', '\t']);
    let offset = match zone {
        "" => None,
        "Z" => Some("+00:00".to_owned()),
        _ => {
            let (sign, zone) = (zone.get(..1)?, zone.get(1..)?);
            let (hours, minutes) = zone.split_once(':').unwrap_or((zone, "00"));
            let (hours, minutes) = (number(hours, 1, 2)?, number(minutes, 2, 2)?);
            if !matches!(sign, "+" | "-") {
                return None;
            }
            if hours > 23 {
                return Some(Err(BAD));
            }
            // Python folds minutes above 59 into hours.
            let total = hours * 60 + minutes;
            let sign = if total == 0 { "+" } else { sign };
            Some(format!("{sign}{:02}:{:02}", total / 60, total % 60))
        }
    };
    let Some(date) = date.filter(|_| hour < 24 && minute < 60 && second < 60) else {
        return Some(Err(BAD));
    };
    let micros: u32 = format!("{fraction:0<6.6}").parse().unwrap_or_default();
    let mut out = format!("{date} {hour:02}:{minute:02}:{second:02}");
    if micros > 0 {
        out.push_str(&format!(".{micros:06}"));
    }
    out.push_str(&offset.unwrap_or_default());
    Some(Ok(out))
}

/// A float as Python's `repr()` prints it: shortest digits that read back the same, exponent below
/// 10^-4 and from 10^16.
pub(super) fn python_float(number: f64) -> String {
    if number.is_nan() {
        return "nan".to_owned();
    }
    if number.is_infinite() {
        return if number > 0.0 { "inf".to_owned() } else { "-inf".to_owned() };
    }
    let shortest = format!("{number:e}");
    let length =
        |text: &str| text.bytes().take_while(|b| *b != b'e').filter(u8::is_ascii_digit).count();
    // Of two shortest forms equally near, Python takes the even one, as exact formatting does.
    let exact = format!("{number:.*e}", length(&shortest) - 1);
    let scientific = if exact.parse() == Ok(number) { exact } else { shortest };
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or_default();
    if (-4..16).contains(&exponent) {
        let digits = length(mantissa) as i32;
        return format!("{number:.*}", (digits - 1 - exponent).max(1) as usize);
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{mantissa}e{sign}{:02}", exponent.abs())
}
