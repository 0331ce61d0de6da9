use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::sync::{Mutex, PoisonError};

use tempfile::TempDir;
use tokio::time::{sleep, timeout};

use super::*;
use crate::clock::{Clock, Stamp};
use crate::job::{Failure, JobId, ModelKey, Status};
use crate::segment::{Cut, State};
use crate::store::contract::{cuts, film, indexed, new_job, output, plan, step};
use crate::store::sqlite::SqliteStore;
use crate::store::{Advanced, Counts, NewJob, Renewal, Reported, Setback, Unanswered};

type BoxFuture<'a, T> = std::pin::Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// The store's clock, moved by the runtime's paused time.
struct RuntimeClock(Instant);

impl Clock for RuntimeClock {
    fn now(&self) -> Stamp {
        Stamp(1_700_000_000_000_000).after(self.0.elapsed())
    }
}

/// A store that can be made to fail.
struct Flaky {
    inner: SqliteStore,
    down: AtomicBool,
    lost_answers: AtomicUsize,
    claims: AtomicUsize,
}

impl Flaky {
    fn up(&self) -> Result<(), StoreError> {
        if self.down.load(Ordering::SeqCst) {
            return Err(StoreError::Unavailable("pulled the plug".to_owned()));
        }
        Ok(())
    }

    fn answer_is_lost(&self) -> bool {
        self.lost_answers.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).is_ok()
    }
}

fn copy(lease: &Lease) -> Lease {
    Lease { token: lease.token.clone(), ..*lease }
}

#[async_trait]
impl JobStore for Flaky {
    async fn create_job(&self, new: NewJob) -> Result<Job, StoreError> {
        self.inner.create_job(new).await
    }
    async fn job(&self, id: JobId) -> Result<Option<Job>, StoreError> {
        self.inner.job(id).await
    }
    async fn jobs(&self, b: Option<JobId>, limit: u32, s: &[Status]) -> Result<Vec<Job>, StoreError> {
        self.inner.jobs(b, limit, s).await
    }
    async fn segments(&self, job: JobId) -> Result<Vec<Segment>, StoreError> {
        self.inner.segments(job).await
    }
    async fn counts(&self, job: JobId) -> Result<Counts, StoreError> {
        self.inner.counts(job).await
    }
    async fn claim(&self, request: &ClaimRequest) -> Result<Option<Claimed>, StoreError> {
        self.up()?;
        self.claims.fetch_add(1, Ordering::SeqCst);
        let answer = self.inner.claim(request).await;
        if self.answer_is_lost() { Err(StoreError::Unavailable("lost".to_owned())) } else { answer }
    }
    async fn renew(&self, lease: &Lease, lease_time: Duration) -> Result<Renewal, StoreError> {
        self.up()?;
        self.inner.renew(lease, lease_time).await
    }
    async fn put_segments(&self, lease: &Lease, cuts: &[Cut]) -> Result<Renewal, StoreError> {
        self.inner.put_segments(lease, cuts).await
    }
    async fn advance(&self, lease: Lease, what: Output) -> Result<Advanced, Unanswered<Output>> {
        if let Err(error) = self.up() {
            return Err(Unanswered { lease, what, error });
        }
        let (again, same) = (copy(&lease), what.clone());
        let answer = self.inner.advance(lease, what).await;
        if self.answer_is_lost() {
            let error = StoreError::Unavailable("the answer was lost".to_owned());
            return Err(Unanswered { lease: again, what: same, error });
        }
        answer
    }
    async fn set_back(&self, lease: Lease, what: Setback) -> Result<(), Unanswered<Setback>> {
        if let Err(error) = self.up() {
            return Err(Unanswered { lease, what, error });
        }
        self.inner.set_back(lease, what).await
    }
    async fn report(&self, id: JobId, status: Status) -> Result<Reported, StoreError> {
        self.inner.report(id, status).await
    }
    async fn reconcile(&self, id: JobId) -> Result<Option<Job>, StoreError> {
        self.inner.reconcile(id).await
    }
    async fn unsettled(&self) -> Result<Vec<JobId>, StoreError> {
        self.inner.unsettled().await
    }
    async fn fail(&self, id: JobId, failure: Failure) -> Result<bool, StoreError> {
        self.inner.fail(id, failure).await
    }
    async fn cancel(&self, id: JobId) -> Result<bool, StoreError> {
        self.inner.cancel(id).await
    }
    async fn retry(&self, id: JobId) -> Result<bool, StoreError> {
        self.inner.retry(id).await
    }
    async fn retry_with(&self, id: JobId, model: ModelKey) -> Result<bool, StoreError> {
        self.inner.retry_with(id, model).await
    }
    async fn tombstone(&self, id: JobId) -> Result<bool, StoreError> {
        self.inner.tombstone(id).await
    }
    async fn remove(&self, id: JobId) -> Result<(), StoreError> {
        self.inner.remove(id).await
    }
}

