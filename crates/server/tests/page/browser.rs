//! A client of Chromium's debugging protocol, with as much as the tests need: open, type, click, look.
use serde_json::{Value, json};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tungstenite::{Message, WebSocket};

/// How long anything may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A browser with one page.
pub(crate) struct Browser {
    process: Child,
    socket: WebSocket<TcpStream>,
    session: Option<String>,
    calls: u64,
    /// Exceptions of scripts, and what the page's policy has kept from happening.
    problems: Vec<Value>,
    _profile: TempDir,
}

/// The browser that the environment names, or one on the path.
fn program() -> Option<PathBuf> {
    if let Some(named) = std::env::var_os("HURTLE_TEST_BROWSER") {
        return Some(named.into());
    }
    let path = std::env::var_os("PATH")?;
    let names = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"];
    let in_folder = |folder: PathBuf| names.map(|name| folder.join(name));
    std::env::split_paths(&path).flat_map(in_folder).find(|program| program.is_file())
}

impl Browser {
    /// Starts Chromium with an empty profile; `None`, and a line that says so, where there is none.
    pub(crate) fn start() -> Option<Self> {
        let Some(program) = program() else {
            eprintln!(
                "skipped: there is no Chromium here\n\
                 hint: install it (Debian: apt-get install chromium), or name one in HURTLE_TEST_BROWSER"
            );
            return None;
        };
        let profile = tempfile::tempdir().expect("a folder");
        let mut process = Command::new(&program)
            .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic"])
            .args(["--no-first-run", "--disable-background-networking", "--disable-sync"])
            .args(["--disable-component-update", "--disable-dev-shm-usage"])
            .args(["--force-color-profile=srgb", "--remote-debugging-port=0"])
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .arg("about:blank")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {}: {error}", program.display()));
        let address = profile.path().join("DevToolsActivePort");
        let (port, path) = wait("the browser's port", || {
            let ended = process.try_wait().expect("a process");
            assert!(ended.is_none(), "{} ended with {ended:?}", program.display());
            let text = std::fs::read_to_string(&address).ok()?;
            let (port, path) = text.split_once('\n')?;
            Some((port.parse::<u16>().ok()?, path.trim().to_owned()))
        });
        let stream = TcpStream::connect(("127.0.0.1", port)).expect("a connection");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        let url = format!("ws://127.0.0.1:{port}{path}");
        let (socket, _) = tungstenite::client(url, stream).expect("a web socket");
        let mut browser = Self {
            process,
            socket,
            session: None,
            calls: 0,
            problems: Vec::new(),
            _profile: profile,
        };
        let target = browser.call("Target.createTarget", json!({"url": "about:blank"}));
        let attach = json!({"targetId": target["targetId"], "flatten": true});
        let attached = browser.call("Target.attachToTarget", attach);
        browser.session = attached["sessionId"].as_str().map(str::to_owned);
        for domain in ["Page", "Runtime", "Log", "Network"] {
            browser.call(&format!("{domain}.enable"), json!({}));
        }
        browser.resize(1280, 860);
        Some(browser)
    }

    /// Calls a method of the protocol.
    pub(crate) fn call(&mut self, method: &str, params: Value) -> Value {
        self.calls += 1;
        let mut request = json!({"id": self.calls, "method": method, "params": params});
        if let Some(session) = &self.session {
            request["sessionId"] = session.as_str().into();
        }
        self.socket.send(Message::text(request.to_string())).expect("sent");
        loop {
            let message = self.socket.read().unwrap_or_else(|error| panic!("{method}: {error}"));
            let Message::Text(text) = message else { continue };
            let mut message: Value = serde_json::from_str(&text).expect("JSON");
            if message["id"] == self.calls {
                assert!(message.get("error").is_none(), "{method}: {message}");
                return message["result"].take();
            }
            let entry = &message["params"]["entry"];
            // Refusals of the server are logged as well, under "network".
            if message["method"] == "Runtime.exceptionThrown"
                || (entry["level"] == "error" && entry["source"] != "network")
            {
                self.problems.push(message);
            }
        }
    }

    /// The value of an expression, promises awaited.
    pub(crate) fn eval(&mut self, expression: &str) -> Value {
        let params = json!({"expression": expression, "awaitPromise": true, "returnByValue": true});
        let mut result = self.call("Runtime.evaluate", params);
        assert!(result.get("exceptionDetails").is_none(), "{expression}: {result}");
        result["result"]["value"].take()
    }

