//! The chat page in headless Chromium: against a server with scripted answers, and against a real one.
mod browser;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, Request, StatusCode};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use browser::{Browser, wait};
use hurtle_engine::{Arithmetic, Engine, EngineOptions, KvType, ServiceOptions};
use hurtle_server::{Server, ServerOptions};
use hurtle_text::ChatTemplate;
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::runtime::Runtime;
use tokio_stream::wrappers::ReceiverStream;
use tower::ServiceExt as _;

/// A server of a tiny model, which answers with nonsense.
fn server(api_keys: &[&str]) -> Server {
    let options = EngineOptions {
        threads: Some(1),
        arithmetic: Arithmetic::Exact,
        kv_type_k: KvType::F32,
        kv_type_v: KvType::F32,
        ..EngineOptions::default()
    };
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/archs/llama.gguf");
    let engine = Engine::load(&golden, &options).expect("loaded");
    let (template, _) = ChatTemplate::fallback_for(engine.gguf().metadata(), engine.tokenizer())
        .expect("a template");
    let options = ServerOptions {
        model: "tiny".into(),
        api_keys: api_keys.iter().map(|key| (*key).to_owned()).collect(),
        max_body: 1 << 20,
        service: ServiceOptions { kv_bytes: Some(64 << 20), ..ServiceOptions::default() },
        ..ServerOptions::default()
    };
    Server::start(engine, template, options).expect("started")
}

/// How the script answers a question.
enum Reply {
    /// Pieces of text, one event each, and the end.
    Text(Vec<String>),
    /// Other deltas.
    Deltas(Vec<Value>),
    /// Words until the reader goes away.
    Endless,
    /// A piece of text, and then the connection ends.
    BrokenOff,
    /// A status, the headers and the error.
    Refusal(StatusCode, Vec<(&'static str, &'static str)>, Value),
}

fn text(text: &str) -> Reply {
    // Pieces of some characters, as tokens are.
    let chars: Vec<char> = text.chars().collect();
    Reply::Text(chars.chunks(3).map(|piece| piece.iter().collect()).collect())
}

/// What the page's requests met.
#[derive(Default)]
struct Script {
    replies: Mutex<VecDeque<Reply>>,
    requests: Mutex<Vec<Value>>,
    gone: AtomicUsize,
}

impl Script {
    fn will(&self, reply: Reply) {
        self.replies.lock().expect("a lock").push_back(reply);
    }

    fn last_request(&self) -> Value {
        self.requests.lock().expect("a lock").last().cloned().unwrap_or_default()
    }
}

fn event(choice: Value) -> String {
    format!("data: {}\n\n", json!({"choices": [choice]}))
}

async fn scripted(State(script): State<Arc<Script>>, body: Bytes) -> Response {
    let request = serde_json::from_slice(&body).expect("JSON");
    script.requests.lock().expect("a lock").push(request);
    let reply = script.replies.lock().expect("a lock").pop_front();
    let content = |text: &str| json!({"index": 0, "delta": {"content": text}});
    let deltas = match reply.expect("a reply for every request") {
        Reply::Refusal(status, headers, error) => {
            let headers: HeaderMap = headers
                .into_iter()
                .map(|(name, value)| {
                    (name.parse().expect("a name"), value.parse().expect("a value"))
                })
                .collect();
            return (status, headers, json!({"error": error}).to_string()).into_response();
        }
        Reply::Endless => None,
        Reply::BrokenOff => {
            return event(content("The beginning")).into_response();
        }
        Reply::Text(pieces) => Some(pieces.iter().map(|piece| content(piece)).collect()),
        Reply::Deltas(deltas) => {
            let choice = |delta| json!({"index": 0, "delta": delta});
            Some(deltas.into_iter().map(choice).collect::<Vec<_>>())
        }
    };
    let (sender, receiver) = tokio::sync::mpsc::channel::<Result<String, std::io::Error>>(1);
    tokio::spawn(async move {
        let n = deltas.as_ref().map(Vec::len);
        let events: Box<dyn Iterator<Item = String> + Send> = match deltas {
            Some(deltas) => Box::new(deltas.into_iter().map(event)),
            None => Box::new(std::iter::repeat_with(move || event(content("word ")))),
        };
        for event in events {
            tokio::time::sleep(Duration::from_millis(1)).await;
            if sender.send(Ok(event)).await.is_err() {
                script.gone.fetch_add(1, Ordering::Relaxed);
                return;
            }
        }
        let end = json!({"index": 0, "delta": {}, "finish_reason": "stop"});
        let usage = json!({"choices": [], "usage": {"completion_tokens": n}});
        let tail = format!("{}data: {usage}\n\ndata: [DONE]\n\n", event(end));
        // The reader may go away at the very end.
        let _ = sender.send(Ok(tail)).await;
    });
    Body::from_stream(ReceiverStream::new(receiver)).into_response()
}

