//! Containers whose jobs are over: ended where an engine runs them, or made ready to be started once more.

use super::{ANSWER, Container, Kind, command, reason, run};

impl Container {
    /// Makes one that was killed ready to be started again. What would have told podman of its end was killed
    /// too, so that it takes it to run for ever: in its place, under its name, comes one of what it was. The
    /// image that this takes is noted by `note` before it is there.
    ///
    /// # Errors
    /// Why there is none, in words.
    pub(crate) async fn renew(
        &mut self,
        process: u32,
        note: impl Fn(&Self) -> std::io::Result<()>,
    ) -> Result<(), String> {
        let made = self.made.get(process as usize).filter(|_| self.kind == Kind::Podman);
        let (Some(name), Some(made)) = (self.names().nth(process as usize), made) else {
            return Err("its runtime cannot do it".to_owned());
        };
        let tag = format!("localhost/atelier-kept:{name}");
        let create = command::create_of(made, &tag);
        self.committed = Some(tag.clone());
        note(self).map_err(|error| error.to_string())?;
        self.ask(&command::commit(&name, &tag)).await?;
        self.ask(&create).await
    }

    /// Whether none of them runs any more; those of an engine are ended for it. Others end with what starts
    /// them.
    pub(crate) async fn end(&self) -> bool {
        let Some(words) = self.end_command() else { return true };
        let Some((program, arguments)) = words.split_first() else { return true };
        let ended = tokio::time::timeout(ANSWER, run(program.as_ref(), arguments)).await;
        ended.is_ok_and(|ended| ended.is_ok_and(|ended| ended.status.success()))
    }

    /// What ends those of an engine, program first.
    pub(crate) fn end_command(&self) -> Option<Vec<String>> {
        command::end(self.kind, &self.program, self.names())
    }

    pub(super) async fn ask(&self, arguments: &[String]) -> Result<(), String> {
        match tokio::time::timeout(ANSWER, run(&self.program, arguments)).await {
            Ok(Ok(finished)) if finished.status.success() => Ok(()),
            Ok(Ok(finished)) => Err(reason(&finished.tail)),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!("no answer within {} s", ANSWER.as_secs())),
        }
    }
}
