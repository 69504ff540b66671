//! `hurtle bench`: how fast a model runs, as llama-bench measures it.
use crate::args::{Activations, CacheType, GlobalArgs, ModelArgs, forced_isa};
use crate::error::usage;
use crate::machine::memory;
use crate::models;
use crate::terminal::{StatusLine, bytes, count, harmless};
use crate::timings::duration;
use anyhow::{Result, bail};
use clap::{Args, ValueEnum};
use hurtle_engine::cgroup::usable_memory;
use hurtle_engine::{BenchTest, Engine, EngineOptions, KvType};
use hurtle_kernels::Pool;
use serde::Serialize;
use serde_json::{Map, Value};
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;
use unicode_width::UnicodeWidthStr as _;

/// Measures how fast a model runs on this machine: prompts, single tokens, several sequences at once.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  hurtle bench -m qwen2.5-coder:1.5b              512 prompt tokens, then 128 generated ones
  hurtle bench -m x.gguf -p 0 -n 64 -t 1,2,4,8    how generation grows with the threads
  hurtle bench -m x.gguf -p 0 -d 0,4096,16384     how it slows down as the context fills
  hurtle bench -m x.gguf -p 0 -np 1,4,16          several sequences at once, all rates together
  hurtle bench -m x.gguf -pg 2048,256 -o json     an answer from end to end
  hurtle bench -m x.gguf -p 0 -n 0 --mixed 2048,4 -ub 32,128,512
                                                  4 sequences generate while a prompt of 2048 tokens comes in

Flags that take a list (1,2,4) measure all combinations. Each test warms up and then runs -r \
times. Tests: pp512 is a prompt of 512 tokens, tg128 are 128 tokens one by one, tg128@d4096 the same after \
4096 others, tg128x16 in 16 sequences, pp2048&tgx4 a prompt beside which 4 sequences generate, a token each for every \
-ub prompt tokens. Rates are tokens a second, those of all sequences together; tps in \
JSON and CSV is their median, and prompt_tps and gen_tps are those of the two parts of a mixed test. first_token_ms is the time until every \
sequence could choose a token, longest_pause_ms the longest between two tokens of a sequence. \
peak_rss_bytes is the most memory in RAM until the test's end, the mapped model included.")]
pub(crate) struct BenchArgs {
    /// Prompt tokens; 0: no such test
    #[arg(short = 'p', long, value_name = "N,...", value_delimiter = ',', default_value = "512", value_parser = tokens())]
    n_prompt: Vec<u64>,
    /// Tokens to generate; 0: no such test
    #[arg(short, long, value_name = "N,...", value_delimiter = ',', default_value = "128", value_parser = tokens())]
    n_gen: Vec<u64>,
    /// A prompt and generated tokens in one test (also -pg); may be repeated
    #[arg(long, value_name = "P,G")]
    prompt_gen: Vec<PromptGen>,
    /// A prompt of P tokens while N sequences generate, a token each for every chunk of the prompt; may be repeated
    #[arg(long, value_name = "P,N")]
    mixed: Vec<Mixed>,
    /// Tokens that the context holds before
    #[arg(short = 'd', long, value_name = "N,...", value_delimiter = ',', default_value = "0", value_parser = tokens())]
    n_depth: Vec<u64>,
    /// Sequences at once (also -np)
    #[arg(long, value_name = "N,...", value_delimiter = ',', default_value = "1", value_parser = clap::value_parser!(u64).range(1..=1 << 16))]
    parallel: Vec<u64>,
    /// Threads; 0 or less: as many as this process may use
    #[arg(
        short,
        long,
        value_name = "N,...",
        value_delimiter = ',',
        default_value = "-1",
        allow_negative_numbers = true
    )]
    threads: Vec<i64>,
    /// Prompt tokens processed at once
    #[arg(short, long, value_name = "N,...", value_delimiter = ',', default_value = "2048", value_parser = batch())]
    batch_size: Vec<u64>,
    /// Prompt tokens processed at once, the smaller of the two counts (also -ub)
    #[arg(long, value_name = "N,...", value_delimiter = ',', default_value = "512", value_parser = batch())]
    ubatch_size: Vec<u64>,
    /// Element type of the activations in matrix products, as of the other commands
    #[arg(long, value_name = "TYPE", default_value = "q8")]
    activations: Activations,
    /// Element types of the K cache (also -ctk)
    #[arg(long, value_name = "TYPE,...", value_delimiter = ',', default_value = "bf16")]
    cache_type_k: Vec<CacheType>,
    /// Element types of the V cache (also -ctv)
    #[arg(long, value_name = "TYPE,...", value_delimiter = ',', default_value = "bf16")]
    cache_type_v: Vec<CacheType>,
    /// Repetitions of each test
    #[arg(short, long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    repetitions: u32,
    /// Measure from the first repetition on
    #[arg(long)]
    no_warmup: bool,
    /// Form of the results
    #[arg(short, long, value_name = "FORM", default_value = "md")]
    output: Output,
    #[command(flatten)]
    model: ModelArgs,
}

