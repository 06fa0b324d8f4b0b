//! Reading a filter or an ordering, piece by piece, without knowing what the names mean.

use super::super::{Error, limits};
use super::{BYTES, CLAUSES, NumberTest, TextTest, WILDCARDS};

/// A place in the text being read.
pub(super) struct Cursor<'a> {
    text: &'a str,
    /// Byte offset of what comes next.
    at: usize,
}

/// A name as written: `entity.key`, or `key` alone.
pub(super) struct Identifier {
    pub(super) entity: Option<String>,
    pub(super) key: String,
    /// Byte offset of its beginning.
    pub(super) at: usize,
}

/// What stands right of a name.
pub(super) enum Right {
    /// An operator and a number, exactly as written.
    Number { test: NumberTest, text: String },
    /// A comparison with text, a list or nothing.
    Text(TextTest),
    /// `<` and the like with a text, which nothing takes.
    OrderedText(String),
}

/// One comparison.
pub(super) struct Comparison {
    pub(super) left: Identifier,
    /// The operator as written, in upper case.
    pub(super) operator: String,
    /// Byte offset of the operator.
    pub(super) operator_at: usize,
    pub(super) right: Right,
    /// Byte offset of the value.
    pub(super) value_at: usize,
}

fn in_bare_key(c: char) -> bool {
    c.is_alphanumeric() || matches!(c, '_' | '-' | '/' | ':')
}

impl<'a> Cursor<'a> {
    pub(super) fn new(text: &'a str) -> Result<Self, Error> {
        if text.len() > BYTES {
            return Err(Error::Invalid(format!(
                "A filter or ordering takes at most {BYTES} bytes, got {}.",
                text.len()
            )));
        }
        Ok(Self { text, at: 0 })
    }

    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    fn skip_space(&mut self) {
        let rest = self.rest();
        self.at += rest.len() - rest.trim_start().len();
    }

    pub(super) fn at_end(&mut self) -> bool {
        self.skip_space();
        self.rest().is_empty()
    }

    /// Refuses what stands at a byte offset; people count characters, from 1.
    pub(super) fn refuse(&self, at: usize, why: &str) -> Error {
        let character = self.text[..at].chars().count() + 1;
        Error::Invalid(format!("{why} (at character {character})"))
    }

