//! `hurtle profile`: where the time of a token or of a prompt goes, operation by operation, against what the machine gives.
mod page;
mod plot;

use super::{bench, table};
use crate::args::{Activations, GlobalArgs, ModelArgs, TypeArgs, Types, forced_isa, threads};
use crate::error::usage;
use crate::machine::Machine;
use crate::models;
use crate::terminal::{StatusLine, bytes, harmless};
use anyhow::{Context as _, Result};
use clap::{Args, ValueEnum};
use hurtle_engine::{BenchTest, Engine, EngineOptions, ProfileRun};
use hurtle_kernels::activations::Form;
use hurtle_kernels::kv::KvType;
use hurtle_kernels::packed::PackedMatrix;
use hurtle_kernels::roofline::{Probe, Roofline, attention_ops};
use hurtle_kernels::{Exec, Isa, Pool};
use hurtle_model::profile::{Cost, Op};
use hurtle_model::traffic::{Use, traffic};
use serde::Serialize;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// Measures where the time of a token, or of a prompt, goes: each operation with its time, the bytes it reads, its
/// arithmetic, and how much that is of what memory and processor give on this machine.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  hurtle profile -m qwen2.5-coder:1.5b                   32 tokens, one by one
  hurtle profile -m x.gguf -d 4096 --layers              behind 4096 others, layer by layer
  hurtle profile -m x.gguf --prefill                     a prompt of 512 tokens
  hurtle profile -m x.gguf --prefill 2048 -d 4096        one of 2048 tokens behind 4096 others
  hurtle profile -m x.gguf -o html --output profile.html a page with a roofline plot

Tokens are random, and each is followed by a run of the default sampler chain. Times are those of the calling \
thread, waiting for the others included; WAIT is that part. '% READ' compares with the read bandwidth \
that is measured before, '% PEAK' with the products that the instruction set can do (8-bit integers for projections whose weights are quantized, bf16 for weights in BF16, f32 with --activations f32 and for \
all else), BOUND says which of the two an operation would meet first.")]
pub(crate) struct ProfileArgs {
    /// Tokens to generate
    #[arg(short = 'n', long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u64).range(1..=1 << 24), conflicts_with = "prefill")]
    n_gen: u64,
    /// Process a prompt of N tokens (512 if N is missing) instead of generating
    #[arg(long, value_name = "N", num_args = 0..=1, default_missing_value = "512", value_parser = clap::value_parser!(u64).range(1..=1 << 24))]
    prefill: Option<u64>,
    /// Tokens that the context holds before
    #[arg(short = 'd', long, value_name = "N", default_value_t = 0, value_parser = bench::tokens())]
    n_depth: u64,
    /// Threads; 0 or less: as many as this process may use
    #[arg(short, long, value_name = "N", default_value_t = -1, allow_negative_numbers = true)]
    threads: i64,
    /// Prompt tokens processed at once (also -ub)
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = bench::batch())]
    ubatch_size: u64,
    #[command(flatten)]
    types: TypeArgs,
    /// Tell each layer by itself too
    #[arg(long)]
    layers: bool,
    /// Form of the result [default: by the ending of --output, or text]
    #[arg(short = 'o', long, value_name = "FORM")]
    format: Option<Format>,
    /// File to write the result to, instead of standard output
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    #[command(flatten)]
    model: ModelArgs,
}

/// Form of the result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// Tables
    Text,
    /// One object
    Json,
    /// A page with a roofline plot and the tables
    Html,
    /// The roofline plot
    Svg,
}

