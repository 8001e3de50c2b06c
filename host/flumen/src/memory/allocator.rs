//! What the allocator keeps for later goes back to the system.

use std::ffi::CStr;
use std::ptr;

/// `arena.I.purge` for all arenas: I is jemalloc's `MALLCTL_ARENAS_ALL`.
const PURGE: &CStr = c"arena.4096.purge";

/// Gives back what is free. jemalloc does so by itself some ten seconds later, but only while somebody allocates: an agent whose sources
/// wait may have given up everything and still have it. False: the allocator refused.
#[allow(unsafe_code)]
pub fn give_back() -> bool {
    // SAFETY: the name ends with a NUL and is never freed. The control neither reads nor writes a value, and refuses pointers to one
    // (jemalloc, `arena_i_purge_ctl`); like all controls it may be called from any thread, beside any allocation.
    let code = unsafe {
        tikv_jemalloc_sys::mallctl(PURGE.as_ptr(), ptr::null_mut(), ptr::null_mut(), ptr::null_mut(), 0)
    };
    code == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::machine::own_bytes;

    #[test]
    fn what_is_free_goes_back_at_once() {
        // Blocks below the size from which jemalloc keeps nothing.
        let blocks: Vec<Vec<u8>> = (0..64).map(|_| vec![1; 1 << 20]).collect();
        std::hint::black_box(&blocks);
        let taken = own_bytes().unwrap();
        drop(blocks);
        assert!(give_back());
        let left = own_bytes().unwrap();
        assert!(left + (40 << 20) < taken, "{taken} bytes, then {left}");
    }
}
