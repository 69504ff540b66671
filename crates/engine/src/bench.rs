//! How fast a model runs: prompts, single tokens, and several sequences at once.
//!
//! ```text
//!                 untimed            timed, over and over
//! sequence 0   |-- depth ---|-- prompt --|- t -|- t -| ...     one pass for the t of all sequences
//! sequence 1   |-- depth ---|-- prompt --|- t -|- t -| ...
//! beside       |-- depth ---| t .. t .. t|                     a token in each pass of the prompts
//! ```
//! As in llama-bench, the tokens are random and nothing is sampled: what is measured is the model.

use crate::generate::{Engine, EngineError, KvType};
use hurtle_model::{BatchToken, KvCache, Scratch, SeqId};
use std::fmt;
use std::time::{Duration, Instant};

/// What to measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BenchTest {
    /// Prompt tokens of each sequence.
    pub n_prompt: usize,
    /// Tokens that each sequence generates one after the other.
    pub n_gen: usize,
    /// Tokens that each sequence holds before.
    pub depth: usize,
    /// Sequences that run together; 0 counts as 1.
    pub n_seqs: usize,
    /// Further sequences, each of which generates a token in every pass that processes prompts.
    pub n_beside: usize,
    /// Threads, at most as many as the engine has.
    pub threads: usize,
    /// Prompt tokens processed at once, of all sequences together.
    pub batch_size: usize,
    /// Element types of K and V.
    pub kv_types: (KvType, KvType),
}

impl fmt::Display for BenchTest {
    /// `pp512`, `tg128`, `pp512+tg128`, at a depth `tg128@d4096`, of several sequences `tg128x16`, beside 4 that
    /// generate `pp512&tgx4`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.n_prompt, self.n_gen) {
            (n_prompt, 0) => write!(f, "pp{n_prompt}")?,
            (0, n_gen) => write!(f, "tg{n_gen}")?,
            (n_prompt, n_gen) => write!(f, "pp{n_prompt}+tg{n_gen}")?,
        }
        if self.depth > 0 {
            write!(f, "@d{}", self.depth)?;
        }
        if self.n_seqs > 1 {
            write!(f, "x{}", self.n_seqs)?;
        }
        if self.n_beside > 0 {
            write!(f, "&tgx{}", self.n_beside)?;
        }
        Ok(())
    }
}

impl BenchTest {
    /// Positions that a sequence needs.
    pub fn n_ctx(&self) -> usize {
        let beside = if self.n_beside > 0 { self.n_passes() } else { 0 };
        let n = self.n_prompt.saturating_add(self.n_gen);
        self.depth.saturating_add(n.max(beside))
    }

    /// Tokens of one repetition, of all sequences together.
    pub fn n_tokens(&self) -> usize {
        self.n_prompt_tokens().saturating_add(self.n_gen_tokens())
    }

    /// Tokens of the prompts.
    pub fn n_prompt_tokens(&self) -> usize {
        self.n_prompt.saturating_mul(self.n_seqs.max(1))
    }

    /// Tokens that are generated, those beside the prompts included.
    pub fn n_gen_tokens(&self) -> usize {
        let beside = self.n_beside.saturating_mul(self.n_passes());
        self.n_gen.saturating_mul(self.n_seqs.max(1)).saturating_add(beside)
    }

    /// Passes that process the prompts.
    fn n_passes(&self) -> usize {
        self.n_prompt_tokens().div_ceil(self.batch_size.max(1))
    }
}

/// How long a repetition took.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BenchSample {
    /// All of it.
    pub total: Duration,
    /// Until every sequence had the logits to choose its first token from.
    pub first_token: Duration,
    /// The longest time between two tokens of a sequence that generates; zero where none does.
    pub longest_pause: Duration,
}

/// Sequences at the depth of a test, ready to be measured.
#[derive(Debug)]
pub struct Bench<'a> {
    engine: &'a Engine,
    test: BenchTest,
    cache: KvCache,
    seqs: Vec<SeqId>,
    beside: Vec<SeqId>,
    pub(crate) scratch: Scratch,
    tokens: Tokens,
}

impl Engine {
    /// Bytes that keys, values and logits of a test take: what grows with its numbers.
    pub fn bench_bytes(&self, test: &BenchTest) -> usize {
        let (type_k, type_v) = test.kv_types;
        let kv = self.model().kv_cache(type_k, type_v).bytes_for(test.n_ctx());
        let logits = self.model().hparams().n_vocab * size_of::<f32>();
        let n_seqs = test.n_seqs.max(1).saturating_add(test.n_beside);
        kv.saturating_add(logits).saturating_mul(n_seqs)
    }

