//! Why a Q4_K decoder is slow or fast: every suspicion about a slow one as a kernel, side by side.
//!
//! `cargo run --release -p hurtle-kernels --example bench_q8k_kernel [-- --quick]`
//!
//! One token times the two largest matrices of a layer of Qwen2.5-Coder-1.5B. What the figures mean
//! is told in `docs/why-fast.md`.
//!
//! ```text
//! activations    f32 → Q8_0 → Q8_K          on the file's layout
//! instructions   scalar → AVX2 → AVX-512 VNNI
//! order          rows → tiles for L2
//! threads        work stealing → spin pool
//! memory         → prefetch → 2 MiB pages
//! layout         → packed                   what hurtle runs
//! ```
//!
//! Weights are random normal values, encoded once, in so many copies that no cache holds them. All
//! kernels take turns, a few milliseconds each, so that a noisy moment of the machine hits all of
//! them; medians and quartiles are over the rounds. Before that, each one's results are compared
//! with products in f64, and a wrong one ends the program. The output is Markdown.

mod hypotheses;
mod in_cache;
mod kernels;
mod spread;
mod work;

use clap::Parser;
use hurtle_kernels::{Exec, Isa, Pool};
use hurtle_quant::WeightType;
use hypotheses::{Verdict, all_work, hypotheses, judge};
use kernels::{Block, Form};
use serde::Serialize;
use spread::{Spread, time};
use std::error::Error;
use std::time::Duration;
use work::{Bench, Dispatch, Weights, Work};

/// Times Q4_K kernels that differ in one thing each, for one token.
#[derive(Parser)]
struct Args {
    /// How often every kernel has its turn.
    #[arg(long, default_value_t = 21, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    rounds: u32,
    /// Threads of the parallel rows [default: those that this process may use].
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    /// A third of the rounds with shorter turns, to see that it runs.
    #[arg(long)]
    quick: bool,
    /// Measures instead how fast the packed kernels of all weight types compute, on weights that
    /// stay in the cache.
    #[arg(long, conflicts_with = "threads")]
    in_cache: bool,
    /// Prints one JSON object.
    #[arg(long)]
    json: bool,
}

/// The products of a feed-forward layer.
const SHAPES: [(&str, usize, usize); 2] = [("FFN-up", 8960, 1536), ("FFN-down", 1536, 8960)];

/// Weights of every layout, at least; and twice the last level's cache.
const MIN_BYTES: usize = 256 << 20;

/// Instruction sets that there are kernels for, on some processor.
const ISAS: [&str; 5] = ["scalar", "avx2", "avxvnni", "avx512", "avx512vnni"];

/// Largest relative error against products in f64 of the activations as the kernel sees them: the
/// roundings of f32. A kernel with a mistake is orders of magnitude above.
const TOLERANCE: f64 = 1e-5;

#[derive(Serialize)]
struct Machine {
    processor: String,
    threads: usize,
    isas: Vec<&'static str>,
    skipped_isas: Vec<&'static str>,
    last_level_cache_bytes: Option<usize>,
    transparent_huge_pages: Option<String>,
}

#[derive(Serialize)]
struct Row {
    name: String,
    threads: usize,
    /// Of one product.
    seconds: Spread,
    gb_per_s: f64,
    /// How many times faster than the first kernel on as many threads.
    times_first: Option<f64>,
    /// Against the products of f32 activations, in f64.
    relative_error: Option<f64>,
    #[serde(skip)]
    work: Work,
}

/// Seconds to hand a task that does nothing to all threads, and to wait for its end.
#[derive(Serialize)]
struct EmptyTask {
    work_stealing: Spread,
    spin_pool: Spread,
}

#[derive(Serialize)]
struct Shape {
    name: &'static str,
    rows: usize,
    cols: usize,
    bytes: usize,
    copies: usize,
    threads: usize,
    results: Vec<Row>,
    empty_task: EmptyTask,
}

