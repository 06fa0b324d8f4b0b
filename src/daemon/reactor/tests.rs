//! The reactor over a real store: what is answered, shown and done is what is on disk.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use atelier_core::access::CustomRole;
use atelier_core::audit::Actor;
use atelier_core::content::Digest;
use atelier_core::id::{ComputeName, DatastoreName, Epoch};
use atelier_core::job::{AttemptEnd, AttemptKey, Exit, JobStatus, Progress, Report};
use atelier_core::layout;
use atelier_core::live::PastUse;
use atelier_core::node::Link;
use atelier_core::spec::CommandJob;
use atelier_core::time::Timestamp;
use futures::FutureExt as _;
use futures::future::{BoxFuture, join_all};

use super::*;
use crate::daemon::Nodes;
use crate::identity::{Denied, Door};
use crate::provider::{Providers, Site};
use crate::store::people::{PeopleChange, UserRecord};
use crate::store::tests::failures::room_for;
use crate::store::tests::{Folder, first_of, name, node, spec, who};
use crate::store::{IdempotencyKey, JobQuery, SqliteStore, TokenRecord};

/// How long anything may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// The real store; counts commits, and fails one when told to.
struct Counted {
    inner: Arc<SqliteStore>,
    commits: AtomicUsize,
    fail: Mutex<Option<store::Error>>,
    failed: AtomicBool,
}

impl Store for Counted {
    fn commit(&self, batch: Arc<Batch>) -> BoxFuture<'static, Result<(), store::Error>> {
        self.commits.fetch_add(1, Ordering::SeqCst);
        if self.failed.load(Ordering::SeqCst) {
            return Box::pin(async { Err(store::Error::Superseded) });
        }
        match self.fail.lock().unwrap().take() {
            Some(error) => {
                self.failed.store(true, Ordering::SeqCst);
                Box::pin(async move { Err(error) })
            }
            None => self.inner.commit(batch),
        }
    }

    fn forget_tokens(
        &self,
        hashes: Vec<Digest>,
        by: Actor,
    ) -> BoxFuture<'_, Result<(), store::Error>> {
        self.inner.forget_tokens(hashes, by)
    }

    fn put_token(&self, token: TokenRecord, by: Actor) -> BoxFuture<'_, Result<(), store::Error>> {
        self.inner.put_token(token, by)
    }

    fn tokens(&self) -> Result<Vec<TokenRecord>, store::Error> {
        self.inner.tokens()
    }

    fn change_people(
        &self,
        change: PeopleChange,
        by: Actor,
    ) -> BoxFuture<'_, Result<(), store::Error>> {
        self.inner.change_people(change, by)
    }

    fn note_uses(&self, uses: Vec<(Digest, Timestamp)>) -> BoxFuture<'_, Result<(), store::Error>> {
        self.inner.note_uses(uses)
    }

    fn users(&self) -> Result<Vec<UserRecord>, store::Error> {
        self.inner.users()
    }

    fn blocked(&self) -> Result<Vec<store::blocked::BlockRecord>, store::Error> {
        self.inner.blocked()
    }

    fn roles(&self) -> Result<Vec<CustomRole>, store::Error> {
        self.inner.roles()
    }

    fn recover(&self) -> Result<Recovered, store::Error> {
        self.failed.store(false, Ordering::SeqCst);
        self.inner.recover()
    }

    fn usage_since(&self, from: Timestamp) -> Result<Vec<PastUse>, store::Error> {
        self.inner.usage_since(from)
    }

    fn job(&self, name: &JobName) -> Result<Option<Job>, store::Error> {
        self.inner.job(name)
    }

    fn jobs(&self, query: &JobQuery) -> Result<Vec<Job>, store::Error> {
        self.inner.jobs(query)
    }

    fn look_up(
        &self,
        submissions: &[store::Lookup<'_>],
    ) -> Result<Vec<store::Known>, store::Error> {
        self.inner.look_up(submissions)
    }

    fn past(&self, compute: &ComputeName, limit: usize) -> Result<Vec<store::Past>, store::Error> {
        self.inner.past(compute, limit)
    }

    fn events(
        &self,
        job: Option<&JobName>,
        after: u64,
        limit: usize,
    ) -> Result<Vec<Event>, store::Error> {
        self.inner.events(job, after, limit)
    }
}

