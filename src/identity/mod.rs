//! The door: who is calling, and may they.

mod door;
mod grants;
mod layer;
pub mod people;
mod reauthorise;
mod routes;

pub use door::{Denied, Door, Error};
pub use grants::{Grants, grants_of};
pub use layer::{AskedAs, guard, is_grpc};
pub use routes::{Need, need_of};
