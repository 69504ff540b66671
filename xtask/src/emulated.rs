//! aarch64 without an aarch64 machine: a cross compiler and QEMU's user mode. It shows that results
//! are right, never how fast they are.

use crate::{PROFILE, cargo, run, target};
use anyhow::{Context, Result, bail, ensure};
use std::ffi::OsString;
use std::path::Path;
use std::process::Command;

const TRIPLE: &str = "aarch64-unknown-linux-gnu";
const LINKER: &str = "aarch64-linux-gnu-gcc";
const EMULATOR: &str = "qemu-aarch64-static";

/// What is tested where nobody says: the crates in which the processor makes a difference.
const PACKAGES: [&str; 3] = ["hurtle-quant", "hurtle-kernels", "hurtle-model"];

const INSTALL: &str = "hint: on Debian, as root:\n  \
    dpkg --add-architecture arm64 && apt-get update && apt-get install --no-install-recommends \
    rustc-web libstd-rust-web-dev:arm64 gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user-static";

/// Builds and runs the tests for aarch64, then compares the bits of logits with this machine's.
/// `args` go to `cargo test`.
pub(crate) fn test(args: &[OsString]) -> Result<()> {
    ensure!(
        !cfg!(target_arch = "aarch64"),
        "this machine is an aarch64 itself\nhint: run `cargo xtask test`"
    );
    let rustc = compiler()?;
    for tool in [LINKER, EMULATOR] {
        ensure!(starts(tool), "cannot start {tool}\n{INSTALL}");
    }
    let mut command = cross("test", rustc);
    if !args.iter().any(|arg| arg == "-p" || arg == "--package") {
        command.args(PACKAGES.map(|package| ["--package", package]).as_flattened());
    }
    run(command.args(args))?;

    let fingerprints = ["--quiet", "--package", "hurtle-model", "--example", "fingerprints"];
    let emulated = output(cross("run", rustc).args(fingerprints))?;
    let native = output(cargo().args(["run", "--profile", PROFILE]).args(fingerprints))?;
    for (here, there) in native.lines().zip(emulated.lines()).filter(|(a, b)| a != b) {
        eprintln!("here:    {here}\naarch64: {there}");
    }
    ensure!(native == emulated, "the same logits have other bits on aarch64");
    println!("{} fingerprints of logits equal those of this machine", native.lines().count());
    Ok(())
}

/// A Rust compiler that has aarch64's standard library: the one in use, or Debian's.
fn compiler() -> Result<&'static str> {
    for rustc in ["rustc", "/usr/bin/rustc"] {
        let mut command = Command::new(rustc);
        command.args(["--print", "target-libdir", "--target", TRIPLE]);
        if let Ok(folder) = output(&mut command)
            && Path::new(folder.trim()).is_dir()
        {
            return Ok(rustc);
        }
    }
    bail!("no Rust compiler here has the standard library of {TRIPLE}\n{INSTALL}")
}

fn starts(tool: &str) -> bool {
    output(Command::new(tool).arg("--version")).is_ok()
}

/// `cargo verb` for aarch64, in a target folder of its own: it may be another compiler's. Linked
/// statically, a program needs no aarch64 libraries at run time, of which a system can have two sets.
fn cross(verb: &str, rustc: &str) -> Command {
    const PREFIX: &str = "CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU";
    let mut command = cargo();
    command.args([verb, "--target", TRIPLE, "--profile", PROFILE, "--target-dir"]);
    command.arg(target().join("aarch64"));
    // Documentation tests need the compiler's own rustdoc, which lies beside it.
    command.env("RUSTC", rustc).env("RUSTDOC", rustc.replace("rustc", "rustdoc"));
    command.env_remove("RUSTFLAGS").env_remove("CARGO_ENCODED_RUSTFLAGS");
    command.env(format!("{PREFIX}_RUSTFLAGS"), "-C target-feature=+crt-static");
    command.env(format!("{PREFIX}_LINKER"), LINKER);
    command.env(format!("{PREFIX}_RUNNER"), format!("{EMULATOR} -cpu max"));
    command
}

/// What a command prints, if it succeeds.
fn output(command: &mut Command) -> Result<String> {
    let result = command.output().with_context(|| format!("cannot start {command:?}"))?;
    ensure!(
        result.status.success(),
        "{command:?} ended with {}\n{}",
        result.status,
        String::from_utf8_lossy(&result.stderr)
    );
    String::from_utf8(result.stdout).with_context(|| format!("{command:?} printed no UTF-8"))
}