struct World {
    folder: Folder,
    store: Arc<Counted>,
    door: Arc<Door>,
    handle: Handle,
    running: Running,
    sessions: u64,
}

type Orders = mpsc::UnboundedReceiver<ToNode>;

impl World {
    fn new() -> Self {
        Self::on(Folder::new())
    }

    fn on(folder: Folder) -> Self {
        let inner = folder.open();
        let store = Arc::new(Counted {
            inner,
            commits: AtomicUsize::new(0),
            fail: Mutex::default(),
            failed: AtomicBool::new(false),
        });
        let door =
            Arc::new(Door::open(store.clone(), &folder.at().join("token.key"), "test").unwrap());
        let (clock, life) = (Clock::default(), Duration::from_secs(60));
        let nodes =
            Nodes::open(store.inner.clone(), door.clone(), None, "test", clock, life).unwrap();
        let site = Site { folder: folder.at().to_owned(), door: door.clone(), nodes, clock };
        let effects = Effects {
            providers: Providers::new(site),
            door: door.clone(),
            roots: BTreeMap::new(),
            artifact_store: DatastoreName::new(layout::ARTIFACT_STORE).unwrap(),
            require_containers: false,
            log_limit: 1,
            grace: 1,
            resolve: Box::new(|_| None),
            experiment_id: Box::new(|_| "0".to_owned()),
            over: Box::new(|_| ()),
        };
        let local = ComputeName::new("local").unwrap();
        let settings = Settings {
            computes: vec![local.clone()],
            default_compute: local,
            principal: who("daemon"),
            lease: LeasePolicy::default(),
        };
        let (handle, running) =
            Reactor::start(settings, store.clone(), effects, Clock::default()).unwrap();
        Self { folder, store, door, handle, running, sessions: 0 }
    }

    /// Another daemon on the same folder.
    async fn restarted(self) -> Self {
        self.handle.stop().await;
        self.running.await.unwrap().unwrap();
        Self::on(self.folder)
    }

    async fn joins(&mut self, reports: Vec<Report>) -> Orders {
        self.joins_as("one", reports).await.unwrap()
    }

    async fn joins_as(&mut self, instance: &str, reports: Vec<Report>) -> Result<Orders, Error> {
        self.sessions += 1;
        let (outbox, orders) = mpsc::unbounded_channel();
        let (session, instance) = (self.sessions, instance.to_owned());
        let (record, kept) = (node("n1"), Vec::new());
        self.handle.node_joined(Join { record, reports, kept, session, instance, outbox }).await?;
        Ok(orders)
    }

    async fn says(&self, key: &AttemptKey, progress: Progress) {
        let report = Report { key: key.clone(), progress };
        let node = node("n1").name;
        self.handle.node_report(node, self.sessions, report).await.unwrap();
    }

    fn submit(&self, job: &str) -> impl Future<Output = Result<Job, Error>> + use<> {
        self.submit_with(job, spec("true"), None)
    }

    fn submit_with(
        &self,
        job: &str,
        spec: CommandJob,
        key: Option<&str>,
    ) -> impl Future<Output = Result<Job, Error>> + use<> {
        let fingerprint = Digest::of(spec.command.as_bytes());
        let key = key.map(|key| IdempotencyKey { key: key.to_owned(), fingerprint });
        let spec = Arc::new(spec);
        let request =
            SubmitRequest { name: name(job), spec, by: who("ana").into(), manages: false, key };
        let handle = self.handle.clone();
        async move { handle.submit(request).await }
    }

