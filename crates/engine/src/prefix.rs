//! Pages of past prompts and answers, kept for prompts that begin in the same way.
//!
//! ```text
//! root ─ [64 tokens] ─ [64 tokens] ─ [64 tokens] ─ [11 tokens]
//!                    └ [64 tokens] ─ [50 tokens]                 a node: tokens and the page with their KV
//! ```
//! A tree over token ids; a node covers one page. Only leaves may cover less than a page. A prompt that agrees
//! with a page in part takes it all the same: the KV cache copies the page before it writes into it.

use crate::saved::SavedPages;
use hurtle_model::{KvCache, PAGE_TOKENS};
use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap};
use std::time::Instant;

#[derive(Debug, Default)]
struct Node {
    parent: usize,
    tokens: Box<[u32]>,
    page: u32,
    children: HashMap<Box<[u32]>, usize>,
    last_used: u64,
}

/// The tree.
#[derive(Debug)]
pub(crate) struct PrefixCache {
    /// `nodes[0]` is the root, which has no page.
    nodes: Vec<Node>,
    /// Unused entries of `nodes`.
    free: Vec<usize>,
    /// Nodes without children, by their last use.
    leaves: BTreeSet<(u64, usize)>,
    clock: u64,
    n_tokens: usize,
}

const ROOT: usize = 0;

impl PrefixCache {
    pub(crate) fn new() -> Self {
        Self {
            nodes: vec![Node::default()],
            free: Vec::new(),
            leaves: BTreeSet::new(),
            clock: 0,
            n_tokens: 0,
        }
    }

    /// Tokens that the tree covers.
    pub(crate) fn n_tokens(&self) -> usize {
        self.n_tokens
    }

    /// Pages that the tree holds.
    pub(crate) fn n_pages(&self) -> usize {
        self.nodes.len() - 1 - self.free.len()
    }

    /// Pages that are in use for the tree alone.
    pub(crate) fn n_evictable(&self, cache: &KvCache) -> usize {
        self.used().filter(|&node| cache.holders(self.nodes[node].page) == 1).count()
    }

    /// Nodes with a page.
    fn used(&self) -> impl Iterator<Item = usize> {
        (1..self.nodes.len()).filter(|&node| !self.nodes[node].tokens.is_empty())
    }

    /// The longest known prefix of `tokens`: its length and its pages.
    pub(crate) fn lookup(&mut self, tokens: &[u32]) -> (usize, Vec<u32>) {
        self.clock += 1;
        let (mut node, mut n, mut pages) = (ROOT, 0, Vec::new());
        for page in tokens.chunks_exact(PAGE_TOKENS) {
            let Some(&child) = self.nodes[node].children.get(page) else { break };
            node = child;
            n += PAGE_TOKENS;
            pages.push(self.nodes[node].page);
            self.touch(node);
        }
        let rest = &tokens[n..];
        let common = |child: &usize| {
            let known = self.nodes[*child].tokens.iter();
            known.zip(rest).take_while(|(a, b)| a == b).count()
        };
        let children = self.nodes[node].children.values();
        let best = children.map(|child| (common(child), *child)).max();
        if let Some((common, child)) = best.filter(|(common, _)| *common > 0) {
            n += common;
            pages.push(self.nodes[child].page);
            self.touch(child);
        }
        (n, pages)
    }

    /// Notes that a node is used now.
    fn touch(&mut self, node: usize) {
        let last_used = std::mem::replace(&mut self.nodes[node].last_used, self.clock);
        if self.leaves.remove(&(last_used, node)) {
            self.leaves.insert((self.clock, node));
        }
    }

    /// Remembers that `pages` hold the KV of `tokens`. Nobody may write into them any more at these
    /// positions. What the tree knows already stays as it is.
    pub(crate) fn insert(&mut self, cache: &mut KvCache, tokens: &[u32], pages: &[u32]) {
        self.clock += 1;
        let mut node = ROOT;
        for (tokens, &page) in tokens.chunks(PAGE_TOKENS).zip(pages) {
            if let Some(&child) = self.nodes[node].children.get(tokens) {
                node = child;
            } else if self.covers(node, tokens) {
                return;
            } else {
                self.remove_beginnings(cache, node, tokens);
                cache.hold_page(page);
                node = self.add(node, tokens, page);
            }
            self.touch(node);
        }
    }

