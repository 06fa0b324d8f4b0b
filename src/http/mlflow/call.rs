//! Reading a request: who calls, and the fields of its query or JSON body.

use atelier_core::access::{Caller, Permission, Role};
pub(super) use atelier_core::track::wire::Fields;
use atelier_core::track::{Error as Refusal, ExperimentId, RunId};
use axum::body::Body;
use axum::extract::{FromRequest, Query, Request};
use bytes::BytesMut;
use futures::TryStreamExt as _;
use http::{Method, StatusCode, Uri};
use rusqlite::Connection;

use super::State;
use super::failure::Failure;
use crate::identity::Origin;
use crate::store;
use crate::store::tracking::{self, TrackReply, TrackWrite};

/// Bytes of a JSON body. A batch within MLflow's limits has far fewer.
const BODY: usize = 16 * 1024 * 1024;

/// A request.
pub(super) struct Call {
    pub(super) state: State,
    pub(super) caller: Caller,
    pub(super) origin: Origin,
    pub(super) fields: Fields,
}

/// What a caller may read.
#[derive(Clone)]
pub(super) enum Reader {
    /// Everything.
    All,
    /// The experiment of this run: it is the caller's own.
    Of(RunId),
}

/// The reader that a caller is.
pub(super) fn reader(caller: &Caller) -> Result<Reader, Refusal> {
    match &caller.role {
        Role::Attempt(scope) => Ok(Reader::Of(RunId::from(&scope.job))),
        _ if caller.may(Permission::ReadRuns) => Ok(Reader::All),
        role => {
            Err(Refusal::NotAllowed(format!("{} ({role}) may not read runs", caller.principal)))
        }
    }
}

impl Reader {
    /// Refuses an experiment that is not the caller's own, if it may read only that.
    pub(super) fn check(
        &self,
        conn: &Connection,
        experiment: ExperimentId,
    ) -> Result<(), store::Error> {
        let Self::Of(run) = self else { return Ok(()) };
        let own = tracking::run_info(conn, run)?.experiment;
        if own == experiment {
            return Ok(());
        }
        Err(Refusal::NotAllowed(format!(
            "A job's token reads only its own experiment {own}, not {experiment}. A job's run is \
             in the experiment that the job names: leave out set_experiment, or set \
             experiment_name in the job"
        ))
        .into())
    }
}

impl Call {
    pub(super) fn reader(&self) -> Result<Reader, Failure> {
        Ok(reader(&self.caller)?)
    }

    pub(super) async fn write(&self, write: TrackWrite) -> Result<TrackReply, Failure> {
        Ok(self.state.tracking.write(write).await?)
    }

    /// The same, told to the audit log.
    pub(super) async fn write_told(&self, write: TrackWrite) -> Result<TrackReply, Failure> {
        let by = self.origin.actor(&self.caller);
        self.write(TrackWrite::Audited { by, write: Box::new(write) }).await
    }

    pub(super) async fn read<T, F>(&self, ask: F) -> Result<T, Failure>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> Result<T, store::Error> + Send + 'static,
    {
        Ok(self.state.tracking.read(ask).await?)
    }

    /// The run that the call is about.
    pub(super) fn run_id(&self) -> Result<RunId, Failure> {
        Ok(self.fields.run_id()?)
    }

    /// The experiment that the call is about.
    pub(super) fn experiment_id(&self) -> Result<ExperimentId, Failure> {
        Ok(ExperimentId::parse(self.fields.required_text("experiment_id")?)?)
    }
}

/// A body of at most [`BODY`] bytes.
async fn whole(body: Body) -> Result<BytesMut, Failure> {
    let mut bytes = BytesMut::new();
    let mut stream = body.into_data_stream();
    let ended = |_| Failure::new(StatusCode::BAD_REQUEST, "BAD_REQUEST", "The body ended early");
    while let Some(piece) = stream.try_next().await.map_err(ended)? {
        if bytes.len() + piece.len() > BODY {
            return Err(Refusal::Invalid(format!(
                "Batched logging API requests must be at most {BODY} bytes, got a larger one."
            ))
            .into());
        }
        bytes.extend_from_slice(&piece);
    }
    Ok(bytes)
}

impl FromRequest<State> for Call {
    type Rejection = Failure;

    async fn from_request(request: Request, state: &State) -> Result<Self, Failure> {
        let (head, body) = request.into_parts();
        let caller =
            head.extensions.get::<Caller>().cloned().ok_or_else(Failure::unauthenticated)?;
        let origin = head.extensions.get::<Origin>().cloned().unwrap_or_default();
        let fields = if head.method == Method::GET {
            of_uri(&head.uri)?
        } else {
            let bytes = whole(body).await?;
            Fields::of_body(&bytes)?
        };
        Ok(Self { state: state.clone(), caller, origin, fields })
    }
}

pub(super) fn of_uri(uri: &Uri) -> Result<Fields, Failure> {
    let pairs = Query::<Vec<(String, String)>>::try_from_uri(uri)
        .map_err(|error| Refusal::Invalid(format!("The query cannot be read: {error}")))?;
    Ok(Fields::of_query(pairs.0))
}
