//! Registers in an XSAVE area of the standard form (SDM volume 1, 10.5.1 and 13.4).
//!
//! A component whose bit in XSTATE_BV is clear is in its initial state, whatever its bytes are: a register is read as that,
//! and one that is written sets the bit, else the CPU would not load it.

use super::Reg;
use super::fpu::{abridged_tags, full_tags};

/// The longest of the registers.
const LONGEST: usize = 16;
const XSTATE_BV: usize = 512;
/// Components of XSTATE_BV.
const X87: u64 = 1;
const SSE: u64 = 1 << 1;
const AVX: u64 = 1 << 2;

const FCW: usize = 0;
const FSW: usize = 2;
/// The abridged tag word, one bit for each register.
const FTW: usize = 4;
const FOP: usize = 6;
const FIP: usize = 8;
const FDP: usize = 16;
const MXCSR: usize = 24;
const ST: usize = 32;
const XMM: usize = 160;
const YMM_H: usize = 576;

/// The x87 control word after FNINIT, and MXCSR after reset.
const INITIAL_FCW: [u8; 2] = [0x7f, 0x03];
const INITIAL_MXCSR: [u8; 4] = [0x80, 0x1f, 0, 0];

/// Where a register is, how many bytes of it are there, and its component.
fn place(reg: Reg) -> Option<(usize, usize, u64)> {
    let at = |base: usize, n: u8| base + LONGEST * usize::from(n);
    Some(match reg {
        Reg::St(n @ 0..8) => (at(ST, n), 10, X87),
        Reg::Xmm(n @ 0..16) => (at(XMM, n), LONGEST, SSE),
        Reg::YmmH(n @ 0..16) => (at(YMM_H, n), LONGEST, AVX),
        Reg::Mxcsr => (MXCSR, 4, SSE),
        Reg::Fctrl => (FCW, 2, X87),
        Reg::Fstat => (FSW, 2, X87),
        Reg::Ftag => (FTW, 1, X87),
        Reg::Fop => (FOP, 2, X87),
        Reg::Fioff => (FIP, 4, X87),
        Reg::Fiseg => (FIP + 4, 4, X87),
        Reg::Fooff => (FDP, 4, X87),
        Reg::Foseg => (FDP + 4, 4, X87),
        _ => return None,
    })
}

/// The value of an x87, SSE or AVX register, zeros behind it. `None` for any other, and in an area that is too short.
pub fn read(area: &[u8], reg: Reg) -> Option<[u8; LONGEST]> {
    let (start, length, component) = place(reg)?;
    let mut value = [0; LONGEST];
    let bytes: &[u8] = match reg {
        // Whoever writes an area has set it, with AVX alone as well.
        Reg::Mxcsr => area.get(start..start + length)?,
        _ if components(area)? & component != 0 => area.get(start..start + length)?,
        Reg::Fctrl => &INITIAL_FCW,
        _ => &[],
    };
    value.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
    if reg == Reg::Ftag {
        let tags = if bytes.is_empty() { u16::MAX } else { tags(area)? };
        value.iter_mut().zip(tags.to_le_bytes()).for_each(|(to, from)| *to = from);
    }
    Some(value)
}

/// Writes such a register. Answers false, and writes nothing, for any other, and in an area that is too short.
pub fn write(area: &mut [u8], reg: Reg, value: &[u8]) -> bool {
    let Some((start, length, component)) = place(reg) else { return false };
    if area.len() < start + length || begin(area, component).is_none() {
        return false;
    }
    let tags = value.first_chunk().map_or(u16::MAX, |bytes| u16::from_le_bytes(*bytes));
    let abridged = [abridged_tags(tags)];
    let bytes = if reg == Reg::Ftag { &abridged[..] } else { value };
    area.iter_mut().skip(start).take(length).zip(bytes).for_each(|(to, from)| *to = *from);
    true
}

fn components(area: &[u8]) -> Option<u64> {
    Some(u64::from_le_bytes(*area.get(XSTATE_BV..)?.first_chunk()?))
}

