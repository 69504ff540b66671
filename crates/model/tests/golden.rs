//! Every architecture and every weight type against llama.cpp's logits, and the promise that a
//! sequence's bits depend on nothing but the sequence.

use hurtle_gguf::Gguf;
use hurtle_kernels::{Exec, Isa, Pool};
use hurtle_model::traffic::Packing;
use hurtle_model::{Arithmetic, BatchToken, KvType, Model, ModelError, Scratch};
use serde::Deserialize;
use std::path::{Path, PathBuf};

fn golden(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(path)
}

#[derive(Deserialize)]
struct Expected {
    inputs: Vec<Input>,
    greedy: Option<Greedy>,
    observed: Option<Observed>,
}

#[derive(Deserialize)]
struct Observed {
    quantized_activations_vs_exact_rms: f64,
}

#[derive(Deserialize)]
struct Input {
    ids: Vec<u32>,
    #[serde(alias = "last_logits_exact")]
    last_logits: Vec<f32>,
    #[serde(alias = "top5_exact")]
    top5: Vec<(Vec<usize>, Vec<f32>)>,
}

#[derive(Deserialize)]
struct Embeddings {
    inputs: Vec<Embedded>,
}

#[derive(Deserialize)]
struct Embedded {
    ids: Vec<u32>,
    token_embedding_first: Vec<f32>,
    token_embedding_last: Vec<f32>,
}

#[derive(Deserialize)]
struct Greedy {
    ids: Vec<u32>,
    margin: Vec<f32>,
}

struct Fixture {
    model: Model,
    pool: Pool,
}

/// How to run a sequence; none of it but `kv` may change a bit.
#[derive(Debug, Clone, Copy)]
struct How {
    n_threads: usize,
    isa: Isa,
    chunk: usize,
    /// Tokens of another sequence between ours.
    company: bool,
    kv: KvType,
}

impl Default for How {
    fn default() -> Self {
        Self { n_threads: 2, isa: Isa::best(), chunk: usize::MAX, company: false, kv: KvType::F32 }
    }
}

impl Fixture {
    fn open(name: &str) -> Self {
        Self::open_with(name, Arithmetic::Exact)
    }

    fn open_with(name: &str, arithmetic: Arithmetic) -> Self {
        Self::open_packed(name, arithmetic, Packing::default())
    }

    fn open_packed(name: &str, arithmetic: Arithmetic, packing: Packing) -> Self {
        let gguf = Gguf::open(golden(&format!("{name}.gguf"))).unwrap();
        let pool = Pool::new(4).unwrap();
        let exec = Exec { isa: Isa::best(), pool: &pool, n_threads: 3 };
        Self { model: Model::load(gguf, None, arithmetic, packing, exec).unwrap(), pool }
    }

    /// Logits at every position.
    fn logits(&self, ids: &[u32], how: How) -> Vec<Vec<f32>> {
        let exec = Exec { isa: how.isa, pool: &self.pool, n_threads: how.n_threads };
        let mut cache = self.model.kv_cache(how.kv, how.kv);
        let mut scratch = Scratch::default();
        let (other, seq) = (cache.new_sequence(), cache.new_sequence());
        let mut all = Vec::new();
        for chunk in ids.chunks(how.chunk.min(ids.len())) {
            let mut batch = Vec::new();
            for id in chunk {
                if how.company {
                    batch.push(BatchToken { id: id ^ 1, seq: other, logits: id % 2 == 0 });
                }
                batch.push(BatchToken { id: *id, seq, logits: true });
            }
            let logits = self.model.forward(exec, &batch, &mut cache, &mut scratch).unwrap();
            let wanted = batch.iter().filter(|token| token.logits);
            all.extend(
                (logits.chunks_exact(self.model.hparams().n_vocab).zip(wanted))
                    .filter(|(_, token)| token.seq == seq)
                    .map(|(logits, _)| logits.to_vec()),
            );
        }
        assert_eq!(cache.len(seq), ids.len());
        all
    }

    /// The hidden states of a whole sequence, `[ids.len(), n_embd]`.
    fn hidden(&self, ids: &[u32], how: How) -> Vec<f32> {
        let exec = Exec { isa: how.isa, pool: &self.pool, n_threads: how.n_threads };
        let mut cache = self.model.kv_cache(how.kv, how.kv);
        let (other, seq) = (cache.new_sequence(), cache.new_sequence());
        let mut batch = Vec::new();
        for id in ids {
            if how.company {
                batch.push(BatchToken { id: id ^ 1, seq: other, logits: false });
            }
            batch.push(BatchToken { id: *id, seq, logits: true });
        }
        let mut scratch = Scratch::default();
        self.model.hidden(exec, &batch, &mut cache, &mut scratch).unwrap().to_vec()
    }
}

