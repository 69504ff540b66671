//! What is left of the vocabulary while one token is chosen.
//!
//! A chain that begins by cutting 150 000 logits down to 40 should cost little more than reading
//! them once, so the vocabulary stays where it is until something is cut away:
//!
//! ```text
//! Source   the caller's logits, unchanged
//!   │ adjust (bias, penalties), or a mask that leaves much
//! Edited   a copy of them
//!   │ keep, or a mask that leaves little
//! List     ids and logits of the survivors
//! ```
//!
//! - Ids are ascending in all three forms. Nothing is sorted: each cut finds the rank of the last
//!   candidate to keep (by selection, linear in time) and then keeps what ranks as high. So what is
//!   drawn does not depend on how some sort orders its ties.
//! - The maxima of blocks of 128 logits are computed once. The k-th largest of them bounds the k-th
//!   largest logit from below, and a block whose maximum lies under a bound is never looked into:
//!   top-k of 40 in 152 064 reads the logits once and then some 5 000 of them again.
//!
//! A NaN counts as negative infinity, which means impossible, and positive infinity as the largest
//! finite number, so that all that follows is arithmetic on finite numbers.
use super::rng::Rng;
use super::softmax::{BLOCK, block_mass, exp, mass, mass_and_logs};

/// Memory that outlives a call, so that choosing a token does not allocate.
#[derive(Debug, Default)]
pub(super) struct Buffers {
    /// `[n_vocab]`, in form `Edited`.
    edited: Vec<f32>,
    /// `[n_vocab / BLOCK]`, largest logit of each block; empty: not computed.
    maxima: Vec<f32>,
    /// `[n_candidates / BLOCK]`, mass of each block while one is drawn.
    masses: Vec<f64>,
    /// `[n_candidates]`, ascending, in form `List`.
    ids: Vec<u32>,
    /// `[n_candidates]`, in form `List`.
    logits: Vec<f32>,
    ranked: Vec<Ranked>,
    selection: Vec<f32>,
    /// `[n_candidates]`, the bucket of each while a cut is looked for.
    buckets: Vec<u16>,
}

impl Buffers {
    /// Room for what common chains leave of a vocabulary; odd ones make it grow.
    pub(super) fn new(n_vocab: usize) -> Self {
        let (n_blocks, n_left) = (n_vocab.div_ceil(BLOCK), n_vocab.min(4096));
        Self {
            edited: Vec::new(),
            maxima: Vec::with_capacity(n_blocks),
            masses: Vec::with_capacity(n_blocks),
            ids: Vec::with_capacity(n_left),
            logits: Vec::with_capacity(n_left),
            ranked: Vec::with_capacity(n_left),
            selection: Vec::with_capacity(n_blocks),
            buckets: Vec::new(),
        }
    }
}

impl Clone for Buffers {
    /// Buffers hold nothing between calls: a clone starts with none.
    fn clone(&self) -> Self {
        Self::default()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Source,
    Edited,
    List,
}

/// A candidate's place in an order and its unnormalised probability.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ranked {
    /// See [`rank`].
    pub(super) rank: u64,
    /// exp(logit - max), or 0 where nobody asks.
    pub(super) weight: f32,
}

impl Ranked {
    /// The candidate.
    pub(super) fn id(&self) -> u32 {
        !(self.rank as u32)
    }
}

/// A number that is the higher the larger `x` is and, among equals, the lower `id` is.
#[inline]
pub(super) fn rank(x: f32, id: u32) -> u64 {
    let bits = (x + 0.0).to_bits(); // -0 becomes 0
    // Negative numbers: all bits flipped, positive ones: the sign. No branch to mispredict.
    let ordered = bits ^ ((bits as i32 >> 31) as u32 | 1 << 31);
    u64::from(ordered) << 32 | u64::from(!id)
}

/// The number for which `rank` was computed.
#[inline]
fn ranked_number(rank: u64) -> f32 {
    let ordered = (rank >> 32) as u32;
    f32::from_bits(if ordered >> 31 == 1 { ordered ^ 1 << 31 } else { !ordered })
}

#[inline]
fn sane(x: f32) -> f32 {
    if x.is_nan() { f32::NEG_INFINITY } else { x.min(f32::MAX) }
}

