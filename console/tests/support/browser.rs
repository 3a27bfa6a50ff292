//! Headless Chromium with a page of a console, which `scripts/browser` makes sure is there.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{self, Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use pg_test::{TIMEOUT, wait_for, wait_for_equal};
use serde_json::{Value, json};
use thirtyfour::error::WebDriverErrorInner;
use thirtyfour::{
    By, ChromiumLikeCapabilities, DesiredCapabilities, LoggingPrefsLogLevel, WebDriver, WebElement,
};
use tokio::runtime::Runtime;

use super::Console;

/// Arguments of Chromium that have it run as root, in a container too, and ask nothing of any other host.
const ARGUMENTS: [&str; 10] = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
];

/// The accessibility rules, which `scripts/browser` fetches.
const AXE: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../target/clients/axe-core/node_modules/axe-core/axe.min.js"
);

/// What a page is shown in.
#[derive(Debug, Clone, Copy)]
pub enum Colors {
    Light,
    Dark,
}

/// A browser with a window 1280 pixels wide. Dropping it closes it.
pub struct Browser {
    runtime: Runtime,
    /// Gone when it is closed.
    driver: Option<WebDriver>,
    chromedriver: Child,
    profile: PathBuf,
    /// The console's address.
    url: String,
}

impl Browser {
    /// Opens one for the pages of `console`.
    pub fn open(console: &Console) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let profile = Path::new(env!("CARGO_TARGET_TMPDIR"))
            .join(format!("chromium.{}.{number}", process::id()));
        let mut chromedriver = Command::new("chromedriver")
            .args(["--port=0", "--log-level=SEVERE"])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("chromedriver (run scripts/browser)");
        let mut lines = BufReader::new(chromedriver.stdout.take().unwrap()).lines();
        let port: u16 = lines
            .find_map(|line| {
                let line = line.unwrap();
                let (_, port) = line.split_once("started successfully on port ")?;
                port.trim_end_matches('.').parse().ok()
            })
            .expect("chromedriver's port");
        // Read to its end, so that it never waits for a reader.
        std::thread::spawn(move || lines.for_each(drop));

