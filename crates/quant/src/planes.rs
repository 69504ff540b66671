//! Small unsigned integers packed into bytes, plane by plane.
//!
//! Most formats store their 1, 2 or 4-bit integers in the same way. The bytes come in groups, and
//! plane `p` of a group, that is bits `p * BITS ..` of each of its bytes, holds consecutive
//! values. With two bits and groups of 32 bytes (Q2_K):
//!
//! ```text
//!          bits 0-1       bits 2-3         bits 4-5         bits 6-7
//! byte  0  value 0        value 32         value 64         value 96     ┐
//! byte  1  value 1        value 33         value 65         value 97     │ group 0
//!   ⋮                                                                    │
//! byte 31  value 31       value 63         value 95         value 127    ┘
//! byte 32  value 128      …                                                group 1
//! ```
//!
//! A plane is a shift and a mask of the whole group, which vectorises; groups of one byte are the
//! plain little-endian bit order.

/// Unpacks `N` bytes into `LEN` values of `BITS` bits.
#[inline(always)]
pub(crate) fn unpack<const BITS: usize, const GROUP: usize, const N: usize, const LEN: usize>(
    packed: &[u8; N],
) -> [u8; LEN] {
    const { assert!(8 % BITS == 0 && N.is_multiple_of(GROUP) && LEN == N * (8 / BITS)) };
    let mut values = [0; LEN];
    let (groups, _) = packed.as_chunks::<GROUP>();
    let (planes, _) = values.as_chunks_mut::<GROUP>();
    for (group, planes) in groups.iter().zip(planes.chunks_exact_mut(8 / BITS)) {
        for (p, plane) in planes.iter_mut().enumerate() {
            for (value, byte) in plane.iter_mut().zip(group) {
                *value = (byte >> (p * BITS)) & mask::<BITS>();
            }
        }
    }
    values
}

/// The reverse of [`unpack`]. Bits of a value above the lowest `BITS` are dropped.
#[inline(always)]
pub(crate) fn pack<const BITS: usize, const GROUP: usize, const N: usize, const LEN: usize>(
    values: &[u8; LEN],
) -> [u8; N] {
    const { assert!(8 % BITS == 0 && N.is_multiple_of(GROUP) && LEN == N * (8 / BITS)) };
    let mut packed = [0; N];
    let (groups, _) = packed.as_chunks_mut::<GROUP>();
    let (planes, _) = values.as_chunks::<GROUP>();
    for (group, planes) in groups.iter_mut().zip(planes.chunks_exact(8 / BITS)) {
        for (p, plane) in planes.iter().enumerate() {
            for (byte, value) in group.iter_mut().zip(plane) {
                *byte |= (value & mask::<BITS>()) << (p * BITS);
            }
        }
    }
    packed
}

const fn mask<const BITS: usize>() -> u8 {
    u8::MAX >> (8 - BITS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn planes_lie_where_the_diagram_says() {
        let mut packed = [0u8; 64];
        packed[1] = 0b11_10_01_00;
        packed[32] = 0b00_00_00_11;
        let values: [u8; 256] = unpack::<2, 32, _, _>(&packed);
        let set: Vec<_> = values.iter().enumerate().filter(|(_, v)| **v != 0).collect();
        assert_eq!(set, [(33, &1), (65, &2), (97, &3), (128, &3)]);

        assert_eq!(unpack::<1, 1, 1, 8>(&[0b1000_0110]), [0, 1, 1, 0, 0, 0, 0, 1]);
        assert_eq!(unpack::<4, 2, 2, 4>(&[0x21, 0x43]), [1, 3, 2, 4]);
    }

    #[test]
    fn pack_reverses_unpack() {
        let bytes: [u8; 64] = std::array::from_fn(|i| (i * 37 + 11) as u8);
        assert_eq!(pack::<1, 1, 64, 512>(&unpack::<1, 1, _, _>(&bytes)), bytes);
        assert_eq!(pack::<2, 32, 64, 256>(&unpack::<2, 32, _, _>(&bytes)), bytes);
        assert_eq!(pack::<4, 16, 64, 128>(&unpack::<4, 16, _, _>(&bytes)), bytes);
        assert_eq!(pack::<4, 64, 64, 128>(&unpack::<4, 64, _, _>(&bytes)), bytes);
    }
}
