//! A headless Chromium of the test's own, and what a person does with one.

use std::fmt::Debug;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use fantoccini::elements::Element;
use fantoccini::error::CmdError;
use fantoccini::wd::WebDriverCompatibleCommand;
use fantoccini::{Client, ClientBuilder, Locator};
use hyper_util::client::legacy::connect::HttpConnector;
use reqwest::{Method, Url};
use serde_json::{Value, json};
use testbed::cluster::PATIENCE;

const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// Names a folder that pictures of the pages are put into.
const PICTURES: &str = "BOXREEL_TEST_PICTURES";

/// The rules of accessibility; `scripts/fetch_axe.sh` brings them.
static AXE: LazyLock<String> = LazyLock::new(|| {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.tools/axe/axe.min.js");
    std::fs::read_to_string(&path)
        .unwrap_or_else(|_| panic!("no {}: run scripts/fetch_axe.sh", path.display()))
});

/// How a page is looked at: name, width, height, in the dark.
const LOOKS: [(&str, u32, u32, bool); 4] = [
    ("wide", 1280, 900, false),
    ("dark", 1280, 900, true),
    ("phone", 390, 844, false),
    ("phone-dark", 390, 844, true),
];

/// Chromium's driver and all it starts.
struct Driver {
    /// Closed, it has the shell beyond kill everything and clear up. The kernel closes it, however a test ends.
    life: Option<ChildStdin>,
    shell: Child,
    url: String,
    _profile: tempfile::TempDir,
}

impl Driver {
    fn start() -> Self {
        let profile = tempfile::Builder::new().prefix("boxreel-browser-").tempdir().unwrap();
        let mut command = Command::new("sh");
        command
            .args([
                "-c",
                "setsid chromedriver --port=0 </dev/null & cat >/dev/null; kill -s KILL -- -$!; wait; \
                 rm -rf -- \"$1\" || { sleep 1; rm -rf -- \"$1\"; }",
                "sh",
            ])
            .arg(profile.path())
            .env("TMPDIR", profile.path())
            .env("HOME", profile.path())
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let mut shell = command.spawn().unwrap();
        let life = shell.stdin.take();
        // "… was started successfully on port 9515.", with no end of the line.
        let mut said = BufReader::new(shell.stdout.take().unwrap()).split(b'.').map_while(Result::ok);
        let port = said.find_map(|sentence| {
            let sentence = String::from_utf8_lossy(&sentence).into_owned();
            Some(sentence.split_once("started successfully on port ")?.1.to_owned())
        });
        let port = port.expect("chromedriver starts; scripts/setup.sh installs it");
        std::thread::spawn(move || said.for_each(drop));
        Self { life, shell, url: format!("http://127.0.0.1:{port}"), _profile: profile }
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        drop(self.life.take());
        let _ = self.shell.wait();
    }
}

/// A command of Chromium's that is in no standard.
#[derive(Debug)]
struct Extra {
    path: &'static str,
    body: Value,
}

impl WebDriverCompatibleCommand for Extra {
    fn endpoint(&self, base: &Url, session: Option<&str>) -> Result<Url, <Url as std::str::FromStr>::Err> {
        base.join(&format!("session/{}/{}", session.unwrap_or_default(), self.path))
    }

    fn method_and_body(&self, _: &Url) -> (Method, Option<String>) {
        (Method::POST, Some(self.body.to_string()))
    }
}

/// One window on one site. Dropped, it is gone with all its processes; [`Browser::close`] also asks whether all was
/// well.
pub struct Browser {
    client: Client,
    site: String,
    _driver: Driver,
}

impl Browser {
    /// A window for the pages of `site`.
    pub async fn open(site: &str) -> Self {
        Self::with(site, &json!({})).await
    }

    /// A window of a browser that runs no scripts.
    pub async fn without_scripts(site: &str) -> Self {
        Self::with(site, &json!({ "profile.managed_default_content_settings.javascript": 2 })).await
    }

    async fn with(site: &str, preferences: &Value) -> Self {
        let driver = tokio::task::spawn_blocking(Driver::start).await.unwrap();
        let arguments = [
            "--headless=new",
            // In a container of root's there is nothing it could build its sandbox with.
            "--no-sandbox",
            "--disable-dev-shm-usage",
            "--disable-gpu",
            "--mute-audio",
            "--hide-scrollbars",
            "--window-size=1280,900",
            "--lang=en",
        ];
        let wanted = json!({
            "goog:chromeOptions": { "args": arguments, "prefs": preferences, "perfLoggingPrefs": { "enablePage": false } },
            "goog:loggingPrefs": { "browser": "ALL", "performance": "ALL" },
        });
        let Value::Object(wanted) = wanted else { unreachable!() };
        let client = ClientBuilder::new(HttpConnector::new()).capabilities(wanted).connect(&driver.url).await;
        Self { client: client.unwrap(), site: site.to_owned(), _driver: driver }
    }