/// A browser on a page, and what serves it.
struct Stage {
    browser: Browser,
    script: Arc<Script>,
    url: String,
    _runtime: Runtime,
}

/// Serves a router on a port of its own.
fn serve(router: Router) -> (Runtime, String) {
    let runtime = Runtime::new().expect("a runtime");
    let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).expect("a port");
    let url = format!("http://{}/", listener.local_addr().expect("an address"));
    runtime.spawn(axum::serve(listener, router).into_future());
    (runtime, url)
}

impl Stage {
    /// The page over a scripted server; `None` without a browser.
    fn scripted() -> Option<Self> {
        let browser = Browser::start()?;
        let script = Arc::new(Script::default());
        let models = json!({"data": [{"id": "tiny"}, {"id": "large"}]}).to_string();
        let router = Router::new()
            .route("/v1/models", get(async || models))
            .route("/v1/chat/completions", post(scripted))
            .with_state(Arc::clone(&script))
            .fallback_service(server(&[]).router());
        let (runtime, url) = serve(router);
        let mut stage = Self { browser, script, url, _runtime: runtime };
        stage.browser.open(&stage.url);
        Some(stage)
    }

    /// Asks and waits for the end of the answer.
    fn ask(&mut self, question: &str, reply: Reply) {
        self.script.will(reply);
        self.send(question);
        self.idle();
    }

    fn send(&mut self, question: &str) {
        self.browser.click("#question");
        self.browser.write(question);
        self.browser.press("Enter", 0);
        self.browser.until("document.querySelector('#question').value === ''");
    }

    /// Waits until no answer is being written.
    fn idle(&mut self) {
        self.browser.until(
            "document.querySelector('#stop').hidden
                && document.querySelector('.answer:last-child')?.ariaBusy === 'false'",
        );
    }
}

const SORTING: &str = r#"Two ways to **sort** in *Python*:

1. `sorted(xs)` returns a new list.

2. `xs.sort()` works in place:
   - it is stable
   - it takes `key=`

### An example

```python
from operator import itemgetter

def by_score(players: list[dict]) -> list[dict]:
    """The best first; players with the same score stay in the order in which they came in."""
    return sorted(players, key=itemgetter("score"), reverse=True)

print(by_score([{"name": "Ada", "score": 3}, {"name": "Bob", "score": 5}]))
```

| Method | Returns | In place |
|---|:-:|--:|
| `sorted` | list | no |
| `list.sort` | `None` | yes |

> What is equal keeps its order.