/// Largest of `logits` but for NaN; negative infinity of none.
fn largest_of(logits: &[f32]) -> f32 {
    let max = |a: f32, b: f32| if b > a { b } else { a };
    let mut lanes = [f32::NEG_INFINITY; 16];
    let (chunks, rest) = logits.as_chunks::<16>();
    for chunk in chunks {
        for (lane, &x) in lanes.iter_mut().zip(chunk) {
            *lane = max(*lane, x);
        }
    }
    lanes.iter().chain(rest).fold(f32::NEG_INFINITY, |a, &b| max(a, b))
}

/// Read access to the candidates, apart from the buffers that a visitor may fill.
struct View<'a> {
    /// `None`: a logit's index is its id.
    ids: Option<&'a [u32]>,
    logits: &'a [f32],
    maxima: &'a [f32],
}

impl View<'_> {
    /// Calls `f(id, logit)` for every possible candidate whose logit is at least `floor`.
    #[inline]
    fn visit(&self, floor: f32, mut f: impl FnMut(u32, f32)) {
        let mut offer = |id: u32, x: f32| {
            if x >= floor && x > f32::NEG_INFINITY {
                f(id, sane(x));
            }
        };
        match self.ids {
            Some(ids) => ids.iter().zip(self.logits).for_each(|(&id, &x)| offer(id, x)),
            None => {
                let blocks = self.logits.chunks(BLOCK).zip(self.maxima).enumerate();
                for (index, (block, _)) in blocks.filter(|(_, (_, max))| **max >= floor) {
                    let first = (index * BLOCK) as u32;
                    block.iter().zip(first..).for_each(|(&x, id)| offer(id, x));
                }
            }
        }
    }
}

/// The candidates for one token.
#[derive(Debug)]
pub(super) struct Candidates<'a> {
    source: &'a [f32], // [n_vocab]
    form: Form,
    buffers: &'a mut Buffers,
}

impl<'a> Candidates<'a> {
    /// Every token of the vocabulary; `logits[id]`.
    pub(super) fn new(logits: &'a [f32], buffers: &'a mut Buffers) -> Self {
        buffers.maxima.clear();
        Self { source: logits, form: Form::Source, buffers }
    }

    /// The tokens that have a bit in `mask`, 32 ids to a word, lowest bit first.
    pub(super) fn masked(logits: &'a [f32], mask: &[u32], buffers: &'a mut Buffers) -> Self {
        /// From one token in so many on, a copy of all logits is less work than a list of the allowed.
        const DENSE: usize = 16;
        let n_allowed: u32 = mask.iter().map(|word| word.count_ones()).sum();
        let dense = n_allowed as usize > logits.len() / DENSE;
        buffers.maxima.clear();
        buffers.edited.clear();
        buffers.ids.clear();
        buffers.logits.clear();
        for (word, chunk) in logits.chunks(32).enumerate() {
            let (first, mut bits) = ((word * 32) as u32, mask.get(word).copied().unwrap_or(0));
            if dense {
                let allowed = |i: usize| bits >> i & 1 == 1;
                let logits = chunk.iter().enumerate();
                let masked = logits.map(|(i, &x)| if allowed(i) { x } else { f32::NEG_INFINITY });
                match bits {
                    0 => {
                        buffers.edited.resize(buffers.edited.len() + chunk.len(), f32::NEG_INFINITY)
                    }
                    u32::MAX => buffers.edited.extend_from_slice(chunk),
                    _ => buffers.edited.extend(masked),
                }
                continue;
            }
            while bits != 0 {
                let i = bits.trailing_zeros();
                bits &= bits - 1;
                let x = chunk.get(i as usize).map_or(f32::NEG_INFINITY, |&x| sane(x));
                if x > f32::NEG_INFINITY {
                    buffers.ids.push(first + i);
                    buffers.logits.push(x);
                }
            }
        }
        Self { source: logits, form: if dense { Form::Edited } else { Form::List }, buffers }
    }

    fn logits(&self) -> &[f32] {
        match self.form {
            Form::Source => self.source,
            Form::Edited => &self.buffers.edited,
            Form::List => &self.buffers.logits,
        }
    }