    /// Goes to a path of the site.
    pub async fn goto(&self, path: &str) {
        self.client.goto(&format!("{}{path}", self.site)).await.unwrap();
    }

    /// The path it is at.
    pub async fn path(&self) -> String {
        self.client.current_url().await.unwrap().path().to_owned()
    }

    /// The browser's own account of a cookie: `(httpOnly, sameSite, secure)`.
    pub async fn cookie(&self, name: &str) -> Value {
        let cookies = self.devtools("Network.getCookies", json!({})).await;
        let cookies = cookies["cookies"].as_array().unwrap();
        let cookie = cookies.iter().find(|cookie| cookie["name"] == name).expect("the cookie is kept");
        json!([cookie["httpOnly"], cookie["sameSite"], cookie["secure"]])
    }

    /// What a script answers.
    pub async fn ask(&self, script: &str) -> Value {
        self.client.execute(script, vec![]).await.unwrap()
    }

    /// Waits until a script answers something that is true; that.
    pub async fn until(&self, script: &str) -> Value {
        let answer = async || match self.client.execute(script, vec![]).await {
            Ok(Value::Null | Value::Bool(false)) => Ok(None),
            answer => answer.map(Some),
        };
        self.patiently(script, answer).await
    }

    /// Waits until the page says `text` where it can be read.
    pub async fn until_said(&self, text: &str) {
        // The innermost: an element is shown that holds a hidden one.
        let path = format!("(//main//*[contains(normalize-space(), '{text}')])[last()]");
        let shown = async || match self.client.find(Locator::XPath(&path)).await?.is_displayed().await? {
            true => Ok(Some(())),
            false => Ok(None),
        };
        self.patiently(text, shown).await;
    }

    /// Loads the page again and again until it says `text`.
    pub async fn until_reloaded(&self, text: &str) {
        let path = format!("//main//*[contains(normalize-space(), '{text}')]");
        let said = async || {
            let found = !self.client.find_all(Locator::XPath(&path)).await?.is_empty();
            if !found {
                self.client.refresh().await?;
            }
            Ok(found.then_some(()))
        };
        self.patiently(text, said).await;
    }