    /// Brings the sequences of `test` to its depth, and warms up: a part of a repetition is run, so
    /// that the weights are in memory and the buffers have their sizes.
    ///
    /// # Errors
    /// If there is nothing to measure, or a sequence does not fit the context.
    pub fn bench(&self, test: &BenchTest, warm_up: bool) -> Result<Bench<'_>, EngineError> {
        let n_ctx = test.n_ctx();
        if test.n_tokens() == 0 {
            return Err(EngineError::EmptyPrompt);
        }
        if n_ctx > self.ctx_size() {
            return Err(EngineError::PromptTooLong {
                n_prompt: n_ctx,
                n_ctx: self.ctx_size(),
                n_ctx_train: self.model().hparams().n_ctx_train,
            });
        }
        let (type_k, type_v) = test.kv_types;
        let mut cache = self.model().kv_cache(type_k, type_v);
        let seqs: Vec<SeqId> = (0..test.n_seqs.max(1)).map(|_| cache.new_sequence()).collect();
        let beside: Vec<SeqId> = (0..test.n_beside).map(|_| cache.new_sequence()).collect();
        let all = [&seqs[..], &beside].concat();
        let mut bench = Bench {
            engine: self,
            test: *test,
            cache,
            seqs,
            beside,
            scratch: Scratch::default(),
            tokens: Tokens { state: 1, n_vocab: self.model().hparams().n_vocab },
        };
        bench.prompt(&all, test.depth, &[], false)?;
        if warm_up {
            let n_prompt = test.n_prompt.min(test.batch_size.max(1));
            bench.run(n_prompt, test.n_gen.min(1), &mut |_| ())?;
        }
        Ok(bench)
    }
}

impl Bench<'_> {
    /// Runs the test once.
    ///
    /// # Errors
    /// If the model cannot be run.
    pub fn repeat(&mut self) -> Result<BenchSample, EngineError> {
        self.repeat_with(&mut |_| ())
    }

    /// As [`repeat`](Self::repeat), calling `each` with the logits after every generated token.
    pub(crate) fn repeat_with(
        &mut self,
        each: &mut dyn FnMut(&[f32]),
    ) -> Result<BenchSample, EngineError> {
        self.run(self.test.n_prompt, self.test.n_gen, each)
    }

    fn run(
        &mut self,
        n_prompt: usize,
        n_gen: usize,
        each: &mut dyn FnMut(&[f32]),
    ) -> Result<BenchSample, EngineError> {
        for seq in self.seqs.iter().chain(&self.beside) {
            self.cache.truncate(*seq, self.test.depth);
        }
        let (seqs, beside) = (self.seqs.clone(), self.beside.clone());
        let start = Instant::now();
        let mut sample = BenchSample::default();
        let longest = self.prompt(&seqs, n_prompt, &beside, true)?;
        if n_prompt > 0 {
            sample.first_token = start.elapsed();
        }
        if !beside.is_empty() {
            sample.longest_pause = longest;
        }
        for i in 0..n_gen {
            let pass = Instant::now();
            let batch = seqs.iter().map(|seq| self.tokens.next(*seq, true)).collect();
            each(self.forward(batch)?);
            if n_prompt == 0 && i == 0 {
                sample.first_token = start.elapsed();
            }
            sample.longest_pause = sample.longest_pause.max(pass.elapsed());
        }
        sample.total = start.elapsed();
        Ok(sample)
    }

    /// Adds `n` tokens to each of `seqs`, as many at once as a batch holds, and with each batch a token to each of
    /// those `beside`; `logits` of the last of each sequence. How long the longest pass took.
    fn prompt(
        &mut self,
        seqs: &[SeqId],
        n: usize,
        beside: &[SeqId],
        logits: bool,
    ) -> Result<Duration, EngineError> {
        let total = n.saturating_mul(seqs.len());
        let batch_size = self.test.batch_size.max(1);
        let mut longest = Duration::ZERO;
        for start in (0..total).step_by(batch_size) {
            let pass = Instant::now();
            let decoded = beside.iter().map(|seq| (*seq, true));
            let prompts = (start..total.min(start.saturating_add(batch_size)))
                .map(|i| (seqs[i / n], logits && i % n == n - 1));
            let batch =
                decoded.chain(prompts).map(|(seq, logits)| self.tokens.next(seq, logits)).collect();
            self.forward(batch)?;
            longest = longest.max(pass.elapsed());
        }
        Ok(longest)
    }

    fn forward(&mut self, batch: Vec<BatchToken>) -> Result<&[f32], EngineError> {
        let exec = self.engine.exec(self.test.threads);
        Ok(self.engine.model().forward(exec, &batch, &mut self.cache, &mut self.scratch)?)
    }
}

/// Random tokens, the same in each process.
#[derive(Debug)]
struct Tokens {
    state: u64,
    n_vocab: usize,
}