- [x] read this
- [ ] read [the guide](https://docs.python.org/3/howto/sorting.html) &amp; try it
"#;

#[test]
fn an_answer_streams_and_is_rendered() {
    let Some(mut stage) = Stage::scripted() else { return };
    stage.browser.prefer("light");
    assert_eq!(stage.browser.eval("document.activeElement.id"), "question");
    stage.browser.screenshot("empty");

    stage.script.will(text(SORTING));
    stage.browser.write("How do I sort?");
    stage.browser.press("Enter", 8);
    stage.browser.write("In Python.");
    stage.browser.press("Enter", 0);
    stage.browser.until("document.querySelector('.answer strong') !== null");
    stage.idle();
    let request = stage.script.last_request();
    let expected = json!([{"role": "user", "content": "How do I sort?\nIn Python."}]);
    assert_eq!(
        (&request["messages"], &request["model"], &request["stream"]),
        (&expected, &json!("tiny"), &json!(true))
    );

    let browser = &mut stage.browser;
    assert_eq!(browser.text(".answer strong"), "sort");
    assert_eq!(browser.count(".answer .text > ol > li"), 2);
    assert_eq!(browser.count(".answer .text > ol > li:nth-child(2) > ul > li"), 2);
    assert_eq!(browser.text(".answer h5"), "An example");
    assert_eq!(browser.text(".answer .code figcaption span"), "python");
    assert!(browser.text(".answer .code pre").starts_with("from operator import itemgetter def"));
    assert_eq!(browser.text(".answer tr:nth-child(2) .align-right"), "yes");
    assert_eq!(browser.count(".answer input[type=checkbox]:disabled"), 2);
    let link = browser.eval(
        "(({href, rel, target}) => ({href, rel, target}))(document.querySelector('.answer a'))",
    );
    assert_eq!(link["href"], "https://docs.python.org/3/howto/sorting.html");
    assert!(link["rel"].as_str().expect("a text").contains("noopener"), "{link}");
    assert!(browser.text(".answer .text").ends_with("& try it"));

    // What it took, and what screen readers hear.
    let n = SORTING.chars().count().div_ceil(3);
    let stats = browser.text(".answer .stats");
    assert!(stats.starts_with(&format!("{n} tokens · ")), "{stats}");
    assert!(stats.contains(" tokens/s · first after "), "{stats}");
    assert!(browser.text("#status").starts_with("Two ways to sort in Python:"));

    // What buttons copy.
    let clipboard = json!({"permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"]});
    browser.call("Browser.grantPermissions", clipboard);
    browser.call("Emulation.setFocusEmulationEnabled", json!({"enabled": true}));
    for (button, expected) in [
        ("Copy answer", SORTING),
        (
            "Copy code",
            SORTING
                .split("```")
                .nth(1)
                .expect("code")
                .split_once('\n')
                .expect("lines")
                .1
                .trim_end(),
        ),
    ] {
        browser.click(&format!(".answer [aria-label='{button}']"));
        browser.until("document.querySelector('#status').textContent === 'Copied'");
        assert_eq!(browser.eval("navigator.clipboard.readText()"), expected);
        browser.eval("document.querySelector('#status').textContent = ''");
    }

    browser.screenshot("desktop-light");
    browser.prefer("dark");
    browser.screenshot("desktop-dark");
    browser.resize(390, 844);
    browser.screenshot("phone-dark");
    browser.prefer("light");
    browser.eval("document.querySelector('#log').scrollTop = 0");
    browser.screenshot("phone-light");
    browser.assert_no_problems();
}

/// Renders Markdown that comes in `parts`.
fn rendered(browser: &mut Browser, parts: &[&str]) -> String {
    let html = browser.eval(&format!(
        "import('./page/markdown.js').then(({{ Markdown }}) => {{
            const root = document.createElement('div');
            const markdown = new Markdown(root);
            for (const part of {}) markdown.push(part);
            return root.innerHTML;
        }})",
        json!(parts)
    ));
    html.as_str().expect("HTML").to_owned()
}

#[test]
fn how_text_is_cut_makes_no_difference() {
    let Some(mut stage) = Stage::scripted() else { return };
    let lists =
        "1. a\n\n2. b\n\n10. c\n- x\n\n-\n\n* * *\nsetext\n---\nnext | to\n--- | ---\n1 | 2\n\nend";
    for source in [
        SORTING,
        lists,
        "a\r\nb\r\n\r\n~~~\r\nc\r\n~~~\r\n",
        "```\nopen",
        "&lt;b&gt; &#65;&#x42; &unknown;",
    ] {
        let letters: Vec<&str> = source.split("").collect();
        let whole = rendered(&mut stage.browser, &[source]);
        assert_eq!(rendered(&mut stage.browser, &letters), whole);
    }
    // What is complete is not made again.
    let stays = stage.browser.eval(
        "import('./page/markdown.js').then(({ Markdown }) => {
            const root = document.createElement('div');
            const markdown = new Markdown(root);
            markdown.push('first\\n\\n```\\nx\\n');
            const [first, code] = [root.firstChild, root.querySelector('code').firstChild];
            for (let i = 0; i < 100; i += 1) markdown.push('line\\n');
            return root.firstChild === first && root.querySelector('code').firstChild === code
                && code.data.length === 501;
        })",
    );
    assert_eq!(stays, true);
    stage.browser.assert_no_problems();
}

