//! Every kernel on every instruction set of this machine against plain loops, bit for bit.

use half::{bf16, f16};
use hurtle_kernels::attention::{self, Token, attention};
use hurtle_kernels::elementwise::{self, Activation, RopeStyle};
use hurtle_kernels::kv::{KvLayer, KvPages, KvType, PAGE_TOKENS};
use hurtle_kernels::matmul::{Matrix, matmul};
use hurtle_kernels::{Caches, Exec, Isa, Pool};
use hurtle_quant::{Q8_0Block, WeightType};
use proptest::prelude::*;
use std::ops::Range;

/// Numbers of many sizes, the same ones every time.
fn noise(seed: u64, n: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    (0..n).map(|_| ((next() >> 40) as f32 / 8_388_608.0 - 1.0) * (next() % 7) as f32).collect()
}

/// The order of a sum that the crate promises.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0f32; 16];
    for (i, (a, b)) in a.iter().zip(b).enumerate() {
        lanes[i % 16] += a * b;
    }
    for width in [8, 4, 2, 1] {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
    }
    lanes[0]
}

/// Threads 1 and 3; the one is told of caches that are too small for anything.
fn for_each_exec(f: impl Fn(Exec<'_>)) {
    let small = Caches { l1: 1 << 10, l2: 8 << 10, source: "test" };
    let pools = [Pool::new(1).unwrap().with_caches(small), Pool::new(3).unwrap()];
    let available = Isa::available();
    for name in ["scalar", "avx2", "avxvnni", "avx512", "avx512vnni", "avx512bf16"] {
        match available.iter().find(|isa| isa.name() == name) {
            Some(isa) => {
                for pool in &pools {
                    f(Exec { isa: *isa, pool, n_threads: pool.n_threads() });
                }
            }
            None => println!("skipped: {name} is not available on this machine"),
        }
    }
}

fn assert_bits(found: &[f32], expected: &[f32], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (i, (a, b)) in found.iter().zip(expected).enumerate() {
        assert!(a.to_bits() == b.to_bits(), "{what}: {a} instead of {b} at {i}");
    }
}

#[test]
fn matmul_equals_plain_loops_for_every_type_and_ragged_shapes() {
    use WeightType as T;
    let types = [
        T::F32,
        T::F16,
        T::BF16,
        T::Q4_0,
        T::Q4_1,
        T::Q5_0,
        T::Q5_1,
        T::Q8_0,
        T::Q2_K,
        T::Q3_K,
        T::Q4_K,
        T::Q5_K,
        T::Q6_K,
        T::IQ4_NL,
    ];
    for ty in types {
        for (n_rows, blocks) in [(1, 1), (2, 3), (5, 2), (17, 1)] {
            let k = match ty.block_len() {
                1 => [1, 15, 16, 33, 100][n_rows % 5],
                len => len * blocks,
            };
            let source = noise(1, n_rows * k);
            let mut bytes = vec![0; ty.row_bytes(n_rows * k).unwrap()];
            hurtle_quant::quantize(ty, &source, &mut bytes).unwrap();
            let mut rows = vec![0.0; n_rows * k];
            hurtle_quant::dequantize(ty, &bytes, &mut rows).unwrap();
            let weights = Matrix::new(ty, n_rows, k, &bytes).unwrap();
            for n_tokens in [1, 2, 3, 4, 7, 33] {
                let x = noise(2, n_tokens * k);
                let expected: Vec<f32> = x
                    .chunks_exact(k)
                    .flat_map(|x| rows.chunks_exact(k).map(|row| dot(row, x)).collect::<Vec<_>>())
                    .collect();
                for_each_exec(|exec| {
                    let mut out = vec![f32::NAN; expected.len()];
                    matmul(exec, &weights, &x, &mut out);
                    assert_bits(
                        &out,
                        &expected,
                        &format!("{ty} {n_rows}x{k}, {n_tokens} tokens, {}", exec.isa),
                    );
                });
            }
        }
    }
}

#[test]
fn a_matrix_needs_whole_rows() {
    assert!(Matrix::new(WeightType::Q4_0, 2, 32, &[0; 36]).is_some());
    assert!(Matrix::new(WeightType::Q4_0, 2, 32, &[0; 35]).is_none());
    assert!(Matrix::new(WeightType::Q4_0, 1, 33, &[0; 36]).is_none());
    assert!(Matrix::new(WeightType::F32, usize::MAX, 4, &[0; 16]).is_none());
    assert!(Matrix::new(WeightType::F32, 0, 0, &[]).is_none());
}

/// Softmax attention of one token in f64.
fn attention_oracle(
    layer: &attention::Layer<'_>,
    (n_kv_heads, dim_k, dim_v): (usize, usize, usize),
    q: &[f32],
    k: &[Vec<f32>],
    v: &[Vec<f32>],
    pos: usize,
) -> Vec<f64> {
    let group = layer.n_heads / n_kv_heads;
    let first = layer.window.map_or(0, |window| (pos + 1).saturating_sub(window));
    let mut out = Vec::new();
    for head in 0..layer.n_heads {
        let kv = head / group;
        let q = &q[head * dim_k..(head + 1) * dim_k];
        let score = |p: usize| {
            let key = &k[p][kv * dim_k..(kv + 1) * dim_k];
            let dot: f64 = q.iter().zip(key).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
            let score = dot * f64::from(layer.scale);
            layer.soft_cap.map_or(score, |cap| f64::from(cap) * (score / f64::from(cap)).tanh())
        };
        let scores: Vec<f64> = (first..=pos).map(score).collect();
        let sink = layer.sinks.map(|sinks| f64::from(sinks[head]));
        let max = scores.iter().copied().chain(sink).fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = scores.iter().copied().chain(sink).map(|score| (score - max).exp()).sum();
        out.extend((0..dim_v).map(|d| {
            let value = |p: usize| f64::from(v[p][kv * dim_v + d]);
            scores.iter().zip(first..).map(|(s, p)| (s - max).exp() / sum * value(p)).sum::<f64>()
        }));
    }
    out
}

/// What a head becomes in the cache.
fn rounded(ty: KvType, head: &[f32]) -> Vec<f32> {
    let round = |f: fn(f32) -> f32| head.iter().copied().map(f).collect();
    match ty {
        KvType::F32 => head.to_vec(),
        KvType::F16 => round(|x| f16::from_f32(x).to_f32()),
        KvType::BF16 => round(|x| bf16::from_f32(x).to_f32()),
        KvType::Q8_0 => {
            let blocks = head.chunks(32).flat_map(|block| {
                let mut values = [0.0; 32];
                values[..block.len()].copy_from_slice(block);
                let Q8_0Block { d, qs } = Q8_0Block::quantize(&values);
                qs.map(|q| d.to_f32() * f32::from(q)).into_iter().take(block.len())
            });
            blocks.collect()
        }
    }
}

/// A layer's shape: query heads, KV heads, values of a key and of a value.
type Shape = (usize, usize, usize, usize);

fn check_attention(
    (n_heads, n_kv_heads, dim_k, dim_v): Shape,
    types: (KvType, KvType),
    change: impl Fn(&mut attention::Layer<'_>),
    positions: &[usize],
) {
    let n = positions.iter().max().unwrap() + 1;
    let rows = |seed: u64, dim: usize| -> Vec<Vec<f32>> {
        (0..n).map(|p| noise(seed + p as u64, n_kv_heads * dim)).collect()
    };
    let (k, v) = (rows(10, dim_k), rows(99, dim_v));
    // The layer does not begin where the page does, and pages lie in reverse order.
    let kv = KvLayer::new(100, types, n_kv_heads, dim_k, dim_v);
    let n_pages = n.div_ceil(PAGE_TOKENS);
    let page_ids: Vec<u32> = (0..n_pages as u32).rev().collect();
    let sinks = noise(3, n_heads);
    let mut layer = attention::Layer {
        n_heads,
        kv: &kv,
        scale: 0.2,
        soft_cap: None,
        window: None,
        sinks: Some(&sinks),
    };
    change(&mut layer);
    let q = noise(5, positions.len() * n_heads * dim_k);
    // Attention of some of the tokens.
    let run = |exec: Exec<'_>, tokens: Range<usize>| {
        let mut pages = KvPages::new(kv.end());
        for _ in 0..n_pages {
            pages.push();
        }
        for p in 0..n {
            let page = page_ids[p / PAGE_TOKENS];
            pages.store(exec.isa, &kv, page, p % PAGE_TOKENS, &k[p], &v[p]);
        }
        let mut out = vec![f32::NAN; tokens.len() * n_heads * dim_v];
        let token = |i: usize| Token { page_ids: &page_ids, pos: positions[tokens.start + i] };
        let q = &q[tokens.start * n_heads * dim_k..tokens.end * n_heads * dim_k];
        attention(exec, &layer, &pages, token, q, &mut Vec::new(), &mut out);
        out
    };
    let pool = Pool::new(1).unwrap();
    let all = 0..positions.len();
    let reference = run(Exec { isa: Isa::scalar(), pool: &pool, n_threads: 1 }, all.clone());
    let heads = |rows: &[Vec<f32>], dim: usize, ty: KvType| -> Vec<Vec<f32>> {
        let row = |row: &Vec<f32>| row.chunks(dim).flat_map(|head| rounded(ty, head)).collect();
        rows.iter().map(row).collect()
    };
    let (k, v) = (heads(&k, dim_k, types.0), heads(&v, dim_v, types.1));
    let rows = reference.chunks_exact(n_heads * dim_v);
    // Queries meet bf16 as bf16, and so do weights, of which the textbook knows nothing: they, and
    // their sum, are off by up to 2^-9.
    let rounded_q = if types.0 == KvType::BF16 { rounded(KvType::BF16, &q) } else { q.clone() };
    let queries = rounded_q.chunks_exact(n_heads * dim_k);
    let largest = v.iter().flatten().fold(0.0, |max: f64, v| max.max(f64::from(v.abs())));
    let limit = if types.1 == KvType::BF16 { largest / 256.0 } else { 1e-4 };
    let shape = (n_kv_heads, dim_k, dim_v);
    for ((out, q), pos) in rows.zip(queries).zip(positions) {
        for (found, expected) in out.iter().zip(attention_oracle(&layer, shape, q, &k, &v, *pos)) {
            let error = (f64::from(*found) - expected).abs();
            assert!(error < limit, "{types:?}: {found} instead of {expected} at {pos}");
        }
    }
    for_each_exec(|exec| {
        assert_bits(&run(exec, all.clone()), &reference, &format!("attention, {}", exec.isa));
    });
    // A token alone, whose work is split over its positions, has the bits that it has in company.
    for (i, pos) in positions.iter().enumerate() {
        let expected = &reference[i * n_heads * dim_v..(i + 1) * n_heads * dim_v];
        for_each_exec(|exec| {
            let out = run(exec, i..i + 1);
            assert_bits(&out, expected, &format!("one token at {pos}, {}", exec.isa));
        });
    }
}

#[test]
fn attention_equals_the_textbook_on_every_isa() {
    use KvType::{BF16, F16, F32, Q8_0};
    let positions = [0, 1, 15, 16, 63, 64, 130, 300];
    let shapes: [Shape; 6] = [
        (6, 2, 24, 20),
        (1, 1, 64, 64),
        (2, 2, 1, 3),
        (7, 1, 40, 33),
        (8, 2, 128, 80),
        (3, 1, 96, 16),
    ];
    for shape in shapes {
        for types in [(F32, F32), (F16, F16), (BF16, BF16), (Q8_0, Q8_0)] {
            check_attention(shape, types, |layer| layer.sinks = None, &positions);
        }
    }
    for types in [(F16, F32), (F32, Q8_0), (Q8_0, F16), (BF16, BF16), (BF16, F16), (F32, BF16)] {
        let change = |layer: &mut attention::Layer<'_>| {
            (layer.soft_cap, layer.window, layer.sinks) = (Some(3.0), Some(16), None);
        };
        check_attention(shapes[0], types, change, &positions);
        check_attention(shapes[0], types, |layer| layer.window = Some(1), &positions);
        check_attention(shapes[0], types, |layer| layer.window = Some(150), &positions);
    }
}