    /// Takes the characters that fit.
    fn take_while(&mut self, fits: impl Fn(char) -> bool) -> &'a str {
        let rest = self.rest();
        let end = rest.find(|c| !fits(c)).unwrap_or(rest.len());
        self.at += end;
        &rest[..end]
    }

    /// Takes a text in `quote`s, which stand at the cursor.
    fn quoted(&mut self, quote: char) -> Result<String, Error> {
        let start = self.at;
        self.at += quote.len_utf8();
        let mut out = String::new();
        loop {
            let rest = self.rest();
            let Some(end) = rest.find(quote) else {
                return Err(self.refuse(start, &format!("The quote {quote} is never closed")));
            };
            out.push_str(&rest[..end]);
            self.at += end + quote.len_utf8();
            if self.peek() != Some(quote) {
                return Ok(out);
            }
            out.push(quote);
            self.at += quote.len_utf8();
        }
    }

    /// Takes `entity.key` or `key`.
    pub(super) fn identifier(&mut self) -> Result<Identifier, Error> {
        self.skip_space();
        let at = self.at;
        let first = match self.peek() {
            Some(quote @ ('`' | '"')) => self.quoted(quote)?,
            _ => self.take_while(in_bare_key).to_owned(),
        };
        if self.peek() != Some('.') {
            if first.is_empty() {
                let found = limits::excerpt(self.rest());
                return Err(self.refuse(
                    at,
                    &format!("Invalid clause(s) in filter string: expected a name such as metrics.loss, found '{found}'"),
                ));
            }
            return Ok(Identifier { entity: None, key: first, at });
        }
        self.at += 1;
        let key_at = self.at;
        let key = match self.peek() {
            Some(quote @ ('`' | '"')) => self.quoted(quote)?,
            _ => self.take_while(|c| in_bare_key(c) || c == '.').to_owned(),
        };
        if key.is_empty() {
            return Err(self.refuse(key_at, "A key is missing after the '.'"));
        }
        Ok(Identifier { entity: Some(first), key, at })
    }

    /// Takes a word if it is the next one, in any case.
    pub(super) fn keyword(&mut self, word: &str) -> bool {
        self.skip_space();
        let rest = self.rest();
        let matches = rest.get(..word.len()).is_some_and(|head| head.eq_ignore_ascii_case(word))
            && !rest[word.len()..].starts_with(|c: char| c.is_alphanumeric() || c == '_');
        if matches {
            self.at += word.len();
        }
        matches
    }

    fn comparison(&mut self) -> Result<Comparison, Error> {
        let left = self.identifier()?;
        self.skip_space();
        let operator_at = self.at;
        if self.keyword("IS") {
            let not = self.keyword("NOT");
            if !self.keyword("NULL") {
                return Err(self.refuse(self.at, "Expected NULL or NOT NULL after IS"));
            }
            let (test, operator) = if not {
                (TextTest::IsNotNull, "IS NOT NULL")
            } else {
                (TextTest::IsNull, "IS NULL")
            };
            let right = Right::Text(test);
            let operator = operator.to_owned();
            return Ok(Comparison { left, operator, operator_at, right, value_at: self.at });
        }
        let not = self.keyword("NOT");
        if self.keyword("IN") {
            self.skip_space();
            let value_at = self.at;
            let values = self.list()?;
            let (test, operator) = if not {
                (TextTest::NotIn(values), "NOT IN")
            } else {
                (TextTest::In(values), "IN")
            };
            let right = Right::Text(test);
            return Ok(Comparison {
                left,
                operator: operator.to_owned(),
                operator_at,
                right,
                value_at,
            });
        }
        if not {
            return Err(self.refuse(operator_at, "Invalid comparator 'NOT': expected NOT IN"));
        }
        for (word, make) in
            [("LIKE", TextTest::Like as fn(String) -> TextTest), ("ILIKE", TextTest::ILike)]
        {
            if self.keyword(word) {
                self.skip_space();
                let value_at = self.at;
                let pattern = self.text_value()?;
                if wildcards(&pattern) > WILDCARDS {
                    return Err(self.refuse(
                        value_at,
                        &format!("A pattern takes at most {WILDCARDS} wildcards '%'"),
                    ));
                }
                let right = Right::Text(make(pattern));
                return Ok(Comparison {
                    left,
                    operator: word.to_owned(),
                    operator_at,
                    right,
                    value_at,
                });
            }
        }
        let operator = self.take_while(|c| matches!(c, '=' | '<' | '>' | '!')).to_owned();
        let test = match operator.as_str() {
            "=" => NumberTest::Equal,
            "!=" => NumberTest::NotEqual,
            "<" => NumberTest::Less,
            "<=" => NumberTest::AtMost,
            ">" => NumberTest::Greater,
            ">=" => NumberTest::AtLeast,
            "" => {
                let found = limits::excerpt(self.rest());
                let why = format!(
                    "Invalid comparison clause. Expected 3 tokens: a comparator is missing before \
                     '{found}'"
                );
                return Err(self.refuse(operator_at, &why));
            }
            other => {
                let why = format!(
                    "Invalid comparator '{other}' not one of =, !=, <, <=, >, >=, LIKE, ILIKE, IN, \
                     NOT IN, IS NULL, IS NOT NULL"
                );
                return Err(self.refuse(operator_at, &why));
            }
        };
        self.skip_space();
        let value_at = self.at;
        let right = match self.peek() {
            Some('\'' | '"') => match (test, self.text_value()?) {
                (NumberTest::Equal, text) => Right::Text(TextTest::Equal(text)),
                (NumberTest::NotEqual, text) => Right::Text(TextTest::NotEqual(text)),
                (_, text) => Right::OrderedText(text),
            },
            Some('(') => {
                let why = format!("Invalid comparator '{operator}' for a list: use IN or NOT IN");
                return Err(self.refuse(operator_at, &why));
            }
            _ => Right::Number { test, text: self.number()? },
        };
        Ok(Comparison { left, operator, operator_at, right, value_at })
    }

    fn text_value(&mut self) -> Result<String, Error> {
        self.skip_space();
        match self.peek() {
            Some(quote @ ('\'' | '"')) => self.quoted(quote),
            _ => {
                let found = limits::excerpt(self.rest());
                Err(self.refuse(
                    self.at,
                    &format!(
                        "Expected a quoted string value (e.g. 'my-value'). Got value '{found}'"
                    ),
                ))
            }
        }
    }

    fn list(&mut self) -> Result<Vec<String>, Error> {
        let at = self.at;
        let ill_formed = "While parsing a list in the query, expected a non-empty list of string \
                          values, but got ill-formed list.";
        if self.peek() != Some('(') {
            return Err(self.refuse(at, ill_formed));
        }
        self.at += 1;
        let mut values = Vec::new();
        loop {
            self.skip_space();
            // A comma may follow the last value.
            if self.peek() == Some(')') && !values.is_empty() {
                self.at += 1;
                return Ok(values);
            }
            values.push(self.text_value().map_err(|_| self.refuse(self.at, ill_formed))?);
            self.skip_space();
            match self.peek() {
                Some(',') => self.at += 1,
                Some(')') => {}
                _ => return Err(self.refuse(self.at, ill_formed)),
            }
        }
    }

    /// Takes `-12`, `0.5`, `.5`, `1e-3`: digits that make a finite double.
    fn number(&mut self) -> Result<String, Error> {
        let at = self.at;
        let text =
            self.take_while(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '+' | '_'));
        let digits_only =
            text.chars().all(|c| c.is_ascii_digit() || matches!(c, '.' | '-' | '+' | 'e' | 'E'));
        match text.parse::<f64>() {
            Ok(number) if digits_only && number.is_finite() => Ok(text.to_owned()),
            _ => {
                let found =
                    if text.is_empty() { limits::excerpt(self.rest()) } else { text.to_owned() };
                Err(self.refuse(
                    at,
                    &format!("Expected a number or a quoted string value. Found '{found}'"),
                ))
            }
        }
    }
}

