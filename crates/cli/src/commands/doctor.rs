//! `hurtle doctor`: what this machine is, what of it hurtle may use, and what a model can reach on it.
use super::table;
use crate::args::{Activations, GlobalArgs, TypeArgs, Types, forced_isa, threads};
use crate::machine::{Cache, Limit, Machine, memory};
use crate::models;
use crate::terminal::{StatusLine, bytes, harmless};
use anyhow::{Context as _, Result};
use clap::Args;
use hurtle_engine::{Arithmetic, Engine, EngineOptions, default_packing};
use hurtle_kernels::packed::PackedMatrix;
use hurtle_kernels::roofline::{Probe, Roofline};
use hurtle_kernels::{Caches, Exec, Isa, Pool};
use hurtle_model::traffic::{Traffic, Use, traffic};
use serde::Serialize;
use std::fmt::Write as _;
use std::path::Path;

/// Looks at this machine: what hurtle may use of it and why, how fast its memory and its processors are,
/// and what a model can reach here at most. Takes a second or two for each number of threads.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  hurtle doctor                          the machine
  hurtle doctor -m qwen2.5-coder:1.5b    and what a model can reach on it
  hurtle doctor -t 4 --json | jq .measured

Reads are those of a buffer that no cache holds, products those of operands in the first-level cache; each \
is the best of several measurements. A generated token reads all weights once (of experts, those chosen), \
so no program generates faster than the measured bandwidth divided by these bytes, unless caches hold them.")]
pub(crate) struct DoctorArgs {
    /// A model to look at: a file, an alias, hf:USER/REPO ..., fetched if it is not on this machine
    #[arg(short, long, env = "HURTLE_MODEL")]
    model: Option<String>,
    /// Threads; 0 or less: as many as this process may use
    #[arg(short, long, value_name = "N", default_value_t = -1, allow_negative_numbers = true)]
    threads: i64,
    /// Tokens that the context of the model holds; 0: as many as the model was made for
    #[arg(short, long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u64).range(0..=1 << 32))]
    ctx_size: u64,
    #[command(flatten)]
    types: TypeArgs,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// All that was found out.
#[derive(Debug, Serialize)]
struct Report {
    processor: Option<String>,
    caches: Vec<Cache>,
    kernel_caches: KernelCaches,
    threads: Threads,
    memory: Memory,
    isa: InstructionSets,
    huge_pages: HugePages,
    measured: Vec<Measured>,
    model: Option<ModelReport>,
    advice: Vec<String>,
}

/// Caches that the kernels divide their work for, in bytes, and where these sizes come from.
#[derive(Debug, Serialize)]
struct KernelCaches {
    l1: usize,
    l2: usize,
    source: &'static str,
}

impl From<Caches> for KernelCaches {
    fn from(Caches { l1, l2, source }: Caches) -> Self {
        Self { l1, l2, source }
    }
}

/// How many threads run, and what decides it.
#[derive(Debug, Serialize)]
struct Threads {
    /// Processors of the machine.
    online: Option<usize>,
    /// Those that the affinity mask allows.
    allowed: Option<usize>,
    /// The cores that these belong to.
    cores: Option<usize>,
    /// Processor time, as a number of processors.
    cgroup_quota: Option<Limit<f64>>,
    asked: Option<usize>,
    used: usize,
    decided_by: &'static str,
}

#[derive(Debug, Serialize)]
struct Memory {
    total_bytes: Option<u64>,
    available_bytes: Option<u64>,
    cgroup_limit: Option<Limit<u64>>,
}

#[derive(Debug, Serialize)]
struct InstructionSets {
    /// Slowest first.
    available: Vec<&'static str>,
    used: &'static str,
    reason: &'static str,
}

#[derive(Debug, Serialize)]
struct HugePages {
    setting: Option<String>,
    buffer_bytes: u64,
    buffer_huge_bytes: Option<u64>,
}

/// What some threads reach.
#[derive(Debug, Serialize)]
struct Measured {
    threads: usize,
    read_bytes_per_second: f64,
    integer_ops_per_second: f64,
    float_ops_per_second: f64,
}

#[derive(Debug, Serialize)]
struct ModelReport {
    path: String,
    weights: Vec<Weights>,
    activations: &'static str,
    bytes_per_token: u64,
    /// The bandwidth of the threads in use divided by the bytes.
    tokens_per_second_ceiling: f64,
    file_bytes: u64,
    /// Of the weights in memory.
    weight_bytes: u64,
    ctx_size: usize,
    kv_bytes: u64,
    /// Whether weights and keys and values of a full context fit into the memory that can be used.
    fits: Option<bool>,
}

/// The tensors of a weight type and use.
#[derive(Debug, Serialize)]
struct Weights {
    #[serde(rename = "type")]
    ty: &'static str,
    #[serde(rename = "use")]
    what: &'static str,
    tensors: usize,
    bytes: u64,
    bytes_per_token: u64,
    kernel: String,
    /// Whether other activations would have a kernel.
    #[serde(skip)]
    decoded: bool,
}

pub(crate) fn execute(args: &DoctorArgs, globals: &GlobalArgs) -> Result<()> {
    let machine = Machine::read(Path::new("/"));
    let isa = forced_isa()?;
    let threads = Threads::of(&machine, threads(args.threads)?, Pool::available_threads());
    let usable_memory = machine.usable_memory;
    let mut report = Report {
        isa: InstructionSets::of(isa),
        huge_pages: HugePages {
            setting: machine.huge_pages.clone(),
            buffer_bytes: 0,
            buffer_huge_bytes: None,
        },
        measured: Vec::new(),
        model: None,
        advice: Vec::new(),
        memory: Memory {
            total_bytes: machine.memory_total,
            available_bytes: machine.memory_available,
            cgroup_limit: machine.memory_limit.clone(),
        },
        threads,
        processor: machine.processor.clone(),
        caches: machine.caches.clone(),
        kernel_caches: Caches::detect().into(),
    };
    report.measure(&machine, isa.unwrap_or_else(Isa::best))?;
    if let Some(spec) = &args.model {
        let options = EngineOptions {
            threads: Some(report.threads.used),
            isa,
            ctx_size: usize::try_from(args.ctx_size).ok().filter(|n| *n > 0),
            // Nothing is computed, so nothing has to be packed.
            arithmetic: Arithmetic::Exact,
            ..EngineOptions::default()
        };
        let engine = models::load(spec, &options, globals)?;
        let read_bytes = report.measured.last().map_or(0.0, |all| all.read_bytes_per_second);
        report.model =
            Some(ModelReport::of(&engine, args.types.or(Types::FAST), read_bytes, usable_memory));
    }
    report.advice = report.advise(usable_memory);
    if args.json { super::print_json(&report) } else { super::print(&report.to_text()) }
}

impl Threads {
    /// `available` are those that the engine would take by itself.
    fn of(machine: &Machine, asked: Option<usize>, available: usize) -> Self {
        let Machine { online, allowed, cores, ref cpu_quota, .. } = *machine;
        let whole = cpu_quota.as_ref().map(|quota| (quota.value as usize).max(1));
        let decided_by = match (asked, allowed, whole) {
            (Some(_), ..) => "--threads",
            (None, Some(allowed), Some(whole)) if whole < allowed && whole == available => {
                "cgroup quota"
            }
            (None, Some(allowed), _) if allowed == available && online == Some(allowed) => {
                "number of processors"
            }
            (None, Some(allowed), _) if allowed == available => "affinity mask",
            _ => "operating system",
        };
        Self {
            online,
            allowed,
            cores,
            cgroup_quota: cpu_quota.clone(),
            asked,
            used: asked.unwrap_or(available),
            decided_by,
        }
    }