type Script = Box<dyn for<'a> Fn(&'a Assignment) -> BoxFuture<'a, Result<(), JobError>> + Send + Sync>;

/// Does what the test says, then gives the stage's usual output.
struct Scripted {
    stage: Stage,
    store: Arc<dyn JobStore>,
    script: Script,
    settled: AtomicUsize,
    attempts: Mutex<Vec<u32>>,
}

#[async_trait]
impl Work for Scripted {
    fn stage(&self) -> Stage {
        self.stage
    }

    async fn run(&self, work: &Assignment) -> Result<Output, JobError> {
        self.attempts.lock().unwrap_or_else(PoisonError::into_inner).push(work.lease.attempt);
        (self.script)(work).await?;
        if self.stage == Stage::Index {
            self.store
                .put_segments(&work.lease, &cuts(2))
                .await
                .map_err(|error| JobError::retry_because("The store is away.", error))?;
            return Ok(Output::Indexed(plan(2)));
        }
        Ok(output(self.stage, &work.lease.token))
    }

    async fn settled(&self, _job: &Job, _segment: Option<&Segment>) {
        self.settled.fetch_add(1, Ordering::SeqCst);
    }
}

struct Bench {
    store: Arc<Flaky>,
    hints: Arc<Hints>,
    shutdown: CancellationToken,
    settings: LoopSettings,
    _folder: TempDir,
}

impl Bench {
    fn new() -> Self {
        let folder = TempDir::new().unwrap();
        let clock = Arc::new(RuntimeClock(Instant::now()));
        let inner = SqliteStore::open(&folder.path().join("jobs.db"), clock).unwrap();
        let store = Arc::new(Flaky {
            inner,
            down: AtomicBool::new(false),
            lost_answers: AtomicUsize::new(0),
            claims: AtomicUsize::new(0),
        });
        Self {
            store,
            hints: Hints::new(),
            shutdown: CancellationToken::new(),
            settings: LoopSettings::new("test"),
            _folder: folder,
        }
    }

    fn work<F>(&self, stage: Stage, script: F) -> Arc<Scripted>
    where
        F: for<'a> Fn(&'a Assignment) -> BoxFuture<'a, Result<(), JobError>> + Send + Sync + 'static,
    {
        Arc::new(Scripted {
            stage,
            store: self.store.clone(),
            script: Box::new(script),
            settled: AtomicUsize::new(0),
            attempts: Mutex::default(),
        })
    }

    fn start(&self, work: &Arc<Scripted>) -> tokio::task::JoinHandle<LoopEnd> {
        let (settings, hints) = (self.settings.clone(), self.hints.clone());
        tokio::spawn(run(self.store.clone(), work.clone(), settings, hints, self.shutdown.clone()))
    }

    async fn once(&self, work: &Arc<Scripted>) -> bool {
        let (store, work): (Arc<dyn JobStore>, Arc<dyn Work>) = (self.store.clone(), work.clone());
        run_once(&store, &work, &self.settings, &self.hints).await.unwrap()
    }

    async fn segment(&self, job: JobId, k: usize) -> Segment {
        self.store.segments(job).await.unwrap().remove(k)
    }

    async fn until(&self, what: &str, condition: impl AsyncFn() -> bool) {
        let waiting = async {
            while !condition().await {
                sleep(Duration::from_millis(50)).await;
            }
        };
        timeout(Duration::from_secs(3600), waiting).await.unwrap_or_else(|_| panic!("never: {what}"));
    }

    async fn until_state(&self, job: JobId, k: usize, state: State) {
        self.until("the segment gets there", async || self.segment(job, k).await.state == state).await;
    }
}

impl Scripted {
    fn attempts(&self) -> Vec<u32> {
        self.attempts.lock().unwrap().clone()
    }
}