    /// Whether a child of `node` begins with `tokens`.
    fn covers(&self, node: usize, tokens: &[u32]) -> bool {
        let mut children = self.nodes[node].children.keys();
        tokens.len() < PAGE_TOKENS && children.any(|known| known.starts_with(tokens))
    }

    /// Removes the children of `node` that are only the beginning of `tokens`.
    fn remove_beginnings(&mut self, cache: &mut KvCache, node: usize, tokens: &[u32]) {
        let children = self.nodes[node].children.iter();
        let shorter: Vec<usize> = children
            .filter(|(known, _)| known.len() < tokens.len() && tokens.starts_with(known))
            .map(|(_, child)| *child)
            .collect();
        shorter.into_iter().for_each(|child| self.remove(cache, child));
    }

    fn add(&mut self, parent: usize, tokens: &[u32], page: u32) -> usize {
        let last_used = self.clock;
        let new = Node { parent, tokens: tokens.into(), page, last_used, ..Node::default() };
        let node = self.free.pop().unwrap_or_else(|| {
            self.nodes.push(Node::default());
            self.nodes.len() - 1
        });
        self.nodes[node] = new;
        self.leaves.insert((last_used, node));
        self.leaves.remove(&(self.nodes[parent].last_used, parent));
        self.nodes[parent].children.insert(tokens.into(), node);
        self.n_tokens += tokens.len();
        node
    }

    /// Removes a leaf.
    fn remove(&mut self, cache: &mut KvCache, node: usize) {
        let Node { parent, tokens, page, last_used, .. } = std::mem::take(&mut self.nodes[node]);
        self.leaves.remove(&(last_used, node));
        self.nodes[parent].children.remove(&tokens);
        if parent != ROOT && self.nodes[parent].children.is_empty() {
            self.leaves.insert((self.nodes[parent].last_used, parent));
        }
        self.n_tokens -= tokens.len();
        self.free.push(node);
        cache.release_page(page);
    }

    /// Forgets the pages of `tokens` that nothing else goes on from; returns how many tokens they cover.
    pub(crate) fn erase(&mut self, cache: &mut KvCache, tokens: &[u32]) -> usize {
        let (mut node, mut path) = (ROOT, Vec::new());
        for page in tokens.chunks(PAGE_TOKENS) {
            let Some(&child) = self.nodes[node].children.get(page) else { break };
            node = child;
            path.push(node);
        }
        let before = self.n_tokens;
        while let Some(node) = path.pop().filter(|&node| self.nodes[node].children.is_empty()) {
            self.remove(cache, node);
        }
        before - self.n_tokens
    }

    /// The tokens from the beginning to the end of a node.
    fn path(&self, mut node: usize) -> Vec<u32> {
        let mut nodes = Vec::new();
        while node != ROOT {
            nodes.push(node);
            node = self.nodes[node].parent;
        }
        nodes.iter().rev().flat_map(|&node| self.nodes[node].tokens.iter().copied()).collect()
    }

    /// Saves a node, if it covers a whole page.
    fn save(&self, cache: &KvCache, node: usize, saved: &SavedPages) {
        let Node { tokens, page, .. } = &self.nodes[node];
        if tokens.len() == PAGE_TOKENS {
            saved.save(&self.path(node), cache.page(*page));
        }
    }

    /// Saves what the tree holds, latest use first, until `end`. Returns how many pages there was no time for.
    pub(crate) fn save_all(&self, cache: &KvCache, saved: &SavedPages, end: Instant) -> usize {
        let mut nodes: Vec<(u64, usize, usize)> =
            self.used().map(|node| (self.nodes[node].last_used, self.depth(node), node)).collect();
        nodes.sort_by_key(|&(last_used, depth, _)| (Reverse(last_used), depth));
        let mut nodes = nodes.into_iter();
        while Instant::now() < end {
            let Some((_, _, node)) = nodes.next() else { break };
            self.save(cache, node, saved);
        }
        nodes.len()
    }

    /// Nodes before a node.
    fn depth(&self, node: usize) -> usize {
        let parent = |&node: &usize| Some(self.nodes[node].parent).filter(|&parent| parent != ROOT);
        std::iter::successors(Some(node), parent).count()
    }