#[test]
fn hostile_text_is_inert() {
    let Some(mut stage) = Stage::scripted() else { return };
    let hostile = "<script>window.hit = 1</script>\n\n<img src=x onerror=\"window.hit = 2\">\n\n\
        text <svg onload=window.hit=3> <a href=\"javascript:window.hit=4\">x</a>\n\n\
        [a](javascript:window.hit=5) [b](JaVaScRiPt:window.hit=6) [c](data:text/html,<script>window.hit=7</script>)\n\
        [d](vbscript:x) <javascript:window.hit=8> [e](&#106;avascript:window.hit=9) [f]( javascript:window.hit=10)\n\n\
        ![g](http://127.0.0.1:9/secret.png) ![h](javascript:window.hit=11)\n\n\
        ```\" onmouseover=window.hit=12\n</code></pre><script>window.hit = 13</script>\n```\n\n\
        | <img src=x onerror=window.hit=14> |\n|---|\n| <iframe srcdoc='<script>parent.hit=15</script>'></iframe> |\n\n\
        [ref]\n\n[ref]: javascript:window.hit=16\n\n<style>body{display:none}</style>\n";
    stage.ask(hostile, text(hostile));
    let browser = &mut stage.browser;
    // Whatever was going to run has had its chance.
    browser.eval("new Promise((done) => setTimeout(done, 200))");
    for link in 0..browser.count(".answer a") {
        let href = browser.eval(&format!("document.querySelectorAll('.answer a')[{link}].href"));
        assert!(href.as_str().expect("a text").starts_with("http://127.0.0.1:9/"), "{href}");
    }
    assert_eq!(browser.eval("typeof window.hit"), "undefined");
    let elements = "#messages :is(script, img, iframe, style, object, embed, [onerror], [onload], [onmouseover])";
    assert_eq!(browser.count(elements), 0);
    let shown = browser.text(".answer .text");
    for tag in ["<script>window.hit = 1</script>", "<img src=x", "<style>"] {
        assert!(shown.contains(tag), "{tag} is not shown: {shown}");
    }
    // Nesting that would exhaust the stack.
    let deep = [">".repeat(20_000), "[".repeat(20_000), "- ".repeat(5_000), "**a ".repeat(3_000)];
    for source in deep {
        assert!(!rendered(browser, &[&source]).is_empty());
    }
    browser.assert_no_problems();
}

