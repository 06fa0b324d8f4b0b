//! From parser events to a tree: anchors, merge keys, duplicates, and bounds on all of it.

use std::collections::HashMap;

use serde_saphyr::granit_parser::{
    ErrorKind, Event, Options, Parser, ScalarStyle, ScanError, Span, Tag,
};

use super::{Entry, Key, Node, Value, scalar, shorten};
use crate::spec::diagnostic::Mark;
use crate::spec::limits::MAX_DEPTH;

/// Values in one document after aliases are put in place, those kept for aliases included.
const MAX_NODES: usize = 50_000;
/// Bytes of text in one document, counted alike.
const MAX_TEXT: usize = 4 << 20;

/// Why a text is no YAML document.
#[derive(Clone, PartialEq, Debug)]
pub(in crate::spec) struct Failure {
    pub(in crate::spec) line: u32,
    pub(in crate::spec) column: u32,
    pub(in crate::spec) width: u32,
    pub(in crate::spec) message: String,
    pub(in crate::spec) help: String,
}

impl Failure {
    pub(super) fn at(line: u32, column: u32, message: &str, help: &str) -> Self {
        Self { line, column, width: 1, message: message.to_owned(), help: help.to_owned() }
    }

    fn mark(mark: Mark, message: impl Into<String>, help: impl Into<String>) -> Self {
        let Mark { line, column, width, .. } = mark;
        Self { line, column, width, message: message.into(), help: help.into() }
    }
}

/// What one collection under construction holds.
struct Frame {
    mark: Mark,
    anchor: usize,
    size: Size,
    kind: Collection,
}

enum Collection {
    List(Vec<Node>),
    Map {
        entries: Vec<Entry>,
        seen: HashMap<String, u32>,
        merged: Vec<Entry>,
        key: Option<Pending>,
    },
}

/// A key whose value has not come yet.
enum Pending {
    Key(Key),
    Merge(Mark),
}

/// What a subtree costs.
#[derive(Clone, Copy, Default)]
struct Size {
    nodes: usize,
    text: usize,
    /// Lists and mappings within each other, the outermost included; 0 for a scalar.
    depth: usize,
}

impl Size {
    fn scalar(text: &str) -> Self {
        Self { nodes: 1, text: text.len(), depth: 0 }
    }

    /// Counts in what stands within this.
    fn add(&mut self, inner: Self) {
        self.nodes = self.nodes.saturating_add(inner.nodes);
        self.text = self.text.saturating_add(inner.text);
        self.depth = self.depth.max(inner.depth.saturating_add(1));
    }
}

/// Reads the one document of `text`. Its nodes carry the source number `source`.
pub(in crate::spec) fn compose(text: &str, source: u16) -> Result<Node, Failure> {
    let mut options = Options::default();
    options.block_scalar_eof_without_line_feed = true;
    options.set_emit_comments(false);
    let mut composer = Composer {
        source,
        frames: Vec::new(),
        anchors: HashMap::new(),
        total: Size::default(),
        root: None,
    };
    let mut documents = 0;
    for event in Parser::new_from_str_with_options(text, options) {
        let (event, span) = event.map_err(|error| syntax_error(&error, text))?;
        if let Event::DocumentStart(..) = event {
            documents += 1;
            if documents == 2 {
                let mark = composer.mark(&span);
                return Err(Failure::mark(
                    mark,
                    format!("a second YAML document starts here, on line {}", mark.line),
                    "a file holds one document: remove the '---' or split the file",
                ));
            }
        }
        composer.event(event, &span)?;
    }
    let root = composer.root.filter(|root| !root.is_null());
    root.ok_or_else(|| Failure::at(1, 1, "the file is empty", "write 'key: value' lines into it"))
}

struct Composer {
    source: u16,
    frames: Vec<Frame>,
    anchors: HashMap<usize, (Node, Size)>,
    total: Size,
    root: Option<Node>,
}