    /// The candidates, and the two buffers that a visitor fills.
    fn split(&mut self) -> (View<'_>, &mut Vec<Ranked>, &mut Vec<f32>) {
        self.fill_maxima();
        let Buffers { edited, maxima, ids, logits, ranked, selection, .. } = &mut *self.buffers;
        let view = match self.form {
            Form::Source => View { ids: None, logits: self.source, maxima },
            Form::Edited => View { ids: None, logits: edited, maxima },
            Form::List => View { ids: Some(ids), logits, maxima },
        };
        (view, ranked, selection)
    }

    fn fill_maxima(&mut self) {
        let buffers = &mut *self.buffers;
        let logits = match self.form {
            Form::Source => self.source,
            Form::Edited => &buffers.edited,
            Form::List => return,
        };
        if buffers.maxima.is_empty() {
            buffers.maxima.extend(logits.chunks(BLOCK).map(largest_of));
        }
    }

    /// Number of candidates, impossible ones included as long as nothing has been cut.
    pub(super) fn len(&self) -> usize {
        self.logits().len()
    }

    /// Number of possible candidates.
    pub(super) fn n_possible(&self) -> usize {
        self.logits().iter().filter(|&&x| x > f32::NEG_INFINITY).count()
    }

    /// Largest logit; negative infinity if nothing is possible.
    pub(super) fn max(&mut self) -> f32 {
        self.fill_maxima();
        let logits =
            if self.form == Form::List { &self.buffers.logits } else { &self.buffers.maxima };
        sane(largest_of(logits))
    }

    /// Σ exp(logit - max).
    pub(super) fn mass(&self, max: f32) -> f64 {
        mass(self.logits(), max)
    }

    /// Mass, and the entropy of the distribution in nats (0 if nothing is possible).
    pub(super) fn mass_and_entropy(&self, max: f32) -> (f64, f64) {
        let (mass, logs) = mass_and_logs(self.logits(), max);
        (mass, if mass > 0.0 { mass.ln() - logs / mass } else { 0.0 })
    }

    /// Calls `f(id, logit)` for every possible candidate.
    pub(super) fn for_each(&mut self, f: impl FnMut(u32, f32)) {
        self.split().0.visit(f32::NEG_INFINITY, f);
    }

    /// Where the logit of `id` stands, if it is a possible candidate, and the logit.
    fn find(&self, id: u32) -> Option<(usize, f32)> {
        let index = match self.form {
            Form::List => self.buffers.ids.binary_search(&id).ok()?,
            Form::Source | Form::Edited => id as usize,
        };
        let x = sane(*self.logits().get(index)?);
        (x > f32::NEG_INFINITY).then_some((index, x))
    }

    /// The logit of `id`, if it is a possible candidate.
    pub(super) fn logit(&self, id: u32) -> Option<f32> {
        self.find(id).map(|(_, x)| x)
    }

    /// Changes the logit of `id`, if it is a possible candidate.
    pub(super) fn adjust(&mut self, id: u32, f: impl FnOnce(f32) -> f32) {
        if let Some((index, x)) = self.find(id) {
            self.set(index, sane(f(x)));
        }
    }

    fn set(&mut self, index: usize, x: f32) {
        let buffers = &mut *self.buffers;
        match self.form {
            Form::List => buffers.logits[index] = x,
            Form::Source | Form::Edited => {
                if self.form == Form::Source {
                    buffers.edited.clear();
                    buffers.edited.extend_from_slice(self.source);
                    self.form = Form::Edited;
                }
                buffers.edited[index] = x;
                buffers.maxima.clear();
            }
        }
    }

    /// Changes every logit. What is impossible stays so: f(-∞) = -∞.
    pub(super) fn map(&mut self, f: impl Fn(f32) -> f32) {
        let Buffers { edited, maxima, logits, .. } = &mut *self.buffers;
        let f = |x: f32| sane(f(sane(x)));
        maxima.clear();
        match self.form {
            Form::Source => {
                edited.clear();
                edited.extend(self.source.iter().map(|&x| f(x)));
                self.form = Form::Edited;
            }
            Form::Edited => edited.iter_mut().for_each(|x| *x = f(*x)),
            Form::List => logits.iter_mut().for_each(|x| *x = f(*x)),
        }
    }