    fn cancel(&self, job: &str) -> impl Future<Output = Result<(), Error>> + use<> {
        let (handle, job) = (self.handle.clone(), name(job));
        async move { handle.cancel(job, who("ana"), "enough".to_owned()).await }
    }

    /// Makes the reactor wait until the sender says so: what is asked meanwhile is one batch.
    fn hold(&self) -> std::sync::mpsc::SyncSender<()> {
        let (release, held) = std::sync::mpsc::sync_channel(1);
        let (reached, here) = std::sync::mpsc::sync_channel(1);
        let handle = self.handle.clone();
        tokio::spawn(async move {
            let wait = move |_: &Live, _: &HashMap<NodeName, NodeView>| {
                reached.send(()).unwrap();
                held.recv().unwrap();
            };
            handle.look(wait).await.unwrap();
        });
        tokio::task::block_in_place(|| here.recv_timeout(PATIENCE).unwrap());
        release
    }

    /// The commits that answering all of these in one batch took, and the answers.
    async fn together<T>(&self, asked: Vec<BoxFuture<'static, T>>) -> (usize, Vec<T>) {
        let release = self.hold();
        let before = self.store.commits.load(Ordering::SeqCst);
        let mut all = Box::pin(join_all(asked));
        assert!((&mut all).now_or_never().is_none());
        release.send(()).unwrap();
        let answers = tokio::time::timeout(PATIENCE, all).await.unwrap();
        (self.store.commits.load(Ordering::SeqCst) - before, answers)
    }

    async fn live(&self) -> Live {
        self.handle.look(|live, _| live.clone()).await.unwrap()
    }

    /// What is alive in memory is what is alive on disk, and what is held is what jobs hold.
    #[track_caller]
    fn check(&self, live: &Live) {
        let recovered = self.store.recover().unwrap();
        let mut jobs: Vec<Job> = live.jobs().cloned().collect();
        jobs.sort_by_key(|job| job.seq);
        assert_eq!(jobs, recovered.jobs);
        let (counters, kept) = (live.counters(), recovered.counters);
        assert_eq!(
            (counters.epoch, counters.seq, counters.event),
            (kept.epoch, kept.seq, kept.event)
        );
        let held: u64 = jobs.iter().filter_map(Job::active).map(|a| a.first.reservation.cpu).sum();
        for node in live.nodes() {
            let pool = live.sched().pool(&node.record.compute).unwrap();
            let (ledger, _) = pool.node(&node.record.name).unwrap();
            assert_eq!(ledger.free_cpu() + held, ledger.capacity().cpu);
        }
    }
}

async fn hears(orders: &mut Orders) -> Option<ToNode> {
    tokio::time::timeout(PATIENCE, orders.recv()).await.expect("the node is told nothing")
}

/// The next order, which must be an assignment.
async fn given(orders: &mut Orders) -> (AttemptKey, String) {
    match hears(orders).await {
        Some(ToNode::Assign(assignment)) => (assignment.key, assignment.token),
        other => panic!("{other:?}"),
    }
}

fn ended(code: i32) -> Progress {
    Progress::Ended(Box::new(AttemptEnd {
        exit: Some(Exit::Code(code)),
        problem: None,
        started_at: None,
        manifest: None,
        outputs: vec![],
        log_bytes: 0,
        usage: None,
        survivors: 0,
    }))
}

fn full() -> store::Error {
    store::Error::Full { operation: "write jobs and events" }
}

