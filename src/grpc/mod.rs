//! The services, one file each: convert, ask, convert.

pub mod content;
