//! From bytes to text that may be YAML.

use super::Failure;

/// The text of a YAML document: UTF-8, with or without a byte order mark, without characters that
/// YAML forbids.
pub(in crate::spec) fn decode(bytes: &[u8]) -> Result<&str, Failure> {
    let at_start = |message: &str, help: &str| Failure::at(1, 1, message, help);
    let utf16 = "the file is UTF-16, not UTF-8";
    let resave = "save it as UTF-8 (in Notepad: Save as, Encoding: UTF-8)";
    let bytes = bytes.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(bytes);
    match bytes {
        [0xFF, 0xFE, 0, 0, ..] | [0, 0, 0xFE, 0xFF, ..] => {
            return Err(at_start("the file is UTF-32, not UTF-8", resave));
        }
        [0xFF, 0xFE, ..] | [0xFE, 0xFF, ..] => return Err(at_start(utf16, resave)),
        // Without a mark: ASCII text in UTF-16 has a zero as every second byte.
        [0, 1..=0x7F, 0, ..] | [1..=0x7F, 0, 1..=0x7F, 0, ..] => {
            return Err(at_start(utf16, resave));
        }
        _ => {}
    }
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let good = &bytes[..error.valid_up_to()];
        let (line, column) = position(&String::from_utf8_lossy(good));
        Failure::at(line, column, "the file is not UTF-8: these bytes are no character", resave)
    })?;
    if let Some((offset, c)) = text.char_indices().find(|(_, c)| !is_allowed(*c)) {
        let (line, column) = position(&text[..offset]);
        return Err(Failure::at(
            line,
            column,
            &format!("the character U+{:04X} cannot stand in YAML", u32::from(c)),
            "remove it, or write it as an escape in a double-quoted text",
        ));
    }
    Ok(text)
}

/// Line and column of what follows `before`, both from 1.
fn position(before: &str) -> (u32, u32) {
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
    (line as u32, column as u32)
}

/// YAML 1.1's printable characters (section 5.1).
fn is_allowed(c: char) -> bool {
    matches!(c, '\t' | '\n' | '\r' | ' '..='~' | '\u{85}' | '\u{A0}'..='\u{FFFD}' | '\u{10000}'..)
}