    /// Keeps the possible candidates whose logit is at least `floor` and that `wanted(id, logit)`.
    pub(super) fn keep(&mut self, floor: f32, mut wanted: impl FnMut(u32, f32) -> bool) {
        self.fill_maxima();
        let Buffers { edited, maxima, ids, logits, .. } = &mut *self.buffers;
        if self.form == Form::List {
            let mut kept = 0;
            for index in 0..ids.len() {
                let (id, x) = (ids[index], logits[index]);
                if x >= floor && x > f32::NEG_INFINITY && wanted(id, x) {
                    (ids[kept], logits[kept]) = (id, x);
                    kept += 1;
                }
            }
            ids.truncate(kept);
            logits.truncate(kept);
            return;
        }
        ids.clear();
        logits.clear();
        let all = if self.form == Form::Source { self.source } else { edited };
        let blocks = all.chunks(BLOCK).zip(&*maxima).enumerate();
        for (index, (block, _)) in blocks.filter(|(_, (_, max))| **max >= floor) {
            // Written always, counted if wanted: no branch to mispredict.
            let (mut kept_ids, mut kept_logits, mut n) = ([0; BLOCK], [0.0; BLOCK], 0);
            for (&x, id) in block.iter().zip((index * BLOCK) as u32..) {
                (kept_ids[n], kept_logits[n]) = (id, sane(x));
                let keep = x >= floor && x > f32::NEG_INFINITY && wanted(id, sane(x));
                n += usize::from(keep);
            }
            ids.extend_from_slice(&kept_ids[..n]);
            logits.extend_from_slice(&kept_logits[..n]);
        }
        self.form = Form::List;
    }