impl Tokens {
    fn next(&mut self, seq: SeqId, logits: bool) -> BatchToken {
        // Knuth's linear congruential generator for 64 bits (MMIX); its upper bits are good.
        self.state = self.state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let id = ((self.state >> 33) % self.n_vocab as u64) as u32;
        BatchToken { id, seq, logits }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::EngineOptions;
    use std::path::Path;

    pub(crate) const TEST: BenchTest = BenchTest {
        n_prompt: 0,
        n_gen: 0,
        depth: 0,
        n_seqs: 1,
        n_beside: 0,
        threads: 1,
        batch_size: 8,
        kv_types: (KvType::F32, KvType::F32),
    };

    pub(crate) fn engine() -> Engine {
        let path = "../../tests/golden/archs/llama.gguf";
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
        let options = EngineOptions { threads: Some(2), ..EngineOptions::default() };
        Engine::load(&path, &options).expect("the golden model")
    }

    #[test]
    fn names_are_llama_benchs() {
        let check = |test: BenchTest, name: &str| assert_eq!(test.to_string(), name);
        check(BenchTest { n_prompt: 512, ..TEST }, "pp512");
        check(BenchTest { n_gen: 128, ..TEST }, "tg128");
        check(BenchTest { n_gen: 128, depth: 4096, ..TEST }, "tg128@d4096");
        check(BenchTest { n_gen: 128, n_seqs: 16, ..TEST }, "tg128x16");
        check(BenchTest { n_prompt: 512, n_gen: 128, ..TEST }, "pp512+tg128");
        check(BenchTest { n_gen: 1, depth: 2, n_seqs: 3, ..TEST }, "tg1@d2x3");
        check(BenchTest { n_prompt: 512, n_beside: 4, ..TEST }, "pp512&tgx4");
        check(
            BenchTest { n_prompt: 512, depth: 9, n_seqs: 2, n_beside: 4, ..TEST },
            "pp512@d9x2&tgx4",
        );
    }

    /// What the cache holds after a repetition tells what was computed.
    #[test]
    fn every_sequence_gets_its_tokens_each_time() {
        let engine = engine();
        for (n_prompt, n_gen) in [(20, 0), (0, 5), (13, 3), (8, 0), (1, 1)] {
            for (depth, n_seqs) in [(0, 1), (10, 1), (0, 3), (70, 4)] {
                for (threads, warm_up) in [(1, true), (2, false)] {
                    let test = BenchTest { n_prompt, n_gen, depth, n_seqs, threads, ..TEST };
                    let mut bench = engine.bench(&test, warm_up).expect("it fits");
                    let lengths = |bench: &Bench<'_>| -> Vec<usize> {
                        bench.seqs.iter().map(|seq| bench.cache.len(*seq)).collect()
                    };
                    for _ in 0..2 {
                        let sample = bench.repeat().expect("it runs");
                        assert_eq!(lengths(&bench), vec![test.n_ctx(); n_seqs], "{test}");
                        assert!(sample.first_token <= sample.total, "{test}");
                        assert!(!sample.first_token.is_zero(), "{test}");
                    }
                    assert!(bench.cache.n_bytes() <= engine.bench_bytes(&test), "{test}");
                }
            }
        }
    }

    /// Those beside get a token for each batch of the prompts, and pause between them.
    #[test]
    fn sequences_generate_beside_prompts() {
        let engine = engine();
        for (n_prompt, n_gen, n_seqs, n_passes) in
            [(20, 0, 1, 3), (8, 0, 1, 1), (1, 2, 1, 1), (10, 0, 3, 4)]
        {
            for (depth, n_beside, warm_up) in [(0, 1, false), (70, 3, true)] {
                let test =
                    BenchTest { n_prompt, n_gen, depth, n_seqs, n_beside, threads: 2, ..TEST };
                let mut bench = engine.bench(&test, warm_up).expect("it fits");
                for _ in 0..2 {
                    let sample = bench.repeat().expect("it runs");
                    for seq in &bench.seqs {
                        assert_eq!(bench.cache.len(*seq), depth + n_prompt + n_gen, "{test}");
                    }
                    for seq in &bench.beside {
                        assert_eq!(bench.cache.len(*seq), depth + n_passes, "{test}");
                    }
                    assert_eq!(bench.beside.len(), n_beside);
                    assert!(!sample.longest_pause.is_zero(), "{test}");
                    assert!(sample.longest_pause <= sample.total, "{test}");
                }
                assert_eq!(test.n_gen_tokens(), n_gen * n_seqs + n_beside * n_passes, "{test}");
                assert_eq!(test.n_tokens(), test.n_gen_tokens() + n_prompt * n_seqs, "{test}");
                assert!(bench.cache.n_bytes() <= engine.bench_bytes(&test), "{test}");
            }
        }
        let mut bench = engine.bench(&BenchTest { n_prompt: 20, ..TEST }, true).expect("it fits");
        assert!(bench.repeat().expect("it runs").longest_pause.is_zero(), "nothing is generated");
    }

    #[test]
    fn what_cannot_be_measured_is_refused() {
        let engine = engine();
        let check = |test: BenchTest, expected: &str| {
            let error = engine.bench(&test, true).expect_err("refused").to_string();
            assert!(error.contains(expected), "{error}");
        };
        check(TEST, "empty");
        check(BenchTest { n_gen: usize::MAX, depth: 1, ..TEST }, "context");
        check(BenchTest { depth: engine.ctx_size(), n_gen: 1, ..TEST }, "context");
    }
}
