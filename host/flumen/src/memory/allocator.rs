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
    use std::process::Command;

    use super::*;
    use crate::memory::machine::own_bytes;

    const ALONE: &str = "FLUMEN_TEST_ALONE";

    /// In a process of its own: other tests take memory between the two looks at what all of them have.
    #[test]
    fn what_is_free_goes_back_at_once() {
        if std::env::var_os(ALONE).is_some() {
            return gives_back();
        }
        let name = concat!(module_path!(), "::what_is_free_goes_back_at_once");
        let (_, name) = name.split_once("::").unwrap();
        let mut alone = Command::new(std::env::current_exe().unwrap());
        let output = alone.args(["--exact", name, "--nocapture"]).env(ALONE, "1").output().unwrap();
        let (said, errors) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success() && said.contains("1 passed"), "{said}{errors}");
    }

    fn gives_back() {
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