/// Asks for the token of an attempt at the door.
fn opens(world: &World, token: &str) -> Result<(), Denied> {
    world.door.authenticate(Some(&format!("Bearer {token}"))).map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_batch_that_could_not_be_written_nothing_is_seen_or_done() {
    let mut world = World::new();
    let mut orders = world.joins(vec![]).await;
    world.submit("before").await.unwrap();
    let (before, token) = given(&mut orders).await;
    let mut events = world.handle.events();
    let at_first = world.store.events(None, 0, 100).unwrap();

    room_for(&world.store.inner, 4).await;
    let bulky = CommandJob { description: Some("x".repeat(60_000)), ..spec("true") };
    let seen = world.handle.clone();
    let seen = async move {
        let names = |live: &Live, _: &HashMap<NodeName, NodeView>| {
            live.jobs().map(|job| job.name.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(seen.look(names).await.unwrap(), ["before"]);
        Err(Error::Stopping)
    };
    let (commits, answers) = world
        .together(vec![
            world.submit_with("small", spec("true"), Some("k")).boxed(),
            // The job that has the name, or the key, is not there in the end.
            world.submit("small").boxed(),
            world.submit_with("other", spec("false"), Some("k")).boxed(),
            world.submit_with("bulky", bulky, None).boxed(),
            world.cancel("before").map(|answer| answer.and(Err(Error::Stopping))).boxed(),
            seen.boxed(),
        ])
        .await;
    assert_eq!(commits, 1);
    for answer in &answers[..5] {
        let full =
            matches!(answer, Err(Error::Store(e)) if matches!(**e, store::Error::Full { .. }));
        assert!(full, "{answer:?}");
    }
    // No assignment, no stop: the session is over and nothing was said in it.
    assert!(hears(&mut orders).await.is_none());
    assert!(events.try_recv().is_err());
    assert_eq!(world.store.events(None, 0, 100).unwrap(), at_first);
    assert_eq!(world.store.job(&name("small")).unwrap(), None);
    assert_eq!(first_of(&*world.store, "ana", "k"), None);
    assert_eq!(world.store.job(&name("before")).unwrap().unwrap().status(), JobStatus::Starting);
    let live = world.live().await;
    world.check(&live);
    assert!(live.nodes().all(|node| matches!(node.link, Link::Silent { .. })));
    // The attempt that was there goes on.
    opens(&world, &token).unwrap();

    room_for(&world.store.inner, 1_000).await;
    let mut orders = world.joins(vec![]).await;
    assert_eq!(given(&mut orders).await, (before.clone(), token));
    let small = world.submit_with("small", spec("true"), Some("k")).await.unwrap();
    assert_eq!(small.name, name("small"));
    let (key, _) = given(&mut orders).await;
    assert!(key.job == name("small") && key.epoch > before.epoch);
    world.cancel("before").await.unwrap();
    assert!(matches!(hears(&mut orders).await, Some(ToNode::Stop { key, .. }) if key == before));
    world.check(&world.live().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_end_that_could_not_be_written_is_not_acknowledged() {
    let mut world = World::new();
    let mut orders = world.joins(vec![]).await;
    world.submit("mine").await.unwrap();
    let (key, token) = given(&mut orders).await;
    world
        .says(
            &key,
            Progress::Running {
                since: atelier_core::time::Timestamp::from_millis(1),
                idle_since: None,
            },
        )
        .await;
    world.live().await;

    *world.store.fail.lock().unwrap() = Some(full());
    world.says(&key, ended(0)).await;
    assert!(hears(&mut orders).await.is_none(), "acknowledged before it was on disk");
    let live = world.live().await;
    world.check(&live);
    assert_eq!(live.job(&name("mine")).unwrap().status(), JobStatus::Running);
    opens(&world, &token).unwrap();

    // The node tells again when it comes back.
    let report = Report { key: key.clone(), progress: ended(0) };
    let mut orders = world.joins(vec![report]).await;
    assert!(matches!(hears(&mut orders).await, Some(ToNode::Acknowledge(k)) if k == key));
    assert_eq!(world.store.job(&name("mine")).unwrap().unwrap().status(), JobStatus::Completed);
    // The token's end is another effect of the same round: it is over when the next one begins.
    world.live().await;
    assert_eq!(opens(&world, &token), Err(Denied::AttemptOver));
    let finals = world.store.events(Some(&name("mine")), 0, 100).unwrap();
    assert_eq!(finals.iter().filter(|event| event.status.is_final()).count(), 1);
    world.check(&world.live().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_request_of_a_batch_has_its_own_answer() {
    let world = World::new();
    world.submit("old").await.unwrap();
    world.cancel("old").await.unwrap();
    let nowhere =
        CommandJob { compute: Some(ComputeName::new("nowhere").unwrap()), ..spec("true") };
    let (commits, answers) = world
        .together(vec![
            world.submit_with("a", spec("true"), Some("k")).boxed(),
            world.submit_with("b", spec("true"), Some("k")).boxed(),
            world.submit_with("c", spec("false"), Some("k")).boxed(),
            world.submit("a").boxed(),
            world.submit("old").boxed(),
            world.submit_with("d", nowhere, None).boxed(),
            world.submit("e").boxed(),
        ])
        .await;
    assert_eq!(commits, 1);
    let told: Vec<Result<String, String>> = answers
        .into_iter()
        .map(|answer| answer.map(|job| job.name.to_string()).map_err(|e| e.to_string()))
        .collect();
    assert_eq!((&told[0], &told[1], &told[6]), (&Ok("a".into()), &Ok("a".into()), &Ok("e".into())));
    for (at, words) in [
        (2, ["'a'", "new key"]),
        (3, ["'a'", "taken"]),
        (4, ["'old'", "taken"]),
        (5, ["'nowhere'", "local"]),
    ] {
        let said = told[at].as_ref().unwrap_err();
        assert!(words.iter().all(|word| said.contains(word)), "{at}: {said}");
    }
    let jobs = world.store.recover().unwrap().jobs;
    assert_eq!(jobs.iter().map(|job| job.name.as_str()).collect::<Vec<_>>(), ["a", "e"]);

    let (commits, answers) = world
        .together(vec![
            world.cancel("a").boxed(),
            world.cancel("a").boxed(),
            world.cancel("old").boxed(),
            world.cancel("nobody").boxed(),
        ])
        .await;
    assert_eq!(commits, 1);
    assert!(answers[..3].iter().all(Result::is_ok), "{answers:?}");
    assert!(matches!(&answers[3], Err(Error::NoSuchJob(job)) if job == "nobody"));
    let events = world.store.events(Some(&name("a")), 0, 100).unwrap();
    assert_eq!(events.iter().filter(|event| event.status.is_final()).count(), 1);

    assert!(matches!(
        world.handle.archive(name("e"), true, who("ana")).await,
        Err(Error::StillLive(_))
    ));
    assert!(matches!(world.handle.forget(name("e"), who("ana")).await, Err(Error::StillLive(_))));
    assert!(world.handle.archive(name("a"), true, who("ana")).await.unwrap().archived);
    world.handle.forget(name("a"), who("ana")).await.unwrap();
    assert_eq!(world.store.job(&name("a")).unwrap(), None);
    // With the job its key is free again.
    let again = world.submit_with("f", spec("false"), Some("k")).await.unwrap();
    assert_eq!(again.name, name("f"));
    world.check(&world.live().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_fails_ends_the_reactor_and_acknowledges_nothing() {
    let mut world = World::new();
    let mut orders = world.joins(vec![]).await;
    *world.store.fail.lock().unwrap() = Some(store::Error::Closed);
    let (_, answers) =
        world.together(vec![world.submit("a").boxed(), world.submit("b").boxed()]).await;
    for answer in answers {
        assert!(matches!(&answer, Err(Error::Store(e)) if e.is_fatal()), "{answer:?}");
    }
    let end = tokio::time::timeout(PATIENCE, &mut world.running).await.unwrap().unwrap();
    assert!(end.unwrap_err().is_fatal());
    assert!(hears(&mut orders).await.is_none());
    assert!(matches!(world.submit("c").await, Err(Error::Stopping)));
    assert!(world.store.recover().unwrap().jobs.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_daemon_knows_what_this_one_decided_and_did_not_tell() {
    let mut world = World::new();
    let orders = world.joins(vec![]).await;
    let first = world.submit_with("mine", spec("true"), Some("k")).await.unwrap();
    // The node has heard nothing of it.
    drop(orders);
    let mut world = world.restarted().await;
    world.check(&world.live().await);
    let again = world.submit_with("other", spec("true"), Some("k")).await.unwrap();
    assert_eq!((again.name, again.seq), (first.name, first.seq));
    let refused = world.submit_with("other", spec("false"), Some("k")).await;
    assert!(matches!(refused, Err(Error::KeyReused { job }) if job == name("mine")));
    let mut orders = world.joins(vec![]).await;
    let (key, token) = given(&mut orders).await;
    assert_eq!((key.job.clone(), key.attempt.0, key.epoch), (name("mine"), 1, Epoch(1)));
    opens(&world, &token).unwrap();
    // Once the node has it, a third daemon does not send it again.
    let report = Report { key, progress: Progress::Preparing { step: "code".to_owned() } };
    let mut world = world.restarted().await;
    opens(&world, &token).unwrap();
    let mut orders = world.joins(vec![report]).await;
    world.submit("next").await.unwrap();
    assert_eq!(given(&mut orders).await.0.job, name("next"));
    world.check(&world.live().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_sessions_the_newer_of_the_same_agent_counts() {
    let mut world = World::new();
    let mut old = world.joins(vec![]).await;
    world.submit("mine").await.unwrap();
    let (key, _) = given(&mut old).await;
    let other = world.joins_as("two", vec![]).await;
    assert!(matches!(other, Err(Error::NodeTaken(_))));
    world.sessions = 1;
    // The same agent again: a broken connection is noticed late.
    world.sessions = 2;
    let mut new = world.joins(vec![]).await;
    assert!(hears(&mut old).await.is_none(), "the old session was not ended");
    assert_eq!(given(&mut new).await.0, key);
    // What still comes in through the old one counts for nothing.
    let node = node("n1").name;
    let report = Report { key: key.clone(), progress: ended(0) };
    world.handle.node_report(node.clone(), 1, report).await.unwrap();
    world.handle.heartbeat(node.clone(), 1, seen(i64::MAX)).await.unwrap();
    world.handle.node_left(node.clone(), 1).await.unwrap();
    let live = world.live().await;
    assert_eq!(live.job(&name("mine")).unwrap().status(), JobStatus::Starting);
    assert!(live.nodes().all(|node| node.link == Link::Ready));
    let views = world.handle.look(|_, views| views.clone()).await.unwrap();
    assert!(views[&node].last_seen < i64::MAX);
    // A job for a node whose session is over waits (I8).
    world.handle.node_left(node, world.sessions).await.unwrap();
    world.submit("waits").await.unwrap();
    assert_eq!(world.live().await.job(&name("waits")).unwrap().status(), JobStatus::Queued);
    // Once the first agent has hung up, another may take the name.
    drop(new);
    world.joins_as("two", vec![]).await.unwrap();
}

fn seen(at: i64) -> NodeView {
    NodeView { last_seen: at, ..NodeView::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_busy_reactor_makes_callers_wait() {
    let mut world = World::new();
    let _orders = world.joins(vec![]).await;
    let release = world.hold();
    let beat = |at| {
        let (handle, session) = (world.handle.clone(), world.sessions);
        async move { handle.heartbeat(node("n1").name, session, seen(at)).await }
    };
    let mut taken = 0;
    let waiting = loop {
        let mut sent = Box::pin(beat(taken));
        match (&mut sent).now_or_never() {
            Some(answer) => answer.unwrap(),
            None => break sent,
        }
        taken += 1;
        assert!(taken <= QUEUE as i64, "the queue has no bound");
    };
    assert!(taken > QUEUE as i64 / 2, "{taken}");
    release.send(()).unwrap();
    tokio::time::timeout(PATIENCE, waiting).await.unwrap().unwrap();
    let views = world.handle.look(|_, views| views.clone()).await.unwrap();
    assert_eq!(views[&node("n1").name].last_seen, taken, "one of those that waited was lost");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_asked_before_a_stop_is_done_and_what_after_is_not() {
    let world = World::new();
    let stop = world.handle.clone();
    let (_, answers) = world
        .together(vec![
            world.submit("a").boxed(),
            async move {
                stop.stop().await;
                Err(Error::Stopping)
            }
            .boxed(),
        ])
        .await;
    assert!(answers[0].is_ok());
    world.running.await.unwrap().unwrap();
    assert!(matches!(world.handle.look(|_, _| ()).await, Err(Error::Stopping)));
    assert_eq!(world.store.recover().unwrap().jobs.len(), 1);
}

/// Many requests, reports and failed commits in an order that the seed makes: memory never departs
/// from the disk, and no attempt is given out under two epochs.
async fn storm(seed: u64) {
    let mut world = World::new();
    let mut state = seed;
    let mut draw = |below: u64| {
        // SplitMix64 (Steele, Lea, Flood 2014).
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % below
    };
    let mut orders = world.joins(vec![]).await;
    let mut attempts: BTreeMap<AttemptKey, Progress> = BTreeMap::new();
    let (mut accepted, mut failures) = (Vec::new(), 0);
    for step in 0..150 {
        let fails = draw(5) == 0;
        if fails {
            *world.store.fail.lock().unwrap() = Some(full());
        }
        match draw(4) {
            0 | 1 => {
                let job = format!("j{step}");
                if world.submit(&job).await.is_ok() {
                    accepted.push(job);
                }
            }
            2 if !accepted.is_empty() => {
                let at = draw(accepted.len() as u64) as usize;
                let _ = world.cancel(&accepted[at]).await;
            }
            _ if !attempts.is_empty() => {
                let at = draw(attempts.len() as u64) as usize;
                let key = attempts.keys().nth(at).unwrap().clone();
                let code = i32::try_from(draw(2)).unwrap();
                attempts.insert(key.clone(), ended(code));
                world.says(&key, ended(code)).await;
            }
            _ => {}
        }
        let live = world.live().await;
        world.check(&live);
        // The failure has met a commit, or there was none.
        failures += usize::from(fails && world.store.fail.lock().unwrap().take().is_none());
        loop {
            match orders.try_recv() {
                Ok(ToNode::Assign(assignment)) => {
                    let key = assignment.key;
                    let same =
                        |known: &&AttemptKey| known.job == key.job && known.attempt == key.attempt;
                    if let Some(known) = attempts.keys().find(same) {
                        assert_eq!(known.epoch, key.epoch, "two epochs of one attempt");
                    }
                    attempts.entry(key).or_insert(Progress::Preparing { step: "code".to_owned() });
                }
                Ok(ToNode::Acknowledge(key)) => {
                    let job = world.store.job(&key.job).unwrap().unwrap();
                    assert_ne!(job.attempt_key().as_ref(), Some(&key), "acknowledged too early");
                    attempts.remove(&key);
                }
                Ok(_) => {}
                Err(mpsc::error::TryRecvError::Empty) => break,
                Err(mpsc::error::TryRecvError::Disconnected) => {
                    let reports = attempts.iter();
                    let reports = reports.map(|(key, progress)| Report {
                        key: key.clone(),
                        progress: progress.clone(),
                    });
                    let reports = reports.collect();
                    orders = world.joins(reports).await;
                    world.check(&world.live().await);
                }
            }
        }
    }
    assert!(failures > 5 && accepted.len() > 20, "{failures} {}", accepted.len());
    for job in &accepted {
        assert!(world.store.job(&name(job)).unwrap().is_some(), "{job} was accepted and is lost");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_never_departs_from_the_disk() {
    for seed in 0..4 {
        storm(seed).await;
    }
}
