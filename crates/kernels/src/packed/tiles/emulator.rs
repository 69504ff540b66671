//! AMX for processors without it: the few instructions that this crate has, executed when they trap.
//!
//! Tests only. What it cannot decode ends the process as it would without a handler.

use std::cell::UnsafeCell;
use std::sync::Once;

const TILES: usize = 8;
const ROWS: usize = 16;
const ROW_BYTES: usize = 64;

/// A thread's tile registers.
struct File {
    row_bytes: [usize; TILES],
    rows: [usize; TILES],
    tiles: [[[u8; ROW_BYTES]; ROWS]; TILES],
}

thread_local! {
    static FILE: UnsafeCell<File> = const {
        UnsafeCell::new(File {
            row_bytes: [0; TILES],
            rows: [0; TILES],
            tiles: [[[0; ROW_BYTES]; ROWS]; TILES],
        })
    };
}

/// From here on, AMX instructions that trap are emulated.
pub(crate) fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: the handler has the signature that `SA_SIGINFO` asks for.
        let failed = unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = on_trap as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO;
            libc::sigaction(libc::SIGILL, &raw const action, std::ptr::null_mut())
        };
        assert_eq!(failed, 0, "the handler of SIGILL");
    });
}

extern "C" fn on_trap(signal: libc::c_int, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes the context of the instruction that trapped, on this thread; its
    // bytes can be read, since the processor has.
    unsafe {
        let context = &mut *context.cast::<libc::ucontext_t>();
        let registers = &mut context.uc_mcontext.gregs;
        let code = registers[libc::REG_RIP as usize] as *const u8;
        match FILE.with(|file| step(&mut *file.get(), code, registers)) {
            Some(len) => registers[libc::REG_RIP as usize] += len,
            None => {
                // The instruction runs again, and ends the process.
                libc::signal(signal, libc::SIG_DFL);
            }
        }
    }
}

/// Registers in the order of their numbers.
const REGISTERS: [libc::c_int; 16] = [
    libc::REG_RAX,
    libc::REG_RCX,
    libc::REG_RDX,
    libc::REG_RBX,
    libc::REG_RSP,
    libc::REG_RBP,
    libc::REG_RSI,
    libc::REG_RDI,
    libc::REG_R8,
    libc::REG_R9,
    libc::REG_R10,
    libc::REG_R11,
    libc::REG_R12,
    libc::REG_R13,
    libc::REG_R14,
    libc::REG_R15,
];