impl Composer {
    fn mark(&self, span: &Span) -> Mark {
        let (start, end) = (&span.start, &span.end);
        let width =
            if start.line() == end.line() { end.col().saturating_sub(start.col()) } else { 1 };
        Mark {
            source: self.source,
            line: start.line() as u32,
            column: start.col() as u32 + 1,
            offset: start.byte_offset().unwrap_or_default() as u32,
            width: width.max(1) as u32,
        }
    }

    fn event(&mut self, event: Event<'_>, span: &Span) -> Result<(), Failure> {
        let mark = self.mark(span);
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                let node = read_scalar(&text, style, tag.as_deref(), mark)?;
                let size = Size::scalar(&text);
                self.charge(size, mark)?;
                if self.wants_key() {
                    self.take_key(&text, style, &node, mark)?;
                    return self.remember(anchor, &node, size);
                }
                self.place(node, size, anchor)
            }
            Event::SequenceStart(_, anchor, tag) => {
                check_collection_tag(tag.as_deref(), "seq", mark)?;
                self.open(Collection::List(Vec::new()), anchor, mark)
            }
            Event::MappingStart(_, anchor, tag) => {
                check_collection_tag(tag.as_deref(), "map", mark)?;
                let (entries, merged) = (Vec::new(), Vec::new());
                let seen = HashMap::new();
                self.open(Collection::Map { entries, seen, merged, key: None }, anchor, mark)
            }
            Event::SequenceEnd | Event::MappingEnd => self.close(),
            Event::Alias(id) => {
                let Some((node, size)) = self.anchors.get(&id).cloned() else {
                    return Err(Failure::mark(
                        mark,
                        "this alias stands inside what it names, so it would never end",
                        "write the value out",
                    ));
                };
                self.charge(size, mark)?;
                self.check_depth(size.depth, mark)?;
                if self.wants_key() {
                    let text = node.as_text().map(str::to_owned);
                    let Some(text) = text else { return Err(no_key(&node, mark)) };
                    return self.take_key(&text, ScalarStyle::DoubleQuoted, &node, mark);
                }
                self.place(node, size, 0)
            }
            _ => Ok(()),
        }
    }

    fn charge(&mut self, size: Size, mark: Mark) -> Result<(), Failure> {
        self.total.add(size);
        if self.total.nodes > MAX_NODES || self.total.text > MAX_TEXT {
            return Err(Failure::mark(
                mark,
                format!(
                    "the document is too large here: more than {MAX_NODES} values or {} MiB of \
                     text, its aliases put in place",
                    MAX_TEXT >> 20
                ),
                "anchors (&name) and aliases (*name) each copy what they name; use fewer of them",
            ));
        }
        Ok(())
    }

    /// Refuses a value of that depth here. Aliases build values deeper than anything written.
    fn check_depth(&self, depth: usize, mark: Mark) -> Result<(), Failure> {
        if self.frames.len().saturating_add(depth) <= MAX_DEPTH {
            return Ok(());
        }
        Err(Failure::mark(
            mark,
            format!("more than {MAX_DEPTH} lists and mappings within each other"),
            "a job needs no more than a handful",
        ))
    }

    fn open(&mut self, kind: Collection, anchor: usize, mark: Mark) -> Result<(), Failure> {
        if self.wants_key() {
            let value = match kind {
                Collection::List(_) => Value::List(Vec::new()),
                Collection::Map { .. } => Value::Map(Vec::new()),
            };
            return Err(no_key(&Node { value, mark, spelled: None }, mark));
        }
        self.check_depth(1, mark)?;
        let size = Size { nodes: 1, text: 0, depth: 1 };
        self.charge(size, mark)?;
        self.frames.push(Frame { mark, anchor, size, kind });
        Ok(())
    }

    fn close(&mut self) -> Result<(), Failure> {
        let Some(frame) = self.frames.pop() else { return Ok(()) };
        let value = match frame.kind {
            Collection::List(items) => Value::List(items),
            Collection::Map { mut entries, merged, mut seen, .. } => {
                // Written keys win over merged ones, earlier merges over later ones.
                for entry in merged {
                    if seen.insert(entry.key.text.clone(), 0).is_none() {
                        entries.push(entry);
                    }
                }
                Value::Map(entries)
            }
        };
        let node = Node { value, mark: frame.mark, spelled: None };
        self.place(node, frame.size, frame.anchor)
    }

    /// Keeps a copy for aliases; anchors within each other keep as many copies of what is innermost.
    fn remember(&mut self, anchor: usize, node: &Node, size: Size) -> Result<(), Failure> {
        if anchor != 0 {
            self.charge(size, node.mark)?;
            self.anchors.insert(anchor, (node.clone(), size));
        }
        Ok(())
    }

    /// Puts a finished node into the collection it stands in.
    fn place(&mut self, node: Node, size: Size, anchor: usize) -> Result<(), Failure> {
        self.remember(anchor, &node, size)?;
        let Some(frame) = self.frames.last_mut() else {
            self.root = Some(node);
            return Ok(());
        };
        frame.size.add(size);
        match &mut frame.kind {
            Collection::List(items) => items.push(node),
            Collection::Map { entries, merged, key, .. } => match key.take() {
                Some(Pending::Key(key)) => entries.push(Entry { key, value: node }),
                Some(Pending::Merge(mark)) => merge(merged, node, mark)?,
                None => {}
            },
        }
        Ok(())
    }

    fn wants_key(&self) -> bool {
        matches!(self.frames.last(), Some(Frame { kind: Collection::Map { key: None, .. }, .. }))
    }

    fn take_key(
        &mut self,
        text: &str,
        style: ScalarStyle,
        node: &Node,
        mark: Mark,
    ) -> Result<(), Failure> {
        let Some(Frame { kind: Collection::Map { seen, key, .. }, size, .. }) =
            self.frames.last_mut()
        else {
            return Ok(());
        };
        size.add(Size::scalar(text));
        if style == ScalarStyle::Plain && text == "<<" {
            *key = Some(Pending::Merge(mark));
            return Ok(());
        }
        let is_text = node.as_text().is_some();
        let text = node.as_text().unwrap_or(text).to_owned();
        if let Some(first) = seen.insert(text.clone(), mark.line) {
            return Err(Failure::mark(
                mark,
                format!(
                    "the key '{}' is given twice: first on line {first}, again on line {}",
                    shorten(&text),
                    mark.line
                ),
                "keep one of them",
            ));
        }
        *key = Some(Pending::Key(Key { text, is_text, mark }));
        Ok(())
    }
}