    /// Tries until it works. A page that has just been replaced makes the driver stumble: that is no fault.
    async fn patiently<T>(
        &self,
        what: &str,
        mut attempt: impl AsyncFnMut() -> Result<Option<T>, CmdError>,
    ) -> T {
        let began = Instant::now();
        loop {
            let tried = attempt().await;
            let why = match tried {
                Ok(Some(found)) => return found,
                Ok(None) => "not yet".to_owned(),
                Err(error) => error.to_string(),
            };
            if began.elapsed() > PATIENCE {
                let page = self.client.source().await.unwrap_or_default();
                panic!("waited in vain for {what}: {why}\n{page}");
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    async fn click(&self, path: &str) {
        let click = async || {
            let element = self.client.find(Locator::XPath(path)).await?;
            if !element.is_displayed().await? {
                return Ok(None);
            }
            element.click().await.map(Some)
        };
        self.patiently(path, click).await;
    }

    /// Follows the link that says `text`.
    pub async fn follow(&self, text: &str) {
        self.click(&format!("//a[normalize-space()='{text}']")).await;
    }

    /// Where the link that says `text` leads.
    pub async fn link(&self, text: &str) -> String {
        let path = format!("//a[normalize-space()='{text}']");
        self.client.find(Locator::XPath(&path)).await.unwrap().attr("href").await.unwrap().unwrap()
    }

    /// Presses the button that says `text`.
    pub async fn press(&self, text: &str) {
        self.click(&format!("//button[normalize-space()='{text}']")).await;
    }

    /// The first element that a selector finds, as soon as it is there.
    pub async fn find(&self, selector: &str) -> Element {
        let find = async || self.client.find(Locator::Css(selector)).await.map(Some);
        self.patiently(selector, find).await
    }

    /// Chooses a file where the page asks for one.
    pub async fn choose(&self, file: &Path) {
        self.find("input[type=file]").await.send_keys(&file.display().to_string()).await.unwrap();
    }

    /// Looks at the page wide and narrow, in the light and in the dark: the rules of accessibility hold, and nothing
    /// is wider than the window.
    pub async fn check(&self, name: &str) {
        self.figures(name).await;
        if self.ask("return !window.axe").await == true {
            self.client.execute(&AXE, vec![]).await.unwrap();
        }
        for (look, width, height, dark) in LOOKS {
            self.look(width, height, dark).await;
            let found = self
                .client
                .execute_async(
                    "const done = arguments[0];
                     axe.run({ resultTypes: ['violations'] }).then(({ violations }) => done(violations.map((rule) =>
                       `${rule.impact}: ${rule.help} (${rule.id}): ${rule.nodes.map((node) => node.html).join('; ')}`)));",
                    vec![],
                )
                .await
                .unwrap();
            assert_eq!(found, json!([]), "{name}, {look}");
            let over = self.ask("return document.documentElement.scrollWidth - innerWidth").await;
            assert!(over.as_f64().unwrap() <= 0.0, "{name}, {look}: {over} pixels wider than the window");
            self.picture(&format!("{name}-{look}")).await;
        }
        let (_, width, height, dark) = LOOKS[0];
        self.look(width, height, dark).await;
    }

    async fn look(&self, width: u32, height: u32, dark: bool) {
        let scheme = if dark { "dark" } else { "light" };
        let size = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": false });
        self.devtools("Emulation.setDeviceMetricsOverride", size).await;
        let features = json!({ "features": [{ "name": "prefers-color-scheme", "value": scheme }] });
        self.devtools("Emulation.setEmulatedMedia", features).await;
    }

    /// Where pictures are wanted, prints how quickly the page was painted and how much was loaded for it.
    async fn figures(&self, name: &str) {
        if std::env::var_os(PICTURES).is_none() {
            return;
        }
        let figures = self
            .ask(
                "const [page] = performance.getEntriesByType('navigation');
                 const loaded = [page, ...performance.getEntriesByType('resource')]
                   .filter(({ initiatorType }) => !['video', 'fetch', 'xmlhttprequest'].includes(initiatorType));
                 const sum = (what) => loaded.reduce((all, one) => all + one[what], 0);
                 const paint = performance.getEntriesByName('first-contentful-paint')[0]?.startTime;
                 return { paint, weight: sum('decodedBodySize'), sent: sum('encodedBodySize') };",
            )
            .await;
        println!("{name}: {figures} (milliseconds, bytes)");
    }

    /// Where pictures are wanted, takes one of the whole page.
    pub async fn picture(&self, name: &str) {
        use std::io::Write;
        let Some(folder) = std::env::var_os(PICTURES).map(PathBuf::from) else { return };
        let taken = self
            .devtools("Page.captureScreenshot", json!({ "captureBeyondViewport": true, "format": "png" }))
            .await;
        // The answer is base64, which coreutils decode.
        let file = std::fs::File::create(folder.join(format!("{name}.png"))).unwrap();
        let mut decode = Command::new("base64").arg("-d").stdin(Stdio::piped()).stdout(file).spawn().unwrap();
        decode.stdin.take().unwrap().write_all(taken["data"].as_str().unwrap().as_bytes()).unwrap();
        assert!(decode.wait().unwrap().success());
    }

    async fn devtools(&self, command: &str, parameters: Value) -> Value {
        let body = json!({ "cmd": command, "params": parameters });
        self.client.issue_cmd(Extra { path: "goog/cdp/execute", body }).await.unwrap()
    }

    async fn log(&self, kind: &str) -> Vec<Value> {
        let log =
            self.client.issue_cmd(Extra { path: "se/log", body: json!({ "type": kind }) }).await.unwrap();
        log.as_array().unwrap().clone()
    }

    /// Takes what the console says: nothing, or what was to be expected.
    pub async fn console(&self, expected: Option<&str>) {
        for entry in self.log("browser").await {
            let message = entry["message"].as_str().unwrap();
            // DEBUG is advice, such as to have a field for a user's name beside that for the token.
            let fine = entry["level"] == "DEBUG" || expected.is_some_and(|part| message.contains(part));
            assert!(fine, "the console says: {entry}");
        }
    }

    /// Asks whether all was well: the console said nothing, and no request left the site. Then closes the window.
    pub async fn close(self) {
        self.console(None).await;
        let mut asked = 0;
        for entry in self.log("performance").await {
            let Ok(event) = serde_json::from_str::<Value>(entry["message"].as_str().unwrap()) else {
                continue;
            };
            if event["message"]["method"] != "Network.requestWillBeSent" {
                continue;
            }
            let url = event["message"]["params"]["request"]["url"].as_str().unwrap();
            let own = url.strip_prefix(&self.site).is_some_and(|rest| rest.starts_with('/'));
            assert!(
                own || url.starts_with("data:") || url.starts_with("blob:"),
                "a request left the site: {url}"
            );
            asked += usize::from(own);
        }
        assert!(asked > 0, "the requests are seen");
        self.client.close().await.unwrap();
    }
}
