//! What must not come into the log: values of secrets, and of what may be one.

use serde_json::Value;

/// In place of what is left out.
const HIDDEN: &str = "[hidden]";

/// Whether what is kept under this name may be a secret.
fn is_secret(name: &str) -> bool {
    const WORDS: [&str; 9] = [
        "password",
        "passwd",
        "secret",
        "token",
        "credential",
        "account_key",
        "access_key",
        "api_key",
        "private_key",
    ];
    let name = name.to_ascii_lowercase();
    // What a secret is called is none.
    WORDS.iter().any(|word| name.contains(word)) && !name.ends_with("name")
}

/// A record without its secrets: values of environment variables, of fields that are named as secrets are, and what
/// stands in a URL before the host or after the path. A number that would be read as another one becomes text, so that
/// the record is read as it is written.
pub fn redacted(value: Value) -> Value {
    match value {
        Value::String(text) => Value::String(without_url_secrets(text)),
        Value::Array(items) => Value::Array(items.into_iter().map(redacted).collect()),
        Value::Object(fields) => {
            let field = |(name, value): (String, Value)| {
                let value = match value {
                    Value::String(_) | Value::Number(_) if is_secret(&name) => HIDDEN.into(),
                    Value::Object(variables) if name == "environment_variables" => {
                        let hidden = variables.into_iter().map(|(name, _)| (name, HIDDEN.into()));
                        Value::Object(hidden.collect())
                    }
                    value => redacted(value),
                };
                (name, value)
            };
            Value::Object(fields.into_iter().map(field).collect())
        }
        Value::Number(number) => {
            let text = number.to_string();
            match serde_json::from_str::<Value>(&text) {
                Ok(Value::Number(again)) if again.to_string() == text => Value::Number(number),
                _ => Value::String(text),
            }
        }
        value @ (Value::Null | Value::Bool(_)) => value,
    }
}

/// A text, with what may be secret in its URLs hidden: who is named before the host, and queries, which may be signed.
fn without_url_secrets(text: String) -> String {
    if !text.contains("://") {
        return text;
    }
    let mut shown = String::with_capacity(text.len());
    let mut rest = text.as_str();
    while let Some(at) = rest.find("://") {
        let (before, after) = rest.split_at(at + 3);
        shown.push_str(before);
        let is_end = |c: char| c.is_whitespace() || matches!(c, '"' | '\'' | '<' | '>' | ')');
        let end = after.find(is_end).unwrap_or(after.len());
        let (url, next) = after.split_at(end);
        let authority = url.find(['/', '?', '#']).unwrap_or(url.len());
        let (authority, path) = url.split_at(authority);
        match authority.rsplit_once('@') {
            Some((_, host)) => {
                shown.push_str(HIDDEN);
                shown.push('@');
                shown.push_str(host);
            }
            None => shown.push_str(authority),
        }
        match path.split_once('?') {
            Some((path, _)) => {
                shown.push_str(path);
                shown.push('?');
                shown.push_str(HIDDEN);
            }
            None => shown.push_str(path),
        }
        rest = next;
    }
    shown.push_str(rest);
    shown
}