    /// The k largest candidates and perhaps some more, in no order, each with the weight that
    /// `weigh(logit)` gives it. All possible ones if there are no more than k.
    pub(super) fn largest(&mut self, k: usize, weigh: impl Fn(f32) -> f32) -> &mut Vec<Ranked> {
        let (view, _, selection) = self.split();
        let mut floor = f32::NEG_INFINITY;
        if view.ids.is_none() && (1..view.maxima.len()).contains(&k) {
            selection.clear();
            selection.extend_from_slice(view.maxima);
            let (_, kth, _) = selection.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a));
            floor = *kth;
        }
        self.at_least(floor, weigh)
    }

    /// The possible candidates whose logit is at least `floor`, with the weight `weigh(logit)`.
    pub(super) fn at_least(&mut self, floor: f32, weigh: impl Fn(f32) -> f32) -> &mut Vec<Ranked> {
        let (view, ranked, _) = self.split();
        ranked.clear();
        view.visit(floor, |id, x| ranked.push(Ranked { rank: rank(x, id), weight: weigh(x) }));
        ranked
    }

    /// The rank of the last candidate to keep, if they are taken by descending `order(logit)`, of
    /// equals by ascending id, until there are `min_keep` of them and the sum of their
    /// `weigh(logit)` is `enough`. `None`: all are to be kept.
    ///
    /// `order` of an impossible candidate is -∞, and its weight 0.
    ///
    /// Two steps instead of sorting: buckets of `order` tell between which bounds the end lies, and
    /// what lies between them is looked into by [`cut_by_mass`].
    pub(super) fn cut(
        &mut self,
        order: impl Fn(f32) -> f32,
        weigh: impl Fn(f32) -> f32,
        min_keep: usize,
        enough: impl Fn(f64) -> bool,
    ) -> Option<u64> {
        /// What lies further below the best matters little: it shares the last bucket.
        const DEPTH: f32 = 32.0;
        /// Fewer than this are ranked one by one.
        const FEW_TO_RANK: usize = 512;
        const LANES: usize = 16;
        let mut bucket_of = std::mem::take(&mut self.buffers.buckets);
        bucket_of.clear();
        let (view, ranked, _) = self.split();
        ranked.clear();
        if view.logits.len() <= FEW_TO_RANK {
            view.visit(f32::NEG_INFINITY, |id, x| {
                ranked.push(Ranked { rank: rank(order(x), id), weight: weigh(x) });
            });
            let cut = cut_by_mass(ranked, 0, 0.0, min_keep, enough);
            self.buffers.buckets = bucket_of;
            return cut;
        }
        let (mut low, mut high) = ([f32::MAX; LANES], [f32::NEG_INFINITY; LANES]);
        for chunk in view.logits.chunks(LANES) {
            for ((low, high), &x) in low.iter_mut().zip(&mut high).zip(chunk) {
                let place = order(sane(x));
                let possible = if place > f32::NEG_INFINITY { place } else { f32::MAX };
                *low = if possible < *low { possible } else { *low };
                *high = if place > *high { place } else { *high };
            }
        }
        let high = high.into_iter().fold(f32::NEG_INFINITY, f32::max);
        let low = low.into_iter().fold(high, f32::min);
        let low = low.max(high - DEPTH);
        let scale = if high > low { LAST / (high - low) } else { 0.0 };
        // Rises as `order` falls; NaN, of the impossible, comes last.
        let place = |x: f32| {
            let place = (high - order(x)) * scale;
            if place < LAST { place } else { LAST }
        };

        let mut buckets = [(0usize, 0.0f64); BUCKETS]; // number and sum of weights
        let mut weights = [0.0; BLOCK];
        for block in view.logits.chunks(BLOCK) {
            // Apart, the first two loops vectorise.
            let indices = bucket_of.len()..;
            bucket_of.extend(block.iter().map(|&x| bucket_index(place(sane(x)))));
            for (weight, &x) in weights.iter_mut().zip(block) {
                *weight = weigh(sane(x));
            }
            for (&index, &weight) in bucket_of[indices].iter().zip(&weights) {
                let bucket = &mut buckets[usize::from(index) % BUCKETS];
                bucket.0 += 1;
                bucket.1 += f64::from(weight);
            }
        }
        // The last bucket holds the impossible, too: whether it is enough is seen inside.
        let (mut kept, mut mass) = (0, 0.0);
        let end = buckets[..BUCKETS - 1].iter().position(|&(number, in_bucket)| {
            let ends = number > 0 && kept + number >= min_keep && enough(mass + in_bucket);
            if !ends {
                kept += number;
                mass += in_bucket;
            }
            ends
        });
        let end = end.unwrap_or(BUCKETS - 1) as u16;
        for (block, buckets) in bucket_of.chunks(BLOCK).enumerate() {
            if buckets.iter().fold(false, |found, &bucket| found | (bucket == end)) {
                for (index, _) in (block * BLOCK..).zip(buckets).filter(|(_, b)| **b == end) {
                    let x = sane(view.logits[index]);
                    let id = view.ids.map_or(index as u32, |ids| ids[index]);
                    if x > f32::NEG_INFINITY {
                        ranked.push(Ranked { rank: rank(order(x), id), weight: weigh(x) });
                    }
                }
            }
        }
        let cut = cut_by_mass(ranked, kept, mass, min_keep, enough);
        self.buffers.buckets = bucket_of;
        cut
    }

    /// Keeps what ranks (by logit, then by id) at least as high as `cut`.
    pub(super) fn keep_from(&mut self, cut: u64) {
        self.keep(ranked_number(cut), |id, x| rank(x, id) >= cut);
    }

    /// Keeps only the best, of equals the one with the lowest id.
    pub(super) fn keep_best(&mut self) {
        let max = self.max();
        let mut found = false;
        self.keep(max, |_, _| !std::mem::replace(&mut found, true));
    }

    /// Draws one candidate by its probability, which comes with it. Takes one random number,
    /// whatever the candidates are. Nothing possible: the lowest id that is left, with 1.
    pub(super) fn draw(&mut self, rng: &mut Rng) -> (u32, f64) {
        let uniform = rng.uniform();
        let max = self.max();
        let Buffers { edited, masses, ids, logits: list, .. } = &mut *self.buffers;
        let (ids, logits): (Option<&[u32]>, &[f32]) = match self.form {
            Form::Source => (None, self.source),
            Form::Edited => (None, edited),
            Form::List => (Some(ids), list),
        };
        if max == f32::NEG_INFINITY || ids.is_some_and(|ids| ids.len() == 1) {
            return (ids.and_then(|ids| ids.first()).copied().unwrap_or(0), 1.0);
        }
        masses.clear();
        masses.extend(logits.chunks(BLOCK).map(|block| block_mass(block, max)));
        let total: f64 = masses.iter().sum();
        let target = uniform * total;
        // The block in which the cumulated mass passes the target. Sums differ in their last bits:
        // if it never does, the last possible candidate is meant.
        let (mut block, mut below, mut sum) = (0, 0.0, 0.0);
        for (index, &mass) in masses.iter().enumerate() {
            if mass > 0.0 {
                (block, below) = (index * BLOCK, sum);
            }
            sum += mass;
            if sum > target {
                break;
            }
        }
        let (mut drawn, mut probability) = (block, 1.0);
        for (index, &x) in logits.iter().enumerate().skip(block).take(BLOCK) {
            let weight = f64::from(exp(x - max));
            if weight > 0.0 {
                (drawn, probability) = (index, weight / total);
                below += weight;
                if below > target {
                    break;
                }
            }
        }
        (ids.map_or(drawn as u32, |ids| ids[drawn]), probability)
    }
}