fn read<T: serde::de::DeserializeOwned>(name: &str) -> T {
    let text = std::fs::read_to_string(golden(&format!("{name}.json"))).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// The models of a folder that have logits.
fn names(folder: &str) -> Vec<String> {
    let (_, names): (Vec<_>, Vec<_>) = all_names(folder).into_iter().partition(|n| embeds(n));
    names
}

/// The embedding models.
fn embedding_names() -> Vec<String> {
    all_names("archs").into_iter().filter(|name| embeds(name)).collect()
}

fn embeds(name: &str) -> bool {
    read::<serde_json::Value>(name).get("pooling").is_some()
}

fn all_names(folder: &str) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(golden(folder))
        .unwrap()
        .filter_map(|entry| {
            let name = entry.unwrap().file_name().into_string().unwrap();
            name.strip_suffix(".gguf").map(|name| format!("{folder}/{name}"))
        })
        .collect();
    names.sort();
    assert!(names.len() >= 18, "golden files are missing from {folder}");
    names
}

fn argmax(logits: &[f32]) -> usize {
    (0..logits.len()).rev().max_by(|a, b| logits[*a].total_cmp(&logits[*b])).unwrap()
}

/// Compares all that the golden file says about logits.
fn check_logits(name: &str, how: How, tolerance: f32) {
    let (fixture, expected) = (Fixture::open(name), read::<Expected>(name));
    let mut worst = 0.0f32;
    for input in &expected.inputs {
        let logits = fixture.logits(&input.ids, how);
        let last = logits.last().unwrap();
        assert_eq!(last.len(), input.last_logits.len(), "{name}");
        for (found, expected) in last.iter().zip(&input.last_logits) {
            worst = worst.max((found - expected).abs());
        }
        for (logits, (ids, values)) in logits.iter().zip(&input.top5) {
            for (id, value) in ids.iter().zip(values) {
                worst = worst.max((logits[*id] - value).abs());
            }
        }
    }
    println!("{name}: largest difference {worst:.2e}");
    assert!(worst <= tolerance, "{name}: largest difference {worst} > {tolerance} ({how:?})");
}

#[test]
fn architectures_match_llama_cpp() {
    for name in names("archs") {
        check_logits(&name, How::default(), 2e-4);
    }
}

#[test]
fn architectures_match_with_f16_kv() {
    for name in names("archs") {
        check_logits(&name, How { kv: KvType::F16, ..How::default() }, 5e-2);
    }
}

#[test]
fn weight_types_match_the_dequantized_model() {
    for name in names("quantmodels") {
        check_logits(&name, How::default(), 1e-3);
    }
}

/// Quantizing activations costs about what it costs llama.cpp. The yardstick is the root mean square
/// of what llama.cpp's own quantized run is off by.
#[test]
fn integer_arithmetic_is_as_near_as_llama_cpps() {
    for name in names("quantmodels") {
        let fixture = Fixture::open_with(&name, Arithmetic::Integer);
        let expected: Expected = read(&name);
        let (mut sum, mut n) = (0.0, 0);
        for input in &expected.inputs {
            let logits = fixture.logits(&input.ids, How::default());
            for (found, expected) in logits.last().unwrap().iter().zip(&input.last_logits) {
                sum += f64::from(found - expected).powi(2);
                n += 1;
            }
        }
        let rms = (sum / f64::from(n)).sqrt();
        let yardstick = expected.observed.unwrap().quantized_activations_vs_exact_rms;
        println!("{name}: {rms:.2e}, llama.cpp {yardstick:.2e}");
        assert!(rms <= 1.5 * yardstick, "{name}: {rms} against llama.cpp's {yardstick}");
    }
}

#[test]
fn greedy_tokens_match_until_a_near_tie() {
    for name in names("archs") {
        let (fixture, expected) = (Fixture::open(&name), read::<Expected>(&name));
        let Some(greedy) = expected.greedy else { continue };
        let mut ids = expected.inputs[1].ids.clone();
        for (expected, margin) in greedy.ids.iter().zip(&greedy.margin) {
            let found = argmax(fixture.logits(&ids, How::default()).last().unwrap());
            if found as u32 != *expected {
                assert!(*margin < 1e-3, "{name}: {found} instead of {expected}, margin {margin}");
                break;
            }
            ids.push(*expected);
        }
    }
}

/// The instruction sets of this processor whose bits are those of the best one: all of them, but that
/// AMX adds up products of bf16 in an order of its own.
fn isas_of_the_same_bits(kv: KvType) -> Vec<Isa> {
    let best = Isa::best();
    if kv == KvType::BF16 && best.name() == "amx" { vec![best] } else { Isa::available() }
}

