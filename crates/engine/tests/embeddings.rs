//! Embeddings against llama.cpp's, a reranker against its formula, and what is refused.

use hurtle_engine::{Arithmetic, Engine, EngineError, EngineOptions, GenerationParams, Pooling};
use hurtle_gguf::{Gguf, Writer};
use hurtle_quant::WeightType;
use serde::Deserialize;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

#[derive(Deserialize)]
struct Expected {
    pooling: String,
    inputs: Vec<Input>,
}

#[derive(Deserialize)]
struct Input {
    ids: Vec<u32>,
    embedding: Vec<f32>,
}

const MODELS: [&str; 3] = ["bert", "nomic-bert", "qwen3-embed"];

fn golden(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/archs").join(file)
}

fn expected(name: &str) -> Expected {
    let text = std::fs::read_to_string(golden(&format!("{name}.json"))).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// Exact, and with f32 in the cache.
fn exact() -> EngineOptions {
    use hurtle_engine::KvType::F32;
    let arithmetic = Arithmetic::Exact;
    EngineOptions {
        threads: Some(2),
        arithmetic,
        kv_type_k: F32,
        kv_type_v: F32,
        ..Default::default()
    }
}

fn engine(name: &str, options: &EngineOptions) -> Engine {
    Engine::load(&golden(&format!("{name}.gguf")), options).unwrap()
}

fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

/// A copy of the golden model `name` in `folder`: `weight` makes the bytes of each matrix, and `change`
/// adds to it.
fn copy(
    name: &str,
    folder: &Path,
    weight: impl Fn(&[u8]) -> (WeightType, Vec<u8>),
    change: impl FnOnce(&mut hurtle_gguf::Metadata) -> Vec<(&'static str, Vec<u64>, Vec<f32>)>,
) -> PathBuf {
    let gguf = Gguf::open(golden(&format!("{name}.gguf"))).unwrap();
    let mut metadata = gguf.metadata().clone();
    let added = change(&mut metadata);
    let mut writer = Writer::new(metadata);
    for tensor in gguf.tensors() {
        let data = gguf.data(tensor);
        let (ty, data) = match tensor.dims().len() {
            2 => weight(data),
            _ => (tensor.ty(), data.to_vec()),
        };
        writer.tensor(tensor.name(), tensor.dims(), ty, data).unwrap();
    }
    for (name, dims, values) in added {
        let data: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        writer.tensor(name, &dims, WeightType::F32, data).unwrap();
    }
    let path = folder.join("copy.gguf");
    writer.write(&path).unwrap();
    path
}

fn unchanged(data: &[u8]) -> (WeightType, Vec<u8>) {
    (WeightType::F32, data.to_vec())
}

#[test]
fn embeddings_are_llama_cpps() {
    for name in MODELS {
        let (engine, expected) = (engine(name, &exact()), expected(name));
        assert_eq!(engine.pooling().unwrap().name(), expected.pooling, "{name}");
        for input in &expected.inputs {
            let found = engine.embed(&input.ids).unwrap();
            let difference = largest_difference(&found, &input.embedding);
            assert!(difference <= 2e-4, "{name}, {} tokens: {difference}", input.ids.len());
        }
    }
}

#[test]
fn texts_that_are_embedded_together_have_the_bits_that_each_has_alone() {
    for name in MODELS {
        let golden = expected(name);
        // Too small for all of them together; of a model that reads one way, too small for the longest.
        let both_ways = engine(name, &exact()).model().hparams().both_ways;
        let batch_size = Some(if both_ways { 100 } else { 30 });
        let engine = engine(name, &EngineOptions { batch_size, ..exact() });
        let mut texts: Vec<&[u32]> = Vec::new();
        for input in golden.inputs.iter().chain(golden.inputs.iter().rev()) {
            texts.push(&input.ids);
        }
        let pooling = engine.pooling().unwrap();
        let mut asked = 0;
        let mut go_on = || {
            asked += 1;
            ControlFlow::Continue(())
        };
        let found = engine.embed_all(&texts, pooling, &mut go_on).unwrap();
        assert_eq!(found.len(), texts.len());
        for (text, found) in texts.iter().zip(&found) {
            assert_eq!(&engine.embed(text).unwrap(), found, "{name}, {} tokens", text.len());
        }
        assert!(asked > 1, "{name}: {asked} passes");
        let mut once = [ControlFlow::Continue(()), ControlFlow::Break(())].into_iter();
        let mut give_up = || once.next().unwrap();
        let part = engine.embed_all(&texts, pooling, &mut give_up).unwrap();
        assert!(!part.is_empty() && part.len() < texts.len(), "{name}: {}", part.len());
        assert_eq!(part, found[..part.len()]);
    }
}

#[test]
fn vectors_of_tokens_are_those_that_are_pooled() {
    for name in MODELS {
        let golden = expected(name);
        let both_ways = engine(name, &exact()).model().hparams().both_ways;
        let batch_size = Some(if both_ways { 100 } else { 30 });
        let engine = engine(name, &EngineOptions { batch_size, ..exact() });
        let texts: Vec<&[u32]> = golden.inputs.iter().map(|input| &*input.ids).collect();
        let mut go_on = || ControlFlow::Continue(());
        let tokens = engine.embed_tokens(&texts, &mut go_on).unwrap();
        let first = engine.embed_all(&texts, Pooling::Cls, &mut go_on).unwrap();
        let last = engine.embed_all(&texts, Pooling::Last, &mut go_on).unwrap();
        assert_eq!(tokens.len(), texts.len());
        for (i, text) in texts.iter().enumerate() {
            assert_eq!(tokens[i].len(), text.len(), "{name}");
            assert_eq!(
                (&tokens[i][0], &tokens[i][text.len() - 1]),
                (&first[i], &last[i]),
                "{name}"
            );
        }
        let mut give_up = || ControlFlow::Break(());
        assert!(engine.embed_tokens(&texts, &mut give_up).unwrap().is_empty(), "{name}");
    }
}

#[test]
fn embeddings_have_the_same_bits_whatever_the_threads_and_chunks() {
    let folder = tempfile::tempdir().unwrap();
    for name in MODELS {
        // Quantized, so that integer kernels take part.
        let quantized = |data: &[u8]| {
            let values: Vec<f32> =
                data.chunks_exact(4).map(|x| f32::from_le_bytes(x.try_into().unwrap())).collect();
            let mut bytes = vec![0; values.len() / 32 * 34];
            hurtle_quant::quantize(WeightType::Q8_0, &values, &mut bytes).unwrap();
            (WeightType::Q8_0, bytes)
        };
        let path = copy(name, folder.path(), quantized, |_| Vec::new());
        for arithmetic in [Arithmetic::Exact, Arithmetic::Integer] {
            let base = EngineOptions { arithmetic, ..exact() };
            let load = |options: &EngineOptions| Engine::load(&path, options).unwrap();
            let engine = load(&base);
            let chunks = match engine.model().hparams().both_ways {
                true => None,
                false => Some(5),
            };
            for input in &expected(name).inputs {
                let reference = engine.embed(&input.ids).unwrap();
                let difference = largest_difference(&reference, &input.embedding);
                assert!(difference < 0.2, "{name} {arithmetic:?}: {difference}");
                for (threads, batch_size) in [(1, None), (3, None), (2, chunks)] {
                    let threads = Some(threads);
                    let found = load(&EngineOptions { threads, batch_size, ..base.clone() });
                    let found = found.embed(&input.ids).unwrap();
                    let same =
                        found.iter().zip(&reference).all(|(a, b)| a.to_bits() == b.to_bits());
                    assert!(same, "{name} {arithmetic:?}: {threads:?} threads, {batch_size:?}");
                }
            }
        }
    }
}

#[test]
fn a_reranker_scores_by_its_classifier() {
    let folder = tempfile::tempdir().unwrap();
    let (n, n_scores) = (64, 2);
    let value = |i: usize| ((i * 37 % 101) as f32 / 101.0 - 0.5) * 0.3;
    let dense: Vec<f32> = (0..n * n).map(value).collect();
    let dense_bias: Vec<f32> = (5..5 + n).map(value).collect();
    let output: Vec<f32> = (3..3 + n_scores * n).map(value).collect();
    let output_bias: Vec<f32> = (7..7 + n_scores).map(value).collect();
    let linear = |weight: &[f32], bias: &[f32], x: &[f64]| -> Vec<f64> {
        let rows = weight.chunks_exact(n).zip(bias);
        rows.map(|(row, bias)| {
            row.iter().zip(x).map(|(w, x)| f64::from(*w) * x).sum::<f64>() + f64::from(*bias)
        })
        .collect()
    };
    // qwen3's are probabilities, of the last token.
    for (name, with_dense, softmax) in
        [("bert", true, false), ("bert", false, false), ("qwen3-embed", false, true)]
    {
        let path = copy(name, folder.path(), unchanged, |metadata| {
            let prefix = name.strip_suffix("-embed").unwrap_or(name);
            metadata.insert(format!("{prefix}.pooling_type"), 4u32);
            let mut added = vec![
                ("cls.output.weight", vec![n as u64, n_scores as u64], output.clone()),
                ("cls.output.bias", vec![n_scores as u64], output_bias.clone()),
            ];
            if with_dense {
                added.push(("cls.weight", vec![n as u64, n as u64], dense.clone()));
                added.push(("cls.bias", vec![n as u64], dense_bias.clone()));
            }
            added
        });
        let engine = Engine::load(&path, &exact()).unwrap();
        assert_eq!(engine.pooling(), Some(Pooling::Rank));
        for input in expected(name).inputs {
            let mut x: Vec<f64> = input.embedding.iter().map(|x| f64::from(*x)).collect();
            if with_dense {
                x = linear(&dense, &dense_bias, &x).into_iter().map(f64::tanh).collect();
            }
            let mut scores = linear(&output, &output_bias, &x);
            if softmax {
                let sum: f64 = scores.iter().map(|score| score.exp()).sum();
                scores.iter_mut().for_each(|score| *score = score.exp() / sum);
            }
            let found = engine.embed(&input.ids).unwrap();
            assert_eq!(found.len(), n_scores);
            for (found, score) in found.iter().zip(scores) {
                assert!((f64::from(*found) - score).abs() < 2e-4, "{name}: {found} for {score}");
            }
        }
    }
}

#[test]
fn what_cannot_be_embedded_is_refused() {
    let ids: Vec<u32> = (0..40).collect();
    let error = |name: &str, options: &EngineOptions| {
        let error = engine(name, options).embed(&ids).unwrap_err();
        assert!(error.to_string().contains("hint: "), "{error}");
        error
    };
    let small = EngineOptions { batch_size: Some(39), ..exact() };
    for name in ["bert", "nomic-bert"] {
        let error = error(name, &small);
        assert!(
            matches!(error, EngineError::BatchTooSmall { n_tokens: 40, batch_size: 39 }),
            "{error}"
        );
    }
    engine("qwen3-embed", &small).embed(&ids).unwrap();
    let context = EngineOptions { ctx_size: Some(39), ..exact() };
    let error_of_context = error("bert", &context);
    assert!(matches!(error_of_context, EngineError::PromptTooLong { .. }), "{error_of_context}");
    let error_of_llama = error("llama", &exact());
    assert!(matches!(error_of_llama, EngineError::NoPooling { .. }), "{error_of_llama}");
    assert!(matches!(engine("bert", &exact()).embed(&[]), Err(EngineError::EmptyPrompt)));
    // Longer than what the model has learned positions for.
    let long = EngineOptions { ctx_size: Some(1000), ..exact() };
    let error = engine("bert", &long).embed(&[1; 129]).unwrap_err();
    let too_long = EngineError::PromptTooLong { n_prompt: 129, n_ctx: 128, n_ctx_train: 128 };
    assert_eq!(error.to_string(), too_long.to_string());
    assert_eq!(engine("gpt2", &long).ctx_size(), engine("gpt2", &exact()).ctx_size());
}

#[test]
fn an_embedding_model_generates_nothing() {
    for name in MODELS {
        let engine = engine(name, &exact());
        let error = engine
            .session()
            .generate(&[1], &GenerationParams::default(), &mut |_| ControlFlow::Continue(()))
            .unwrap_err();
        assert!(matches!(error, EngineError::EmbeddingModel { .. }), "{error}");
    }
}
