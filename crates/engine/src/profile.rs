//! Where the time of a token goes: a benchmark whose forward passes note the cost of each operation.

use crate::bench::BenchTest;
use crate::generate::{Engine, EngineError};
use crate::sampler::{Sampler, SamplerParams};
use hurtle_model::profile::Profile;
use std::time::{Duration, Instant};

/// What a profiled test cost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProfileRun {
    /// The operations of the forward passes, layer by layer.
    pub costs: Profile,
    /// Choosing a token after each generated one, with llama.cpp's default sampler chain.
    pub sampling: Duration,
    /// The part of the forward passes in which the calling thread waited for the others.
    pub waited: Duration,
    /// All of the test.
    pub total: Duration,
}

impl Engine {
    /// Runs `test` once after a warm-up, and tells where its time went. Other tests must not run on this
    /// engine at the same time: their waiting would be counted too.
    ///
    /// # Errors
    /// As [`Engine::bench`].
    pub fn profile(&self, test: &BenchTest) -> Result<ProfileRun, EngineError> {
        let mut bench = self.bench(test, true)?;
        let params = SamplerParams { seed: Some(1), ..SamplerParams::default() };
        let mut sampler = Sampler::new(params, self.tokenizer())?;
        let hparams = self.model().hparams();
        // Its buffers get their sizes too.
        sampler.sample(&vec![0.0; hparams.n_vocab]);
        sampler.reset();

        bench.scratch.profile = Some(Profile::new(hparams.layers.len()));
        let mut sampling = Duration::ZERO;
        let waited_before = self.pool().waited();
        self.pool().measure_waiting(true);
        let sample = bench.repeat_with(&mut |logits| {
            let start = Instant::now();
            let id = sampler.sample(logits);
            sampler.accept(id);
            sampling += start.elapsed();
        });
        self.pool().measure_waiting(false);
        let total = sample?.total;
        let costs = bench.scratch.profile.take().expect("the profile stays where it was put");
        Ok(ProfileRun { costs, sampling, waited: self.pool().waited() - waited_before, total })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::tests::{TEST, engine};
    use hurtle_model::profile::{Cost, Op};

    #[test]
    fn the_parts_are_no_more_than_the_whole() {
        let engine = engine();
        for test in [
            BenchTest { n_gen: 5, ..TEST },
            BenchTest { n_gen: 3, depth: 70, threads: 2, ..TEST },
            BenchTest { n_prompt: 20, threads: 2, ..TEST },
        ] {
            let run = engine.profile(&test).expect("it runs");
            assert_eq!(run.costs.n_layers(), engine.model().hparams().layers.len(), "{test}");
            let total = |op: &Op| run.costs.total(*op);
            let operations: Duration = Op::ALL.iter().map(total).map(|cost| cost.time).sum();
            assert!(operations + run.sampling <= run.total, "{test}: {run:?}");
            assert!(run.waited <= run.total, "{test}: {run:?}");
            assert_eq!(run.sampling.is_zero(), test.n_gen == 0, "{test}: {run:?}");
            for cost in Op::ALL.iter().map(total) {
                assert!(cost.wait <= cost.time, "{test}: {cost:?}");
                assert!(cost.calls > 0 || cost == Cost::default(), "{test}: {cost:?}");
            }
            // Every layer has a row of its own, the head lies outside, and a dense model has no experts.
            let n_passes = (test.n_prompt.div_ceil(TEST.batch_size) + test.n_gen) as u64;
            for layer in 0..run.costs.n_layers() {
                for op in [Op::Qkv, Op::Attention, Op::AttnOutput, Op::GateUp, Op::Down] {
                    let cost = run.costs.cost(Some(layer), op);
                    assert!(
                        cost.calls > 0 && cost.calls <= n_passes,
                        "{test}: {} {cost:?}",
                        op.name()
                    );
                    assert!(cost.bytes > 0 && cost.flops > 0, "{test}: {} {cost:?}", op.name());
                }
            }
            assert!(run.costs.cost(None, Op::LmHead).bytes > 0, "{test}");
            for op in [Op::Router, Op::Combine] {
                assert_eq!(run.costs.total(op), Cost::default(), "{test}: {}", op.name());
            }
            for layer in 0..run.costs.n_layers() {
                assert_eq!(run.costs.cost(Some(layer), Op::LmHead), Cost::default());
            }
        }
        let waited = engine.pool().waited();
        engine.bench(&BenchTest { n_gen: 1, threads: 2, ..TEST }, true).expect("it runs");
        assert_eq!(engine.pool().waited(), waited, "no longer measured");
    }

    #[test]
    fn what_cannot_be_measured_is_refused() {
        let error = engine().profile(&TEST).expect_err("refused").to_string();
        assert!(error.contains("empty"), "{error}");
    }
}