fn no_key(node: &Node, mark: Mark) -> Failure {
    Failure::mark(
        mark,
        format!("{} cannot be a key", node.describe()),
        "quote it if it is meant as text (an expression such as ${{inputs.x}} inside [ ] or { } \
         needs quotes)",
    )
}

/// Adds what `<<: node` brings.
fn merge(merged: &mut Vec<Entry>, node: Node, mark: Mark) -> Result<(), Failure> {
    let wrong = |node: &Node| {
        Failure::mark(
            mark,
            format!("'<<' merges mappings, but found {}", node.describe()),
            "write '<<: *name' with the name of a mapping",
        )
    };
    let nodes = match node.value {
        Value::Map(_) => vec![node],
        Value::List(items) => items,
        _ => return Err(wrong(&node)),
    };
    for node in nodes {
        match node.value {
            Value::Map(entries) => merged.extend(entries),
            _ => return Err(wrong(&node)),
        }
    }
    Ok(())
}

fn check_collection_tag(tag: Option<&Tag>, expected: &str, mark: Mark) -> Result<(), Failure> {
    match tag {
        None => Ok(()),
        Some(tag) if tag.original() == "!" || tag.core_suffix() == Some(expected) => Ok(()),
        Some(tag) => Err(unknown_tag(tag, mark)),
    }
}

fn unknown_tag(tag: &Tag, mark: Mark) -> Failure {
    Failure::mark(
        mark,
        format!("the tag '{}' means nothing here", shorten(&tag.original())),
        "remove it; quote the text if the '!' belongs to it",
    )
}