#[test]
fn a_token_in_a_prompt_has_the_bits_that_it_has_alone() {
    use KvType::{BF16, F16, F32, Q8_0};
    // Prompts from a position on, and batches that no prompt gives.
    let prompt = |from: usize, n: usize| (from..from + n).collect::<Vec<_>>();
    let gaps = vec![3, 4, 4, 9, 40, 41, 127, 128, 129, 200, 330, 331];
    let disorder = vec![200, 201, 5, 6, 7, 100, 90, 91, 92, 300, 0, 1];
    let types = [(F16, F16), (Q8_0, Q8_0), (BF16, F16), (F32, F32)];
    for n_group in 1..=8 {
        let shape = (2 * n_group, 2, [24, 64, 33, 16][n_group % 4], [40, 16, 64, 7][n_group % 4]);
        for types in [types[n_group % types.len()], (BF16, BF16)] {
            for positions in [prompt(0, 70), prompt(117, 17), prompt(250, 7), gaps.clone()] {
                check_attention(shape, types, |_| (), &positions);
                check_attention(shape, types, |layer| layer.window = Some(20), &positions);
            }
            let change = |layer: &mut attention::Layer<'_>| {
                (layer.soft_cap, layer.window) = (Some(3.0), Some(130));
            };
            check_attention(shape, types, change, &prompt(240, 33));
            check_attention(shape, types, change, &disorder);
        }
    }
}