#[derive(Serialize)]
struct Report {
    machine: Machine,
    rounds: u32,
    shapes: Vec<Shape>,
    verdicts: Vec<Verdict>,
}

fn main() -> Result<(), Box<dyn Error>> {
    let args = Args::parse();
    let (rounds, turn) = match args.quick {
        true => (args.rounds.div_ceil(3), Duration::from_millis(2)),
        false => (args.rounds, Duration::from_millis(10)),
    };
    if args.in_cache {
        let machine = machine(1);
        // There are several times as many of these.
        let rates = in_cache::measure(rounds, turn / 10)?;
        if args.json {
            let report = serde_json::json!({"machine": machine, "rounds": rounds, "rates": rates});
            println!("{report:#}");
        } else {
            print_machine(&machine);
            in_cache::print(&rates);
        }
        return Ok(());
    }
    let threads = args.threads.map_or_else(Pool::available_threads, usize::from);
    let report = compare(threads, rounds, turn)?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print(&report);
    }
    Ok(())
}

/// Checks and measures everything, on both shapes.
fn compare(threads: usize, rounds: u32, turn: Duration) -> Result<Report, Box<dyn Error>> {
    let machine = machine(threads);
    let n_bytes = machine.last_level_cache_bytes.map_or(0, |cache| 2 * cache).max(MIN_BYTES);
    let mut shapes = Vec::new();
    for (name, rows, cols) in SHAPES {
        let pool = Pool::new(threads)?;
        let bytes = random_weights(rows, cols)?;
        let exec = Exec { isa: Isa::best(), pool: &pool, n_threads: threads };
        let weights = Weights::new((rows, cols), &bytes, n_bytes, exec)?;
        let mut bench = Bench::new(pool, &weights, random_values(2, cols).collect())?;
        let cases = cases(threads);
        let errors = check(&mut bench, &weights, &bytes, &cases)?;
        let times = measure(&mut bench, &weights, &cases, rounds, turn)?;
        let empty_task = empty_tasks(&bench)?;
        shapes.push(shape(name, &weights, &cases, &errors, &times, empty_task));
    }
    let settings = shapes.iter().map(|s| s.name);
    let settings: Vec<_> = settings.flat_map(|s| counts(threads).map(move |n| (s, n))).collect();
    let seconds = |work: Work, name: &str, threads: usize| {
        let shape = shapes.iter().find(|shape| shape.name == name)?;
        let row = shape.results.iter().find(|row| row.work == work && row.threads == threads)?;
        Some(row.seconds)
    };
    let verdicts =
        hypotheses().into_iter().map(|hypothesis| judge(&hypothesis, &settings, seconds));
    let verdicts = verdicts.collect();
    Ok(Report { machine, rounds, shapes, verdicts })
}

/// The numbers of threads that are compared: one, and all.
fn counts(threads: usize) -> impl Iterator<Item = usize> {
    std::iter::once(1).chain((threads > 1).then_some(threads))
}

/// Everything that is timed, and on how many threads.
fn cases(threads: usize) -> Vec<(Work, usize)> {
    let mut cases = Vec::new();
    for work in all_work() {
        // One thread has nobody to steal from.
        let steals = matches!(work, Work::Plain { dispatch: Dispatch::WorkStealing, .. });
        let counts = counts(threads).filter(|&n| !steals || n == threads);
        cases.extend(counts.map(|n| (work, n)));
    }
    cases
}

/// Values of about a normal distribution: sums of 12 that are uniform.
fn random_values(seed: u64, n: usize) -> impl Iterator<Item = f32> {
    let mut random = fastrand::Rng::with_seed(seed);
    (0..n).map(move |_| (0..12).map(|_| random.f32()).sum::<f32>() - 6.0)
}

/// Blocks that are encoded; a matrix repeats them. A prime number, so that no two rows are equal.
const RANDOM_BLOCKS: usize = 4099;

