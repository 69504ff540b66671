//! The browser in which the chat page is tested.

use anyhow::{Context, Result, ensure};
use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const HINT: &str = "hint: install Chromium (Debian: apt-get install chromium), \
    or name it in HURTLE_TEST_BROWSER";

/// Chromium: the one that the environment names, one on the path, or Debian's package, which is installed where
/// that can be done. Without one the page's tests are skipped, but not in CI.
pub(crate) fn find_or_install() -> Result<Option<PathBuf>> {
    if let Some(named) = env::var_os("HURTLE_TEST_BROWSER") {
        return Ok(Some(named.into()));
    }
    let browser = match find(&["chromium", "chromium-browser", "google-chrome"]) {
        None if is_root() && find(&["apt-get"]).is_some() => install()?,
        found => found,
    };
    ensure!(
        browser.is_some() || env::var_os("CI").is_none(),
        "there is no Chromium, in which the chat page is tested\n{HINT}"
    );
    if browser.is_none() {
        eprintln!("the chat page's tests are skipped: there is no Chromium\n{HINT}");
    }
    Ok(browser)
}

/// Installs Debian's package; `None` if that fails.
fn install() -> Result<Option<PathBuf>> {
    eprintln!("installing Chromium, in which the chat page is tested");
    for args in [&["update"][..], &["install", "--yes", "--no-install-recommends", "chromium"]] {
        let mut command = Command::new("apt-get");
        command.args(args).env("DEBIAN_FRONTEND", "noninteractive");
        let status = command.status().with_context(|| format!("cannot start {command:?}"))?;
        if !status.success() {
            eprintln!("{command:?} ended with {status}");
        }
    }
    Ok(find(&["chromium"]))
}

/// The first of the programs that is on the path, and starts: some distributions have placeholders.
fn find(programs: &[&str]) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    let mut places = programs
        .iter()
        .flat_map(|program| env::split_paths(&path).map(move |folder| folder.join(program)));
    places.find(|place| starts(place))
}

fn starts(program: &Path) -> bool {
    let mut command = Command::new(program);
    let status = command.arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}

fn is_root() -> bool {
    let id = Command::new("id").arg("-u").output();
    id.is_ok_and(|id| id.stdout.trim_ascii() == b"0")
}