    /// The text of the first element that matches, with single spaces.
    pub(crate) fn text(&mut self, selector: &str) -> String {
        let text = format!("document.querySelector({})?.textContent ?? ''", json!(selector));
        let text = self.eval(&text).as_str().expect("a text").to_owned();
        text.split_whitespace().collect::<Vec<_>>().join(" ")
    }

    pub(crate) fn count(&mut self, selector: &str) -> u64 {
        let count = format!("document.querySelectorAll({}).length", json!(selector));
        self.eval(&count).as_u64().expect("a number")
    }

    /// Waits until an expression is true.
    pub(crate) fn until(&mut self, expression: &str) {
        let start = Instant::now();
        while self.eval(&format!("Promise.resolve({expression}).then(Boolean)")) != true {
            if start.elapsed() > PATIENCE {
                let page = self.text("body");
                panic!("{expression} never came true; the page says: {page}");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Opens the page and waits until it knows the models, or that it cannot.
    pub(crate) fn open(&mut self, url: &str) {
        self.call("Page.navigate", json!({"url": url}));
        self.ready();
    }

    pub(crate) fn reload(&mut self) {
        self.eval("document.body.dataset.old = '1'");
        self.call("Page.reload", json!({}));
        self.until("document.body && !document.body.dataset.old");
        self.ready();
    }

    fn ready(&mut self) {
        let known = "document.querySelector('#model')?.disabled === false";
        self.until(&format!("{known} || document.querySelector('#banner')?.hidden === false"));
    }

    pub(crate) fn resize(&mut self, width: u32, height: u32) {
        let size = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 700});
        self.call("Emulation.setDeviceMetricsOverride", size);
    }

    /// What the system wants: `light` or `dark`.
    pub(crate) fn prefer(&mut self, scheme: &str) {
        let features = json!([{"name": "prefers-color-scheme", "value": scheme}]);
        self.call("Emulation.setEmulatedMedia", json!({"features": features}));
    }

    /// Clicks where the element is, which must be there to be seen.
    pub(crate) fn click(&mut self, selector: &str) {
        self.until(&format!("document.querySelector({}) !== null", json!(selector)));
        // The mouse meets what has been painted.
        self.until("new Promise(painted => requestAnimationFrame(() => requestAnimationFrame(() => painted(true))))");
        let place = self.eval(&format!(
            "(() => {{
                const element = document.querySelector({});
                element.scrollIntoView({{block: 'nearest'}});
                const box = element.getBoundingClientRect();
                const [x, y] = [box.x + box.width / 2, box.y + box.height / 2];
                return {{x, y, seen: element.contains(document.elementFromPoint(x, y))}};
            }})()",
            json!(selector)
        ));
        assert_eq!(place["seen"], true, "{selector} is covered or out of sight: {place}");
        for kind in ["mousePressed", "mouseReleased"] {
            let (x, y) = (&place["x"], &place["y"]);
            let event = json!({"type": kind, "x": x, "y": y, "button": "left", "clickCount": 1});
            self.call("Input.dispatchMouseEvent", event);
        }
    }

    /// Types into what has the focus.
    pub(crate) fn write(&mut self, text: &str) {
        self.call("Input.insertText", json!({"text": text}));
    }

    /// Presses Enter, Escape or another key that has no other effect than its event; 8 is Shift.
    pub(crate) fn press(&mut self, key: &str, modifiers: u8) {
        let text = if key == "Enter" { "\r" } else { "" };
        let code = if key == "Enter" { 13 } else { 27 };
        for kind in ["keyDown", "keyUp"] {
            let event = json!({"type": kind, "key": key, "code": key, "text": text,
                "windowsVirtualKeyCode": code, "modifiers": modifiers});
            self.call("Input.dispatchKeyEvent", event);
        }
    }

    /// Saves what is to be seen as `target/tmp/screenshots/NAME.png`.
    pub(crate) fn screenshot(&mut self, name: &str) {
        use base64::Engine as _;
        let image = self.call("Page.captureScreenshot", json!({"format": "png"}));
        let image = image["data"].as_str().expect("an image");
        let image = base64::prelude::BASE64_STANDARD.decode(image).expect("base64");
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("screenshots");
        std::fs::create_dir_all(&folder).expect("a folder");
        std::fs::write(folder.join(format!("{name}.png")), image).expect("written");
    }

    /// Fails if a script has failed or the policy has stopped one.
    pub(crate) fn assert_no_problems(&mut self) {
        // Answered after what has happened before.
        self.eval("0");
        assert!(self.problems.is_empty(), "{:#?}", self.problems);
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // Errors here mean that it has ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Tries until there is something.
pub(crate) fn wait<T>(what: &str, mut attempt: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = attempt() {
            return value;
        }
        assert!(start.elapsed() < PATIENCE, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