    /// How many to measure: 1, 2, 4 ... and all.
    fn steps(&self) -> Vec<usize> {
        let doubles = std::iter::successors(Some(1), |n: &usize| n.checked_mul(2));
        doubles.take_while(|n| *n < self.used).chain([self.used]).collect()
    }
}

impl InstructionSets {
    fn of(forced: Option<Isa>) -> Self {
        Self {
            available: Isa::available().into_iter().map(Isa::name).collect(),
            used: forced.unwrap_or_else(Isa::best).name(),
            reason: if forced.is_some() { "forced by HURTLE_ISA" } else { "the best of them" },
        }
    }

    fn best(&self) -> &'static str {
        self.available.last().copied().unwrap_or(self.used)
    }
}

impl Report {
    /// Measures each number of threads.
    fn measure(&mut self, machine: &Machine, isa: Isa) -> Result<()> {
        let n = self.threads.used;
        let pool = Pool::new(n).with_context(|| {
            format!("cannot start {n} threads\nhint: ask for fewer with --threads")
        })?;
        let mut status = StatusLine::new();
        let before = memory::huge_pages();
        let exec = |n_threads| Exec { isa, pool: &pool, n_threads };
        let probe = Probe::new(exec(n), machine.probe_bytes()).context("no buffer of this size")?;
        self.huge_pages.buffer_bytes = probe.n_bytes() as u64;
        self.huge_pages.buffer_huge_bytes = memory::huge_pages()
            .zip(before)
            .map(|(after, before)| after.saturating_sub(before).min(probe.n_bytes() as u64));
        for threads in self.threads.steps() {
            status.set(&format!("measuring {threads} of {n} threads"));
            let Roofline { read_bytes, integer_ops, float_ops } = probe.measure(exec(threads));
            self.measured.push(Measured {
                threads,
                read_bytes_per_second: read_bytes,
                integer_ops_per_second: integer_ops,
                float_ops_per_second: float_ops,
            });
        }
        Ok(())
    }

