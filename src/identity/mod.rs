//! The door: who is calling, and may they.

mod asking;
mod attempts;
mod door;
mod grants;
mod layer;
mod nodes;
pub mod people;
mod reauthorise;
mod routes;

pub use asking::{Asking, Origin, PeerAddr, Use};
pub(crate) use door::write_private;
pub use door::{Denied, Door, Error};
pub use grants::{Grants, grants_of};
pub use layer::{AskedAs, Present, guard, is_grpc};
pub(crate) use layer::{in_kind, to_its_end, web_type};
pub use nodes::{Identities, Pass};
pub use routes::{Need, need_of};
