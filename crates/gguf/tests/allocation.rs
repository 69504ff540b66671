//! How much memory opening a file takes, whatever the file says. One test, because the counter is
//! of the whole process.

use hurtle_gguf::Gguf;
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

struct Counting;

static NOW: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: everything is left to `System`; the counters do not touch the memory. The default
// `realloc` and `alloc_zeroed` come through these two.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let now = NOW.fetch_add(layout.size(), Relaxed) + layout.size();
        PEAK.fetch_max(now, Relaxed);
        // SAFETY: the caller's duties are the same.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the caller's duties are the same.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// Opens the file and gives back whether it could be, and the most memory held meanwhile beyond
/// the file itself.
fn peak(bytes: Vec<u8>) -> (bool, usize) {
    let before = NOW.load(Relaxed);
    PEAK.store(before, Relaxed);
    let opened = Gguf::from_bytes("f", bytes);
    (opened.is_ok(), PEAK.load(Relaxed) - before)
}

fn header(n_tensors: u64, n_keys: u64, rest: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut bytes = b"GGUF\x03\0\0\0".to_vec();
    bytes.extend(n_tensors.to_le_bytes());
    bytes.extend(n_keys.to_le_bytes());
    rest(&mut bytes);
    bytes
}

fn string(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

fn array(ty: u32, n: u64, rest: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    header(0, 1, |out| {
        string(out, "k");
        out.extend(9u32.to_le_bytes());
        out.extend(ty.to_le_bytes());
        out.extend(n.to_le_bytes());
        rest(out);
    })
}

#[test]
fn opening_takes_no_more_than_a_small_multiple_of_the_header() {
    const SLACK: usize = 16 << 10;

    // Counts that promise more than the file holds are not believed.
    for n in [1_000, 1 << 32, 1 << 60, u64::MAX] {
        for bytes in [header(n, 0, |_| ()), header(0, n, |_| ()), header(n, n, |_| ())] {
            let (opened, peak) = peak(bytes);
            assert!(!opened && peak < SLACK, "{n}: {peak}");
        }
        for ty in 0..=12 {
            let (opened, peak) = peak(array(ty, n, |_| ()));
            assert!(!opened && peak < SLACK, "{n} of type {ty}: {peak}");
        }
        let (opened, peak) = peak(array(8, 2, |out| {
            string(out, "text");
            out.extend(n.to_le_bytes());
        }));
        assert!(!opened && peak < SLACK, "string of {n} bytes: {peak}");
    }

    // The files that take the most memory for their size: as many of the smallest things of a kind
    // as fit. The factor is what was seen, rounded up.
    let check = |what: &str, factor: f64, bytes: Vec<u8>| {
        let n_bytes = bytes.len();
        let (opened, peak) = peak(bytes);
        let seen = peak as f64 / n_bytes as f64;
        println!("{what}: {peak} for {n_bytes} bytes, factor {seen:.2}");
        assert!(opened, "{what}");
        assert!(peak as f64 <= factor * n_bytes as f64 + SLACK as f64, "{what}: factor {seen:.2}");
    };
    check("numbers", 1.0, array(12, 100_000, |out| out.resize(out.len() + 800_000, 0)));
    check("bytes", 1.0, array(0, 800_000, |out| out.resize(out.len() + 800_000, 0)));
    check("bools", 1.0, array(7, 800_000, |out| out.resize(out.len() + 800_000, 0)));
    check("empty strings", 2.0, array(8, 100_000, |out| out.resize(out.len() + 800_000, 0)));
    check("strings", 1.7, array(8, 50_000, |out| (0..50_000).for_each(|_| string(out, "abcd"))));
    let empty_arrays = |out: &mut Vec<u8>| out.resize(out.len() + 1_200_000, 0);
    check("empty arrays", 4.0, array(9, 100_000, empty_arrays));
    let keys = header(0, 60_000, |out| {
        for i in 0..60_000 {
            string(out, &format!("{i:x}"));
            out.extend([0; 5]);
        }
    });
    check("keys", 10.0, keys);
    let tensors = header(60_000, 1, |out| {
        string(out, "general.alignment");
        out.extend([4, 0, 0, 0, 1, 0, 0, 0]);
        for i in 0..60_000u64 {
            string(out, &format!("{i:x}"));
            out.extend(0u32.to_le_bytes()); // no dimensions
            out.extend(24u32.to_le_bytes()); // I8
            out.extend(i.to_le_bytes());
        }
        out.resize(out.len() + 60_000, 0);
    });
    check("tensors", 10.0, tensors);

    let vocabulary = array(8, 262_144, |out| {
        (0..262_144).for_each(|i| string(out, &format!("token{i}")));
    });
    check("vocabulary", 1.5, vocabulary);
}