    /// Forgets the leaf that was of no use for the longest time; one whose page nobody else holds,
    /// if there is any. It may be saved before. False if the tree is empty.
    pub(crate) fn evict(&mut self, cache: &mut KvCache, saved: Option<&SavedPages>) -> bool {
        // Leaves that somebody holds are few: a running sequence holds one at most, or two.
        let unused = |leaf: &&(u64, usize)| cache.holders(self.nodes[leaf.1].page) == 1;
        let oldest = self.leaves.iter().find(unused).or_else(|| self.leaves.first());
        let Some(&(_, node)) = oldest else { return false };
        if let Some(saved) = saved {
            self.save(cache, node, saved);
        }
        self.remove(cache, node);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Engine, EngineOptions};
    use proptest::prelude::*;
    use std::path::Path;
    use std::sync::LazyLock;

    static ENGINE: LazyLock<Engine> = LazyLock::new(|| {
        let archs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/archs");
        Engine::load(&archs.join("llama.gguf"), &EngineOptions::default()).expect("a golden model")
    });

    /// Few different texts with common beginnings: (pages of zeros, then ones up to the length).
    fn texts() -> impl Strategy<Value = Vec<u32>> {
        (0..4usize, 1..300usize).prop_map(|(pages, n)| {
            (0..n).map(|i| u32::from(i >= pages * PAGE_TOKENS + n % 3)).collect()
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn finds_the_longest_prefix_and_loses_no_page(
            steps in prop::collection::vec((texts(), 0..4u8), 1..24),
        ) {
            let (mut cache, mut tree) = (ENGINE.kv_cache(), PrefixCache::new());
            let mut known: Vec<Vec<u32>> = Vec::new();
            let mut evicted = false;
            for (text, action) in steps {
                if action == 0 {
                    evicted |= tree.evict(&mut cache, None);
                }
                let common = |other: &Vec<u32>| {
                    other.iter().zip(&text).take_while(|(a, b)| a == b).count()
                };
                let longest = known.iter().map(common).max().unwrap_or(0);
                let (n, pages) = tree.lookup(&text);
                prop_assert!(n <= longest);
                prop_assert!(evicted || n == longest, "{n} of {longest}");
                let seq = cache.new_sequence();
                cache.adopt(seq, &pages, n);
                let (needed, before) = (cache.pages_needed(seq, text.len()), cache.pages_in_use());
                cache.reserve(seq, text.len());
                prop_assert_eq!(cache.pages_in_use(), before + needed);
                let pages = cache.page_ids(seq).to_vec();
                tree.insert(&mut cache, &text, &pages);
                cache.remove(seq);
                known.push(text);
                prop_assert_eq!(cache.pages_in_use(), tree.n_pages());
                prop_assert_eq!(tree.n_evictable(&cache), tree.n_pages());
            }
            while tree.evict(&mut cache, None) {}
            prop_assert_eq!((cache.pages_in_use(), tree.n_pages(), tree.n_tokens()), (0, 0, 0));
        }

        #[test]
        fn evicts_the_leaf_that_a_search_of_all_nodes_finds(
            steps in prop::collection::vec((texts(), 0..5u8), 1..40),
        ) {
            let (mut cache, mut tree) = (ENGINE.kv_cache(), PrefixCache::new());
            let mut running = Vec::new();
            for (text, action) in steps {
                let leaves = || tree.used().filter(|&node| tree.nodes[node].children.is_empty());
                let known: BTreeSet<_> =
                    leaves().map(|node| (tree.nodes[node].last_used, node)).collect();
                prop_assert_eq!(&tree.leaves, &known);
                if action < 2 {
                    let expected = leaves().min_by_key(|&node| {
                        let Node { page, last_used, .. } = tree.nodes[node];
                        (cache.holders(page) > 1, last_used, node)
                    });
                    prop_assert_eq!(tree.evict(&mut cache, None), expected.is_some());
                    prop_assert!(expected.is_none_or(|node| tree.nodes[node].tokens.is_empty()));
                    continue;
                }
                let (n, pages) = tree.lookup(&text);
                let seq = cache.new_sequence();
                cache.adopt(seq, &pages, n);
                cache.reserve(seq, text.len());
                let pages = cache.page_ids(seq).to_vec();
                tree.insert(&mut cache, &text, &pages);
                running.push(seq);
                if action == 2 && running.len() > 2 {
                    cache.remove(running.remove(0));
                }
            }
        }
    }
}