#[test]
fn large_values_that_a_token_does_not_see_change_nothing() {
    let (n_heads, dim) = (2, 40);
    let pool = Pool::new(1).unwrap();
    for ty in KvType::ALL {
        let kv = KvLayer::new(0, (ty, ty), 1, dim, dim);
        let layer = attention::Layer {
            n_heads,
            kv: &kv,
            scale: 0.2,
            soft_cap: None,
            window: None,
            sinks: None,
        };
        for isa in Isa::available() {
            let exec = Exec { isa, pool: &pool, n_threads: 1 };
            // Three tokens of a prompt, of which the last has large values or none that differ.
            let run = |last: f32| {
                let mut pages = KvPages::new(kv.end());
                let page = pages.push();
                for pos in 0..3 {
                    let mut v = noise(7 + pos as u64, dim);
                    if pos == 2 {
                        v.iter_mut().for_each(|v| *v *= last);
                    }
                    pages.store(isa, &kv, page, pos, &noise(pos as u64, dim), &v);
                }
                let q = noise(5, 3 * n_heads * dim);
                let token = |i: usize| Token { page_ids: &[0], pos: i };
                let mut out = vec![f32::NAN; 3 * n_heads * dim];
                attention(exec, &layer, &pages, token, &q, &mut Vec::new(), &mut out);
                out.truncate(2 * n_heads * dim);
                out
            };
            assert_bits(&run(1e30), &run(1.0), &format!("{ty}, {isa}"));
        }
    }
}

