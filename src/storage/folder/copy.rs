//! Another path for an object that is there.

use rustix::fs::AtFlags;
use rustix::io::Errno;

use super::{Folder, Staged, Step, io_error, meta_of};
use crate::storage::{Error, Expected, Meta, ObjectPath, Still};

impl Folder {
    /// Makes `to` the object that lies at `from`, if it is the expected one: as another name of the same file, since files
    /// of a datastore are replaced and never changed.
    pub(in crate::storage) async fn copy(
        &self,
        from: &ObjectPath,
        to: &ObjectPath,
        expected: &Expected,
        still: Still,
    ) -> Result<Meta, Error> {
        let (folder, from, to) = (self.clone(), from.clone(), to.clone());
        let expected = expected.clone();
        self.run(Step::Long, move || folder.copy_now(&from, to, &expected, &*still)).await
    }

    fn copy_now(
        &self,
        from: &ObjectPath,
        to: ObjectPath,
        expected: &Expected,
        still: &dyn Fn() -> Result<(), String>,
    ) -> Result<Meta, Error> {
        let (staged, name) = self.stage_name_of(from)?;
        let staging = self.staging()?;
        let stat = rustix::fs::statat(staging, &*name, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|errno| io_error("copy", from.as_str(), errno.into()))?;
        let meta = meta_of(&stat);
        if !is_file(&stat) {
            return Err(Error::Changed(from.to_string()));
        }
        expected.check(from, &meta)?;
        self.publish_if(still, vec![(staged, to)])?;
        // A rename onto another name of the same file leaves both.
        let _ = rustix::fs::unlinkat(staging, &*name, AtFlags::empty());
        Ok(meta)
    }

    /// A further name, in the staging folder, of what lies at `from`.
    fn stage_name_of(&self, from: &ObjectPath) -> Result<(Staged, String), Error> {
        let (parent, name) = self.parent(from, None)?;
        // Of a folder there is no further name; a link's would lead where it does.
        match rustix::fs::statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if !is_file(&stat) => return Err(Error::NotFound(from.to_string())),
            _ => {}
        }
        let staging = self.staging()?;
        loop {
            let staged = self.staged_name();
            match rustix::fs::linkat(&parent, name, staging, &*staged, AtFlags::empty()) {
                Ok(()) => {
                    let folder = self.clone();
                    let file = Staged { folder, name: staged.clone(), file: None, placed: false };
                    return Ok((file, staged));
                }
                Err(Errno::EXIST) => {}
                Err(Errno::NOENT) => return Err(Error::NotFound(from.to_string())),
                Err(errno) => return Err(io_error("copy", from.as_str(), errno.into())),
            }
        }
    }
}

fn is_file(stat: &rustix::fs::Stat) -> bool {
    rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::RegularFile
}