#[test]
fn stop_again_and_edit() {
    let Some(mut stage) = Stage::scripted() else { return };
    stage.script.will(Reply::Endless);
    stage.send("Tell me everything");
    stage.browser.until("document.querySelector('.answer .text').textContent.length > 50");
    stage.browser.click("#stop");
    stage.idle();
    assert_eq!(stage.browser.text(".answer .note"), "Stopped.");
    wait("the server to notice", || (stage.script.gone.load(Ordering::Relaxed) == 1).then_some(()));

    // Escape does the same.
    stage.script.will(Reply::Endless);
    stage.browser.click("[aria-label='Answer again']");
    stage.browser.until("document.querySelector('.answer .text').textContent.length > 50");
    stage.browser.press("Escape", 0);
    stage.idle();
    wait("the server to notice", || (stage.script.gone.load(Ordering::Relaxed) == 2).then_some(()));

    stage.script.will(text("Forty-two."));
    stage.browser.click("[aria-label='Answer again']");
    stage.browser.until("document.querySelector('.answer .text').textContent === 'Forty-two.'");
    stage.idle();
    assert_eq!(stage.browser.text(".answer .versions"), "Version 3/3");
    assert_eq!(stage.script.last_request()["messages"].as_array().map(Vec::len), Some(1));
    stage.browser.click(".answer [aria-label='Former version']");
    assert_eq!(stage.browser.text(".answer .versions"), "Version 2/3");
    assert!(stage.browser.text(".answer .text").starts_with("word word"));
    stage.browser.click(".answer [aria-label='Next version']");

    stage.ask("Why?", text("Because."));
    let contents = |request: &Value| -> Vec<String> {
        let messages = request["messages"].as_array().expect("messages");
        messages.iter().map(|m| m["content"].as_str().expect("a text").to_owned()).collect()
    };
    assert_eq!(
        contents(&stage.script.last_request()),
        ["Tell me everything", "Forty-two.", "Why?"]
    );

    // A question that is asked anew begins another branch; the former one stays.
    stage.script.will(text("Hello!"));
    stage.browser.click(".question [aria-label='Edit question']");
    assert_eq!(stage.browser.eval("document.activeElement.value"), "Tell me everything");
    stage.browser.eval("document.activeElement.select()");
    stage.browser.write("Say hello");
    stage.browser.press("Enter", 0);
    stage.browser.until("document.querySelector('.answer .text')?.textContent === 'Hello!'");
    stage.idle();
    assert_eq!(contents(&stage.script.last_request()), ["Say hello"]);
    assert_eq!(stage.browser.count("article"), 2);
    stage.browser.click(".question [aria-label='Former version']");
    assert_eq!(stage.browser.count("article"), 4);
    assert_eq!(stage.browser.text(".answer:last-child .text"), "Because.");

    // Reading back, nobody is pulled to the end.
    stage.script.will(Reply::Endless);
    stage.send("More");
    stage.browser.resize(1280, 300);
    stage
        .browser
        .until("document.querySelector('.answer:last-child .text').textContent.length > 4000");
    let at_end = "(({scrollHeight, scrollTop, clientHeight}) => scrollHeight - scrollTop - clientHeight < 60)(document.querySelector('#log'))";
    stage.browser.until(at_end);
    stage.browser.eval("document.querySelector('#log').scrollTop = 0");
    stage.browser.until("!document.querySelector('#to-end').hidden");
    stage
        .browser
        .until("document.querySelector('.answer:last-child .text').textContent.length > 6000");
    assert_eq!(stage.browser.eval("document.querySelector('#log').scrollTop"), 0);
    stage.browser.click("#to-end");
    stage.browser.until(at_end);
    stage.browser.click("#stop");
    stage.idle();
    stage.browser.assert_no_problems();
}