/// How many buckets a cut sorts candidates into.
const BUCKETS: usize = 1024;
const LAST: f32 = (BUCKETS - 1) as f32;

/// The nearest integer to `place`; 0 below 0. At most `LAST`.
#[inline]
fn bucket_index(place: f32) -> u16 {
    // Adding 2^23 rounds to an integer and leaves it in the low bits. No conversion, which would
    // have to check its range and not vectorise.
    const ROUND: f32 = 8_388_608.0;
    let place = if place > 0.0 { place } else { 0.0 };
    (place + ROUND).to_bits() as u16 // the bits above are those of `ROUND`
}

/// The rank of the last candidate to keep, if they are taken from the highest rank down until there
/// are `min_keep` of them and their mass is `enough`, `kept` of them and `mass` being there already.
/// `None` if `ranked` is empty.
///
/// Buckets instead of sorting: the mass of each bucket of ranks says in which one the end lies, and
/// only that one is looked into. On return, `ranked` holds some of what it held.
pub(super) fn cut_by_mass(
    ranked: &mut Vec<Ranked>,
    mut kept: usize,
    mut mass: f64,
    min_keep: usize,
    enough: impl Fn(f64) -> bool,
) -> Option<u64> {
    while ranked.len() > 64 {
        let (low, high) = ranked.iter().fold((u64::MAX, 0), |(low, high), candidate| {
            (low.min(candidate.rank), high.max(candidate.rank))
        });
        let shift = (u64::BITS - (high - low).leading_zeros()).saturating_sub(BUCKETS.ilog2());
        let bucket_of = |candidate: &Ranked| ((candidate.rank - low) >> shift) as usize;
        let mut buckets = [(0usize, 0.0f64); BUCKETS]; // number and mass
        for candidate in ranked.iter() {
            let bucket = &mut buckets[bucket_of(candidate)];
            bucket.0 += 1;
            bucket.1 += f64::from(candidate.weight);
        }
        let end = buckets.iter().rposition(|&(number, in_bucket)| {
            let ends = number > 0 && kept + number >= min_keep && enough(mass + in_bucket);
            if !ends {
                kept += number;
                mass += in_bucket;
            }
            ends
        });
        match end {
            Some(end) => ranked.retain(|candidate| bucket_of(candidate) == end),
            None => return Some(low),
        }
    }
    sort(ranked);
    let last = ranked.iter().find(|candidate| {
        kept += 1;
        mass += f64::from(candidate.weight);
        kept >= min_keep && enough(mass)
    });
    last.or(ranked.last()).map(|last| last.rank)
}

/// Highest rank first.
pub(super) fn sort(ranked: &mut [Ranked]) {
    ranked.sort_unstable_by_key(|candidate| std::cmp::Reverse(candidate.rank));
}

/// Σ weight.
pub(super) fn total_weight(ranked: &[Ranked]) -> f64 {
    ranked.iter().map(|candidate| f64::from(candidate.weight)).sum()
}