/// Form of the results.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    /// A Markdown table
    Md,
    /// An array of objects
    Json,
    /// Comma-separated values; the rates of the repetitions are separated by ';'
    Csv,
}

/// More tokens than any context holds; keeps products of the counts within 64 bits.
pub(super) fn tokens() -> clap::builder::RangedU64ValueParser {
    clap::value_parser!(u64).range(0..=1 << 24)
}

pub(super) fn batch() -> clap::builder::RangedU64ValueParser {
    clap::value_parser!(u64).range(1..=1 << 24)
}

/// `512,128`.
#[derive(Debug, Clone, Copy)]
struct PromptGen {
    n_prompt: u64,
    n_gen: u64,
}

impl FromStr for PromptGen {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let (n_prompt, n_gen) = two_counts(text, 1 << 24).ok_or(
            "expected two numbers above 0, of prompt tokens and of tokens to generate: 512,128",
        )?;
        Ok(Self { n_prompt, n_gen })
    }
}

/// `2048,4`.
#[derive(Debug, Clone, Copy)]
struct Mixed {
    n_prompt: u64,
    n_beside: u64,
}

impl FromStr for Mixed {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let (n_prompt, n_beside) = two_counts(text, 1 << 16).ok_or(
            "expected two numbers above 0, of prompt tokens and of sequences (at most 65536) that generate \
             meanwhile: 2048,4",
        )?;
        Ok(Self { n_prompt, n_beside })
    }
}

/// `P,N`: up to 2^24 tokens, and a number from 1 to `most`.
fn two_counts(text: &str, most: u64) -> Option<(u64, u64)> {
    let count = |text: &str, most| text.trim().parse().ok().filter(|n| (1..=most).contains(n));
    let (first, second) = text.split_once(',')?;
    Some((count(first, 1 << 24)?, count(second, most)?))
}

/// A result.
#[derive(Debug, Serialize)]
struct Row {
    test: String,
    n_prompt: usize,
    n_gen: usize,
    depth: usize,
    n_seqs: usize,
    threads: usize,
    tps: f64,
    tps_all: Vec<f64>,
    load_ms: f64,
    first_token_ms: f64,
    peak_rss_bytes: Option<u64>,
    model_bytes: u64,
    isa: String,
    batch_size: usize,
    cache_type_k: &'static str,
    cache_type_v: &'static str,
    model: String,
    model_params: u64,
    activations: &'static str,
    n_beside: usize,
    /// Of a test that mixes prompts with generating: the prompts' tokens a second, and the others'.
    prompt_tps: Option<f64>,
    gen_tps: Option<f64>,
    /// Of all repetitions; of tests that generate.
    longest_pause_ms: Option<f64>,
}

pub(crate) fn execute(args: &BenchArgs, globals: &GlobalArgs) -> Result<()> {
    let tests = args.tests();
    if tests.is_empty() {
        usage!("--n-prompt 0 --n-gen 0: nothing to measure");
    }
    let options = EngineOptions {
        threads: tests.iter().map(|test| test.threads).max(),
        ctx_size: tests.iter().map(BenchTest::n_ctx).max(),
        isa: forced_isa()?,
        arithmetic: args.activations.into(),
        ..EngineOptions::default()
    };
    let engine = models::load(&args.model.model, &options, globals)?;
    check_memory(&engine, &tests)?;

    let table = Table::new(&engine, &tests);
    if args.output == Output::Md {
        super::print(&table.head())?;
    }
    let mut rows = Vec::new();
    for (i, test) in tests.iter().enumerate() {
        let place = format!("test {} of {}, {test}", i + 1, tests.len());
        let row = measure(&engine, test, args, &place)?;
        match args.output {
            Output::Md => super::print(&table.line(&row))?,
            Output::Csv if i == 0 => super::print(&(csv_head(&row)? + &csv_line(&row)?))?,
            Output::Csv => super::print(&csv_line(&row)?)?,
            Output::Json => rows.push(row),
        }
    }
    if args.output == Output::Json {
        super::print(&(serde_json::to_string_pretty(&rows)? + "\n"))?;
    }
    Ok(())
}

