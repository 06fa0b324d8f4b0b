//! A file of this machine on its way to be an object of a datastore.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures::Stream;

use super::scan::{FoundFile, Stat};
use crate::client::data::{self, Data, Stored, again};

/// How much of a file is read at once.
const PIECE: u64 = 256 * 1024;

/// Makes a file an object, and tries again. `sent` hears of bytes on their way, `back` of those that were sent for
/// nothing, before they are sent again. `None`: the file is no longer the one that was found.
///
/// # Errors
/// [`data::Error`].
pub(in crate::cli) async fn store(
    data: &Data,
    file: &FoundFile,
    datastore: &str,
    path: &str,
    sent: impl Fn(u64) + Clone + Send + Sync + 'static,
    back: impl Fn(u64),
) -> Result<Option<Stored>, data::Error> {
    again(async || {
        let counted = Arc::new(Mutex::new(Some(0)));
        let (counting, sent) = (counted.clone(), sent.clone());
        let bytes = pieces(file.clone(), move |bytes| {
            // The connection may still read when this try has ended.
            if let Some(count) = &mut *counting.lock().unwrap_or_else(PoisonError::into_inner) {
                *count += bytes;
                sent(bytes);
            }
        });
        let error = match data.write(datastore, path, file.stat.size, bytes).await {
            Ok(stored) => return Ok(Some(stored)),
            Err(error) => error,
        };
        let count = counted.lock().unwrap_or_else(PoisonError::into_inner).take();
        back(count.unwrap_or_default());
        // A file that changes is no fault of the connection.
        match fs::metadata(&file.path).map(|meta| Stat::of(&meta)) {
            Ok(now) if now == file.stat => Err(error),
            _ => Ok(None),
        }
    })
    .await
}

/// The bytes of a file that must still be the one that was found: otherwise the stream fails before
/// its last byte, and the gateway keeps nothing.
fn pieces(
    file: FoundFile,
    sent: impl Fn(u64) + Send + Sync + 'static,
) -> impl Stream<Item = io::Result<Bytes>> {
    let state = (None::<File>, 0_u64, file, sent);
    futures::stream::try_unfold(state, |(open, offset, file, sent)| async move {
        if offset >= file.stat.size {
            return Ok(None);
        }
        let step = tokio::task::spawn_blocking(move || -> io::Result<_> {
            let source = match open {
                Some(source) => source,
                None => File::open(&file.path)?,
            };
            let length = PIECE.min(file.stat.size - offset);
            let mut piece = vec![0; length as usize];
            source.read_exact_at(&mut piece, offset)?;
            let end = offset + length;
            if end == file.stat.size && Stat::of(&source.metadata()?) != file.stat {
                return Err(io::Error::other("the file has changed"));
            }
            sent(length);
            Ok((Bytes::from(piece), (Some(source), end, file, sent)))
        });
        step.await.map_err(io::Error::other)?.map(Some)
    })
}
