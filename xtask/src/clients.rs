//! The Python clients that the server is tested with.

use crate::{run, target};
use anyhow::{Context, Result};
use std::env;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

const PACKAGES: &[&str] = &["openai==3.57.0", "ollama==0.6.3", "litellm==1.110.2"];

/// Installs the packages into a folder of their own, unless they are there, and returns it.
pub(crate) fn install() -> Result<PathBuf> {
    let folder = target().join("test-clients");
    let done = folder.join("packages.txt");
    let packages = PACKAGES.join("\n");
    if fs::read_to_string(&done).is_ok_and(|text| text == packages) {
        return Ok(folder);
    }
    if folder.exists() {
        fs::remove_dir_all(&folder)
            .with_context(|| format!("cannot remove {}", folder.display()))?;
    }
    let python = env::var_os("HURTLE_PYTHON").unwrap_or_else(|| "python3".into());
    let mut pip = Command::new(python);
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]);
    pip.args(["--root-user-action", "ignore", "--target"]).arg(&folder).args(PACKAGES);
    run(&mut pip).context(
        "cannot install the Python clients that the server is tested with\n\
         hint: install Python 3 with pip, and check that `python3 -m pip install openai` works",
    )?;
    fs::write(&done, packages).with_context(|| format!("cannot write {}", done.display()))?;
    Ok(folder)
}