/// The candidates that `stage` leaves, as pairs of id and logit.
#[cfg(test)]
pub(super) fn after(logits: &[f32], stage: impl FnOnce(&mut Candidates<'_>)) -> Vec<(u32, f32)> {
    let mut buffers = Buffers::default();
    let mut candidates = Candidates::new(logits, &mut buffers);
    stage(&mut candidates);
    let mut left = Vec::new();
    candidates.for_each(|id, x| left.push((id, x)));
    left
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_order_by_number_and_then_by_id() {
        let numbers = [f32::MIN, -1.0, -1e-40, 0.0, 1e-40, 1.0, f32::MAX];
        for (i, &a) in numbers.iter().enumerate() {
            for &b in &numbers[..i] {
                assert!(rank(a, 9) > rank(b, 3), "{a} {b}");
            }
            assert!(rank(a, 3) > rank(a, 9));
            assert_eq!(ranked_number(rank(a, 3)), a);
            assert_eq!(Ranked { rank: rank(a, 3), weight: 0.0 }.id(), 3);
        }
        assert_eq!(rank(-0.0, 1), rank(0.0, 1));
    }

    #[test]
    fn adjusting_reaches_every_form() {
        let logits: Vec<f32> = (0..300).map(|i| i as f32).collect();
        let left = after(&logits, |c| {
            c.adjust(7, |x| x + 1000.0); // Source to Edited
            assert_eq!(c.max(), 1007.0);
            c.adjust(8, |x| x + 2000.0);
            c.adjust(300, |_| 0.0); // no such token
            assert_eq!(c.max(), 2008.0);
            c.keep(298.0, |id, _| id != 299);
            c.adjust(298, |x| -x);
            c.adjust(299, |_| 0.0); // no longer a candidate
            c.adjust(8, |_| f32::NAN);
        });
        assert_eq!(left, [(7, 1007.0), (298, -298.0)]);
    }

    #[test]
    fn masks_leave_what_they_allow() {
        let mut rng = Rng::new(7);
        for n in [1, 31, 32, 33, 200, 1000] {
            for one_in in [1, 2, 5, 40, 500] {
                let logits: Vec<f32> = (0..n)
                    .map(|i| if i % 13 == 5 { f32::NAN } else { rng.uniform() as f32 })
                    .collect();
                // Some words are full, some empty.
                let allowed = |i: usize| match i / 32 % 3 {
                    0 => true,
                    1 => i.is_multiple_of(one_in),
                    _ => false,
                };
                let mut mask = vec![0; n / 32];
                (0..n / 32 * 32)
                    .filter(|&i| allowed(i))
                    .for_each(|i| mask[i / 32] |= 1 << (i % 32));
                let mut buffers = Buffers::default();
                let mut candidates = Candidates::masked(&logits, &mask, &mut buffers);
                let mut left = Vec::new();
                candidates.for_each(|id, x| left.push((id, x)));
                let expected = (0..n / 32 * 32).filter(|&i| allowed(i) && !logits[i].is_nan());
                let expected: Vec<_> = expected.map(|i| (i as u32, logits[i])).collect();
                assert_eq!(left, expected, "{n} {one_in}");
            }
        }
    }

    #[test]
    fn what_is_impossible_stays_so() {
        let logits = [f32::NAN, 1.0, f32::NEG_INFINITY, f32::INFINITY];
        let left = after(&logits, |c| {
            c.adjust(0, |_| 5.0);
            c.adjust(2, |_| 5.0);
            c.adjust(3, |x| x * 2.0);
        });
        assert_eq!(left, [(1, 1.0), (3, f32::MAX)]);
    }

    #[test]
    fn nothing_possible_gives_the_lowest_id() {
        let mut rng = Rng::new(0);
        for logits in [&[f32::NAN; 3][..], &[f32::NEG_INFINITY; 3], &[]] {
            let mut buffers = Buffers::default();
            let mut candidates = Candidates::new(logits, &mut buffers);
            assert_eq!(candidates.draw(&mut rng).0, 0);
            candidates.keep_best();
            assert_eq!(candidates.draw(&mut rng).0, 0);
        }
    }
}