pub(crate) fn execute(args: &ProfileArgs, globals: &GlobalArgs) -> Result<()> {
    let format = args.format();
    if args.layers && format == Format::Svg {
        usage!(
            "--layers: the plot has no place for layers\nhint: -o html has the plot and the layers"
        );
    }
    let isa = forced_isa()?;
    let threads = threads(args.threads)?.unwrap_or_else(Pool::available_threads);
    let types = args.types.or(Types::FAST);
    let test = args.test(threads, types);
    let options = EngineOptions {
        threads: Some(threads),
        isa,
        arithmetic: types.activations.into(),
        ctx_size: Some(test.n_ctx()),
        ..EngineOptions::default()
    };
    // Before the model is there, so that the buffer finds room.
    let mut status = StatusLine::new();
    status.set("measuring what memory and processor give");
    let given = measure(isa.unwrap_or_else(Isa::best), threads, test.kv_types)?;
    drop(status);
    let engine = models::load(&args.model.model, &options, globals)?;
    bench::check_memory(&engine, std::slice::from_ref(&test))?;
    let mut status = StatusLine::new();
    status.set(&format!("running {test}"));
    let run = engine.profile(&test)?;
    drop(status);

    let setting = Setting {
        model: bench::model_name(&engine),
        test: test.to_string(),
        isa: engine.isa().name(),
        activations: types.activations,
        form: form(&engine, types.activations),
        threads,
        n_tokens: test.n_tokens(),
    };
    let report = Report::new(setting, &run, given, args.layers);
    let text = match format {
        Format::Text => report.to_text(),
        Format::Json => serde_json::to_string_pretty(&report)? + "\n",
        Format::Html => page::html(&report),
        Format::Svg => plot::svg(&report),
    };
    match &args.output {
        Some(path) => {
            std::fs::write(path, text).with_context(|| format!("{}: cannot write", path.display()))
        }
        None => super::print(&text),
    }
}

impl ProfileArgs {
    fn format(&self) -> Format {
        let ending = self.output.as_deref().and_then(Path::extension).and_then(|e| e.to_str());
        let by_ending = ending.and_then(|ending| Format::from_str(ending, true).ok());
        self.format.or(by_ending).unwrap_or(Format::Text)
    }

    fn test(&self, threads: usize, types: Types) -> BenchTest {
        let size = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
        let (n_prompt, n_gen) = match self.prefill {
            Some(n_prompt) => (size(n_prompt), 0),
            None => (0, size(self.n_gen)),
        };
        BenchTest {
            n_prompt,
            n_gen,
            depth: size(self.n_depth),
            n_seqs: 1,
            n_beside: 0,
            threads,
            batch_size: size(self.ubatch_size),
            kv_types: (types.cache_type_k.into(), types.cache_type_v.into()),
        }
    }
}

/// What this machine gives to the threads in use.
#[derive(Debug, Clone, Copy)]
struct Given {
    roofline: Roofline,
    /// As attention multiplies keys and values of the cache's types.
    attention_ops: f64,
    /// Of bf16.
    bf16_ops: f64,
}

fn measure(isa: Isa, n_threads: usize, (type_k, type_v): (KvType, KvType)) -> Result<Given> {
    let pool = Pool::new(n_threads).with_context(|| {
        format!("cannot start {n_threads} threads\nhint: ask for fewer with --threads")
    })?;
    let exec = Exec { isa, pool: &pool, n_threads };
    let n_bytes = Machine::read(Path::new("/")).probe_bytes();
    let roofline = Probe::new(exec, n_bytes).context("no buffer of this size")?.measure(exec);
    let [k, v, bf16_ops] = [type_k, type_v, KvType::BF16].map(|ty| attention_ops(exec, ty));
    Ok(Given { roofline, attention_ops: k.min(v), bf16_ops })
}

/// What activations most of the weights meet that a token reads. `None`: decoded to f32.
fn form(engine: &Engine, activations: Activations) -> Option<Form> {
    if activations == Activations::F32 {
        return None;
    }
    let weights = traffic(engine.gguf(), engine.model().hparams().experts);
    let mut matrices = weights.iter().filter(|w| matches!(w.what, Use::Projection | Use::Experts));
    matrices.next().and_then(|most| PackedMatrix::form_of(most.ty))
}