#[test]
fn bits_depend_on_the_sequence_alone() {
    use Arithmetic::{Exact, Integer};
    let cases = [
        ("archs/llama", Exact),
        ("archs/gemma3", Exact),
        ("archs/gpt-oss", Exact),
        ("archs/qwen2moe", Exact),
        ("quantmodels/q4_k", Exact),
        ("quantmodels/q4_k", Integer),
        ("quantmodels/q6_k", Integer),
        ("quantmodels/q8_0", Integer),
        ("quantmodels/q5_1", Integer),
        ("quantmodels/iq3_s", Integer),
        ("quantmodels/qwen3moe-q4_0", Integer),
    ];
    for (name, arithmetic) in cases {
        let fixture = Fixture::open_with(name, arithmetic);
        let ids = &read::<Expected>(name).inputs[2].ids;
        for kv in KvType::ALL {
            let plain = How { kv, ..How::default() };
            let isas = isas_of_the_same_bits(kv);
            let reference = fixture.logits(ids, How { n_threads: 1, isa: isas[0], ..plain });
            let check = |how: How| {
                let found = fixture.logits(ids, how);
                for (pos, (found, expected)) in found.iter().zip(&reference).enumerate() {
                    let same = found.iter().zip(expected).all(|(a, b)| a.to_bits() == b.to_bits());
                    assert!(
                        same,
                        "{name} {arithmetic:?}: other bits at position {pos} with {how:?}"
                    );
                }
            };
            isas.into_iter().for_each(|isa| check(How { isa, ..plain }));
            [1, 3, 4].into_iter().for_each(|n_threads| check(How { n_threads, ..plain }));
            [1, 5, 16, 63].into_iter().for_each(|chunk| check(How { chunk, ..plain }));
            check(How { company: true, ..plain });
            check(How { company: true, chunk: 7, n_threads: 3, ..plain });
        }
    }
}

#[test]
fn memory_that_is_short_changes_no_bits() {
    for name in ["iq1_m", "iq2_xxs", "iq3_s", "tq1_0"] {
        let name = format!("quantmodels/{name}");
        let open = |packing| Fixture::open_packed(&name, Arithmetic::Integer, packing);
        let plenty = open(Packing::Within(u64::MAX));
        let needed = plenty.model.weight_bytes();
        let (enough, short) = (open(Packing::Within(needed)), open(Packing::Within(needed - 1)));
        assert_eq!(enough.model.weight_bytes(), needed, "{name}");
        assert!(short.model.weight_bytes() < needed, "{name}");
        let ids = &read::<Expected>(&name).inputs[2].ids;
        let how = How { chunk: 20, ..How::default() };
        let [expected, found] = [&enough, &short].map(|fixture| fixture.logits(ids, how));
        let bits = |logits: Vec<Vec<f32>>| logits.concat().into_iter().map(f32::to_bits).collect();
        let (expected, found): (Vec<u32>, Vec<u32>) = (bits(expected), bits(found));
        assert!(expected == found, "{name}: other bits");
    }
}

#[test]
fn hidden_states_match_llama_cpp() {
    assert!(embedding_names().len() >= 3, "golden files are missing");
    for name in embedding_names() {
        let (fixture, expected) = (Fixture::open(&name), read::<Embeddings>(&name));
        let mut worst = 0.0f32;
        for input in &expected.inputs {
            let hidden = fixture.hidden(&input.ids, How::default());
            let n_embd = input.token_embedding_first.len();
            assert_eq!(hidden.len(), input.ids.len() * n_embd, "{name}");
            let (first, last) = (&hidden[..n_embd], &hidden[hidden.len() - n_embd..]);
            let expected = input.token_embedding_first.iter().chain(&input.token_embedding_last);
            for (found, expected) in first.iter().chain(last).zip(expected) {
                worst = worst.max((found - expected).abs());
            }
        }
        println!("{name}: largest difference {worst:.2e}");
        assert!(worst <= 2e-4, "{name}: largest difference {worst}");
    }
}

#[test]
fn bits_of_hidden_states_depend_on_the_sequence_alone() {
    for name in embedding_names() {
        for arithmetic in [Arithmetic::Exact, Arithmetic::Integer] {
            let fixture = Fixture::open_with(&name, arithmetic);
            let ids = &read::<Embeddings>(&name).inputs[2].ids;
            for kv in KvType::ALL {
                let plain = How { kv, ..How::default() };
                let isas = isas_of_the_same_bits(kv);
                let first = How { n_threads: 1, isa: isas[0], ..plain };
                let reference = fixture.hidden(ids, first);
                let check = |how: How| {
                    let same = (fixture.hidden(ids, how).iter().zip(&reference))
                        .all(|(a, b)| a.to_bits() == b.to_bits());
                    assert!(same, "{name} {arithmetic:?}: other bits with {how:?}");
                };
                isas.into_iter().for_each(|isa| check(How { isa, ..plain }));
                [1, 3, 4].into_iter().for_each(|n_threads| check(How { n_threads, ..plain }));
                check(How { company: true, ..plain });
            }
        }
    }
}

