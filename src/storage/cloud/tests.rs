//! The object stores, as far as a small server can show it.
