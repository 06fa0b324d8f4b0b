//! What the daemon serves over plain HTTP.

pub mod mlflow;
