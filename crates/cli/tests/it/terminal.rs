//! Conversations in a real (pseudo-)terminal, with the keys that people press.
use crate::common::{environment, model};
use portable_pty::{Child, CommandBuilder, MasterPty, PtySize, native_pty_system};
use std::io::{Read as _, Write};
use std::num::NonZero;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// What the line looks like at which the user may type.
const READY: &str = ">>> Send a message (/? for help)";
/// How long to wait for the screen to show something. The tests use one second in all.
const PATIENCE: Duration = Duration::from_secs(60);
const CTRL_C: &str = "\x03";
const CTRL_D: &str = "\x04";
const UP: &str = "\x1b[A";

/// A chat in a terminal of 30 rows and 100 columns.
struct Terminal {
    screen: Arc<Mutex<vt100::Parser>>,
    keyboard: Box<dyn Write + Send>,
    child: Box<dyn Child + Send + Sync>,
    _master: Box<dyn MasterPty + Send>,
}

impl Terminal {
    fn start(home: &TempDir, more: &[&str]) -> Self {
        let size = PtySize { rows: 30, cols: 100, pixel_width: 0, pixel_height: 0 };
        let pty = native_pty_system().openpty(size).expect("a pseudo-terminal");
        let mut command = CommandBuilder::new(env!("CARGO_BIN_EXE_hurtle"));
        let args = ["chat", "-m", model(), "--chat-template", "chatml", "-s", "1"];
        command.args(args.iter().chain(more));
        command.env_clear();
        for (name, value) in environment(home.path()) {
            command.env(name, value);
        }
        command.cwd(home.path());
        let child = pty.slave.spawn_command(command).expect("the program starts");
        drop(pty.slave);
        let lines = |n| NonZero::new(n).expect("a positive number");
        let parser = vt100::Parser::new(lines(size.rows), lines(size.cols), 1000);
        let screen = Arc::new(Mutex::new(parser));
        let mut output = pty.master.try_clone_reader().expect("output");
        let shown = Arc::clone(&screen);
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(n) = output.read(&mut bytes) {
                if n == 0 {
                    break;
                }
                shown.lock().expect("the screen").process(&bytes[..n]);
            }
        });
        let keyboard = pty.master.take_writer().expect("input");
        Self { screen, keyboard, child, _master: pty.master }
    }

    fn contents(&self) -> String {
        self.screen.lock().expect("the screen").screen().contents()
    }

    /// Waits until the screen is as `is` wants it.
    #[track_caller]
    fn wait(&self, what: &str, is: impl Fn(&str) -> bool) {
        let start = Instant::now();
        while !is(&self.contents()) {
            assert!(start.elapsed() < PATIENCE, "no {what} on the screen:\n{}", self.contents());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    #[track_caller]
    fn expect(&self, text: &str) {
        self.wait(text, |screen| screen.contains(text));
    }

    /// Waits for the prompt below everything else.
    #[track_caller]
    fn ready(&self) {
        self.wait("prompt", |screen| screen.trim_end().ends_with(READY));
    }

    fn press(&mut self, keys: &str) {
        self.keyboard.write_all(keys.as_bytes()).expect("typed");
        self.keyboard.flush().expect("typed");
    }

    /// Types a line, waits until it is shown, then sends it.
    #[track_caller]
    fn enter(&mut self, line: &str) {
        self.press(line);
        self.expect(line);
        self.press("\r");
    }

    /// Waits for the end and gives the exit status.
    #[track_caller]
    fn end(mut self) -> u32 {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("a status") {
                return status.exit_code();
            }
            if start.elapsed() > PATIENCE {
                self.child.kill().expect("killed");
                panic!("the program does not end:\n{}", self.contents());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

fn home() -> TempDir {
    TempDir::new().expect("a folder")
}

#[test]
fn greeting_help_and_leaving() {
    let home = home();
    let mut terminal = Terminal::start(&home, &["-n", "4"]);
    terminal.ready();
    terminal.expect("context of 512 tokens");
    terminal.enter("/help");
    terminal.expect("/show license");
    terminal.ready();
    terminal.enter("/bye");
    assert_eq!(terminal.end(), 0);

    let mut terminal = Terminal::start(&home, &[]);
    terminal.ready();
    terminal.press(CTRL_C);
    terminal.expect("Press Ctrl-D or type /bye to leave.");
    terminal.ready();
    terminal.press("half a line");
    terminal.expect("half a line");
    terminal.press(CTRL_C);
    terminal.ready();
    terminal.press(CTRL_D);
    assert_eq!(terminal.end(), 0);
}

#[test]
fn messages_are_answered_and_lines_are_joined() {
    let home = home();
    let mut terminal = Terminal::start(&home, &["-n", "4"]);
    terminal.ready();
    terminal.enter("hello");
    terminal.ready();
    terminal.enter("\"\"\"one");
    terminal.enter("two\"\"\"");
    terminal.ready();
    terminal.enter("three\\");
    terminal.enter("four");
    terminal.ready();
    // Pasted text with a line break is one message.
    terminal.press("\x1b[200~five\nsix\x1b[201~");
    terminal.expect("six");
    terminal.press("\r");
    terminal.ready();
    terminal.enter("/history");
    for text in ["you: hello", "you: one\ntwo", "you: three\nfour", "you: five\nsix"] {
        terminal.expect(text);
    }
    terminal.press(CTRL_D);
    assert_eq!(terminal.end(), 0);
}

#[test]
fn what_was_typed_comes_back() {
    let home = home();
    let mut terminal = Terminal::start(&home, &["-n", "2"]);
    terminal.ready();
    terminal.enter("/set parameter top_k 3");
    terminal.ready();
    terminal.press(UP);
    terminal
        .wait("the line again", |screen| screen.trim_end().ends_with(">>> /set parameter top_k 3"));
    terminal.press(CTRL_C);
    terminal.ready();
    terminal.press("/cl\t");
    terminal.expect(">>> /clear");
    terminal.press(CTRL_C);
    terminal.ready();
    terminal.press(CTRL_D);
    assert_eq!(terminal.end(), 0);

    // Also in the next conversation.
    let mut terminal = Terminal::start(&home, &["-n", "2"]);
    terminal.ready();
    terminal.press(UP);
    terminal.expect(">>> /set parameter top_k 3");
    terminal.press(CTRL_C);
    terminal.ready();
    terminal.press(CTRL_D);
    assert_eq!(terminal.end(), 0);
}

#[test]
fn ctrl_c_stops_the_answer_and_nothing_else() {
    let home = home();
    let mut terminal = Terminal::start(&home, &["-c", "1000000", "--ignore-eos"]);
    terminal.ready();
    terminal.press("talk for ever\r");
    terminal.wait("an answer", |screen| screen.lines().count() > 6);
    terminal.press(CTRL_C);
    terminal.ready();
    terminal.enter("/set parameter num_predict 2");
    terminal.ready();
    terminal.enter("/clear");
    terminal.ready();
    terminal.enter("and again");
    terminal.ready();
    terminal.press(CTRL_D);
    assert_eq!(terminal.end(), 0);
}

/// What is typed during an answer does not mix with it, and is obeyed afterwards.
#[test]
fn typing_ahead() {
    let home = home();
    let mut terminal = Terminal::start(&home, &["-c", "100000", "--ignore-eos", "-n", "1000"]);
    terminal.ready();
    terminal.press("talk for long\r");
    terminal.wait("an answer", |screen| screen.lines().count() > 6);
    terminal.press("/show system\r");
    terminal.expect(">>> /show system");
    terminal.expect("no system prompt");
    terminal.ready();
    assert_eq!(terminal.contents().matches("/show system").count(), 1);
    terminal.press(CTRL_D);
    assert_eq!(terminal.end(), 0);
}

#[test]
fn colours_can_be_refused() {
    let home = home();
    let mut terminal = Terminal::start(&home, &["--color", "never", "-n", "2"]);
    terminal.wait("prompt", |screen| screen.trim_end().ends_with(">>>"));
    terminal.press(CTRL_D);
    assert_eq!(terminal.end(), 0);
}

/// `hurtle run` on a terminal: Ctrl-C ends it with the status that shells expect.
#[test]
fn ctrl_c_ends_run_with_130() {
    let home = home();
    let size = PtySize { rows: 30, cols: 100, pixel_width: 0, pixel_height: 0 };
    let pty = native_pty_system().openpty(size).expect("a pseudo-terminal");
    let mut command = CommandBuilder::new(env!("CARGO_BIN_EXE_hurtle"));
    command.args(["-m", model(), "--raw", "-p", "x", "-c", "1000000", "--ignore-eos", "-v"]);
    command.env_clear();
    for (name, value) in environment(home.path()) {
        command.env(name, value);
    }
    let mut child = pty.slave.spawn_command(command).expect("the program starts");
    drop(pty.slave);
    let mut output = pty.master.try_clone_reader().expect("output");
    let mut keyboard = pty.master.take_writer().expect("input");
    // More than what is said while the model is loaded.
    output.read_exact(&mut [0; 2000]).expect("an answer");
    keyboard.write_all(CTRL_C.as_bytes()).expect("typed");
    let mut rest = Vec::new();
    // Linux reports the end of a pseudo-terminal as an error.
    let _ = output.read_to_end(&mut rest);
    assert_eq!(child.wait().expect("a status").exit_code(), 130);
    assert!(String::from_utf8_lossy(&rest).contains("eval rate:"));
}