/// A matrix of Q4_K, in bytes.
fn random_weights(rows: usize, cols: usize) -> Result<Vec<u8>, hurtle_quant::Error> {
    let n_blocks = rows * cols / 256;
    let mut blocks: Vec<Block> = vec![[0; 144]; n_blocks.min(RANDOM_BLOCKS)];
    let values: Vec<f32> = random_values(1, 256 * blocks.len()).collect();
    hurtle_quant::quantize(WeightType::Q4_K, &values, blocks.as_flattened_mut())?;
    Ok(blocks.iter().cycle().take(n_blocks).flatten().copied().collect())
}

/// The products of each row with each of `xs`, in f64: `[xs.len()][n_rows]`.
fn exact_products<const N: usize>(
    bytes: &[u8],
    xs: [&[f64]; N],
) -> Result<[Vec<f64>; N], hurtle_quant::Error> {
    let n_cols = xs[0].len();
    let mut products = [const { Vec::new() }; N];
    let mut row = vec![0.0; n_cols];
    for bytes in bytes.chunks_exact(n_cols / 256 * size_of::<Block>()) {
        hurtle_quant::dequantize(WeightType::Q4_K, bytes, &mut row)?;
        for (products, x) in products.iter_mut().zip(xs) {
            products.push(row.iter().zip(x).map(|(&w, x)| f64::from(w) * x).sum());
        }
    }
    Ok(products)
}

/// `|found - expected| / |expected|`, in the Euclidean norm. Not a number if one of `found` is not.
fn relative_error(found: &[f32], expected: &[f64]) -> f64 {
    let squares = |x: f64| x * x;
    let distance: f64 = found.iter().zip(expected).map(|(&y, e)| squares(f64::from(y) - e)).sum();
    let norm: f64 = expected.iter().map(|&e| squares(e)).sum();
    (distance / norm).sqrt()
}

/// Runs every case once. Gives its relative error against the products of the f32 activations.
///
/// # Errors
/// If a result is not the product with the activations that the kernel reads.
fn check(
    bench: &mut Bench,
    weights: &Weights,
    bytes: &[u8],
    cases: &[(Work, usize)],
) -> Result<Vec<Option<f64>>, Box<dyn Error>> {
    let xs = Form::ALL.map(|form| bench.x.values(form));
    let products = exact_products(bytes, xs.each_ref().map(Vec::as_slice))?;
    let mut errors = Vec::new();
    for &(work, n_threads) in cases {
        bench.out.fill(f32::NAN);
        bench.run(work, n_threads, weights);
        let Some(form) = work.form() else {
            errors.push(None);
            continue;
        };
        let mistake = relative_error(&bench.out, &products[form as usize]);
        if mistake.is_nan() || mistake > TOLERANCE {
            return Err(format!(
                "{work} on {n_threads} threads, {} x {}: relative error {mistake:.1e}, expected at \
                 most {TOLERANCE:.0e}; nothing is timed",
                weights.n_rows, weights.n_cols
            )
            .into());
        }
        errors.push(Some(relative_error(&bench.out, &products[Form::F32 as usize])));
    }
    Ok(errors)
}

/// Seconds that each case takes for a matrix; all take turns, `rounds` times.
fn measure(
    bench: &mut Bench,
    weights: &Weights,
    cases: &[(Work, usize)],
    rounds: u32,
    turn: Duration,
) -> Result<Vec<Spread>, &'static str> {
    let mut samples = vec![Vec::new(); cases.len()];
    for _ in 0..rounds {
        for (samples, &(work, n_threads)) in samples.iter_mut().zip(cases) {
            samples.push(time(turn, || bench.run(work, n_threads, weights)));
        }
    }
    let spreads = samples.iter().map(|samples| Spread::of(samples));
    spreads.collect::<Option<_>>().ok_or("no rounds")
}