    /// What to change, each for a fact that was found.
    fn advise(&self, usable_memory: Option<u64>) -> Vec<String> {
        let mut advice = Vec::new();
        let Self { threads, isa, huge_pages, .. } = self;
        if isa.used != isa.best() {
            advice.push(format!(
                "HURTLE_ISA forces {}, but this processor has {}: unset it",
                isa.used,
                isa.best()
            ));
        }
        let quota = threads.cgroup_quota.as_ref();
        if let Some(quota) = quota.filter(|quota| quota.value < threads.used as f64) {
            advice.push(format!(
                "{} threads have to share the time of {:.2} processors ({}) and are stopped when it is used \
                 up: take -t {} or raise the quota",
                threads.used,
                quota.value,
                quota.file.display(),
                (quota.value as usize).max(1)
            ));
        } else if let (Some(quota), Some(allowed), None) = (quota, threads.allowed, threads.asked)
            && threads.used < allowed
        {
            advice.push(format!(
                "the quota of {:.2} processors ({}) keeps {} of {allowed} processors idle: raise it \
                 (docker run --cpus={allowed})",
                quota.value,
                quota.file.display(),
                allowed - threads.used
            ));
        }
        if let (Some(allowed), Some(online)) = (threads.allowed, threads.online) {
            if threads.used > allowed {
                advice.push(format!(
                    "{} threads take turns on {allowed} processors: take -t {allowed}",
                    threads.used
                ));
            } else if allowed < online && threads.asked.is_none() {
                advice.push(format!(
                    "the affinity mask allows {allowed} of {online} processors: widen it (taskset, \
                     docker run --cpuset-cpus) if the others are free"
                ));
            }
        }
        if let Some(fewer) = self.fewest_threads() {
            advice.push(format!(
                "{fewer} of {} threads read as fast as all: -t {fewer} generates as fast where memory is \
                 what bounds it (--threads-batch {} keeps prompts fast)",
                threads.used, threads.used
            ));
        }
        let file = "/sys/kernel/mm/transparent_hugepage/enabled";
        match (huge_pages.setting.as_deref(), huge_pages.buffer_huge_bytes) {
            (Some("never"), _) => advice.push(format!(
                "huge pages are switched off: 'echo madvise | sudo tee {file}' switches them on for \
                 programs that ask, as hurtle does"
            )),
            (Some(_), Some(huge)) if huge < huge_pages.buffer_bytes / 10 * 9 => {
                advice.push(format!(
                    "only {} of the buffer of {} came in huge pages: memory is fragmented; 'echo 1 | sudo tee \
                     /proc/sys/vm/compact_memory' or a restart of the machine joins it",
                    bytes(huge),
                    bytes(huge_pages.buffer_bytes)
                ));
            }
            _ => {}
        }
        if let Some(model) = &self.model {
            model.advise(usable_memory, &mut advice);
        }
        advice
    }

