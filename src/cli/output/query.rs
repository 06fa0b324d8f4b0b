//! `--query`: JMESPath over what a command shows.

use jmespath::ast::Ast;
use serde_json::Value;

use crate::cli::error::{Error, Kind};

/// A compiled query.
pub(crate) struct Query(jmespath::Expression<'static>);

impl Query {
    /// Compiles an expression.
    pub(crate) fn new(expression: &str) -> Result<Self, Error> {
        jmespath::compile(expression).map(Self).map_err(|error| {
            Error::usage(format!("--query '{expression}' is not JMESPath: {}", first_line(&error)))
                .help("see https://jmespath.org; for example --query \"[].name\"")
        })
    }

    /// What the expression finds in `data`.
    pub(crate) fn search(&self, data: &Value) -> Result<Value, Error> {
        let failed = |cause: String| {
            Error::new(Kind::Refused, format!("--query '{}': {cause}", self.0.as_str()))
        };
        let found = self.0.search(data).map_err(|error| failed(first_line(&error)))?;
        serde_json::to_value(&*found).map_err(|error| failed(error.to_string()))
    }

    /// The keys of the objects that the expression makes, as they were written; results come in
    /// alphabetical order.
    pub(crate) fn columns(&self) -> Option<Vec<String>> {
        keys(self.0.as_ast())
    }
}

fn keys(ast: &Ast) -> Option<Vec<String>> {
    match ast {
        Ast::MultiHash { elements, .. } => {
            Some(elements.iter().map(|element| element.key.clone()).collect())
        }
        Ast::Projection { rhs, .. } | Ast::Subexpr { rhs, .. } => keys(rhs),
        // A filter: `[?status==`x`].{...}`.
        Ast::Condition { then, .. } => keys(then),
        _ => None,
    }
}

fn first_line(error: &jmespath::JmespathError) -> String {
    let text = error.to_string();
    text.lines().next().unwrap_or_default().to_owned()
}