#[test]
fn other_sequences_of_a_batch_change_nothing() {
    let (n_heads, n_kv_heads, dim) = (6, 2, 40);
    let kv = KvLayer::new(0, (KvType::F16, KvType::F16), n_kv_heads, dim, dim);
    let mut pages = KvPages::new(kv.end());
    for p in 0..5 * PAGE_TOKENS {
        let page = if p % PAGE_TOKENS == 0 { pages.push() } else { pages.len() as u32 - 1 };
        let row = |seed| noise(seed + p as u64, n_kv_heads * dim);
        pages.store(Isa::scalar(), &kv, page, p % PAGE_TOKENS, &row(1000), &row(2000));
    }
    // They share their first page, as two answers to one prompt do.
    let sequences = [[0u32, 1, 2], [0, 4, 3]];
    let tokens = [(0, 100..117), (1, 60..90), (0, 117..119), (1, 20..21), (1, 90..131)];
    let tokens: Vec<(usize, usize)> =
        tokens.into_iter().flat_map(|(seq, all)| all.map(move |pos| (seq, pos))).collect();
    let layer = attention::Layer {
        n_heads,
        kv: &kv,
        scale: 0.2,
        soft_cap: None,
        window: None,
        sinks: None,
    };
    let q = noise(5, tokens.len() * n_heads * dim);
    for_each_exec(|exec| {
        let run = |first: usize, end: usize| {
            let mut out = vec![f32::NAN; (end - first) * n_heads * dim];
            let token = |i: usize| {
                let (seq, pos) = tokens[first + i];
                Token { page_ids: &sequences[seq], pos }
            };
            let q = &q[first * n_heads * dim..end * n_heads * dim];
            attention(exec, &layer, &pages, token, q, &mut Vec::new(), &mut out);
            out
        };
        let together = run(0, tokens.len());
        for (i, out) in together.chunks_exact(n_heads * dim).enumerate() {
            assert_bits(&run(i, i + 1), out, &format!("token {i}, {}", exec.isa));
        }
    });
}