    /// The least number of threads that read about as fast as all of them, if it is smaller.
    fn fewest_threads(&self) -> Option<usize> {
        /// Less is what two measurements of the same differ by.
        const AS_FAST: f64 = 0.97;
        let most = self.measured.iter().map(|row| row.read_bytes_per_second).fold(0.0, f64::max);
        let row = self.measured.iter().find(|row| row.read_bytes_per_second >= AS_FAST * most)?;
        (row.threads < self.threads.used).then_some(row.threads)
    }

    /// As lines for a person.
    fn to_text(&self) -> String {
        fn unknown<T>(value: Option<T>, show: impl Fn(T) -> String) -> String {
            value.map_or_else(|| "unknown".into(), show)
        }
        let mut out = String::new();
        let mut line = |name: &str, value: String| {
            let _ = writeln!(out, "{name:<18} {}", harmless(&value));
        };
        let Self { threads, memory, isa, huge_pages, .. } = self;
        line("processor", unknown(self.processor.clone(), |name| name));
        let caches: Vec<String> = self.caches.iter().map(show_cache).collect();
        line("caches", if caches.is_empty() { "unknown".into() } else { caches.join(", ") });
        let KernelCaches { l1, l2, source } = self.kernel_caches;
        line("  kernels for", format!("L1 {} KiB, L2 {} KiB ({source})", l1 >> 10, l2 >> 10));
        line("threads", format!("{}, decided by: {}", threads.used, threads.decided_by));
        line("  processors", unknown(threads.online, |n| n.to_string()));
        line(
            "  affinity mask",
            unknown(threads.allowed, |n| {
                let cores = unknown(threads.cores, |n| n.to_string());
                format!("{n} processors, {cores} cores")
            }),
        );
        let none = || "none found".to_owned();
        let quota = threads.cgroup_quota.as_ref();
        line(
            "  cgroup quota",
            quota.map_or_else(none, |quota| {
                format!("{:.2} processors ({})", quota.value, quota.file.display())
            }),
        );
        line("  --threads", threads.asked.map_or_else(|| "not given".into(), |n| n.to_string()));
        line(
            "memory",
            format!(
                "{}, {} available",
                unknown(memory.total_bytes, bytes),
                unknown(memory.available_bytes, bytes)
            ),
        );
        let limit = memory.cgroup_limit.as_ref();
        line(
            "  cgroup limit",
            limit.map_or_else(none, |limit| {
                format!("{} ({})", bytes(limit.value), limit.file.display())
            }),
        );
        line(
            "  huge pages",
            format!(
                "{}; {} of a buffer of {}",
                unknown(huge_pages.setting.clone(), |setting| setting),
                unknown(huge_pages.buffer_huge_bytes, bytes),
                bytes(huge_pages.buffer_bytes)
            ),
        );
        line("instruction sets", isa.available.join(", "));
        line("  used", format!("{}, {}", isa.used, isa.reason));

        out.push('\n');
        let row = |row: &Measured| {
            [
                row.threads.to_string(),
                format!("{:.1} GB/s", row.read_bytes_per_second / 1e9),
                format!("{:.0} Gop/s", row.integer_ops_per_second / 1e9),
                format!("{:.0} Gop/s", row.float_ops_per_second / 1e9),
            ]
        };
        let rows: Vec<_> = self.measured.iter().map(row).collect();
        out.push_str(&table(["THREADS", "READS", "8-BIT PRODUCTS", "F32 PRODUCTS"], &rows));
        let largest = self.caches.iter().max_by_key(|cache| cache.bytes);
        if let Some(cache) = largest.filter(|cache| huge_pages.buffer_bytes / 4 < cache.bytes) {
            let _ = writeln!(
                out,
                "the buffer is less than 4 times L{}: a part of the reads comes from there",
                cache.level
            );
        }
        if let Some(model) = &self.model {
            model.to_text(&mut out, largest.map(|cache| cache.bytes));
        }
        out.push_str("\nWhat to change\n");
        for advice in &self.advice {
            let _ = writeln!(out, "  - {}", harmless(advice));
        }
        if self.advice.is_empty() {
            out.push_str("  nothing: no measurement shows a reason to\n");
        }
        out
    }
}