#[test]
fn conversations_and_settings_stay() {
    let Some(mut stage) = Stage::scripted() else { return };
    stage.browser.click("#settings-open");
    stage.browser.click("#system");
    stage.browser.write("Be brief.");
    stage.browser.click("#temperature");
    stage.browser.write("0.5");
    stage.browser.click("#top_p");
    stage.browser.write("7");
    stage.browser.screenshot("settings");
    stage.browser.click("#settings [type=submit]");
    assert_eq!(stage.browser.eval("document.querySelector('#top_p').validity.rangeOverflow"), true);
    stage.browser.eval("document.querySelector('#top_p').value = ''");
    stage.browser.click("#settings [type=submit]");
    stage.browser.until("!document.querySelector('#settings').open");
    stage.ask("First question", text("First answer"));
    let request = stage.script.last_request();
    assert_eq!(request["messages"][0], json!({"role": "system", "content": "Be brief."}));
    assert_eq!((&request["temperature"], request.get("top_p")), (&json!(0.5), None));

    stage.browser.click("#new");
    assert_eq!(stage.browser.count("article"), 0);
    stage.browser.eval(
        "(() => { const model = document.querySelector('#model'); model.value = 'large';
            model.dispatchEvent(new Event('change')); })()",
    );
    stage.ask("Second question", text("Second answer"));
    let request = stage.script.last_request();
    assert_eq!((&request["model"], &request["temperature"]), (&json!("large"), &json!(0.5)));

    stage.browser.click("#conversations li.here [aria-label^=Rename]");
    assert_eq!(stage.browser.eval("document.activeElement.value"), "Second question");
    stage.browser.write("Renamed <b>");
    stage.browser.press("Enter", 0);
    stage
        .browser
        .until("document.querySelector('#conversations .title').textContent === 'Renamed <b>'");

    stage.browser.reload();
    assert_eq!(stage.browser.text(".answer .text"), "Second answer");
    assert_eq!(stage.browser.text("#conversations"), "Renamed <b>First question");
    assert_eq!(stage.browser.eval("document.querySelector('#model').value"), "large");
    stage.browser.click("#conversations li:nth-child(2) .title");
    assert_eq!(stage.browser.text(".answer .text"), "First answer");
    stage.browser.eval("history.back()");
    stage.browser.until("document.querySelector('.answer .text')?.textContent === 'Second answer'");

    // A file out and in again.
    stage.browser.eval(
        "(async () => {
            const { exported } = await import('./page/conversation.js');
            const { loadAll } = await import('./page/store.js');
            const files = new DataTransfer();
            files.items.add(new File([exported(await loadAll())], 'all.json'));
            const input = document.querySelector('#import-file');
            input.files = files.files;
            input.dispatchEvent(new Event('change'));
        })()",
    );
    stage.browser.until("document.querySelectorAll('#conversations li').length === 4");
    for (file, expected) in [
        ("{", "it is not JSON"),
        (r#"{"format": "other"}"#, "\"format\" is not"),
        (
            r#"{"format": "hurtle-conversations", "version": 1, "conversations": [{"title": 1}]}"#,
            "conversation 1 is damaged",
        ),
        (
            r#"{"format": "hurtle-conversations", "version": 1, "conversations": [{"title": "t",
                "messages": [{"id": "a", "parent": "a", "role": "user", "content": "circle"}]}]}"#,
            "conversation 1 is damaged",
        ),
    ] {
        let error = stage.browser.eval(&format!(
            "import('./page/conversation.js').then(({{ imported }}) => {{
                try {{ imported({}); }} catch (error) {{ return error.message; }}
            }})",
            json!(file)
        ));
        assert!(error.as_str().expect("a refusal").contains(expected), "{error}");
    }

    for left in (0..4).rev() {
        stage.browser.eval("document.querySelector('#conversations [aria-label^=Delete]').click()");
        stage.browser.click("#delete .danger");
        stage
            .browser
            .until(&format!("document.querySelectorAll('#conversations li').length === {left}"));
    }
    stage.browser.reload();
    assert_eq!(stage.browser.count("#conversations li, article"), 0);
    stage.browser.assert_no_problems();
}

#[test]
fn answers_go_on_behind_other_conversations() {
    let Some(mut stage) = Stage::scripted() else { return };
    let gone = |stage: &Stage, n| {
        let gone = || (stage.script.gone.load(Ordering::Relaxed) == n).then_some(());
        wait("the server to notice", gone);
    };
    stage.script.will(Reply::Endless);
    stage.send("first");
    stage.browser.until("document.querySelector('.answer .text').textContent.length > 50");
    stage.browser.click("#new");
    assert_eq!(stage.browser.eval("document.querySelector('#stop').hidden"), true);
    stage.ask("second", text("Done."));
    stage.browser.click("#conversations li:nth-child(2) .title");
    let before = stage.browser.text(".answer .text").len();
    stage
        .browser
        .until(&format!("document.querySelector('.answer .text').textContent.length > {before}"));

    // Closed in the middle of an answer, the page keeps what there was.
    stage.browser.until(
        "import('./page/store.js').then((store) => store.loadAll())
            .then((all) => all.some((one) => one.messages.some((message) => message.content.length > 200)))",
    );
    stage.browser.reload();
    gone(&stage, 1);
    assert!(stage.browser.text(".answer .text").starts_with("word word"));
    assert_eq!(stage.browser.text(".answer .note"), "This answer is not complete.");

    // What is deleted stays so, whatever was being written.
    stage.script.will(Reply::Endless);
    stage.browser.click("[aria-label='Answer again']");
    stage.browser.until("!document.querySelector('#stop').hidden");
    stage.browser.click("#conversations li.here [aria-label^=Delete]");
    stage.browser.click("#delete .danger");
    gone(&stage, 2);
    stage.browser.until("document.querySelectorAll('#conversations li').length === 1");
    stage.browser.reload();
    assert_eq!(stage.browser.text("#conversations"), "second");
    stage.browser.assert_no_problems();
}

