//! A pre to talk to, and workers to do the others' part.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use common::clock::{ManualClock, Stamp};
use common::files::{Encoding, Volume};
use common::job::{JobId, ModelKey, Plan, Precision, Summary};
use common::segment::{Cut, Stage, Token};
use common::service::Service;
use common::store::sqlite::SqliteStore;
use common::store::{Advanced, ClaimRequest, Claimed, Offer, Output, Renewal, Store, Worker};
use pre::{App, PreArgs, Scaling};
use reqwest::{Client, RequestBuilder, Response, StatusCode};
use serde_json::Value;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

pub const LEASE: Duration = Duration::from_secs(30);

/// A running pre. Its volume and store go with it.
pub struct TestApp {
    pub app: App,
    pub base: String,
    pub http: Client,
    pub clock: Arc<ManualClock>,
    pub store: Arc<dyn Store>,
    pub volume: Volume,
    token: Option<&'static str>,
    _server: AbortOnDropHandle<()>,
    folder: Arc<TempDir>,
}

impl TestApp {
    /// With an infer worker that has announced its model.
    pub async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// With further arguments of the program.
    pub async fn start_with(arguments: &[&str]) -> Self {
        let house = Self::start_bare(arguments).await;
        house.offer().await;
        house
    }

    /// Without any word of a model yet.
    pub async fn start_bare(arguments: &[&str]) -> Self {
        let folder = Arc::new(tempfile::tempdir().unwrap());
        let clock = Arc::new(ManualClock::new(Stamp(1_700_000_000_000_000)));
        Self::on(folder, clock, Scaling::one_process(), arguments).await
    }

    /// With replicas that are shown and changed by `scaling`.
    pub async fn start_scaled(scaling: Scaling, arguments: &[&str]) -> Self {
        let folder = Arc::new(tempfile::tempdir().unwrap());
        let clock = Arc::new(ManualClock::new(Stamp(1_700_000_000_000_000)));
        let house = Self::on(folder, clock, scaling, arguments).await;
        house.offer().await;
        house
    }

    /// Another pre on the same store and volume.
    pub async fn another(&self) -> Self {
        Self::on(self.folder.clone(), self.clock.clone(), Scaling::one_process(), &[]).await
    }

    async fn on(folder: Arc<TempDir>, clock: Arc<ManualClock>, scaling: Scaling, arguments: &[&str]) -> Self {
        let mut args = PreArgs::try_parse_from(["pre"].iter().chain(arguments)).unwrap();
        if !arguments.contains(&"--disk-reserve") {
            args.pre.disk_reserve = 0;
        }
        let store = SqliteStore::open(&folder.path().join("store.sqlite"), clock.clone()).unwrap();
        let store: Arc<dyn Store> = Arc::new(store);
        let root = folder.path().canonicalize().unwrap().join("volume");
        std::fs::create_dir_all(&root).unwrap();
        let volume = Volume::new(root);
        let service =
            Service::new("pre", &args.service, store.clone(), volume.clone(), CancellationToken::new());
        let app = App::new(service, &args.service, &args.pre).unwrap().scaled(scaling);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let (service, router) = (app.service.clone(), pre::router(app.clone()));
        // No stages: the tests do their part, step by step.
        let server =
            tokio::spawn(async move { service.run(listener, router, vec![], None, None).await.unwrap() });
        let http = Client::builder().timeout(Duration::from_secs(60)).build().unwrap();
        Self {
            app,
            base,
            http,
            clock,
            store,
            volume,
            token: None,
            _server: AbortOnDropHandle::new(server),
            folder,
        }
    }

    /// Says `token` with every request from now on.
    pub fn with_token(mut self, token: &'static str) -> Self {
        self.token = Some(token);
        self
    }

    pub async fn offer(&self) {
        let key = ModelKey { digest: "abc".to_owned(), precision: Precision::Fp32 };
        let names = ["person", "bicycle", "car"].map(str::to_owned).to_vec();
        let worker = Worker {
            name: "infer-1".to_owned(),
            stages: vec![Stage::Detect],
            slots: 2,
            offer: Some(Offer { key, names }),
            ready: true,
            version: "0.1.0".to_owned(),
        };
        self.store.announce(&worker).await.unwrap();
    }

    pub fn request(&self, method: &str, path: &str) -> RequestBuilder {
        let request = self.http.request(method.parse().unwrap(), format!("{}{path}", self.base));
        match self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }

    pub async fn get(&self, path: &str) -> Response {
        self.request("GET", path).send().await.unwrap()
    }

    pub async fn post(&self, path: &str) -> Response {
        self.request("POST", path).send().await.unwrap()
    }

    /// The answer's body as JSON, if its status is `status`.
    pub async fn get_json(&self, path: &str, status: u16) -> Value {
        json(self.get(path).await, status).await
    }

    /// Uploads a small file as the body of a request; the job's id.
    pub async fn upload(&self, name: &str) -> JobId {
        let answer = self.request("POST", &format!("/v1/jobs?filename={name}")).body("a video").send();
        id_of(&json(answer.await.unwrap(), 202).await)
    }