/// One empty task right after the other.
fn empty_tasks(bench: &Bench) -> Result<EmptyTask, &'static str> {
    let measure = |dispatch| {
        let sample = |_| time(Duration::from_micros(500), || bench.run_nothing(dispatch));
        Spread::of(&(0..50).map(sample).collect::<Vec<_>>()).ok_or("no samples")
    };
    let (work_stealing, spin_pool) =
        (measure(Dispatch::WorkStealing)?, measure(Dispatch::SpinPool)?);
    Ok(EmptyTask { work_stealing, spin_pool })
}

fn shape(
    name: &'static str,
    weights: &Weights,
    cases: &[(Work, usize)],
    errors: &[Option<f64>],
    times: &[Spread],
    empty_task: EmptyTask,
) -> Shape {
    let first = |n_threads| {
        let is_first = |(work, n): &(Work, usize)| work.form().is_some() && *n == n_threads;
        cases.iter().position(is_first).map(|i| times[i])
    };
    let row =
        |((&(work, threads), seconds), error): ((&(Work, usize), &Spread), &Option<f64>)| Row {
            name: work.to_string(),
            threads,
            seconds: *seconds,
            gb_per_s: weights.n_bytes as f64 / seconds.median / 1e9,
            times_first: error.and(first(threads)).map(|first| first.over(seconds)),
            relative_error: *error,
            work,
        };
    Shape {
        name,
        rows: weights.n_rows,
        cols: weights.n_cols,
        bytes: weights.n_bytes,
        copies: weights.n_copies,
        threads: cases.iter().map(|(_, threads)| *threads).max().unwrap_or(1),
        results: cases.iter().zip(times).zip(errors).map(row).collect(),
        empty_task,
    }
}

/// What the figures belong to.
fn machine(threads: usize) -> Machine {
    let read = |path: &str| std::fs::read_to_string(path).ok();
    let processor = read("/proc/cpuinfo").and_then(|info| {
        let line = info.lines().find(|line| line.starts_with("model name"))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    });
    let isas: Vec<_> = Isa::available().iter().map(|isa| isa.name()).collect();
    Machine {
        processor: processor.unwrap_or_else(|| std::env::consts::ARCH.to_owned()),
        threads,
        skipped_isas: ISAS.into_iter().filter(|isa| !isas.contains(isa)).collect(),
        isas,
        last_level_cache_bytes: last_level_cache(),
        transparent_huge_pages: read("/sys/kernel/mm/transparent_hugepage/enabled")
            .map(|modes| modes.trim().to_owned()),
    }
}

/// Bytes of the last level of the first processor's cache, where Linux says.
fn last_level_cache() -> Option<usize> {
    let caches = std::fs::read_dir("/sys/devices/system/cpu/cpu0/cache").ok()?;
    let sizes = caches.filter_map(|cache| {
        let size = std::fs::read_to_string(cache.ok()?.path().join("size")).ok()?;
        size.trim().strip_suffix('K')?.parse::<usize>().ok()?.checked_mul(1024)
    });
    sizes.max()
}

fn print_machine(machine: &Machine) {
    let Machine { processor, threads, isas, skipped_isas, .. } = machine;
    println!("- processor: {processor}; threads: {threads}");
    println!("- instruction sets: {}", isas.join(", "));
    for isa in skipped_isas {
        println!("- skipped: {isa}, which this processor does not have");
    }
    if let Some(cache) = machine.last_level_cache_bytes {
        println!("- last level of cache: {:.1} MB", cache as f64 / 1e6);
    }
    let pages = machine.transparent_huge_pages.as_deref();
    println!(
        "- transparent huge pages: {}",
        pages.unwrap_or("unknown; 2 MiB pages may be small ones")
    );
}

fn print(report: &Report) {
    print_machine(&report.machine);
    report.shapes.iter().for_each(print_shape);
    println!("\nWhat costs time here:\n");
    for verdict in &report.verdicts {
        println!("{verdict}");
    }
}