#[test]
fn failures_are_told_and_can_be_tried_again() {
    let Some(mut stage) = Stage::scripted() else { return };
    // The clock stands still until the countdown was read.
    stage.browser.eval(
        "(() => { const now = Date.now(); window.clock = Date.now; Date.now = () => now; })()",
    );
    let busy = json!({"message": "16 requests are waiting, which is the limit"});
    let wait_a_second = vec![("retry-after", "1")];
    stage.ask("a", Reply::Refusal(StatusCode::TOO_MANY_REQUESTS, wait_a_second, busy));
    let error = stage.browser.text(".answer .error");
    assert!(error.starts_with("The server is busy.16 requests are waiting"), "{error}");
    assert_eq!(stage.browser.text(".error button"), "Try again in 1 s");
    stage.browser.screenshot("busy");
    stage.browser.eval("(() => { Date.now = window.clock; })()");
    stage.browser.until("document.querySelector('.error button').disabled === false");
    stage.script.will(text("Now."));
    stage.browser.click(".error button");
    stage.browser.until("document.querySelector('.answer .text').textContent === 'Now.'");
    stage.idle();
    // The failed attempt is no version.
    assert_eq!(stage.browser.text(".answer .versions"), "");

    let long = json!({"message": "the prompt has 5000 tokens, but the context holds 4096",
        "code": "context_length_exceeded"});
    stage.ask("b", Reply::Refusal(StatusCode::BAD_REQUEST, Vec::new(), long));
    let error = stage.browser.text(".answer:last-child .error");
    assert!(error.contains("too long for the model") && error.contains("5000 tokens"), "{error}");

    stage.ask("c", Reply::BrokenOff);
    assert_eq!(stage.browser.text(".answer:last-child .text"), "The beginning");
    let error = stage.browser.text(".answer:last-child .error");
    assert!(error.contains("The connection broke"), "{error}");
    let request = stage.script.last_request();
    let last = request["messages"].as_array().and_then(|messages| messages.last());
    assert_eq!(last.map(|message| &message["content"]), Some(&json!("b\n\nc")), "turns alternate");

    let offline =
        json!({"offline": true, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1});
    stage.browser.call("Network.emulateNetworkConditions", offline);
    stage.send("d");
    stage.idle();
    let error = stage.browser.text(".answer:last-child .error");
    assert!(error.contains("cannot be reached"), "{error}");
    stage.browser.screenshot("offline");

    let online =
        json!({"offline": false, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1});
    stage.browser.call("Network.emulateNetworkConditions", online);
    stage.script.will(Reply::Deltas(vec![
        json!({"reasoning_content": "Let me "}),
        json!({"reasoning_content": "think."}),
        json!({"content": "I ask."}),
        json!({"tool_calls": [{"index": 0, "function": {"name": "weather", "arguments": ""}}]}),
        json!({"tool_calls": [{"index": 0, "function": {"arguments": "{\"city\": \"Wien\"}"}}]}),
    ]));
    stage.browser.click(".answer:last-child .error button");
    stage.browser.until("document.querySelector('.answer:last-child .call') !== null");
    stage.idle();
    let browser = &mut stage.browser;
    assert_eq!(browser.eval("document.querySelector('.answer:last-child .reasoning').open"), false);
    assert_eq!(browser.text(".answer:last-child .reasoning-text"), "Let me think.");
    assert_eq!(browser.text(".answer:last-child .call"), "Calls weather{\"city\": \"Wien\"}");
    browser.assert_no_problems();
}