impl BenchArgs {
    /// All combinations.
    fn tests(&self) -> Vec<BenchTest> {
        let size = |n: &u64| usize::try_from(*n).unwrap_or(usize::MAX);
        // Prompt tokens, tokens to generate, sequences beside.
        let mut kinds: Vec<(usize, usize, usize)> =
            self.n_prompt.iter().map(|n| (size(n), 0, 0)).collect();
        kinds.extend(self.n_gen.iter().map(|n| (0, size(n), 0)));
        kinds.extend(
            self.prompt_gen.iter().map(|both| (size(&both.n_prompt), size(&both.n_gen), 0)),
        );
        kinds.retain(|kind| *kind != (0, 0, 0));
        kinds.extend(self.mixed.iter().map(|both| (size(&both.n_prompt), 0, size(&both.n_beside))));

        let batches = combinations(&self.batch_size, &self.ubatch_size);
        let caches = combinations(&self.cache_type_k, &self.cache_type_v);
        let mut tests = Vec::new();
        for ((cache_k, cache_v), (batch, ubatch)) in combinations(&caches, &batches) {
            for (threads, (depth, n_seqs)) in
                combinations(&self.threads, &combinations(&self.n_depth, &self.parallel))
            {
                let threads = usize::try_from(threads).ok().filter(|n| *n > 0);
                let test = |&(n_prompt, n_gen, n_beside): &(usize, usize, usize)| BenchTest {
                    n_prompt,
                    n_gen,
                    depth: size(&depth),
                    n_seqs: size(&n_seqs),
                    n_beside,
                    threads: threads.unwrap_or_else(Pool::available_threads),
                    batch_size: size(&batch.min(ubatch)),
                    kv_types: (cache_k.into(), cache_v.into()),
                };
                tests.extend(kinds.iter().map(test));
            }
        }
        tests
    }
}

fn combinations<A: Copy, B: Copy>(a: &[A], b: &[B]) -> Vec<(A, B)> {
    a.iter().flat_map(|a| b.iter().map(|b| (*a, *b))).collect()
}

/// Refuses tests that the machine has no memory for: being killed by the system explains nothing.
pub(super) fn check_memory(engine: &Engine, tests: &[BenchTest]) -> Result<()> {
    let needs = tests.iter().map(|test| (engine.bench_bytes(test) as u64, test));
    let Some((needed, test)) = needs.max_by_key(|(needed, _)| *needed) else { return Ok(()) };
    let usable = usable_memory(Path::new("/"));
    if let Some(available) = usable.filter(|usable| *usable < needed) {
        bail!(
            "{test}: keys, values and logits take {}, but {} of memory are available\n\
             hint: choose fewer sequences, a smaller depth or -ctk q8_0 -ctv q8_0",
            bytes(needed),
            bytes(available)
        );
    }
    Ok(())
}

/// Runs one test.
fn measure(engine: &Engine, test: &BenchTest, args: &BenchArgs, place: &str) -> Result<Row> {
    let mut status = StatusLine::new();
    status.set(&format!("{place}: warm-up"));
    let mut bench = engine.bench(test, !args.no_warmup)?;
    let (mut rates, mut first_tokens) = (Vec::new(), Vec::new());
    let mut longest_pause = Duration::ZERO;
    for i in 1..=args.repetitions {
        let sample = bench.repeat()?;
        longest_pause = longest_pause.max(sample.longest_pause);
        rates.push(test.n_tokens() as f64 / sample.total.as_secs_f64());
        first_tokens.push(1e3 * sample.first_token.as_secs_f64());
        let rate = median(&rates);
        status.set(&format!("{place}: {i} of {} repetitions, {rate:.2} t/s", args.repetitions));
    }
    // Both parts take the same time.
    let part = |n_tokens: usize| {
        (test.n_beside > 0).then(|| median(&rates) * n_tokens as f64 / test.n_tokens() as f64)
    };
    Ok(Row {
        test: test.to_string(),
        n_prompt: test.n_prompt,
        n_gen: test.n_gen,
        depth: test.depth,
        n_seqs: test.n_seqs,
        threads: test.threads,
        tps: median(&rates),
        prompt_tps: part(test.n_prompt_tokens()),
        gen_tps: part(test.n_gen_tokens()),
        tps_all: rates,
        load_ms: 1e3 * engine.load_time().as_secs_f64(),
        first_token_ms: median(&first_tokens),
        peak_rss_bytes: memory::peak_rss(),
        model_bytes: engine.gguf().file_len(),
        isa: engine.isa().to_string(),
        batch_size: test.batch_size,
        cache_type_k: test.kv_types.0.name(),
        cache_type_v: test.kv_types.1.name(),
        model: model_name(engine),
        model_params: engine.gguf().n_params(),
        activations: args.activations.name(),
        n_beside: test.n_beside,
        longest_pause_ms: (test.n_gen_tokens() > 0).then_some(1e3 * longest_pause.as_secs_f64()),
    })
}