/// What was run.
#[derive(Debug, Clone)]
struct Setting {
    model: String,
    test: String,
    isa: &'static str,
    activations: Activations,
    form: Option<Form>,
    threads: usize,
    n_tokens: usize,
}

/// The result.
#[derive(Debug, Serialize)]
struct Report {
    model: String,
    test: String,
    isa: &'static str,
    activations: &'static str,
    threads: usize,
    n_tokens: usize,
    read_bytes_per_second: f64,
    integer_ops_per_second: f64,
    float_ops_per_second: f64,
    bf16_ops_per_second: f64,
    attention_ops_per_second: f64,
    /// The operations, sampling and everything else: together the total.
    operations: Vec<Row>,
    total: Row,
    #[serde(skip_serializing_if = "Option::is_none")]
    layers: Option<Vec<Layer>>,
    summary: String,
}

#[derive(Debug, Serialize)]
struct Layer {
    layer: usize,
    operations: Vec<Row>,
    total: Row,
}

/// What bounds an operation: the higher of the two times that it needs at least.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Bound {
    Memory,
    Arithmetic,
}

impl Bound {
    fn name(self) -> &'static str {
        match self {
            Bound::Memory => "memory",
            Bound::Arithmetic => "arithmetic",
        }
    }
}

/// An operation, in numbers a token where nothing else is said.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Row {
    name: &'static str,
    /// All of them.
    calls: u64,
    time_us: f64,
    /// Of the total time, from 0 to 1.
    share: f64,
    wait_us: f64,
    bytes: f64,
    ops: f64,
    bytes_per_second: f64,
    ops_per_second: f64,
    /// Of the measured bandwidth, from 0 to 1; above 1 where caches helped.
    read_fraction: Option<f64>,
    /// Of the measured arithmetic peak.
    peak_fraction: Option<f64>,
    bound: Option<Bound>,
    /// What memory and arithmetic need at least.
    least_us: f64,
}

impl Row {
    /// `peak` are the operations a second that the instruction set gives to it.
    fn new(name: &'static str, cost: Cost, n_tokens: f64, read_bytes: f64, peak: f64) -> Self {
        let seconds = cost.time.as_secs_f64();
        let rate = |amount: u64| if seconds > 0.0 { amount as f64 / seconds } else { 0.0 };
        let (reading, computing) = (cost.bytes as f64 / read_bytes, cost.flops as f64 / peak);
        let of = |rate: f64, most: f64| (rate > 0.0).then_some(rate / most);
        Self {
            name,
            calls: cost.calls,
            time_us: 1e6 * seconds / n_tokens,
            share: 0.0,
            wait_us: 1e6 * cost.wait.as_secs_f64() / n_tokens,
            bytes: cost.bytes as f64 / n_tokens,
            ops: cost.flops as f64 / n_tokens,
            bytes_per_second: rate(cost.bytes),
            ops_per_second: rate(cost.flops),
            read_fraction: of(rate(cost.bytes), read_bytes),
            peak_fraction: of(rate(cost.flops), peak),
            bound: (cost.bytes > 0 || cost.flops > 0).then_some(if computing > reading {
                Bound::Arithmetic
            } else {
                Bound::Memory
            }),
            least_us: 1e6 * reading.max(computing) / n_tokens,
        }
    }
}

/// Which of the peaks bounds an operation, where the weights of projections meet activations of this form.
fn peak(op: Op, form: Option<Form>, given: &Given) -> f64 {
    let Given { roofline, attention_ops, bf16_ops } = given;
    let projects = matches!(op, Op::Qkv | Op::AttnOutput | Op::GateUp | Op::Down | Op::LmHead);
    match form {
        _ if op == Op::Attention => *attention_ops,
        Some(Form::SuperBlocks | Form::Blocks) if projects => roofline.integer_ops,
        Some(Form::Pairs) if projects => *bf16_ops,
        _ => roofline.float_ops,
    }
}

