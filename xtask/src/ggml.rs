//! `cargo xtask ggml`: what needs ggml, which the rest of the project is built and tested without.
//!
//! ggml is compiled for a fixed set of instructions, so the task asks for those of this processor, and keeps
//! such builds apart from the others, in `target/ggml`.

use crate::{cargo, root, run as run_command, target};
use anyhow::{Result, bail};
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Runs what the arguments say.
pub(crate) fn run(args: &[OsString]) -> Result<()> {
    let (what, rest) = match args.split_first() {
        Some((what, rest)) => (what.to_str().unwrap_or_default(), rest),
        None => ("", args),
    };
    let ggml = |args: &[&str]| cargo_with_ggml(&root().join("crates/ggml"), args);
    // The binary runs where the user is, for the sake of relative paths.
    let hurtle = |task: &str| {
        let mut command = cargo_with_ggml(&std::env::current_dir()?, &[task, "--manifest-path"]);
        command.arg(root().join("Cargo.toml"));
        command.args(["--release", "-p", "hurtle", "--features", "ggml"]);
        anyhow::Ok(command)
    };
    let mut jobs = match what {
        "" => {
            let mut hurtle = hurtle("test")?;
            hurtle.args(["--test", "it", "backend"]);
            let lints = ggml(&["clippy", "--release", "--all-targets", "--", "-D", "warnings"]);
            vec![lints, ggml(&["test", "--release"]), hurtle]
        }
        "hurtle" => {
            let mut hurtle = hurtle("run")?;
            hurtle.arg("--").args(rest);
            vec![hurtle]
        }
        "side-by-side" => {
            let mut example = ggml(&["run", "--release", "--example", "side_by_side", "--"]);
            example.args(rest);
            vec![example]
        }
        _ => bail!("ggml {what}: there is no such task\nhint: 'cargo xtask help' lists them"),
    };
    check_tools()?;
    jobs.iter_mut().try_for_each(run_command)
}

/// A cargo command that compiles ggml for this processor.
fn cargo_with_ggml(folder: &Path, args: &[&str]) -> Command {
    let mut command = cargo();
    command.current_dir(folder).args(args);
    command.env("CARGO_TARGET_DIR", target().join("ggml"));
    for (option, present) in instructions() {
        if present {
            command.env(option, "ON");
        }
    }
    command
}

/// ggml's build options beyond AVX2, which it takes for granted on x86-64, and whether this processor has
/// what they ask for.
fn instructions() -> Vec<(&'static str, bool)> {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::is_x86_feature_detected as has;
        let avx512 = has!("avx512f")
            && has!("avx512cd")
            && has!("avx512vl")
            && has!("avx512dq")
            && has!("avx512bw");
        vec![
            ("GGML_AVX512", avx512),
            ("GGML_AVX512_VBMI", avx512 && has!("avx512vbmi")),
            ("GGML_AVX512_VNNI", avx512 && has!("avx512vnni")),
            ("GGML_AVX512_BF16", avx512 && has!("avx512bf16")),
            ("GGML_AVX_VNNI", has!("avxvnni")),
        ]
    }
    #[cfg(not(target_arch = "x86_64"))]
    Vec::new()
}

/// Says all that is missing, before a build of some minutes finds out one by one.
fn check_tools() -> Result<()> {
    let cxx = std::env::var_os("CXX").unwrap_or_else(|| "c++".into());
    let mut missing = Vec::new();
    if !starts("cmake".as_ref()) {
        missing.push("cmake is not there".to_owned());
    }
    if !starts(&cxx) {
        missing.push(format!("the C++ compiler {} is not there", cxx.display()));
    }
    if cfg!(target_os = "linux") && !has_libclang() {
        missing.push("libclang is not there (LIBCLANG_PATH can name its folder)".to_owned());
    }
    if missing.is_empty() {
        return Ok(());
    }
    bail!(
        "ggml cannot be built: {}\n\
         hint: on Debian and Ubuntu: apt-get install cmake g++ libclang-dev",
        missing.join("; ")
    )
}

/// Whether a program tells its version.
fn starts(program: &OsStr) -> bool {
    let mut command = Command::new(program);
    let status = command.arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}

/// Whether bindgen will find libclang: where the environment says, where the loader looks, or where
/// distributions put LLVM.
fn has_libclang() -> bool {
    let mut folders: Vec<PathBuf> = match std::env::var_os("LIBCLANG_PATH") {
        Some(path) if Path::new(&path).is_file() => return true,
        Some(path) => vec![path.into()],
        None => {
            let multiarch = format!("/usr/lib/{}-linux-gnu", std::env::consts::ARCH);
            ["/usr/lib", "/usr/lib64", "/usr/local/lib", &multiarch].map(PathBuf::from).into()
        }
    };
    let llvm = |folder: &str| std::fs::read_dir(folder).into_iter().flatten().flatten();
    let versions = llvm("/usr/lib").chain(llvm("/opt"));
    folders.extend(versions.map(|entry| entry.path().join("lib")));
    let is_libclang = |name: &str| name.starts_with("libclang") && name.contains(".so");
    // libclang-cpp is another library.
    folders.iter().any(|folder| {
        let mut entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        entries.any(|entry| {
            let name = entry.file_name();
            name.to_str().is_some_and(|name| is_libclang(name) && !name.starts_with("libclang-cpp"))
        })
    })
}