/// `L2 1024 KiB`.
fn show_cache(cache: &Cache) -> String {
    let Cache { level, kind, bytes, shared_by } = cache;
    let kind = match kind.as_str() {
        "Data" => " data",
        "Instruction" => " instructions",
        _ => "",
    };
    let size = if *bytes < 1 << 20 {
        format!("{} KiB", bytes >> 10)
    } else {
        format!("{} MiB", *bytes as f64 / f64::from(1 << 20))
    };
    let shared = match shared_by {
        Some(n) if *n > 1 => format!(" (shared by {n} processors)"),
        _ => String::new(),
    };
    format!("L{level}{kind} {size}{shared}")
}

impl ModelReport {
    fn of(engine: &Engine, types: Types, read_bytes: f64, usable_memory: Option<u64>) -> Self {
        let gguf = engine.gguf();
        let mut weights = traffic(gguf, engine.model().hparams().experts);
        if types.activations != Activations::F32 {
            let books = default_packing().books(&weights);
            weights.iter_mut().for_each(|row| *row = row.packed(books));
        }
        let weight_bytes = weights.iter().map(|row| row.bytes).sum();
        let bytes_per_token = weights.iter().map(|row| row.bytes_per_token).sum::<u64>();
        let kv = engine.model().kv_cache(types.cache_type_k.into(), types.cache_type_v.into());
        let kv_bytes = kv.bytes_for(engine.ctx_size()) as u64;
        let path = gguf.paths().first().map(|path| path.display().to_string());
        Self {
            path: path.unwrap_or_default(),
            weights: weights
                .iter()
                .map(|row| Weights::of(row, types.activations, engine.isa()))
                .collect(),
            activations: types.activations.name(),
            bytes_per_token,
            tokens_per_second_ceiling: read_bytes / bytes_per_token.max(1) as f64,
            file_bytes: gguf.file_len(),
            weight_bytes,
            ctx_size: engine.ctx_size(),
            kv_bytes,
            fits: usable_memory.map(|usable| kv_bytes.saturating_add(weight_bytes) <= usable),
        }
    }

    fn advise(&self, usable_memory: Option<u64>, advice: &mut Vec<String>) {
        let Self { weight_bytes, kv_bytes, ctx_size, .. } = *self;
        match usable_memory {
            Some(usable) if weight_bytes > usable => advice.push(format!(
                "the weights take {}, but {} of memory can be used: choose a smaller model or one with fewer \
                 bits a weight, or each token waits for the disk",
                bytes(weight_bytes),
                bytes(usable)
            )),
            Some(usable) if weight_bytes.saturating_add(kv_bytes) > usable => {
                let fits = (usable - weight_bytes) as f64 / (kv_bytes as f64 / ctx_size as f64);
                advice.push(format!(
                    "keys and values of a context of {ctx_size} tokens take {}, and {} are left beside the \
                     weights: -c {} fits, or a narrower --cache-type-k and --cache-type-v",
                    bytes(kv_bytes),
                    bytes(usable - weight_bytes),
                    (fits as u64).max(1)
                ));
            }
            _ => {}
        }
        for row in
            self.weights.iter().filter(|row| row.bytes_per_token >= self.bytes_per_token / 100)
        {
            if row.decoded {
                advice.push(format!(
                    "{} of {} ({}) are decoded to f32 for each token, because --activations is {}: with \
                     --activations q8 they have a kernel",
                    bytes(row.bytes_per_token),
                    row.ty,
                    row.what,
                    self.activations
                ));
            }
        }
    }

