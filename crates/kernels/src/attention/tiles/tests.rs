//! Attention by the tiles of this processor, or by emulated ones, against attention by vectors.

use super::fit;
use crate::attention::{Layer, Token, attention};
use crate::kv::{KvLayer, KvPages, KvType::BF16, PAGE_TOKENS};
use crate::packed::tiles::emulator;
use crate::{Exec, Isa, Pool};
use std::ops::Range;

fn noise(seed: u64, n: usize) -> Vec<f32> {
    let mut random = fastrand::Rng::with_seed(seed);
    (0..n).map(|_| random.f32() * 2.0 - 1.0).collect()
}

/// Instruction sets with tiles: those of this processor, and emulated ones.
fn tiles() -> Vec<Isa> {
    if Isa::best().has_tiles() {
        println!("AMX: of this processor");
        return vec![Isa::best(), Isa::EMULATED];
    }
    println!("AMX: emulated, this processor has none");
    emulator::install();
    vec![Isa::EMULATED]
}

/// A sequence of some positions.
struct Case {
    n_heads: usize,
    kv: KvLayer,
    pages: KvPages,
    page_ids: Vec<u32>,
    sinks: Vec<f32>,
}

impl Case {
    /// Behind the last position, no numbers.
    fn new((n_heads, n_kv_heads, dim_k, dim_v): (usize, usize, usize, usize), n: usize) -> Self {
        let kv = KvLayer::new(100, (BF16, BF16), n_kv_heads, dim_k, dim_v);
        let mut pages = KvPages::new(kv.end());
        let n_pages = n.div_ceil(PAGE_TOKENS);
        let page_ids: Vec<u32> = (0..n_pages as u32).rev().collect();
        (0..n_pages).for_each(|_| _ = pages.push());
        for pos in (0..n_pages * PAGE_TOKENS).rev() {
            let row = |seed: u64, dim: usize| match pos < n {
                true => noise(seed + pos as u64, n_kv_heads * dim),
                false => vec![f32::NAN; n_kv_heads * dim],
            };
            let (page, slot) = (page_ids[pos / PAGE_TOKENS], pos % PAGE_TOKENS);
            let (k, v) = (row(1 << 20, dim_k), row(2 << 20, dim_v));
            pages.store(Isa::scalar(), &kv, page, slot, &k, &v);
            // As a sequence leaves them that grows: the lane's other half is a number.
            if pos + 1 == n && pos % 2 == 0 {
                pages.store(Isa::scalar(), &kv, page, slot + 1, &k, &v);
            }
        }
        Self { n_heads, kv, pages, page_ids, sinks: noise(3, n_heads) }
    }

    /// What tokens at `positions` get from those of the sequence.
    fn run(
        &self,
        exec: Exec<'_>,
        change: &dyn Fn(&mut Layer<'_>),
        positions: &[usize],
    ) -> Vec<f32> {
        let Self { n_heads, ref kv, ref pages, ref page_ids, ref sinks } = *self;
        let mut layer =
            Layer { n_heads, kv, scale: 0.3, soft_cap: None, window: None, sinks: Some(sinks) };
        change(&mut layer);
        let q: Vec<f32> =
            (positions.iter()).flat_map(|pos| noise(9 + *pos as u64, n_heads * kv.dim_k)).collect();
        let mut out = vec![f32::NAN; positions.len() * n_heads * kv.dim_v];
        let token = |i: usize| Token { page_ids, pos: positions[i] };
        attention(exec, &layer, pages, token, &q, &mut Vec::new(), &mut out);
        out
    }
}

#[test]
#[cfg_attr(miri, ignore = "instructions in the text, and a signal handler")]
fn tiles_attend_as_vectors_do_and_a_token_has_its_bits_in_any_company() {
    let pool = Pool::new(3).unwrap();
    let with = |isa: Isa, n_threads: usize| Exec { isa, pool: &pool, n_threads };
    let shapes = [(12, 2, 64, 64), (2, 2, 96, 32), (5, 1, 32, 96), (24, 1, 128, 128)];
    let prompt = |positions: Range<usize>| positions.collect::<Vec<_>>();
    type Change = fn(&mut Layer<'_>);
    let changes: [Change; 4] = [
        |_| (),
        |layer| layer.window = Some(20),
        |layer| (layer.soft_cap, layer.window) = (Some(3.0), Some(130)),
        |layer| layer.sinks = None,
    ];
    let cases = tiles().into_iter().flat_map(|isa| shapes.map(|shape| (isa, shape)));
    for (isa, shape) in cases {
        for (i, positions) in [
            prompt(0..70),
            prompt(117..134),
            prompt(250..257),
            vec![3, 4, 4, 9, 127, 128, 200, 330],
        ]
        .into_iter()
        .enumerate()
        {
            let case = Case::new(shape, positions.iter().max().unwrap() + 1);
            assert!(fit(&case.kv), "{shape:?} are whole tiles");
            let change = &changes[i];
            let what = format!("{shape:?}, {positions:?}, change {i}, {isa}");
            let together = case.run(with(isa, 1), change, &positions);
            // Sums of products whose order differs, and weights that may be rounded otherwise.
            let vectors = case.run(with(Isa::scalar(), 1), change, &positions);
            for (found, expected) in together.iter().zip(&vectors) {
                assert!((found - expected).abs() < 1e-2, "{what}: {found} instead of {expected}");
            }
            let rms = |x: &[f32]| (x.iter().map(|x| x * x).sum::<f32>() / x.len() as f32).sqrt();
            let apart: Vec<f32> = together.iter().zip(&vectors).map(|(a, b)| a - b).collect();
            assert!(rms(&apart) < 1e-3 * rms(&vectors), "{what}: {} apart", rms(&apart));

            let same = |found: &[f32], expected: &[f32], how: &str| {
                let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
                assert_eq!(bits(found), bits(expected), "{what}: {how}");
            };
            same(&case.run(with(isa, 3), change, &positions), &together, "three threads");
            let per_token = together.len() / positions.len();
            for chunk in [1, 5] {
                let chunks = positions.chunks(chunk).zip(together.chunks(chunk * per_token));
                for (positions, expected) in chunks {
                    let found = case.run(with(isa, 3), change, positions);
                    same(&found, expected, &format!("{chunk} at once"));
                }
            }
        }
    }
}

#[test]
fn only_whole_tiles_of_bf16_fit() {
    use crate::kv::KvType::F16;
    let layer = |types, dim_k, dim_v| KvLayer::new(0, types, 1, dim_k, dim_v);
    assert!(fit(&layer((BF16, BF16), 128, 256)));
    assert!(!fit(&layer((BF16, F16), 128, 128)));
    assert!(!fit(&layer((F16, BF16), 128, 128)));
    assert!(!fit(&layer((BF16, BF16), 80, 128)));
    assert!(!fit(&layer((BF16, BF16), 128, 80)));
    assert!(!fit(&layer((BF16, BF16), 2048, 128)));

    // Others take the way of other processors.
    let case = Case::new((6, 2, 80, 48), 150);
    let pool = Pool::new(1).unwrap();
    let run = |isa| case.run(Exec { isa, pool: &pool, n_threads: 1 }, &|_| (), &[7, 8, 149]);
    assert_eq!(run(Isa::EMULATED), run(Isa::scalar()));
}
