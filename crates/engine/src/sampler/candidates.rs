//! What is left of the vocabulary while one token is chosen.
//!
//! A chain that begins by cutting 150 000 logits down to 40 should cost little more than reading
//! them once, so the vocabulary stays where it is until something is cut away:
//!
//! ```text
//! Source   the caller's logits, unchanged
//!   │ adjust (bias, penalties)
//! Edited   a copy of them
//!   │ keep
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
use super::softmax::{exp, mass};

/// Logits in a block.
const BLOCK: usize = 128;

/// Memory that outlives a call, so that choosing a token does not allocate.
#[derive(Debug, Default)]
pub(super) struct Buffers {
    /// `[n_vocab]`, in form `Edited`.
    edited: Vec<f32>,
    /// `[n_vocab / BLOCK]`, largest logit of each block; empty: not computed.
    maxima: Vec<f32>,
    /// `[n_candidates]`, ascending, in form `List`.
    ids: Vec<u32>,
    /// `[n_candidates]`, in form `List`.
    logits: Vec<f32>,
    ranked: Vec<Ranked>,
    selection: Vec<f32>,
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
        let Buffers { edited, maxima, ids, logits, ranked, selection } = &mut *self.buffers;
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

    /// Changes every logit.
    pub(super) fn map(&mut self, f: impl Fn(f32) -> f32) {
        self.keep(f32::NEG_INFINITY, |_, _| true);
        self.buffers.logits.iter_mut().for_each(|x| *x = sane(f(*x)));
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
        View { ids: None, logits: all, maxima }.visit(floor, |id, x| {
            if wanted(id, x) {
                ids.push(id);
                logits.push(x);
            }
        });
        self.form = Form::List;
    }

    /// The k largest candidates and perhaps some more, in no order, each with the weight that
    /// `weigh(logit)` gives it. All possible ones if there are no more than k.
    pub(super) fn largest(&mut self, k: usize, weigh: impl Fn(f32) -> f32) -> &mut Vec<Ranked> {
        let (view, ranked, selection) = self.split();
        let mut floor = f32::NEG_INFINITY;
        if view.ids.is_none() && (1..view.maxima.len()).contains(&k) {
            selection.clear();
            selection.extend_from_slice(view.maxima);
            let (_, kth, _) = selection.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a));
            floor = *kth;
        }
        ranked.clear();
        view.visit(floor, |id, x| ranked.push(Ranked { rank: rank(x, id), weight: weigh(x) }));
        ranked
    }

    /// All possible candidates, ranked by `order(logit)`, with the weight `weigh(logit)`.
    pub(super) fn ranked_by(
        &mut self,
        order: impl Fn(f32) -> f32,
        weigh: impl Fn(f32) -> f32,
    ) -> &mut Vec<Ranked> {
        let (view, ranked, _) = self.split();
        ranked.clear();
        view.visit(f32::NEG_INFINITY, |id, x| {
            ranked.push(Ranked { rank: rank(order(x), id), weight: weigh(x) });
        });
        ranked
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
        let total = self.mass(max);
        if max == f32::NEG_INFINITY || self.form == Form::List && self.len() == 1 {
            let lowest = if self.form == Form::List { self.buffers.ids.first() } else { None };
            return (lowest.copied().unwrap_or(0), 1.0);
        }
        let target = uniform * total;
        let logits = self.logits();
        // The block in which the cumulated mass passes the target. Sums differ in their last bits:
        // if it never does, the last possible candidate is meant.
        let (mut block, mut below, mut sum) = (0, 0.0, 0.0);
        for (index, logits) in logits.chunks(BLOCK).enumerate() {
            let mass = mass(logits, max);
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
        let id = if self.form == Form::List { self.buffers.ids[drawn] } else { drawn as u32 };
        (id, probability)
    }
}

/// The rank of the last candidate to keep, if they are taken from the highest rank down until there
/// are `min_keep` of them and their mass is `enough`. `None` if there are none.
///
/// Buckets instead of sorting: the mass of each bucket of ranks says in which one the end lies, and
/// only that one is looked into. On return, `ranked` holds some of what it held.
pub(super) fn cut_by_mass(
    ranked: &mut Vec<Ranked>,
    min_keep: usize,
    enough: impl Fn(f64) -> bool,
) -> Option<u64> {
    const BUCKETS: usize = 1024;
    let (mut kept, mut mass) = (0, 0.0); // of the buckets above
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