/// Executes the instruction at `code`; its length, or `None` if it is none of ours.
unsafe fn step(file: &mut File, code: *const u8, registers: &[i64; 23]) -> Option<i64> {
    // SAFETY: the bytes are read one after the other, as far as an instruction goes.
    let byte = |at: usize| unsafe { code.add(at).read() };
    let register = |number: u8| registers[REGISTERS[usize::from(number)] as usize];
    // Three bytes of VEX: 128 bit, W = 0, opcodes 0F 38.
    let (first, second) = (byte(1), byte(2));
    if byte(0) != 0xc4 || first & 0x1f != 2 || second & 0x84 != 0 {
        return None;
    }
    let (x, b) = (!first >> 6 & 1, !first >> 5 & 1);
    let source = usize::from(!second >> 3 & 15);
    let (prefix, opcode, modrm) = (second & 3, byte(3), byte(4));
    let (mode, reg, rm) = (modrm >> 6, usize::from(modrm >> 3 & 7), modrm & 7);

    // The operand in memory: address without index, and index, which tile loads take for a stride.
    let mut len = 5;
    let (mut address, mut stride) = (0, 0);
    if mode != 3 {
        let mut base = rm;
        if rm == 4 {
            let sib = byte(len);
            len += 1;
            base = sib & 7;
            let index = sib >> 3 & 7 | x << 3;
            if index != 4 {
                stride = register(index) << (sib >> 6);
            }
        }
        if mode == 0 && base == 5 {
            return None; // relative to the instruction, or without a base
        }
        let displacement = match mode {
            0 => 0,
            1 => i64::from(byte(len) as i8),
            _ => i64::from(i32::from_le_bytes(std::array::from_fn(|i| byte(len + i)))),
        };
        len += [0, 1, 4][usize::from(mode)];
        address = register(base | b << 3) + displacement;
    }

    assert!(first & 0x80 != 0 && source < TILES, "there are 8 tiles");
    assert!(opcode != 0x4b || rm == 4, "tiles are loaded and stored with a stride");
    assert!(matches!(opcode, 0x5c | 0x5e) || source == 0, "a factor of no product");
    const NONE: u8 = 0;
    const F3: u8 = 2;
    const F2: u8 = 3;
    match (opcode, prefix, mode) {
        // tilerelease
        (0x49, NONE, 3) if modrm == 0xc0 => file.rows = [0; TILES],
        // tilezero
        (0x49, F2, 3) if rm == 0 => {
            assert!(file.rows[reg] > 0, "tile {reg} is not configured");
            file.tiles[reg] = [[0; ROW_BYTES]; ROWS];
        }
        // ldtilecfg
        (0x49, NONE, _) if reg == 0 => {
            // SAFETY: the instruction reads 64 bytes.
            let config = unsafe { ((address + stride) as *const [u8; 64]).read_unaligned() };
            assert_eq!(config[0], 1, "palette");
            for zeros in [1..16, 16 + 2 * TILES..48, 48 + TILES..64] {
                assert!(config[zeros].iter().all(|byte| *byte == 0), "reserved bytes");
            }
            for i in 0..TILES {
                file.row_bytes[i] =
                    usize::from(u16::from_le_bytes([config[16 + 2 * i], config[17 + 2 * i]]));
                file.rows[i] = usize::from(config[48 + i]);
                assert!(file.row_bytes[i] <= ROW_BYTES && file.rows[i] <= ROWS, "tile {i}");
                assert_eq!(file.row_bytes[i] == 0, file.rows[i] == 0, "tile {i}");
            }
            file.tiles = [[[0; ROW_BYTES]; ROWS]; TILES];
        }
        // tileloadd
        (0x4b, F2, 0..3) => {
            assert!(file.rows[reg] > 0, "tile {reg} is not configured");
            file.tiles[reg] = [[0; ROW_BYTES]; ROWS];
            for row in 0..file.rows[reg] {
                let from = (address + row as i64 * stride) as *const u8;
                // SAFETY: the instruction reads these bytes.
                unsafe {
                    from.copy_to_nonoverlapping(
                        file.tiles[reg][row].as_mut_ptr(),
                        file.row_bytes[reg],
                    );
                }
            }
        }
        // tilestored
        (0x4b, F3, 0..3) => {
            assert!(file.rows[reg] > 0, "tile {reg} is not configured");
            for row in 0..file.rows[reg] {
                let to = (address + row as i64 * stride) as *mut u8;
                // SAFETY: the instruction writes these bytes.
                unsafe {
                    to.copy_from_nonoverlapping(file.tiles[reg][row].as_ptr(), file.row_bytes[reg]);
                }
            }
        }
        // tdpbssd
        (0x5e, F2, 3) => {
            let (a, c) = (usize::from(rm), reg);
            assert!(a != c && a != source && c != source, "three tiles");
            assert!(file.rows[c] > 0, "tile {c} is not configured");
            assert_eq!(file.rows[c], file.rows[a], "rows of sums and of the first factor");
            assert_eq!(file.row_bytes[a], 4 * file.rows[source], "values of both factors");
            assert_eq!(file.row_bytes[c], file.row_bytes[source], "columns");
            for m in 0..file.rows[c] {
                for n in 0..file.row_bytes[c] / 4 {
                    let at = 4 * n..4 * n + 4;
                    let sum = &file.tiles[c][m][at.clone()];
                    let mut sum = i32::from_le_bytes(std::array::from_fn(|i| sum[i]));
                    for k in 0..file.row_bytes[a] {
                        let weight = file.tiles[source][k / 4][4 * n + k % 4] as i8;
                        sum += i32::from(file.tiles[a][m][k] as i8) * i32::from(weight);
                    }
                    file.tiles[c][m][at].copy_from_slice(&sum.to_le_bytes());
                }
            }
        }
        // tdpbf16ps
        (0x5c, F3, 3) => {
            let (a, c) = (usize::from(rm), reg);
            assert_eq!(file.rows[c], file.rows[a], "rows of sums and of the first factor");
            assert_eq!(file.row_bytes[a], 4 * file.rows[source], "pairs of both factors");
            assert_eq!(file.row_bytes[c], file.row_bytes[source], "columns");
            // Numbers that have no leading bit count as 0, as factors and as results.
            let flushed = |x: f32| if x.is_subnormal() { 0.0f32.copysign(x) } else { x };
            for m in 0..file.rows[c] {
                for n in 0..file.row_bytes[c] / 4 {
                    let at = 4 * n..4 * n + 4;
                    let mut sums = [0.0f32; 2];
                    for pair in 0..file.row_bytes[a] / 4 {
                        for (half, sum) in sums.iter_mut().enumerate() {
                            let number = |row: &[u8; ROW_BYTES], pair: usize| {
                                let at = 4 * pair + 2 * half;
                                let bits = u16::from_le_bytes([row[at], row[at + 1]]);
                                flushed(f32::from_bits(u32::from(bits) << 16))
                            };
                            let row = number(&file.tiles[a][m], pair);
                            let column = number(&file.tiles[source][pair], n);
                            *sum = flushed(row.mul_add(column, *sum));
                        }
                    }
                    let sum = &file.tiles[c][m][at.clone()];
                    let sum = flushed(f32::from_le_bytes(std::array::from_fn(|i| sum[i])));
                    let sum = flushed(sum + flushed(sums[0] + sums[1]));
                    file.tiles[c][m][at].copy_from_slice(&sum.to_le_bytes());
                }
            }
        }
        _ => return None,
    }
    Some(len as i64)
}
