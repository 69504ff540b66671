//! ggml's matrix products next to hurtle's: one process, the same weights, taking turns.
//!
//! `cargo xtask ggml side-by-side [--threads N] [--tokens N,...] [--rounds N] [TYPE [ROWS COLS]]`
//!
//! Prints GB/s of weights as the file has them, so that figures of one line compare times. A product includes
//! quantizing its activations. There are as many copies of the matrix as no cache holds, and a turn
//! multiplies with each once. Before a turn all threads go to sleep (ggml's poll for some milliseconds after
//! a product, at the expense of whoever comes next), and one product that is not timed wakes them. Where other
//! programs keep the processor busy, threads that wait for each other lose much, ggml's most: measure on an
//! idle machine.

use hurtle_ggml::{Error, Ggml, GgmlMatrix, Layout, features, missing_features, version};
use hurtle_kernels::activations::QuantizedActivations;
use hurtle_kernels::matmul::Matrix;
use hurtle_kernels::packed::{Books, PackedMatrix, Product, Weights, matmul_packed};
use hurtle_kernels::{Exec, Isa, Pool};
use hurtle_quant::WeightType;
use std::time::{Duration, Instant};

const USAGE: &str =
    "usage: side_by_side [--threads N] [--tokens N,...] [--rounds N] [TYPE [ROWS COLS]]

  --threads N     threads of both (default: as many as this process may use)
  --tokens N,...  tokens of a product (default: 1,4,16,512)
  --rounds N      turns of each; medians are told (default: 7)
  TYPE            weight type (default: Q4_0, Q8_0, Q4_K and Q6_K, one after the other)
  ROWS COLS       outputs and inputs of the matrix (default: 8960 1536)";

/// Bytes of the copies together.
const COPIES: usize = 400 << 20;
/// Longer than any thread polls.
const REST: Duration = Duration::from_millis(20);

struct Args {
    threads: usize,
    tokens: Vec<usize>,
    rounds: usize,
    types: Vec<WeightType>,
    n_rows: usize,
    n_cols: usize,
}

impl Args {
    fn parse(mut args: impl Iterator<Item = String>) -> Result<Self, String> {
        let number = |name: &str, text: Option<String>| -> Result<usize, String> {
            let text = text.ok_or(format!("{name}: a number is missing"))?;
            let number = text.parse().ok().filter(|n| (1..=1 << 20).contains(n));
            number.ok_or(format!("{name}: expected a number from 1 to {}, found '{text}'", 1 << 20))
        };
        let mut parsed = Self {
            threads: Pool::available_threads(),
            tokens: vec![1, 4, 16, 512],
            rounds: 7,
            types: Vec::new(),
            n_rows: 8960,
            n_cols: 1536,
        };
        while let Some(arg) = args.next() {
            match arg.as_str() {
                "--threads" => parsed.threads = number("--threads", args.next())?.min(512),
                "--rounds" => parsed.rounds = number("--rounds", args.next())?,
                "--tokens" => {
                    let list = args.next().unwrap_or_default();
                    let tokens = list.split(',').map(|n| number("--tokens", Some(n.to_owned())));
                    parsed.tokens = tokens.collect::<Result<_, _>>()?;
                }
                name if parsed.types.is_empty() => {
                    let unknown = format!("TYPE: '{name}' is no weight type");
                    parsed.types.push(WeightType::from_name(name).ok_or(unknown)?);
                    if let Some(rows) = args.next() {
                        parsed.n_rows = number("ROWS", Some(rows))?;
                        parsed.n_cols = number("COLS", args.next())?;
                    }
                }
                _ => return Err(format!("'{arg}' is one argument too many")),
            }
        }
        if parsed.types.is_empty() {
            use WeightType::{Q4_0, Q4_K, Q6_K, Q8_0};
            parsed.types = vec![Q4_0, Q8_0, Q4_K, Q6_K];
        }
        Ok(parsed)
    }
}

/// One who multiplies: `multiply(copy)`.
struct Contender<'a> {
    name: &'static str,
    multiply: Box<dyn FnMut(usize) + 'a>,
    /// Seconds of a product, a turn each.
    seconds: Vec<f64>,
}

impl<'a> Contender<'a> {
    fn new(name: &'static str, multiply: impl FnMut(usize) + 'a) -> Self {
        Self { name, multiply: Box::new(multiply), seconds: Vec::new() }
    }

    fn turn(&mut self, n_copies: usize) {
        std::thread::sleep(REST);
        (self.multiply)(0);
        let start = Instant::now();
        (0..n_copies).for_each(|copy| (self.multiply)(copy));
        self.seconds.push(start.elapsed().as_secs_f64() / n_copies as f64);
    }