impl Report {
    fn new(setting: Setting, run: &ProfileRun, given: Given, layers: bool) -> Self {
        let Setting { model, test, isa, activations, form, threads, n_tokens } = setting;
        let n = n_tokens as f64;
        let Given { roofline, attention_ops, bf16_ops } = given;
        let row = |name, cost, peak| Row::new(name, cost, n, roofline.read_bytes, peak);
        let rows = |cost: &dyn Fn(Op) -> Cost| -> Vec<Row> {
            let used = Op::ALL.iter().filter(|op| cost(**op).calls > 0);
            used.map(|op| row(op.name(), cost(*op), peak(*op, form, &given))).collect()
        };
        let plain = |name, calls, time, wait| {
            row(name, Cost { calls, time, wait, ..Cost::default() }, roofline.float_ops)
        };
        let mut operations = rows(&|op| run.costs.total(op));
        let costs = Op::ALL.iter().map(|op| run.costs.total(*op));
        let all = costs.fold(Cost::default(), |mut all, cost| {
            all += cost;
            all
        });
        if !run.sampling.is_zero() {
            operations.push(plain("sampling", n_tokens as u64, run.sampling, Default::default()));
        }
        let rest = run.total.saturating_sub(all.time).saturating_sub(run.sampling);
        let rest_wait = run.waited.saturating_sub(all.wait).min(rest);
        operations.push(plain("everything else", 0, rest, rest_wait));

        let total_cost = Cost { time: run.total, wait: run.waited, ..all };
        let total_row = |rows: &mut [Row], cost: Cost| {
            let mut total = row("total", cost, roofline.float_ops);
            // Parts have peaks of their own.
            total.peak_fraction = None;
            total.least_us = rows.iter().map(|row| row.least_us).sum();
            total.bound = dominant_bound(rows);
            total.share = total.time_us / (1e6 * run.total.as_secs_f64() / n);
            for row in rows {
                row.share = row.time_us / (1e6 * run.total.as_secs_f64() / n);
            }
            total
        };
        let total = total_row(&mut operations, total_cost);
        let layer = |layer: usize| {
            let cost = |op| run.costs.cost(Some(layer), op);
            let mut operations = rows(&cost);
            let sum = Op::ALL.iter().fold(Cost::default(), |mut sum, op| {
                sum += cost(*op);
                sum
            });
            let total = total_row(&mut operations, sum);
            Layer { layer, operations, total }
        };
        let summary = summary(&operations, &total, &roofline);
        Self {
            model,
            test,
            isa,
            activations: activations.name(),
            threads,
            n_tokens,
            read_bytes_per_second: roofline.read_bytes,
            integer_ops_per_second: roofline.integer_ops,
            float_ops_per_second: roofline.float_ops,
            bf16_ops_per_second: bf16_ops,
            attention_ops_per_second: attention_ops,
            layers: layers.then(|| (0..run.costs.n_layers()).map(layer).collect()),
            operations,
            total,
            summary,
        }
    }

    /// What was run, in a line.
    fn heading(&self) -> String {
        let Self { model, test, threads, isa, activations, .. } = self;
        let threads = if *threads == 1 { "1 thread".into() } else { format!("{threads} threads") };
        format!("{model}, {test}, {threads}, {isa}, activations {activations}")
    }

    /// What the machine gives, in a line.
    fn machine(&self) -> String {
        format!(
            "reads {:.1} GB/s, 8-bit products {:.0} Gop/s, f32 {:.0} Gop/s, bf16 {:.0} Gop/s, attention {:.0} Gop/s",
            self.read_bytes_per_second / 1e9,
            self.integer_ops_per_second / 1e9,
            self.float_ops_per_second / 1e9,
            self.bf16_ops_per_second / 1e9,
            self.attention_ops_per_second / 1e9
        )
    }