/// Makes a component one that the CPU loads, from its initial state if it is in that.
fn begin(area: &mut [u8], component: u64) -> Option<()> {
    let before = components(area)?;
    if before & component == 0 {
        let (start, end) = match component {
            X87 => (FCW, MXCSR),
            SSE => (XMM, XMM + 16 * LONGEST),
            _ => (YMM_H, YMM_H + 16 * LONGEST),
        };
        area.get_mut(start..end)?.fill(0);
        if component == X87 {
            area.get_mut(ST..XMM)?.fill(0);
            area.get_mut(..2)?.copy_from_slice(&INITIAL_FCW);
        }
        // It is that of AVX as well, and loaded with either.
        if component == SSE && before & AVX == 0 {
            area.get_mut(MXCSR..MXCSR + 4)?.copy_from_slice(&INITIAL_MXCSR);
        }
    }
    area.get_mut(XSTATE_BV..XSTATE_BV + 8)?.copy_from_slice(&(before | component).to_le_bytes());
    Some(())
}

fn tags(area: &[u8]) -> Option<u16> {
    let status = u16::from_le_bytes(*area.get(FSW..)?.first_chunk()?);
    let mut st = [[0; LONGEST]; 8];
    for (to, from) in st.iter_mut().zip(area.get(ST..)?.chunks_exact(LONGEST)) {
        to.copy_from_slice(from);
    }
    Some(full_tags(*area.get(FTW)?, status, &st))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn all() -> impl Iterator<Item = Reg> {
        let all = [&Reg::CORE[24..], &Reg::SSE, &Reg::AVX];
        all.into_iter().flatten().copied()
    }

    #[test]
    fn what_is_written_is_read_and_loaded() {
        for reg in all() {
            let mut area = vec![0; 4096];
            // What a component in its initial state has in memory is of no account.
            area[..512].fill(0xee);
            area[MXCSR..MXCSR + 4].copy_from_slice(&INITIAL_MXCSR);
            let size = if matches!(reg, Reg::Fctrl | Reg::Fstat | Reg::Fop) { 2 } else { reg.size() };
            let mut value = vec![0; reg.size()];
            value[..size].fill(if reg == Reg::Ftag { 0xff } else { 0x12 });
            if reg == Reg::Ftag {
                value[2..].fill(0);
            }
            assert!(write(&mut area, reg, &value), "{reg}");
            assert_eq!(read(&area, reg).unwrap()[..reg.size()], value, "{reg}");
            assert_ne!(area[XSTATE_BV], 0, "{reg}");
        }
    }

    #[test]
    fn a_component_in_its_initial_state_has_its_initial_values() {
        let mut area = vec![0xee; 4096];
        area[XSTATE_BV..XSTATE_BV + 8].fill(0);
        let word = |area: &[u8], reg| u32::from_le_bytes(*read(area, reg).unwrap().first_chunk().unwrap());
        assert_eq!((word(&area, Reg::Fctrl), word(&area, Reg::Ftag)), (0x37f, 0xffff));
        assert_eq!((word(&area, Reg::Xmm(3)), word(&area, Reg::YmmH(15)), word(&area, Reg::St(7))), (0, 0, 0));
        assert!(write(&mut area, Reg::Xmm(3), &[1; 16]));
        assert_eq!((word(&area, Reg::Xmm(4)), word(&area, Reg::Mxcsr)), (0, 0x1f80));
    }

    #[test]
    fn others_and_short_areas_have_none() {
        assert!(read(&[0; 4096], Reg::Rax).is_none() && !write(&mut [0; 4096], Reg::Rip, &[1; 8]));
        assert!(read(&[0; 100], Reg::Fctrl).is_none() && !write(&mut [0; 519], Reg::Fctrl, &[1; 4]));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read(area in proptest::collection::vec(any::<u8>(), 0..900), value: [u8; 16]) {
            for reg in all() {
                let _ = read(&area, reg);
                let mut area = area.clone();
                if write(&mut area, reg, &value) && reg != Reg::Ftag {
                    let (_, length, _) = place(reg).unwrap();
                    prop_assert_eq!(&read(&area, reg).unwrap()[..length], &value[..length]);
                }
            }
        }
    }
}