#[test]
fn a_phone_needs_no_sideways_scrolling() {
    let Some(mut stage) = Stage::scripted() else { return };
    stage.browser.resize(360, 740);
    stage.browser.prefer("light");
    stage.browser.reload();
    let wide = format!(
        "{SORTING}\n{}\n\n| {} |\n|{}|\n| {} |\n\n{}\n",
        "unbroken".repeat(40),
        ["column"; 12].join(" | "),
        ["---"; 12].join("|"),
        ["a longer value"; 12].join(" | "),
        "https://example.com/".to_owned() + &"path/".repeat(60),
    );
    stage.ask(&"question".repeat(50), text(&wide));
    let overflow = "document.documentElement.scrollWidth > innerWidth
        || document.querySelector('#log').scrollWidth > document.querySelector('#log').clientWidth";
    assert_eq!(stage.browser.eval(overflow), false);
    stage.browser.screenshot("phone-wide-content");

    // Hidden conversations cannot be reached by accident.
    assert_eq!(stage.browser.eval("document.querySelector('#sidebar').inert"), true);
    stage.browser.click("#menu");
    let arrived = "document.querySelector('#sidebar').getBoundingClientRect().x === 0";
    stage.browser.until(arrived);
    stage.browser.screenshot("phone-conversations");

    let background = "getComputedStyle(document.body).backgroundColor";
    let light = stage.browser.eval(background);
    stage.browser.click("#theme");
    let dark = stage.browser.eval(background);
    assert_ne!(light, dark);
    stage.browser.reload();
    assert_eq!(stage.browser.eval(background), dark);
    stage.browser.prefer("dark");
    assert_eq!(stage.browser.eval(background), dark);
    stage.browser.click("#menu");
    stage.browser.until(arrived);
    stage.browser.press("Escape", 0);
    stage.browser.until("document.querySelector('#sidebar').inert");
    assert_eq!(stage.browser.eval(overflow), false);
    stage.browser.assert_no_problems();
}

#[test]
fn a_server_with_keys_asks_for_one() {
    let Some(mut browser) = Browser::start() else { return };
    let server = server(&["secret"]);
    let (_runtime, url) = serve(server.router());
    browser.open(&url);
    assert!(browser.text("#banner").starts_with("The server asks for an API key."));
    browser.click("#question");
    browser.write("hi");
    browser.press("Enter", 0);
    browser.until("document.querySelector('.answer .error strong') !== null");
    browser.until("document.querySelector('#stop').hidden");
    assert!(browser.text(".answer .error").starts_with("The server asks for an API key."));
    browser.screenshot("key");
    browser.click(".answer .error .primary");
    assert_eq!(browser.eval("document.activeElement.id"), "key");
    // The tiny model does not know when to end.
    browser.eval("document.querySelector('#max_tokens').value = 12");
    browser.write("secret");
    browser.press("Enter", 0);
    // What was asked is answered now.
    browser.until("document.querySelector('.answer .text').textContent.length > 0");
    browser.until("document.querySelector('#stop').hidden");
    assert_eq!(browser.count(".answer"), 1);
    assert_eq!(browser.eval("document.querySelector('#banner').hidden"), true);
    assert_eq!(browser.eval("document.querySelector('#model').value"), "tiny");
    let stats = browser.text(".answer .stats");
    // It ends by chance before them now and then.
    let n_tokens = stats.split_once(" tokens · ").and_then(|(n, _)| n.parse::<usize>().ok());
    assert!(n_tokens.is_some_and(|n| (1..=12).contains(&n)), "{stats}");
    browser.reload();
    assert_eq!(browser.eval("document.querySelector('#banner').hidden"), true);
    browser.assert_no_problems();
}

#[tokio::test]
async fn the_page_needs_no_key_and_is_not_sent_twice() {
    let server = server(&["secret"]);
    let send = async |path: &str, etag: &str| {
        let request = Request::get(path).header("if-none-match", etag).body(Body::empty());
        server.router().oneshot(request.expect("a request")).await.expect("a reply")
    };
    for path in ["/", "/page/app.js", "/page/style.css", "/page/vendor/marked.js"] {
        let first = send(path, "\"other\"").await;
        assert_eq!(first.status(), StatusCode::OK, "{path}");
        let headers = first.headers();
        assert_eq!(headers["x-content-type-options"], "nosniff");
        let policy = headers["content-security-policy"].to_str().expect("a text");
        assert!(policy.starts_with("default-src 'none'; script-src 'self'"), "{policy}");
        let etag = headers["etag"].to_str().expect("a text");
        let second = send(path, &format!("\"a\", W/{etag}")).await;
        assert_eq!(second.status(), StatusCode::NOT_MODIFIED, "{path}");
        assert_eq!(second.headers()["etag"], etag);
    }
    assert_eq!(send("/page/missing.js", "").await.status(), StatusCode::NOT_FOUND);
}