    pub async fn expect_status(&self, id: JobId, status: &str) {
        assert_eq!(self.get_json(&format!("/v1/jobs/{id}"), 200).await["status"], status);
    }

    /// A worker's report, with the token it takes.
    pub async fn report(&self, id: impl std::fmt::Display, status: &str) -> StatusCode {
        self.request("PUT", &format!("/requestid/{id}/status/{status}")).send().await.unwrap().status()
    }

    /// Takes the next piece of `stage`.
    pub async fn claim(&self, stage: Stage) -> Claimed {
        let request = ClaimRequest {
            stage,
            worker: "worker-1".to_owned(),
            token: Token::random(),
            lease: LEASE,
            model: None,
            pack_budget: None,
        };
        self.store.claim(&request).await.unwrap().expect("something to claim")
    }

    pub async fn advance(&self, claimed: Claimed, output: Output) {
        assert_eq!(self.store.advance(claimed.lease, output).await.unwrap(), Advanced::Recorded);
    }

    /// Indexes the next job into `segments` of two frames each.
    pub async fn index(&self, segments: u32) {
        let claimed = self.claim(Stage::Index).await;
        let folder = self.volume.job(claimed.job.id);
        let path = folder.index(&claimed.lease.token);
        std::fs::write(&path, crate::results::frame_index(segments * 2)).unwrap();
        let cuts: Vec<Cut> = (0..segments).map(|k| Cut { first: 2 * k, last: 2 * k + 1 }).collect();
        assert_eq!(self.store.put_segments(&claimed.lease, &cuts).await.unwrap(), Renewal::Held);
        let plan = Plan {
            index: folder.record(&path).unwrap(),
            mezzanine: None,
            frames: segments * 2,
            segments,
            width: 100,
            height: 50,
            dropped: vec![],
        };
        self.advance(claimed, Output::Indexed(plan)).await;
    }

    /// Does one piece of `stage`, files and all.
    pub async fn work(&self, stage: Stage) {
        let claimed = self.claim(stage).await;
        let folder = self.volume.job(claimed.job.id);
        let token = claimed.lease.token.clone();
        let write = |path: PathBuf, content: &[u8]| {
            std::fs::write(&path, content).unwrap();
            folder.record(&path).unwrap()
        };
        let segment = claimed.segment.as_ref();
        let (index, frames) =
            segment.map_or((0, 0..=0), |segment| (segment.index, segment.first..=segment.last));
        let output = match stage {
            Stage::Index => panic!("use index"),
            Stage::Decode => {
                for n in frames {
                    write(folder.src_frame(n), format!("picture {n}").as_bytes());
                }
                Output::Decoded { pack: write(folder.pack(index, &token), b"pack"), concealed: vec![] }
            }
            Stage::Detect => {
                let content = crate::results::detections(*frames.start(), *frames.end());
                Output::Detected { detections: write(folder.detections(index, &token), &content) }
            }
            Stage::Render => {
                for n in frames {
                    write(folder.txt(n), format!("0.1\n0.2\n0.3\n0.4\n{}\n", n % 2).as_bytes());
                    write(folder.tar_frame(n), format!("boxed {n}").as_bytes());
                }
                let encoded = write(folder.encoded(index, Encoding::H264, &token), b"h264");
                Output::Rendered { encoded: vec![(Encoding::H264, encoded)] }
            }
            Stage::Assemble => {
                write(folder.target_mp4(), b"0123456789 the mp4");
                write(folder.target_avi(), b"0123456789 the avi");
                write(folder.poster(), b"the poster");
                write(folder.detections_json(), b"{\"the\": \"merged file\"}");
                write(folder.detections_csv(), b"the merged table");
                Output::Assembled(Summary {
                    frames: 2,
                    duration: 0.08,
                    counts: vec![("car".to_owned(), 2)],
                    ..Summary::default()
                })
            }
        };
        self.advance(claimed, output).await;
    }

    /// Does what the reconciler does: stamps what the segments bear out.
    pub async fn settle(&self, id: JobId) {
        self.store.reconcile(id).await.unwrap();
    }

    /// Takes the next job all the way, cut into `segments`.
    pub async fn finish(&self, segments: u32) {
        self.index(segments).await;
        for stage in [Stage::Decode, Stage::Detect, Stage::Render] {
            for _ in 0..segments {
                self.work(stage).await;
            }
        }
        self.work(Stage::Assemble).await;
        for id in self.store.unsettled().await.unwrap() {
            self.settle(id).await;
        }
    }
}

/// The body as JSON, of an answer that must have `status`.
pub async fn json(answer: Response, status: u16) -> Value {
    let found = answer.status().as_u16();
    let text = answer.text().await.unwrap();
    assert_eq!(found, status, "{text}");
    serde_json::from_str(&text).unwrap()
}

pub fn id_of(job: &Value) -> JobId {
    job["id"].as_str().unwrap().parse().unwrap()
}