/// The name of the model's file, without the ending.
pub(super) fn model_name(engine: &Engine) -> String {
    let stem = engine.gguf().paths().first().and_then(|path| path.file_stem());
    harmless(&stem.unwrap_or_default().to_string_lossy())
}

/// The middle value, or the mean of the two in the middle; of at least one.
fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let n = sorted.len();
    (sorted[(n - 1) / 2] + sorted[n / 2]) / 2.0
}

/// Mean and standard deviation, which is 0 for a single value.
fn mean_and_sd(values: &[f64]) -> (f64, f64) {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let squares: f64 = values.iter().map(|x| (x - mean).powi(2)).sum();
    (mean, if values.len() > 1 { (squares / (n - 1.0)).sqrt() } else { 0.0 })
}

/// A rate, where there is one.
fn rate(tps: Option<f64>) -> String {
    tps.map(|tps| format!("{tps:.2}")).unwrap_or_default()
}

/// A Markdown table that is written line by line, as results come.
struct Table(Vec<Column>);

struct Column {
    name: &'static str,
    width: usize,
    /// Words begin on the left, numbers end on the right.
    words: bool,
    cell: fn(&Row) -> String,
}

impl Table {
    fn new(engine: &Engine, tests: &[BenchTest]) -> Self {
        let mut columns = Vec::new();
        let mut column = |name: &'static str, width: usize, words, cell| {
            let width = width.max(name.chars().count());
            columns.push(Column { name, width, words, cell });
        };
        let test = tests.iter().map(|test| test.to_string().len()).max().unwrap_or(0);
        column("model", model_name(engine).width(), true, |row| row.model.clone());
        column("size", 8, false, |row| bytes(row.model_bytes));
        column("params", 7, false, |row| count(row.model_params));
        column("isa", engine.isa().name().len(), true, |row| row.isa.clone());
        column("activations", 0, true, |row| row.activations.to_owned());
        column("threads", 0, false, |row| row.threads.to_string());
        // As in llama-bench, columns that say nothing are left out.
        if tests.iter().any(|test| test.batch_size != tests[0].batch_size) {
            column("batch", 0, false, |row| row.batch_size.to_string());
        }
        if tests.iter().any(|test| test.kv_types != <(KvType, KvType)>::default()) {
            column("type_k", 0, true, |row| row.cache_type_k.to_owned());
            column("type_v", 0, true, |row| row.cache_type_v.to_owned());
        }
        column("test", test, true, |row| row.test.clone());
        column("t/s", 17, false, |row| {
            let (mean, sd) = mean_and_sd(&row.tps_all);
            format!("{mean:.2} ± {sd:.2}")
        });
        column("median", 8, false, |row| format!("{:.2}", row.tps));
        if tests.iter().any(|test| test.n_beside > 0) {
            column("prompt t/s", 0, false, |row| rate(row.prompt_tps));
            column("beside t/s", 0, false, |row| rate(row.gen_tps));
            column("longest pause", 0, false, |row| {
                row.longest_pause_ms.map(duration).unwrap_or_default()
            });
        }
        column("first token", 0, false, |row| duration(row.first_token_ms));
        column("peak memory", 0, false, |row| row.peak_rss_bytes.map(bytes).unwrap_or_default());
        Self(columns)
    }

    fn head(&self) -> String {
        let rule = |column: &Column| {
            let dashes = "-".repeat(column.width);
            if column.words { dashes + " " } else { dashes + ":" }
        };
        let rules: Vec<String> = self.0.iter().map(rule).collect();
        self.cells(|column| column.name.to_owned()) + &format!("| {}|\n", rules.join("| "))
    }

    fn line(&self, row: &Row) -> String {
        self.cells(|column| (column.cell)(row))
    }

    fn cells(&self, text: impl Fn(&Column) -> String) -> String {
        let cell = |column: &Column| {
            // A bar would end the cell.
            let text = text(column).replace('|', "\\|");
            let blanks = " ".repeat(column.width.saturating_sub(text.width()));
            if column.words { text + &blanks } else { blanks + &text }
        };
        let cells: Vec<String> = self.0.iter().map(cell).collect();
        format!("| {} |\n", cells.join(" | "))
    }
}