/// How many runs of `%` a pattern has.
fn wildcards(pattern: &str) -> usize {
    let mut before = ' ';
    pattern.chars().filter(|&c| std::mem::replace(&mut before, c) != '%' && c == '%').count()
}

/// Reads a whole filter; each comparison is handed to `resolve` with the cursor for errors.
pub(super) fn filter<C>(
    text: &str,
    resolve: impl Fn(&Cursor<'_>, Comparison) -> Result<C, Error>,
) -> Result<Vec<C>, Error> {
    let mut cursor = Cursor::new(text)?;
    let mut clauses = Vec::new();
    if cursor.at_end() {
        return Ok(clauses);
    }
    loop {
        let comparison = cursor.comparison()?;
        clauses.push(resolve(&cursor, comparison)?);
        if clauses.len() > CLAUSES {
            let why = format!("A filter takes at most {CLAUSES} comparisons");
            return Err(cursor.refuse(cursor.at, &why));
        }
        if cursor.at_end() {
            return Ok(clauses);
        }
        if !cursor.keyword("AND") {
            let found = limits::excerpt(cursor.rest());
            let why = format!("Invalid clause(s) in filter string: '{found}': expected AND");
            return Err(cursor.refuse(cursor.at, &why));
        }
    }
}

/// Reads one ordering; the name is handed to `resolve`.
pub(super) fn order<K>(
    text: &str,
    resolve: impl Fn(&Cursor<'_>, Identifier) -> Result<K, Error>,
) -> Result<super::OrderBy<K>, Error> {
    let shown = limits::excerpt(text);
    let mut cursor = Cursor::new(text)?;
    let identifier = cursor.identifier().map_err(|error| {
        Error::Invalid(format!("Invalid order_by clause '{shown}'. Could not be parsed: {error}"))
    })?;
    let ascending = if cursor.keyword("DESC") {
        false
    } else {
        cursor.keyword("ASC");
        true
    };
    if !cursor.at_end() {
        let why =
            format!("Invalid ordering key in order_by clause '{shown}'. Expected ASC or DESC");
        return Err(cursor.refuse(cursor.at, &why));
    }
    Ok(super::OrderBy { key: resolve(&cursor, identifier)?, ascending })
}