    /// The fastest, the median and the slowest turn, in GB/s.
    fn rates(&mut self, n_bytes: usize) -> [f64; 3] {
        self.seconds.sort_by(f64::total_cmp);
        let [first, last] = [0, self.seconds.len() - 1];
        [first, last / 2, last].map(|i| n_bytes as f64 / self.seconds[i] / 1e9)
    }
}

/// Copies in ggml's memory; none if it has no such layout for them.
fn ggml_copies(
    ggml: &Ggml,
    matrix: &Matrix<'_>,
    layout: Layout,
    n: usize,
) -> Result<Vec<GgmlMatrix>, Error> {
    match (0..n).map(|_| ggml.matrix(matrix, layout)).collect() {
        Err(Error::Unsupported { .. }) => Ok(Vec::new()),
        copies => copies,
    }
}

fn compare(args: &Args, exec: Exec<'_>, ty: WeightType) -> Result<(), Box<dyn std::error::Error>> {
    let Args { n_rows, n_cols, .. } = *args;
    let whole =
        format!("rows of {n_cols} are no whole blocks of {ty}, which are {}", ty.block_len());
    let n_bytes = ty.row_bytes(n_cols).ok_or(whole)? * n_rows;
    let bytes = vec![0x35; n_bytes];
    let matrix = Matrix::new(ty, n_rows, n_cols, &bytes).ok_or("no whole rows")?;
    let n_copies = (COPIES / n_bytes).max(1);

    let ggml = Ggml::default();
    let plain = ggml_copies(&ggml, &matrix, Layout::File, n_copies)?;
    let repacked = ggml_copies(&ggml, &matrix, Layout::Repacked, n_copies)?;
    let packed: Option<Vec<PackedMatrix>> = (0..n_copies)
        .map(|_| PackedMatrix::pack(exec, &[matrix], Books::LookedUp, &|_| {}, &|_| {}))
        .collect();
    let packed = packed.unwrap_or_default();
    println!(
        "{ty} {n_rows} x {n_cols}: {:.1} MB, {n_copies} copies; hurtle's kernel: {}",
        n_bytes as f64 / 1e6,
        PackedMatrix::kernel_name(ty, exec.isa).unwrap_or("none")
    );

    for &n_tokens in &args.tokens {
        let x: Vec<f32> = (0..n_tokens * n_cols).map(|i| (i % 101) as f32 / 50.0 - 1.0).collect();
        // A turn with many tokens would take long, and is limited by arithmetic.
        let n_copies = n_copies.div_ceil(n_tokens);
        let mut outs = [(); 3].map(|()| vec![0.0; n_tokens * n_rows]);
        let [out_plain, out_repacked, out_packed] = &mut outs;
        let mut activations = QuantizedActivations::default();
        let mut contenders = Vec::new();
        for (name, copies, out) in
            [("ggml", &plain, out_plain), ("ggml interleaved", &repacked, out_repacked)]
        {
            if !copies.is_empty() {
                let x = &x;
                contenders.push(Contender::new(name, move |copy| {
                    copies[copy].matmul(exec.n_threads, x, out);
                }));
            }
        }
        if !packed.is_empty() {
            contenders.push(Contender::new("hurtle", |copy| {
                activations.quantize(exec, &x, [&packed[copy]]);
                let tokens = 0..activations.n_tokens();
                let product =
                    Product::new(Weights::new(&packed[copy], 0, None), tokens, out_packed);
                matmul_packed(exec, &activations, &[product]);
            }));
        }
        for _ in 0..args.rounds {
            contenders.iter_mut().for_each(|contender| contender.turn(n_copies));
        }
        let (mut best_of_ggml, mut line) = (0.0f64, format!("{n_tokens:5} tokens"));
        for contender in &mut contenders {
            let [fastest, median, slowest] = contender.rates(n_bytes);
            let name = contender.name;
            line += &format!("   {name} {median:.2} GB/s ({slowest:.2} to {fastest:.2})");
            if name == "hurtle" {
                line += &format!(", {:.2} x ggml's best", median / best_of_ggml);
            } else {
                best_of_ggml = best_of_ggml.max(median);
            }
        }
        println!("{line}");
    }
    Ok(())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    if std::env::args().skip(1).any(|arg| arg == "--help" || arg == "-h") {
        println!("{USAGE}");
        return Ok(());
    }
    let args = Args::parse(std::env::args().skip(1)).unwrap_or_else(|message| {
        eprintln!("error: {message}\n\n{USAGE}");
        std::process::exit(2);
    });
    let pool = Pool::new(args.threads)?;
    let exec = Exec { isa: Isa::best(), pool: &pool, n_threads: args.threads };
    println!("{} threads; ggml {} compiled for {}", args.threads, version(), features().join(", "));
    if !missing_features().is_empty() {
        println!("note: ggml was compiled without {}", missing_features().join(", "));
    }
    args.types.iter().try_for_each(|ty| compare(&args, exec, *ty))
}