    /// As tables for a person.
    fn to_text(&self) -> String {
        let mut out = format!("{}\n{}\n\n", harmless(&self.heading()), self.machine());
        let rows: Vec<_> = self.operations.iter().chain([&self.total]).map(Row::cells).collect();
        out.push_str(&table(HEADINGS, &rows));
        if let Some(layers) = &self.layers {
            out.push('\n');
            let rows: Vec<_> = layers.iter().map(Layer::cells).collect();
            out.push_str(&table(LAYER_HEADINGS, &rows));
        }
        let _ = writeln!(out, "\n{}", self.summary);
        out
    }
}

const HEADINGS: [&str; 11] = [
    "OPERATION",
    "CALLS",
    "µs/TOKEN",
    "SHARE",
    "WAIT",
    "BYTES/TOKEN",
    "GB/s",
    "% READ",
    "Gop/s",
    "% PEAK",
    "BOUND",
];

const LAYER_HEADINGS: [&str; 10] =
    ["LAYER", "µs/TOKEN", "QKV", "ATTENTION", "OUTPUT", "GATE/UP", "DOWN", "REST", "GB/s", "Gop/s"];

/// `12 %`.
fn percent(fraction: f64) -> String {
    format!("{:.1} %", 100.0 * fraction)
}

impl Row {
    /// The cells below [`HEADINGS`]; empty where an operation has no such number.
    fn cells(&self) -> [String; 11] {
        let if_any = |x: f64, show: &dyn Fn(f64) -> String| {
            if x > 0.0 { show(x) } else { String::new() }
        };
        let of = |fraction: Option<f64>| fraction.map(percent).unwrap_or_default();
        [
            self.name.into(),
            if self.calls > 0 { self.calls.to_string() } else { String::new() },
            format!("{:.1}", self.time_us),
            percent(self.share),
            if_any(self.wait_us, &|us| format!("{us:.1}")),
            if_any(self.bytes, &|n| bytes(n as u64)),
            if_any(self.bytes_per_second, &|rate| format!("{:.2}", rate / 1e9)),
            of(self.read_fraction),
            if_any(self.ops_per_second, &|rate| format!("{:.1}", rate / 1e9)),
            of(self.peak_fraction),
            self.bound.map(Bound::name).unwrap_or_default().into(),
        ]
    }
}

impl Layer {
    /// The cells below [`LAYER_HEADINGS`], times in µs.
    fn cells(&self) -> [String; 10] {
        let ops = [Op::Qkv, Op::Attention, Op::AttnOutput, Op::GateUp, Op::Down];
        let times = ops.map(|op| {
            self.operations.iter().find(|row| row.name == op.name()).map_or(0.0, |row| row.time_us)
        });
        let rest = self.total.time_us - times.iter().sum::<f64>();
        let us = |time: f64| format!("{:.1}", time.max(0.0));
        let [qkv, attention, output, gate_up, down] = times.map(us);
        let read = format!("{:.2}", self.total.bytes_per_second / 1e9);
        let computed = format!("{:.1}", self.total.ops_per_second / 1e9);
        let (layer, total) = (self.layer.to_string(), us(self.total.time_us));
        [layer, total, qkv, attention, output, gate_up, down, us(rest), read, computed]
    }
}

/// What bounds most of the least time of some operations.
fn dominant_bound(rows: &[Row]) -> Option<Bound> {
    let least = |bound| {
        rows.iter().filter(|row| row.bound == Some(bound)).map(|row| row.least_us).sum::<f64>()
    };
    let (memory, arithmetic) = (least(Bound::Memory), least(Bound::Arithmetic));
    (memory + arithmetic > 0.0).then_some(if arithmetic > memory {
        Bound::Arithmetic
    } else {
        Bound::Memory
    })
}

