//! A byte trie: which of many keys begin a text.
//!
//! The nodes lie in one array, the children of a node side by side and sorted by their byte, so
//! that building takes one pass over the sorted keys and no allocation per node.

const NONE: u32 = u32::MAX;

/// A map from byte strings to ids, searched by the beginning of a text.
#[derive(Debug, Default)]
pub(super) struct Trie {
    nodes: Vec<Node>,
    /// Children of the root by their byte, [`NONE`] where there is none.
    roots: Vec<u32>,
}

#[derive(Debug, Clone, Copy)]
struct Node {
    byte: u8,
    n_children: u16,
    first_child: u32,
    id: u32,
}

impl Trie {
    /// Builds the trie; of equal keys the last one counts, an empty key never matches.
    pub(super) fn new<'a>(keys: impl Iterator<Item = (&'a [u8], u32)>) -> Self {
        let mut keys: Vec<_> = keys.filter(|(key, _)| !key.is_empty()).collect();
        keys.sort_by_key(|&(key, _)| key);
        let mut trie = Self { nodes: Vec::new(), roots: vec![NONE; 256] };
        if keys.is_empty() {
            return trie;
        }
        trie.nodes.push(Node { byte: 0, n_children: 0, first_child: 0, id: NONE });
        // Keys `first..end` share their first `depth` bytes, which lead to `node`.
        let mut open = std::collections::VecDeque::from([(0, 0, keys.len(), 0)]);
        while let Some((node, first, end, depth)) = open.pop_front() {
            let mut at = first;
            while at < end && keys[at].0.len() == depth {
                trie.nodes[node].id = keys[at].1;
                at += 1;
            }
            trie.nodes[node].first_child = trie.nodes.len() as u32;
            while at < end {
                let byte = keys[at].0[depth];
                let same = keys[at..end].partition_point(|(key, _)| key[depth] == byte);
                let child = trie.nodes.len();
                open.push_back((child, at, at + same, depth + 1));
                trie.nodes.push(Node { byte, n_children: 0, first_child: 0, id: NONE });
                trie.nodes[node].n_children += 1;
                at += same;
            }
        }
        for i in trie.children(0) {
            trie.roots[usize::from(trie.nodes[i].byte)] = i as u32;
        }
        trie
    }

    /// The keys that `text` begins with, shortest first: their length and id.
    pub(super) fn prefixes(&self, text: &[u8]) -> impl Iterator<Item = (usize, u32)> {
        self.walk(text).filter_map(|(len, node)| {
            let id = self.nodes[node].id;
            (id != NONE).then_some((len, id))
        })
    }

    /// The longest beginning of `text` that also begins a key.
    pub(super) fn longest_partial(&self, text: &[u8]) -> usize {
        self.walk(text).last().map_or(0, |(len, _)| len)
    }

    fn walk(&self, text: &[u8]) -> impl Iterator<Item = (usize, usize)> {
        let root =
            text.first().map_or(NONE, |&b| self.roots.get(usize::from(b)).copied().unwrap_or(NONE));
        let first = (root != NONE).then_some((1, root as usize));
        std::iter::successors(first, move |&(len, node)| {
            let byte = *text.get(len)?;
            let children = self.children(node);
            let i = self.nodes[children.clone()].binary_search_by_key(&byte, |n| n.byte).ok()?;
            Some((len + 1, children.start + i))
        })
    }

    fn children(&self, node: usize) -> std::ops::Range<usize> {
        let Node { first_child, n_children, .. } = self.nodes[node];
        first_child as usize..first_child as usize + usize::from(n_children)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn finds_what_starts_with_finds(
            keys in prop::collection::vec("[abc]{0,4}", 0..20),
            text in "[abcd]{0,8}",
        ) {
            let trie = Trie::new(keys.iter().zip(0..).map(|(k, id)| (k.as_bytes(), id)));
            let found: Vec<_> = trie.prefixes(text.as_bytes()).collect();
            let mut expected: Vec<_> = (0..keys.len())
                .filter(|&i| !keys[i].is_empty() && text.starts_with(&keys[i]))
                .filter(|&i| !keys[i + 1..].contains(&keys[i]))
                .map(|i| (keys[i].len(), i as u32))
                .collect();
            expected.sort_unstable();
            prop_assert_eq!(found, expected);
            let partial = (0..=text.len())
                .rev()
                .find(|&n| n == 0 || keys.iter().any(|k| k.starts_with(&text[..n])))
                .unwrap_or(0);
            prop_assert_eq!(trie.longest_partial(text.as_bytes()), partial);
        }
    }
}