fn print_shape(shape: &Shape) {
    println!(
        "\n{}: {} outputs, {} inputs, {:.2} MB of Q4_K, {} copies\n",
        shape.name,
        shape.rows,
        shape.cols,
        shape.bytes as f64 / 1e6,
        shape.copies
    );
    println!("| kernel | threads | ms | quartiles | GB/s | x first | relative error |");
    println!("|---|--:|--:|--:|--:|--:|--:|");
    for row in &shape.results {
        let Spread { median, q1, q3, .. } = row.seconds;
        let ratio = row.times_first.map_or(String::new(), |x| format!("{x:.1}"));
        let error = row.relative_error.map_or(String::new(), |x| format!("{x:.1e}"));
        println!(
            "| {} | {} | {:.3} | {:.3} to {:.3} | {:.2} | {ratio} | {error} |",
            row.name,
            row.threads,
            median * 1e3,
            q1 * 1e3,
            q3 * 1e3,
            row.gb_per_s
        );
    }
    println!();
    let best = |is_meant: fn(&Work) -> bool, threads: usize| {
        let rows = shape.results.iter();
        let rows = rows.filter(|row| row.threads == threads && is_meant(&row.work));
        rows.map(|row| row.gb_per_s).max_by(f64::total_cmp)
    };
    for threads in counts(shape.threads) {
        let read = best(|work| matches!(work, Work::Read(_)), threads);
        let packed = best(|work| matches!(work, Work::Packed(_)), threads);
        if let (Some(read), Some(packed)) = (read, packed) {
            println!(
                "- threads {threads}: packed weights are read at {packed:.2} GB/s, {:.0} % of plain \
                 reads' {read:.2}",
                100.0 * packed / read
            );
        }
    }
    let EmptyTask { work_stealing, spin_pool } = &shape.empty_task;
    println!(
        "- an empty task takes {:.1} us by work stealing, {:.1} us on the spin pool",
        work_stealing.median * 1e6,
        spin_pool.median * 1e6
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Shapes whose rows and tiles do not come out even.
    #[test]
    fn every_kernel_gives_the_product() {
        for (rows, cols) in [(1, 256), (35, 1536), (16, 2304), (301, 8960)] {
            for threads in [1, 2, 3] {
                let pool = Pool::new(threads).unwrap();
                let bytes = random_weights(rows, cols).unwrap();
                let exec = Exec { isa: Isa::best(), pool: &pool, n_threads: threads };
                let weights = Weights::new((rows, cols), &bytes, 2 * bytes.len(), exec).unwrap();
                let x = random_values(2, cols).collect();
                let mut bench = Bench::new(pool, &weights, x).unwrap();
                let errors = check(&mut bench, &weights, &bytes, &cases(threads)).unwrap();
                // 8 bits a value: an error of about 1 / 256 of the largest.
                assert!(errors.into_iter().flatten().all(|error| error < 0.02));
            }
        }
    }

    #[test]
    fn a_wrong_result_is_an_error() {
        let pool = Pool::new(1).unwrap();
        let mut bytes = random_weights(16, 512).unwrap();
        let exec = Exec { isa: Isa::best(), pool: &pool, n_threads: 1 };
        let weights = Weights::new((16, 512), &bytes, 1, exec).unwrap();
        let mut bench = Bench::new(pool, &weights, random_values(2, 512).collect()).unwrap();
        bytes[144] ^= 1;
        let error = check(&mut bench, &weights, &bytes, &cases(1)).unwrap_err().to_string();
        assert!(error.contains("nothing is timed"), "{error}");
    }

    #[test]
    fn every_step_is_timed_on_all_threads() {
        for threads in [1, 2] {
            let cases = cases(threads);
            for step in hypotheses().iter().flat_map(|hypothesis| &hypothesis.steps) {
                assert!(cases.contains(&(step.work, threads)), "{}", step.name);
            }
        }
    }
}