    /// `largest_cache` in bytes.
    fn to_text(&self, out: &mut String, largest_cache: Option<u64>) {
        let _ = writeln!(out, "\n{}", harmless(&self.path));
        let row = |row: &Weights| {
            [
                row.ty.to_owned(),
                row.what.to_owned(),
                row.tensors.to_string(),
                bytes(row.bytes),
                bytes(row.bytes_per_token),
                row.kernel.clone(),
            ]
        };
        let rows: Vec<_> = self.weights.iter().map(row).collect();
        out.push_str(&table(["TYPE", "USE", "TENSORS", "SIZE", "READ A TOKEN", "KERNEL"], &rows));
        out.push('\n');
        let mut line = |name: &str, value: String| {
            let _ = writeln!(out, "{name:<18} {value}");
        };
        line("a token reads", bytes(self.bytes_per_token));
        line(
            "ceiling",
            format!(
                "{:.1} tokens/s, the measured bandwidth divided by these bytes{}",
                self.tokens_per_second_ceiling,
                match largest_cache {
                    Some(cache) if self.bytes_per_token <= cache =>
                        "; caches can hold them and give more",
                    _ => "",
                }
            ),
        );
        line(
            "memory needed",
            format!(
                "{} of weights and {} for a context of {} tokens: {}",
                bytes(self.weight_bytes),
                bytes(self.kv_bytes),
                self.ctx_size,
                match self.fits {
                    Some(true) => "fits",
                    Some(false) => "does not fit",
                    None => "unknown whether it fits",
                }
            ),
        );
    }
}