/// The fields of a result by name.
fn fields(row: &Row) -> Result<Map<String, Value>> {
    match serde_json::to_value(row)? {
        Value::Object(fields) => Ok(fields),
        other => bail!("a result is no object but {other}"),
    }
}

fn csv_head(row: &Row) -> Result<String> {
    let names: Vec<String> = fields(row)?.keys().cloned().collect();
    Ok(names.join(",") + "\n")
}

fn csv_line(row: &Row) -> Result<String> {
    let cells: Vec<String> = fields(row)?.values().map(csv_cell).collect();
    Ok(cells.join(",") + "\n")
}

/// As RFC 4180 has it.
fn csv_cell(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::Array(values) => values.iter().map(csv_cell).collect::<Vec<_>>().join(";"),
        Value::String(text) if text.contains(['"', ',', '\n', '\r']) => {
            format!("\"{}\"", text.replace('"', "\"\""))
        }
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser as _;

    fn tests_of(args: &[&str]) -> Result<Vec<String>> {
        #[derive(clap::Parser)]
        struct Line {
            #[command(flatten)]
            bench: BenchArgs,
        }
        let line = Line::try_parse_from([&["bench", "-t", "3"], args].concat())?;
        Ok(line.bench.tests().iter().map(|test| format!("{test}")).collect())
    }

    #[test]
    fn lists_give_all_combinations() {
        let check = |args: &[&str], expected: &[&str]| {
            assert_eq!(tests_of(args).expect("valid"), expected, "{args:?}");
        };
        check(&[], &["pp512", "tg128"]);
        check(&["-p", "8,16", "-n", "0"], &["pp8", "pp16"]);
        check(&["-p", "0", "-n", "0"], &[]);
        check(&["-p", "0", "-n", "1", "-p", "2"], &["pp2", "tg1"]);
        check(&["--prompt-gen", "5,6", "-n", "0", "-p0"], &["pp5+tg6"]);
        let mixed = ["-p", "0", "-n", "0", "--mixed", "5,6"];
        check(&mixed, &["pp5&tgx6"]);
        check(
            &[&mixed[..], &["--parallel", "1,2", "-d", "3", "--mixed", "9,1"]].concat(),
            &["pp5@d3&tgx6", "pp9@d3&tgx1", "pp5@d3x2&tgx6", "pp9@d3x2&tgx1"],
        );
        check(
            &["-p", "4", "-n", "1", "-d", "0,2", "--parallel", "1,3"],
            &["pp4", "tg1", "pp4x3", "tg1x3", "pp4@d2", "tg1@d2", "pp4@d2x3", "tg1@d2x3"],
        );
        let caches = ["--cache-type-k", "f16,f32", "--cache-type-v", "f16,f32"];
        check(&[&caches[..], &["-n", "0"]].concat(), &["pp512"; 4]);
        for args in [
            ["-p", "-1"],
            ["-p", "99999999999999999999"],
            ["-d", "16777217"],
            ["--parallel", "0"],
            ["-b", "0"],
            ["-r", "0"],
            ["--prompt-gen", "5"],
            ["--prompt-gen", "5,0"],
            ["--mixed", "5"],
            ["--mixed", "0,4"],
            ["--mixed", "5,65537"],
            ["-n", "1,,2"],
            ["--cache-type-k", "q4_0"],
        ] {
            assert!(tests_of(&args).is_err(), "{args:?}");
        }
    }

    #[test]
    fn statistics() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 9.0]), 3.0);
        assert_eq!(mean_and_sd(&[2.0, 4.0, 9.0]), (5.0, 13f64.sqrt()));
        assert_eq!(mean_and_sd(&[2.0]), (2.0, 0.0));
    }

    #[test]
    fn cells_are_quoted_where_they_must() {
        let check = |value: Value, expected: &str| assert_eq!(csv_cell(&value), expected);
        check(Value::Null, "");
        check(serde_json::json!([1.5, 2]), "1.5;2");
        check("a b".into(), "a b");
        check("a,\"b\"".into(), "\"a,\"\"b\"\"\"");
    }
}