        let mut wanted = DesiredCapabilities::chrome();
        for argument in ARGUMENTS {
            wanted.add_arg(argument).unwrap();
        }
        wanted.add_arg(&format!("--user-data-dir={}", profile.display())).unwrap();
        wanted.set_browser_log_level(LoggingPrefsLogLevel::All).unwrap();
        let runtime = Runtime::new().unwrap();
        let url = console.url.clone();
        // Where Chromium does not start, dropping this stops chromedriver.
        let mut browser = Self { runtime, driver: None, chromedriver, profile, url };
        let driver = browser.runtime.block_on(async {
            // On a busy machine it sometimes does not come up in time.
            for _ in 0..2 {
                let started = WebDriver::new(format!("http://127.0.0.1:{port}"), wanted.clone());
                match started.await {
                    Ok(driver) => return driver,
                    Err(error) => eprintln!("once more: {error}"),
                }
            }
            let started = WebDriver::new(format!("http://127.0.0.1:{port}"), wanted).await;
            started.expect("Chromium (run scripts/browser)")
        });
        browser.driver = Some(driver);
        // The rules of axe take their time on a busy machine.
        browser.runtime.block_on(browser.driver().set_script_timeout(TIMEOUT)).unwrap();
        browser.resize(1280, 900);
        browser
    }

    fn driver(&self) -> &WebDriver {
        self.driver.as_ref().unwrap()
    }

    /// Goes to a page of the console, and waits until its scripts have run.
    #[track_caller]
    pub fn go(&self, path: &str) {
        self.runtime.block_on(self.driver().goto(format!("{}{path}", self.url))).unwrap();
    }

    /// The value of a JavaScript expression in the page.
    #[track_caller]
    pub fn value(&self, expression: &str) -> Value {
        self.run(&format!("return ({expression});"), Vec::new())
    }

    #[track_caller]
    fn run(&self, script: &str, arguments: Vec<Value>) -> Value {
        let value = self.runtime.block_on(self.driver().execute(script, arguments));
        value.unwrap_or_else(|error| panic!("{script:.200}: {error}")).json().clone()
    }

    /// The text of an expression's value.
    #[track_caller]
    pub fn string(&self, expression: &str) -> String {
        match self.value(expression) {
            Value::String(text) => text,
            other => panic!("{expression} is {other}"),
        }
    }

    /// Waits until `expression` is true in the page.
    #[track_caller]
    pub fn wait(&self, expression: &str) {
        wait_for_equal(expression, &json!(true), || self.value(&format!("!!({expression})")));
    }

    /// Waits until the page shows `text` in the first element that `css` selects.
    #[track_caller]
    pub fn wait_for_text(&self, css: &str, text: &str) {
        let expected = Some(text.to_owned());
        wait_for_equal(css, &expected, || self.text(css));
    }

    /// The text that the first element that `css` selects shows; `None` where there is none.
    #[track_caller]
    pub fn text(&self, css: &str) -> Option<String> {
        let value =
            self.run("return document.querySelector(arguments[0])?.innerText", vec![css.into()]);
        value.as_str().map(|text| text.trim().to_owned())
    }

    /// The texts of all elements that `css` selects.
    #[track_caller]
    pub fn texts(&self, css: &str) -> Vec<String> {
        let script =
            "return [...document.querySelectorAll(arguments[0])].map((e) => e.innerText.trim())";
        serde_json::from_value(self.run(script, vec![css.into()])).unwrap()
    }

    /// Whether `css` selects anything.
    #[track_caller]
    pub fn has(&self, css: &str) -> bool {
        self.text(css).is_some()
    }

    #[track_caller]
    fn element(&self, css: &str) -> WebElement {
        let found = self.runtime.block_on(self.driver().find(By::Css(css)));
        found.unwrap_or_else(|error| panic!("{css}: {error}"))
    }

    /// Clicks what `css` selects, with the mouse.
    #[track_caller]
    pub fn click(&self, css: &str) {
        wait_for(css, || match self.runtime.block_on(self.element(css).click()) {
            Ok(()) => true,
            // A page that moves has just put another in its place.
            Err(error) if matches!(*error, WebDriverErrorInner::StaleElementReference(_)) => false,
            Err(error) => panic!("{css}: {error}"),
        });
    }

    /// Chooses an option of, or fills in, the form's field `name`.
    #[track_caller]
    pub fn fill(&self, name: &str, value: &str) {
        // Keys mean in a field of a time what the locale says.
        let script = "document.querySelector(`form [name=${arguments[0]}]`).value = arguments[1]";
        self.run(script, vec![name.into(), value.into()]);
    }

    /// Presses keys, whatever has the focus.
    #[track_caller]
    pub fn press(&self, keys: impl Into<String>) {
        let keys = self.driver().action_chain().send_keys(keys.into());
        self.runtime.block_on(keys.perform()).unwrap();
    }

    /// A command of the browser's own protocol.
    #[track_caller]
    fn command(&self, name: &str, parameters: Value) -> Value {
        let tools = self.driver().cdp();
        let sent = tools.send_raw(name, parameters);
        self.runtime.block_on(sent).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    /// How many listeners of events the page has, once what is no more is gone.
    #[track_caller]
    pub fn listeners(&self) -> i64 {
        self.command("Performance.enable", json!({}));
        self.command("HeapProfiler.collectGarbage", json!({}));
        let metrics = self.command("Performance.getMetrics", json!({}));
        let metrics = metrics["metrics"].as_array().unwrap();
        let found = metrics.iter().find(|metric| metric["name"] == "JSEventListeners").unwrap();
        found["value"].as_f64().unwrap() as i64
    }

    /// Makes the page so large.
    #[track_caller]
    pub fn resize(&self, width: u16, height: u16) {
        let mobile = width < 600;
        let size =
            json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": mobile });
        self.command("Emulation.setDeviceMetricsOverride", size);
    }

    /// Chooses what the system says about colors.
    #[track_caller]
    pub fn set_colors(&self, colors: Colors) {
        let value = match colors {
            Colors::Light => "light",
            Colors::Dark => "dark",
        };
        let feature = json!({ "name": "prefers-color-scheme", "value": value });
        self.command("Emulation.setEmulatedMedia", json!({ "features": [feature] }));
    }

    /// Clicks what `css` selects and returns the file that this downloads.
    #[track_caller]
    pub fn download(&self, css: &str) -> String {
        let folder = self.profile.join("downloads");
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir(&folder).unwrap();
        let behavior = json!({ "behavior": "allow", "downloadPath": folder });
        self.command("Browser.setDownloadBehavior", behavior);
        self.click(css);
        let mut text = String::new();
        wait_for("the download", || {
            let mut files = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path());
            let file = files.find(|file| file.extension().is_some_and(|end| end == "csv"));
            // Chromium takes the name with an empty file, and puts the whole one in its place at the end.
            text = file.map_or_else(String::new, |file| fs::read_to_string(file).unwrap());
            !text.is_empty()
        });
        text
    }

    /// The page as PNG.
    #[track_caller]
    pub fn screenshot(&self) -> Vec<u8> {
        self.runtime.block_on(self.driver().screenshot_as_png()).unwrap()
    }

    /// What the browser has logged since the last call: errors of scripts, of the content security policy and
    /// of requests.
    #[track_caller]
    pub fn log(&self) -> Vec<String> {
        let entries = self.runtime.block_on(self.driver().browser_log()).unwrap();
        entries.into_iter().map(|entry| format!("{} {}", entry.level, entry.message)).collect()
    }

    /// Fails where the page has logged anything, has asked another host for anything, or shows a dialog.
    #[track_caller]
    pub fn assert_clean(&self) {
        assert_eq!(self.log(), [""; 0], "the browser's log");
        let asked = self.value(
            "performance.getEntries().map((e) => e.name).filter((name) => /^[a-z]+:/.test(name)) \
             .filter((name) => new URL(name).origin !== location.origin && name !== 'data:,')",
        );
        assert_eq!(asked, json!([]), "asked of other hosts");
    }

    /// What the accessibility rules of axe find in the page, one line a violation.
    #[track_caller]
    pub fn violations(&self) -> Vec<String> {
        let axe = fs::read_to_string(AXE).unwrap_or_else(|_| panic!("{AXE} (run scripts/browser)"));
        self.run(&axe, Vec::new());
        let script = "const done = arguments[0]; \
            axe.run().then((found) => done(found.violations.map((v) => \
            `${v.id}: ${v.help}: ${v.nodes.map((n) => n.html.slice(0, 200) + ' ' + n.failureSummary).join('; ')}`)), \
            (error) => done([String(error)]))";
        let found = self.runtime.block_on(self.driver().execute_async(script, Vec::new()));
        serde_json::from_value(found.unwrap().json().clone()).unwrap()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        if let Some(driver) = self.driver.take() {
            let _ = self.runtime.block_on(driver.quit());
        }
        let _ = self.chromedriver.kill();
        let _ = self.chromedriver.wait();
        let _ = fs::remove_dir_all(&self.profile);
    }
}