fn read_scalar(
    text: &str,
    style: ScalarStyle,
    tag: Option<&Tag>,
    mark: Mark,
) -> Result<Node, Failure> {
    let unreadable = |reason: &str| {
        Failure::mark(
            mark,
            format!("'{}' is {reason}", shorten(text)),
            "quote it if it is meant as text",
        )
    };
    let wrong = |what: &str| unreadable(&format!("not {what}, as its tag says"));
    let value = match tag {
        None if style == ScalarStyle::Plain => scalar::plain(text).map_err(unreadable)?,
        None => Value::Text(text.to_owned()),
        Some(tag) if tag.original() == "!" => Value::Text(text.to_owned()),
        Some(tag) => match tag.suffix_in_namespace("tag:yaml.org,2002:").as_deref() {
            Some("str") => Value::Text(text.to_owned()),
            Some("null") => Value::Null,
            Some("bool") => Value::Bool(scalar::boolean(text).ok_or_else(|| wrong("a boolean"))?),
            Some("int") => {
                scalar::integer(text).ok_or_else(|| wrong("a whole number"))?.map_err(unreadable)?
            }
            Some("float") => {
                let plain = || text.parse::<f64>().ok().filter(|_| !text.contains("n"));
                let number = scalar::float(text).or_else(plain);
                Value::Float(number.ok_or_else(|| wrong("a number"))?)
            }
            Some("timestamp") => Value::Timestamp(
                scalar::timestamp(text).ok_or_else(|| wrong("a date"))?.map_err(unreadable)?,
            ),
            _ => return Err(unknown_tag(tag, mark)),
        },
    };
    let spelled = (!matches!(value, Value::Text(_))).then(|| text.into());
    Ok(Node { value, mark, spelled })
}

/// The parser's error in words that name the remedy.
fn syntax_error(error: &ScanError, text: &str) -> Failure {
    let (line, column) = (error.marker().line() as u32, error.marker().col() as u32 + 1);
    let is_tab = matches!(
        error.kind(),
        ErrorKind::TabNotAllowed
            | ErrorKind::TabInBlockIndentation
            | ErrorKind::TabInIndentation
            | ErrorKind::TabAtBlockScalarStart
            | ErrorKind::TabInPlainScalar
    );
    // A tab is noticed where the value before it starts; it stands on a later line.
    let lines = if is_tab { usize::MAX } else { 1 };
    for (i, line) in text.lines().enumerate().skip(line.saturating_sub(1) as usize).take(lines) {
        let indent = line.len() - line.trim_start().len();
        if let Some(tab) = line[..indent].find('\t') {
            return Failure::at(
                i as u32 + 1,
                line[..tab].chars().count() as u32 + 1,
                "a tab stands in the indentation; YAML allows spaces only",
                "replace the tab by spaces",
            );
        }
    }
    let (message, help) = match error.kind() {
        _ if is_tab => ("a tab cannot stand here".to_owned(), "replace the tab by spaces"),
        ErrorKind::UnknownAnchor => (
            "this alias names no anchor ('*' starts an alias)".to_owned(),
            "quote the text if the '*' belongs to it, or define '&name' before it",
        ),
        ErrorKind::MappingValueNotAllowed | ErrorKind::InvalidColonPlacement => (
            "a ': ' cannot stand here".to_owned(),
            "quote the text if the ': ' belongs to it, or write it as a block after '>-'; else \
             check the indentation",
        ),
        ErrorKind::UnclosedQuotedScalar => {
            ("a quote is opened here and never closed".to_owned(), "close it")
        }
        ErrorKind::UnexpectedCharacter { character } => {
            (format!("a text cannot start with '{character}'"), "quote the text")
        }
        _ => (
            format!("this is not YAML: {}", error.info()),
            "check the indentation and the quotes of this line and the one before it",
        ),
    };
    Failure::at(line, column, &message, help)
}