#[tokio::test(start_paused = true)]
async fn five_loops_take_a_video_all_the_way_on_hints_alone() {
    let mut bench = Bench::new();
    bench.settings.poll_min = Duration::from_secs(100_000);
    bench.settings.poll_max = Duration::from_secs(100_000);
    let works: Vec<_> = Stage::ALL.map(|stage| bench.work(stage, |_| Box::pin(async { Ok(()) }))).into();
    let loops: Vec<_> = works.iter().map(|work| bench.start(work)).collect();
    sleep(Duration::from_secs(1)).await;
    let began = Instant::now();
    let id = bench.store.create_job(new_job()).await.unwrap().id;
    let mut changes = bench.hints.watch();
    bench.hints.notify(Stage::Index);
    while bench.store.job(id).await.unwrap().unwrap().state != State::Done {
        changes.changed().await.unwrap();
    }
    assert!(began.elapsed() < Duration::from_secs(1), "nobody waited for a poll: {:?}", began.elapsed());
    let job = bench.store.reconcile(id).await.unwrap().unwrap();
    assert_eq!(job.timeline.status(), Status::PostprocessingComplete);
    bench.shutdown.cancel();
    for end in loops {
        assert_eq!(end.await.unwrap(), LoopEnd::Shutdown);
    }
    let settled: Vec<_> = works.iter().map(|work| work.settled.load(Ordering::SeqCst)).collect();
    assert_eq!(settled, [1, 2, 2, 2, 1]);
}

#[tokio::test(start_paused = true)]
async fn a_lease_is_renewed_as_long_as_progress_moves() {
    let bench = Bench::new();
    let id = film(&*bench.store, 1).await;
    let work = bench.work(Stage::Decode, |work| {
        Box::pin(async {
            for _ in 0..20 {
                sleep(Duration::from_secs(50)).await;
                work.control.tick(1);
            }
            Ok(())
        })
    });
    bench.start(&work);
    sleep(Duration::from_secs(1)).await;
    for _ in 0..90 {
        sleep(Duration::from_secs(10)).await;
        assert_eq!(step(&*bench.store, Stage::Decode).await, None, "nobody else gets it");
    }
    bench.until_state(id, 0, State::Waiting(Stage::Detect)).await;
    assert_eq!(work.attempts(), [1]);
}