impl Weights {
    fn of(row: &Traffic, activations: Activations, isa: Isa) -> Self {
        let Traffic { ty, what, tensors, bytes, bytes_per_token } = *row;
        let packed = activations != Activations::F32 && PackedMatrix::supports(ty);
        let product = matches!(what, Use::Projection | Use::Experts);
        Self {
            ty: ty.name(),
            what: what.name(),
            tensors,
            bytes,
            bytes_per_token,
            kernel: match what {
                Use::Projection | Use::Experts => {
                    match PackedMatrix::kernel_name(ty, isa).filter(|_| packed) {
                        Some(name) => format!("packed, {name}"),
                        None => format!("decoded to f32, {isa}"),
                    }
                }
                Use::Lookup => "one row decoded".into(),
                Use::Vector => "kept in f32".into(),
            },
            decoded: product && !packed && PackedMatrix::supports(ty),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    fn machine(online: usize, allowed: usize, quota: Option<f64>) -> Machine {
        let limit = |value| Limit { value, file: PathBuf::from("/cg/cpu.max") };
        Machine {
            processor: None,
            online: Some(online),
            allowed: Some(allowed),
            cores: None,
            cpu_quota: quota.map(limit),
            memory_total: None,
            memory_available: None,
            memory_limit: None,
            usable_memory: None,
            caches: Vec::new(),
            huge_pages: None,
        }
    }

    #[test]
    fn who_decides_how_many_threads_run() {
        let check = |machine: Machine, asked, available, expected| {
            let found = Threads::of(&machine, asked, available);
            assert_eq!((found.decided_by, found.used), expected, "{machine:?}");
        };
        check(machine(8, 8, None), Some(3), 8, ("--threads", 3));
        check(machine(8, 8, None), None, 8, ("number of processors", 8));
        check(machine(8, 2, None), None, 2, ("affinity mask", 2));
        check(machine(8, 8, Some(2.5)), None, 2, ("cgroup quota", 2));
        check(machine(8, 8, Some(0.5)), None, 1, ("cgroup quota", 1));
        check(machine(8, 2, Some(4.0)), None, 2, ("affinity mask", 2));
        // What the standard library says and the files do not explain is the system's.
        check(machine(8, 8, None), None, 5, ("operating system", 5));
        let unknown = Machine { allowed: None, online: None, ..machine(0, 0, None) };
        check(unknown, None, 4, ("operating system", 4));
    }

    #[test]
    fn powers_of_two_and_all_are_measured() {
        let check = |used, expected: &[usize]| {
            assert_eq!(Threads::of(&machine(1, 1, None), Some(used), 1).steps(), expected);
        };
        check(1, &[1]);
        check(2, &[1, 2]);
        check(6, &[1, 2, 4, 6]);
        check(8, &[1, 2, 4, 8]);
    }

    /// A report of a machine on which nothing is wrong.
    fn report(threads: Threads, reads: &[f64]) -> Report {
        let measured = |(i, read): (usize, &f64)| Measured {
            threads: threads.steps()[i],
            read_bytes_per_second: *read,
            integer_ops_per_second: 1.0,
            float_ops_per_second: 1.0,
        };
        Report {
            processor: None,
            caches: Vec::new(),
            kernel_caches: KernelCaches { l1: 1, l2: 1, source: "test" },
            memory: Memory { total_bytes: None, available_bytes: None, cgroup_limit: None },
            isa: InstructionSets { available: vec!["scalar", "fast"], used: "fast", reason: "" },
            huge_pages: HugePages {
                setting: Some("madvise".into()),
                buffer_bytes: 100 << 20,
                buffer_huge_bytes: Some(100 << 20),
            },
            measured: reads.iter().enumerate().map(measured).collect(),
            model: None,
            advice: Vec::new(),
            threads,
        }
    }

    fn model(file_bytes: u64, kv_bytes: u64) -> ModelReport {
        ModelReport {
            path: String::new(),
            weights: Vec::new(),
            activations: "q8",
            bytes_per_token: file_bytes,
            tokens_per_second_ceiling: 1.0,
            file_bytes,
            weight_bytes: file_bytes,
            ctx_size: 1000,
            kv_bytes,
            fits: None,
        }
    }

    #[test]
    fn advice_follows_from_facts() {
        #[track_caller]
        fn check(report: &Report, usable: Option<u64>, expected: &[&str]) {
            let found = report.advise(usable);
            assert_eq!(found.len(), expected.len(), "{found:?}");
            for (found, expected) in found.iter().zip(expected) {
                assert!(found.contains(expected), "{expected:?} in {found:?}");
            }
        }
        let threads = |machine: &Machine, asked, available| Threads::of(machine, asked, available);
        let four = || threads(&machine(4, 4, None), None, 4);
        let scaling = [10.0, 20.0, 40.0];
        check(&report(four(), &scaling), Some(1), &[]);
        check(
            &report(four(), &[10.0, 20.0, 20.5]),
            None,
            &["2 of 4 threads read as fast as all: -t 2"],
        );
        let quota = threads(&machine(4, 4, Some(2.0)), None, 2);
        check(&report(quota, &[10.0, 20.0]), None, &["keeps 2 of 4 processors idle"]);
        let quota = threads(&machine(4, 4, Some(1.5)), Some(2), 1);
        check(
            &report(quota, &[10.0, 20.0]),
            None,
            &["share the time of 1.50 processors (/cg/cpu.max)"],
        );
        let mask = threads(&machine(8, 2, None), None, 2);
        check(&report(mask, &[10.0, 20.0]), None, &["allows 2 of 8 processors"]);
        let many = threads(&machine(8, 2, None), Some(4), 2);
        check(&report(many, &scaling), None, &["4 threads take turns on 2 processors: take -t 2"]);

        let mut forced = report(four(), &scaling);
        forced.isa.used = "scalar";
        check(&forced, None, &["HURTLE_ISA forces scalar, but this processor has fast"]);
        let mut small = report(four(), &scaling);
        small.huge_pages.buffer_huge_bytes = Some(1 << 20);
        check(&small, None, &["only 1.0 MB of the buffer of 104.9 MB came in huge pages"]);
        small.huge_pages.setting = Some("never".into());
        check(&small, None, &["huge pages are switched off: 'echo madvise | sudo tee /sys/"]);
        small.huge_pages.setting = None;
        check(&small, None, &[]);

        let with = |model| Report { model: Some(model), ..report(four(), &scaling) };
        check(&with(model(100, 100)), None, &[]);
        check(&with(model(100, 100)), Some(200), &[]);
        check(&with(model(100, 100)), Some(99), &["the weights take 100 B, but 99 B"]);
        check(&with(model(100, 100)), Some(150), &["-c 500 fits"]);
    }

    #[test]
    fn caches_read_well() {
        let check = |level, kind: &str, bytes, shared_by, expected: &str| {
            let cache = Cache { level, kind: kind.into(), bytes, shared_by };
            assert_eq!(show_cache(&cache), expected);
        };
        check(1, "Data", 48 << 10, Some(1), "L1 data 48 KiB");
        check(2, "Unified", 2 << 20, None, "L2 2 MiB");
        check(3, "Unified", 36608 << 10, Some(2), "L3 35.75 MiB (shared by 2 processors)");
    }
}
