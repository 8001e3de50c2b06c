//! What the system says of memory: what this process has of its own, and what it could have at most.

use std::fs;
use std::path::Path;

/// What a process can have here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    /// All of it.
    pub bytes: u64,
    /// It is less than the machine has: the kernel ends who takes more.
    pub is_of_cgroup: bool,
}

/// Memory of this process alone. Pages of files (mapped plugins, the page cache) are not in it: the system takes them back as it likes.
/// `None`: there is no /proc.
pub fn own_bytes() -> Option<u64> {
    kib(&fs::read_to_string("/proc/self/status").ok()?, "RssAnon:")
}

/// The machine's memory, or the limit of a cgroup of this process, if that is less.
pub fn limit() -> Option<Limit> {
    limit_of(Path::new("/"))
}

fn limit_of(root: &Path) -> Option<Limit> {
    let machine = fs::read_to_string(root.join("proc/meminfo")).ok();
    let machine = machine.and_then(|text| kib(&text, "MemTotal:"));
    let machine = machine.map(|bytes| Limit { bytes, is_of_cgroup: false });
    let cgroups = cgroup_limits(root).into_iter().map(|bytes| Limit { bytes, is_of_cgroup: true });
    machine.into_iter().chain(cgroups).min_by_key(|limit| limit.bytes)
}

/// The limits of this process's cgroup and of those above it, of which each counts; of version 2 and of version 1 (cgroups(7)). In a
/// container it is the root that has the limit, and the path may be one of the machine's, which is not there.
fn cgroup_limits(root: &Path) -> Vec<u64> {
    let text = fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    let mut limits = Vec::new();
    for line in text.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
        let (mount, file) = match controllers {
            "" => ("sys/fs/cgroup", "memory.max"),
            several if several.split(',').any(|name| name == "memory") => {
                ("sys/fs/cgroup/memory", "memory.limit_in_bytes")
            }
            _ => continue,
        };
        for group in Path::new(path.trim_start_matches('/')).ancestors() {
            let limit = fs::read_to_string(root.join(mount).join(group).join(file)).unwrap_or_default();
            // No limit is the word `max`, or a number that is beyond any machine.
            limits.extend(limit.trim().parse::<u64>());
        }
    }
    limits
}

/// A line `NAME 12345 kB` of /proc, in bytes.
fn kib(text: &str, name: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
    rest.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMINFO: &str = "MemTotal:        4194304 kB\nMemFree:          1000000 kB\n";
    const MACHINE: Limit = Limit { bytes: 4 << 30, is_of_cgroup: false };

    fn limit_with(files: &[(&str, &str)]) -> Option<Limit> {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        limit_of(root.path())
    }

    #[test]
    fn the_least_limit_counts() {
        let machine = ("proc/meminfo", MEMINFO);
        let of_cgroup = |bytes: u64| Some(Limit { bytes, is_of_cgroup: true });
        assert_eq!(limit_with(&[]), None);
        assert_eq!(limit_with(&[machine]), Some(MACHINE));
        // Version 2: a limit of the group, of one above it, and none.
        let v2 = ("proc/self/cgroup", "0::/system.slice/flumen.service\n");
        let own = "sys/fs/cgroup/system.slice/flumen.service/memory.max";
        let above = "sys/fs/cgroup/system.slice/memory.max";
        assert_eq!(limit_with(&[machine, v2, (own, "1073741824\n")]), of_cgroup(1 << 30));
        let both = [machine, v2, (own, "1073741824\n"), (above, "536870912\n")];
        assert_eq!(limit_with(&both), of_cgroup(512 << 20));
        assert_eq!(limit_with(&[machine, v2, (own, "max\n"), (above, "max\n")]), Some(MACHINE));
        // More than the machine has.
        assert_eq!(limit_with(&[machine, v2, (own, "8589934592\n")]), Some(MACHINE));
        // Version 1, in a container: the path is the machine's, the limit at the root.
        let v1 = ("proc/self/cgroup", "5:cpu,cpuacct:/docker/1\n4:memory:/docker/1\n0::/\n");
        let root = "sys/fs/cgroup/memory/memory.limit_in_bytes";
        assert_eq!(limit_with(&[machine, v1, (root, "268435456\n")]), of_cgroup(256 << 20));
        assert_eq!(limit_with(&[machine, v1, (root, "9223372036854771712\n")]), Some(MACHINE));
    }

    #[test]
    fn this_process_has_memory_of_its_own() {
        let bytes = own_bytes().unwrap();
        assert!(bytes > 100 << 10 && Some(bytes) < limit().map(|limit| limit.bytes), "{bytes}");
    }
}