#[tokio::test(start_paused = true)]
async fn a_hang_is_stopped_and_tried_again() {
    for heeds in [true, false] {
        let bench = Bench::new();
        let id = film(&*bench.store, 1).await;
        let work = bench.work(Stage::Decode, move |work| {
            Box::pin(async move {
                if work.lease.attempt == 1 {
                    work.control.tick(10);
                    if heeds {
                        work.control.cancelled().cancelled().await;
                        return Err(JobError::Stopped);
                    }
                    std::future::pending::<()>().await;
                }
                Ok(())
            })
        });
        let began = Instant::now();
        bench.start(&work);
        bench.until_state(id, 0, State::Waiting(Stage::Detect)).await;
        assert_eq!(work.attempts(), [1, 2]);
        let took = began.elapsed();
        assert!(took >= bench.settings.stall && took < bench.settings.stall * 2, "{took:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn cancelling_the_job_stops_the_work_quietly() {
    let bench = Bench::new();
    let id = film(&*bench.store, 1).await;
    let stopped = Arc::new(AtomicBool::new(false));
    let flag = stopped.clone();
    let work = bench.work(Stage::Decode, move |work| {
        let flag = flag.clone();
        Box::pin(async move {
            work.control.cancelled().cancelled().await;
            flag.store(true, Ordering::SeqCst);
            Err(JobError::retry("the child was killed"))
        })
    });
    bench.start(&work);
    sleep(Duration::from_secs(1)).await;
    assert!(bench.store.cancel(id).await.unwrap());
    sleep(bench.settings.lease / 3).await;
    assert!(stopped.load(Ordering::SeqCst), "within a third of the lease");
    sleep(Duration::from_secs(100)).await;
    assert_eq!(work.attempts(), [1]);
    assert_eq!(bench.segment(id, 0).await.failures, 0);
    assert_eq!(bench.store.job(id).await.unwrap().unwrap().timeline.status(), Status::Cancelled);
}

#[tokio::test(start_paused = true)]
async fn shutting_down_hands_the_work_back_at_once() {
    for heeds in [true, false] {
        let bench = Bench::new();
        let id = film(&*bench.store, 1).await;
        let work = bench.work(Stage::Decode, move |work| {
            Box::pin(async move {
                if heeds {
                    work.control.cancelled().cancelled().await;
                    return Err(JobError::fail("killed by the same Ctrl-C"));
                }
                std::future::pending::<Result<(), JobError>>().await
            })
        });
        let running = bench.start(&work);
        bench.until("it is claimed", async || bench.segment(id, 0).await.lease.is_some()).await;
        let began = Instant::now();
        bench.shutdown.cancel();
        assert_eq!(running.await.unwrap(), LoopEnd::Shutdown);
        assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
        let segment = bench.segment(id, 0).await;
        assert_eq!((segment.state, segment.lease), (State::Waiting(Stage::Decode), None));
        assert_eq!((segment.failures, segment.expiries), (0, 0), "nobody is to blame");
        assert!(step(&*bench.store, Stage::Decode).await.is_some(), "claimable at once");
    }
}

#[tokio::test(start_paused = true)]
async fn a_panic_costs_an_attempt_and_not_the_loop() {
    let bench = Bench::new();
    let id = film(&*bench.store, 1).await;
    let work = bench.work(Stage::Decode, |work| {
        Box::pin(async {
            assert!(work.lease.attempt > 1, "this panic belongs to the test");
            Ok(())
        })
    });
    bench.start(&work);
    bench.until_state(id, 0, State::Waiting(Stage::Detect)).await;
    assert_eq!(work.attempts(), [1, 2]);
}

#[tokio::test(start_paused = true)]
async fn an_outage_shorter_than_the_lease_goes_unnoticed() {
    let bench = Bench::new();
    let id = film(&*bench.store, 1).await;
    let work = bench.work(Stage::Decode, |work| {
        Box::pin(async {
            for _ in 0..25 {
                sleep(Duration::from_secs(1)).await;
                work.control.tick(1);
            }
            Ok(())
        })
    });
    bench.start(&work);
    sleep(Duration::from_secs(11)).await;
    // Over a renewal, and over the advance.
    bench.store.down.store(true, Ordering::SeqCst);
    sleep(Duration::from_secs(25)).await;
    assert_eq!(bench.segment(id, 0).await.state, State::Waiting(Stage::Decode));
    bench.store.down.store(false, Ordering::SeqCst);
    sleep(Duration::from_secs(4)).await;
    assert_eq!(bench.segment(id, 0).await.state, State::Waiting(Stage::Detect));
    assert_eq!((work.attempts(), work.settled.load(Ordering::SeqCst)), (vec![1], 1));
}

#[tokio::test(start_paused = true)]
async fn a_worker_fences_itself_when_the_store_is_silent() {
    let bench = Bench::new();
    film(&*bench.store, 1).await;
    let stopped_at = Arc::new(Mutex::new(None));
    let stopped = stopped_at.clone();
    let work = bench.work(Stage::Decode, move |work| {
        let stopped = stopped.clone();
        Box::pin(async move {
            let ticking = async {
                loop {
                    sleep(Duration::from_secs(1)).await;
                    work.control.tick(1);
                }
            };
            tokio::select! {
                () = ticking => {}
                () = work.control.cancelled().cancelled() => {}
            }
            *stopped.lock().unwrap() = Some(Instant::now());
            Err(JobError::Stopped)
        })
    });
    let running = bench.start(&work);
    // Two renewals went well: the fence moved on with them.
    sleep(Duration::from_secs(25)).await;
    assert_eq!(*stopped_at.lock().unwrap(), None);
    let down = Instant::now();
    bench.store.down.store(true, Ordering::SeqCst);
    sleep(bench.settings.lease * 2).await;
    let stopped = stopped_at.lock().unwrap().expect("it stopped");
    assert!(stopped - down <= bench.settings.lease, "before anybody else may claim it");
    bench.shutdown.cancel();
    assert_eq!(running.await.unwrap(), LoopEnd::Shutdown, "an outage does not hold up the end");
}

#[tokio::test(start_paused = true)]
async fn lost_answers_change_nothing() {
    let bench = Bench::new();
    let id = film(&*bench.store, 2).await;
    let work = bench.work(Stage::Decode, |_| Box::pin(async { Ok(()) }));
    // Two claims are asked again by their token, then two advances by theirs.
    bench.store.lost_answers.store(2, Ordering::SeqCst);
    bench.start(&work);
    bench.until("claimed", async || bench.store.lost_answers.load(Ordering::SeqCst) == 0).await;
    bench.store.lost_answers.store(2, Ordering::SeqCst);
    bench.until_state(id, 1, State::Waiting(Stage::Detect)).await;
    sleep(Duration::from_secs(100)).await;
    assert_eq!(work.attempts(), [1, 1], "each segment was worked on once");
    assert_eq!(work.settled.load(Ordering::SeqCst), 2);
}

#[tokio::test(start_paused = true)]
async fn failing_for_good_and_sending_back_reach_the_store() {
    let bench = Bench::new();
    let id = film(&*bench.store, 1).await;
    step(&*bench.store, Stage::Decode).await;
    let work = bench.work(Stage::Detect, |_| {
        Box::pin(async { Err(JobError::send_back(Stage::Decode, "the pack is damaged")) })
    });
    assert!(bench.once(&work).await);
    assert!(!bench.once(&work).await);
    let work =
        bench.work(Stage::Decode, |_| Box::pin(async { Err(JobError::fail("No frame can be read.")) }));
    assert!(bench.once(&work).await);
    let job = bench.store.job(id).await.unwrap().unwrap();
    assert_eq!(job.timeline.status(), Status::FrameConvertError);
    assert_eq!(work.settled.load(Ordering::SeqCst), 0);
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_fails_everything_stops_and_gives_the_attempts_back() {
    let bench = Bench::new();
    let mut jobs = Vec::new();
    for _ in 0..MAX_STREAK + 1 {
        jobs.push(indexed(&*bench.store, new_job(), 1).await);
    }
    let work = bench.work(Stage::Decode, |_| Box::pin(async { Err(JobError::retry("no GPU here")) }));
    assert_eq!(bench.start(&work).await.unwrap(), LoopEnd::Unready);
    assert_eq!(work.attempts().len(), MAX_STREAK);
    for job in jobs {
        let segment = bench.segment(job, 0).await;
        assert_eq!((segment.failures, segment.expiries, segment.lease), (0, 0, None));
    }
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_is_alone_may_go_on_whatever_fails() {
    let mut bench = Bench::new();
    bench.settings.streak = 0;
    let mut jobs = Vec::new();
    for _ in 0..5 {
        jobs.push(indexed(&*bench.store, new_job(), 1).await);
    }
    let well = *jobs.iter().max().unwrap();
    let work = bench.work(Stage::Decode, move |work| {
        let fails = work.job.id != well;
        Box::pin(async move { if fails { Err(JobError::retry("a crash")) } else { Ok(()) } })
    });
    bench.start(&work);
    bench.until_state(well, 0, State::Waiting(Stage::Detect)).await;
}

#[tokio::test(start_paused = true)]
async fn an_idle_place_does_not_hide_that_the_worker_is_unwell() {
    let mut bench = Bench::new();
    bench.settings.slots = 2;
    let work = bench.work(Stage::Decode, |work| {
        Box::pin(async {
            for _ in 0..4 {
                sleep(Duration::from_secs(20)).await;
                work.control.tick(1);
            }
            Err(JobError::retry("no GPU here"))
        })
    });
    let running = bench.start(&work);
    // One job at a time: the other place finds nothing, again and again.
    let mut jobs = Vec::new();
    for n in 1..=MAX_STREAK {
        let job = indexed(&*bench.store, new_job(), 1).await;
        jobs.push(job);
        bench.until("it is tried", async || work.attempts().len() == n).await;
        sleep(Duration::from_secs(79)).await;
    }
    assert_eq!(running.await.unwrap(), LoopEnd::Unready);
    assert_eq!(bench.segment(jobs[MAX_STREAK - 1], 0).await.failures, 0);
}

#[tokio::test(start_paused = true)]
async fn failures_count_once_something_goes_well() {
    let bench = Bench::new();
    let mut jobs = Vec::new();
    for _ in 0..MAX_STREAK {
        jobs.push(indexed(&*bench.store, new_job(), 1).await);
    }
    let well = *jobs.iter().max().unwrap();
    let work = bench.work(Stage::Decode, move |work| {
        let fails = work.job.id != well;
        Box::pin(async move { if fails { Err(JobError::retry("a bad file")) } else { Ok(()) } })
    });
    let running = bench.start(&work);
    for job in jobs.iter().filter(|job| **job != well) {
        bench
            .until("the bad ones are given up", async || {
                bench.store.job(*job).await.unwrap().unwrap().timeline.status() == Status::FrameConvertError
            })
            .await;
    }
    assert!(!running.is_finished(), "the worker is not to blame");
}

#[tokio::test(start_paused = true)]
async fn slots_work_side_by_side() {
    let mut bench = Bench::new();
    bench.settings.slots = 3;
    let id = film(&*bench.store, 6).await;
    let work = bench.work(Stage::Decode, |_| {
        Box::pin(async {
            sleep(Duration::from_secs(10)).await;
            Ok(())
        })
    });
    let began = Instant::now();
    bench.start(&work);
    bench.until("all decoded", async || bench.store.counts(id).await.unwrap().detect == 6).await;
    let took = began.elapsed();
    assert!(took >= Duration::from_secs(20) && took < Duration::from_secs(25), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn an_idle_worker_asks_less_and_less() {
    let mut bench = Bench::new();
    bench.settings.slots = 8;
    let work = bench.work(Stage::Decode, |_| Box::pin(async { Ok(()) }));
    bench.start(&work);
    sleep(Duration::from_secs(600)).await;
    let claims = bench.store.claims.load(Ordering::SeqCst);
    assert!((300..650).contains(&claims), "{claims} claims in 600 s with pauses of 1 to 2 s");
}