#[test]
fn activations_are_the_same_bits_everywhere_and_near_the_truth() {
    let truth = |activation, x: f64, u: f64| match activation {
        Activation::Silu => x / (1.0 + (-x).exp()) * u,
        Activation::GeluTanh => {
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
            0.5 * x * (1.0 + inner.tanh()) * u
        }
        Activation::SwigluOai => {
            let (x, u) = (x.min(7.0), u.clamp(-7.0, 7.0));
            x / (1.0 + (-1.702 * x).exp()) * (u + 1.0)
        }
    };
    for activation in [Activation::Silu, Activation::GeluTanh, Activation::SwigluOai] {
        for n in [1, 15, 4096, 4097, 40_000] {
            let mut x = noise(7, n);
            x.iter_mut().step_by(11).for_each(|x| *x *= 30.0);
            let u = noise(8, n);
            let run = |exec: Exec<'_>| {
                let mut gate = x.clone();
                elementwise::gate(exec, activation, &mut gate, &u);
                gate
            };
            let pool = Pool::new(1).unwrap();
            let reference = run(Exec { isa: Isa::scalar(), pool: &pool, n_threads: 1 });
            for (i, found) in reference.iter().enumerate() {
                let expected = truth(activation, f64::from(x[i]), f64::from(u[i]));
                let error = (f64::from(*found) - expected).abs();
                assert!(
                    error <= 2e-6 * (1.0 + expected.abs()),
                    "{activation:?} {found} {expected}"
                );
            }
            for_each_exec(|exec| {
                assert_bits(&run(exec), &reference, &format!("{activation:?} {}", exec.isa));
                let (mut alone, mut by_one) = (x.clone(), x.clone());
                elementwise::activate(exec, activation, &mut alone);
                elementwise::gate(exec, activation, &mut by_one, &vec![1.0; n]);
                assert_bits(&alone, &by_one, &format!("{activation:?} alone {}", exec.isa));
            });
        }
    }
}