/// What bounds the model, in a sentence.
fn summary(operations: &[Row], total: &Row, roofline: &Roofline) -> String {
    /// Below this part of what the machine gives, nothing that was measured is the bound.
    const BOUND: f64 = 0.5;
    /// Less is what two measurements of the same differ by.
    const MORE_THAN_MEMORY: f64 = 1.05;
    let mut losses: Vec<(f64, &str)> = operations
        .iter()
        .map(|row| ((row.time_us - row.least_us) / total.time_us, row.name))
        .filter(|(loss, _)| *loss >= 0.005)
        .collect();
    losses.sort_by(|a, b| b.0.total_cmp(&a.0));
    let losses: Vec<String> = losses
        .iter()
        .take(4)
        .map(|(loss, name)| format!("{name} {:.0} %", (100.0 * loss).max(1.0)))
        .collect();
    let mut lost = String::new();
    if !losses.is_empty() {
        lost = format!("; lost beyond that, in parts of the time: {}", losses.join(", "));
    }
    let waiting = total.wait_us / total.time_us;
    if waiting >= 0.01 {
        let _ = write!(lost, "; the first thread waits for the others {:.0} %", 100.0 * waiting);
    }
    let used = total.least_us / total.time_us;
    let rate = total.bytes_per_second / 1e9;
    let gives = roofline.read_bytes / 1e9;
    let read = total.bytes_per_second / roofline.read_bytes;
    match total.bound {
        Some(Bound::Arithmetic) if used >= BOUND => format!(
            "Arithmetic bounds it: {:.0} Gop/s, {:.0} % of what the instruction set gives{lost}.",
            total.ops_per_second / 1e9,
            100.0 * used
        ),
        Some(Bound::Memory) if read > MORE_THAN_MEMORY => {
            format!("Caches help: it reads {rate:.1} GB/s where memory gives {gives:.1}{lost}.")
        }
        Some(Bound::Memory) if read >= BOUND => format!(
            "Memory bounds it: it reads {rate:.1} of {gives:.1} GB/s, {:.0} % of what memory gives{lost}.",
            100.0 * read
        ),
        _ => format!(
            "Neither memory nor arithmetic bounds it: they need {:.0} % of the time at least{lost}.",
            100.0 * used
        ),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use hurtle_model::profile::Profile;
    use std::time::Duration;

    /// 10 GB/s, 400 Gop/s in integers and 50 in f32.
    const MACHINE: Given = Given {
        roofline: Roofline { read_bytes: 10e9, integer_ops: 400e9, float_ops: 50e9 },
        attention_ops: 100e9,
        bf16_ops: 120e9,
    };

    const fn cost(us: u64, bytes: u64, flops: u64) -> Cost {
        let time = Duration::from_micros(us);
        Cost { calls: 2, time, wait: Duration::from_micros(us / 10), bytes, flops }
    }

    /// The report of two tokens of a model with two layers, each with these costs in both of them together.
    pub(in crate::commands::profile) fn report(
        costs: &[(Op, Cost)],
        sampling_us: u64,
        total_us: u64,
        activations: Activations,
    ) -> Report {
        let mut profile = Profile::new(2);
        for (op, cost) in costs {
            let half = Cost {
                calls: cost.calls / 2,
                time: cost.time / 2,
                wait: cost.wait / 2,
                bytes: cost.bytes / 2,
                flops: cost.flops / 2,
            };
            profile.add(Some(0), *op, half);
            profile.add(Some(1), *op, half);
        }
        let run = ProfileRun {
            costs: profile,
            sampling: Duration::from_micros(sampling_us),
            waited: Duration::from_micros(total_us / 10),
            total: Duration::from_micros(total_us),
        };
        let (model, test) = ("a <model>".to_owned(), "tg2".to_owned());
        let form = (activations != Activations::F32).then_some(Form::SuperBlocks);
        let isa = "scalar";
        let setting = Setting { model, test, isa, activations, form, threads: 2, n_tokens: 2 };
        Report::new(setting, &run, MACHINE, true)
    }

    #[test]
    fn rates_and_shares() {
        // 6 MB in 800 µs are 7.5 GB/s; 12 Mop are 15 Gop/s.
        let costs = [(Op::Down, cost(800, 6_000_000, 12_000_000)), (Op::Norm, cost(100, 0, 0))];
        let found = report(&costs, 60, 1000, Activations::Q8);
        let row = |name: &str| found.operations.iter().find(|row| row.name == name).expect("a row");
        let down = row("down");
        assert_eq!((down.calls, down.time_us, down.wait_us, down.share), (2, 400.0, 40.0, 0.8));
        assert_eq!((down.bytes, down.ops, down.bytes_per_second), (3e6, 6e6, 7.5e9));
        assert_eq!((down.read_fraction, down.peak_fraction), (Some(0.75), Some(0.0375)));
        assert_eq!((down.bound, down.least_us), (Some(Bound::Memory), 300.0));
        assert_eq!(down.cells()[10], "memory");
        let norm = row("norms");
        assert_eq!((norm.bound, norm.read_fraction, norm.share), (None, None, 0.1));
        assert_eq!(row("sampling").time_us, 30.0);
        assert_eq!((row("everything else").time_us, row("everything else").wait_us), (20.0, 5.0));
        assert_eq!(
            (found.total.time_us, found.total.share, found.total.wait_us),
            (500.0, 1.0, 50.0)
        );
        let layers = found.layers.as_ref().expect("layers");
        assert_eq!(layers.len(), 2);
        assert_eq!((layers[1].total.time_us, layers[1].total.share), (225.0, 0.45));
        assert_eq!(
            layers[1].cells(),
            ["1", "225.0", "0.0", "0.0", "0.0", "0.0", "200.0", "25.0", "6.67", "13.3"]
        );
        // The same in f32 meets a lower peak.
        let found = report(&costs, 60, 1000, Activations::F32);
        assert_eq!(found.operations[1].peak_fraction, Some(0.3));
    }

    #[test]
    fn each_form_has_its_peak() {
        let down = |form| peak(Op::Down, form, &MACHINE);
        assert_eq!(down(None), 50e9);
        assert_eq!(down(Some(Form::Floats)), 50e9);
        assert_eq!(down(Some(Form::Pairs)), 120e9);
        assert_eq!(down(Some(Form::SuperBlocks)), 400e9);
        assert_eq!(peak(Op::Attention, Some(Form::Blocks), &MACHINE), 100e9);
        assert_eq!(peak(Op::Norm, Some(Form::Blocks), &MACHINE), 50e9);
    }

    #[test]
    fn the_bound_in_a_sentence() {
        let check = |costs: &[(Op, Cost)], expected: &str| {
            let found = report(costs, 40, 1000, Activations::Q8).summary;
            assert!(found.contains(expected), "expected {expected:?} in {found:?}");
        };
        let memory = [(Op::Down, cost(900, 8_500_000, 1)), (Op::Attention, cost(50, 50_000, 1))];
        check(&memory, "Memory bounds it: it reads 8.6 of 10.0 GB/s, 86 % of what memory gives");
        check(&memory, "attention 4 %, sampling 4 %");
        check(&memory, "; the first thread waits for the others 10 %.");
        check(&[(Op::Down, cost(900, 20_000_000, 1))], "Caches help: it reads 20.0 GB/s");
        let computes = [(Op::Down, cost(900, 10, 300_000_000))];
        check(&computes, "Arithmetic bounds it: 300 Gop/s, 75 % of what the instruction set gives");
        check(
            &[(Op::Down, cost(900, 2_000_000, 1))],
            "Neither memory nor arithmetic bounds it: they need 20 %",
        );
        check(
            &[(Op::Norm, cost(900, 0, 0))],
            "they need 0 % of the time at least; lost beyond that",
        );
    }
}