#[test]
fn a_sequence_that_is_seen_both_ways_is_never_split() {
    for name in ["archs/bert", "archs/nomic-bert"] {
        let fixture = Fixture::open(name);
        let exec = Exec { isa: Isa::best(), pool: &fixture.pool, n_threads: 2 };
        let (mut cache, mut scratch) =
            (fixture.model.kv_cache(KvType::F32, KvType::F32), Scratch::default());
        let seq = cache.new_sequence();
        let batch = [1, 2, 3].map(|id| BatchToken { id, seq, logits: true });
        fixture.model.hidden(exec, &batch, &mut cache, &mut scratch).unwrap();
        let error = fixture.model.hidden(exec, &batch[..1], &mut cache, &mut scratch).unwrap_err();
        assert!(matches!(error, ModelError::SplitSequence { n_before: 3 }), "{error}");
        assert_eq!(cache.len(seq), 3);
        let error = fixture.model.forward(exec, &batch, &mut cache, &mut scratch).unwrap_err();
        assert!(matches!(error, ModelError::NoLogits { .. }), "{error}");
    }
}

#[test]
fn learned_positions_end() {
    let fixture = Fixture::open("archs/gpt2");
    let exec = Exec { isa: Isa::best(), pool: &fixture.pool, n_threads: 2 };
    let (mut cache, mut scratch) =
        (fixture.model.kv_cache(KvType::F32, KvType::F32), Scratch::default());
    let seq = cache.new_sequence();
    let batch = [BatchToken { id: 1, seq, logits: true }; 128];
    fixture.model.forward(exec, &batch, &mut cache, &mut scratch).unwrap();
    let error = fixture.model.forward(exec, &batch[..1], &mut cache, &mut scratch).unwrap_err();
    assert!(matches!(error, ModelError::Position { n_positions: 128 }), "{error}");
    assert_eq!(cache.len(seq), 128);
}

/// A long prompt is processed in chunks of which only the last one wants logits.
#[test]
fn a_chunk_may_want_no_logits() {
    for name in names("archs") {
        let fixture = Fixture::open(&name);
        let ids = &read::<Expected>(&name).inputs[2].ids;
        let expected = fixture.logits(ids, How::default());
        let exec = Exec { isa: Isa::best(), pool: &fixture.pool, n_threads: 2 };
        let mut cache = fixture.model.kv_cache(KvType::F32, KvType::F32);
        let mut scratch = Scratch::default();
        let seq = cache.new_sequence();
        let (last, prompt) = ids.split_last().unwrap();
        let silent: Vec<_> =
            prompt.iter().map(|id| BatchToken { id: *id, seq, logits: false }).collect();
        let none = fixture.model.forward(exec, &silent, &mut cache, &mut scratch).unwrap();
        assert!(none.is_empty(), "{name}");
        let last = [BatchToken { id: *last, seq, logits: true }];
        let found = fixture.model.forward(exec, &last, &mut cache, &mut scratch).unwrap();
        assert_eq!(found, expected.last().unwrap(), "{name}");
    }
}

#[test]
fn a_truncated_sequence_goes_on_as_if_it_had_never_been_longer() {
    let fixture = Fixture::open("archs/llama");
    let ids = &read::<Expected>("archs/llama").inputs[2].ids;
    let exec = Exec { isa: Isa::best(), pool: &fixture.pool, n_threads: 2 };
    let mut cache = fixture.model.kv_cache(KvType::F32, KvType::F32);
    let mut scratch = Scratch::default();
    let seq = cache.new_sequence();
    let mut run = |cache: &mut _, ids: &[u32]| {
        let batch: Vec<_> =
            ids.iter().map(|id| BatchToken { id: *id, seq, logits: true }).collect();
        fixture.model.forward(exec, &batch, cache, &mut scratch).unwrap().to_vec()
    };
    let whole = run(&mut cache, ids);
    let bytes = cache.n_bytes();
    cache.truncate(seq, 3);
    run(&mut cache, &[1, 2, 3, 4]);
    cache.truncate(seq, 3);
    let rest = run(&mut cache, &ids[3..]);
    assert_eq!(rest, whole[whole.len() - rest.len()..]);
    assert_eq!(cache.n_bytes(), bytes, "freed pages are used again");
}