#[test]
fn norm_rope_softmax_and_caps_are_near_the_truth() {
    for_each_exec(|exec| {
        for (n, width) in [(1, 1), (3, 24), (40, 576)] {
            let (x, w) = (noise(1, n * width), noise(2, width));
            let mut out = x.clone();
            elementwise::rms_norm(exec, &mut out, &w, 1e-5);
            for (x, out) in x.chunks_exact(width).zip(out.chunks_exact(width)) {
                let mean = x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / width as f64;
                for i in 0..width {
                    let expected = f64::from(x[i]) / (mean + 1e-5).sqrt() * f64::from(w[i]);
                    assert!((f64::from(out[i]) - expected).abs() < 1e-5 * (1.0 + expected.abs()));
                }
            }
            let mut scalar = x.clone();
            elementwise::rms_norm(Exec { isa: Isa::scalar(), ..exec }, &mut scalar, &w, 1e-5);
            assert_bits(&out, &scalar, &format!("norm, {}", exec.isa));
            let bias = noise(4, width);
            for bias in [None, Some(&bias[..])] {
                let layer_norm = |exec: Exec<'_>| {
                    let mut out = x.clone();
                    elementwise::layer_norm(exec, &mut out, &w, bias, 1e-5);
                    out
                };
                let out = layer_norm(exec);
                for (x, out) in x.chunks_exact(width).zip(out.chunks_exact(width)) {
                    let x: Vec<f64> = x.iter().map(|x| f64::from(*x)).collect();
                    let mean = x.iter().sum::<f64>() / width as f64;
                    let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / width as f64;
                    for i in 0..width {
                        let normed = (x[i] - mean) / (variance + 1e-5).sqrt() * f64::from(w[i]);
                        let expected = normed + bias.map_or(0.0, |bias| f64::from(bias[i]));
                        let error = (f64::from(out[i]) - expected).abs();
                        assert!(error < 1e-5 * (1.0 + expected.abs()), "{} {expected}", out[i]);
                    }
                }
                let scalar = layer_norm(Exec { isa: Isa::scalar(), ..exec });
                assert_bits(&out, &scalar, &format!("layer norm, {}", exec.isa));
            }
        }
        for style in [RopeStyle::Norm, RopeStyle::Neox] {
            // A head of 6, of which 4 rotate: one pair by a quarter turn, one by a half turn.
            let mut x = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
            elementwise::rope(exec, &mut x, 1, 6, style, &[(0.0, 1.0), (-1.0, 0.0)], 2);
            let expected = match style {
                RopeStyle::Norm => [-2.0, 1.0, -3.0, -4.0, 5.0, 6.0],
                RopeStyle::Neox => [-3.0, -2.0, 1.0, -4.0, 5.0, 6.0],
            };
            assert_eq!(x, expected, "{style:?}");
            // Heads of 80, of which 74 rotate, of 200 tokens: vectors and their rest, on all threads.
            let before = noise(5, 200 * 3 * 80);
            let table: Vec<(f32, f32)> =
                noise(6, 200 * 37).iter().map(|x| (x.cos(), x.sin())).collect();
            let [found, scalar] = [exec.isa, Isa::scalar()].map(|isa| {
                let mut x = before.clone();
                elementwise::rope(Exec { isa, ..exec }, &mut x, 3, 80, style, &table, 37);
                x
            });
            assert_bits(&found, &scalar, &format!("{style:?}, {}", exec.isa));
            for (t, (before, found)) in before.chunks(240).zip(found.chunks(240)).enumerate() {
                for i in (0..240).filter(|i| i % 80 < 74) {
                    let (head, d) = (i / 80 * 80, i % 80);
                    let (pair, first, second) = match style {
                        RopeStyle::Norm => (d / 2, head + d / 2 * 2, head + d / 2 * 2 + 1),
                        RopeStyle::Neox => (d % 37, head + d % 37, head + d % 37 + 37),
                    };
                    let (cos, sin) = table[t * 37 + pair];
                    let expected = if i == first {
                        before[first] * cos - before[second] * sin
                    } else {
                        before[first] * sin + before[second] * cos
                    };
                    assert!((found[i] - expected).abs() < 1e-6, "{style:?}, value {i}");
                }
            }
        }
        let before = noise(4, 50_000);
        let mut x = before.clone();
        elementwise::soft_cap(exec, &mut x, 2.0);
        for (x, before) in x.iter().zip(before) {
            assert!((f64::from(*x) - 2.0 * (f64::from(before) / 2.0).tanh()).abs() < 1e-6);
        }
    });
    let mut x = vec![1000.0, 1000.0, f32::NEG_INFINITY, 999.0];
    elementwise::softmax(&mut x);
    let e = 1.0 / (2.0 + (-1.0f64).exp());
    for (x, expected) in x.iter().zip([e, e, 0.0, e * (-1.0f64).exp()]) {
        assert!((f64::from(*x) - expected).abs() < 1e-6, "{x} {expected}");
    }
}

proptest! {
    /// `softmax` of two values goes through `exp` over its whole range.
    #[test]
    fn exp_is_within_a_few_ulp(x in -86.0f32..0.0) {
        let mut pair = [x, 0.0];
        elementwise::softmax(&mut pair);
        let e = f64::from(x).exp();
        let expected = e / (1.0 + e);
        let error = (f64::from(pair[0]) - expected).abs();
        prop_assert!(error <= expected * 4e-7, "{} {expected}", pair[0]);
    }
}
