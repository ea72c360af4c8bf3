//! What a process uses, as the kernel counts it.

use std::fs;
use std::time::Duration;

use rustix::process::Pid;

/// `USER_HZ`: what the kernel counts processor time in for programs, whatever it ticks at itself.
const TICKS_PER_SECOND: u64 = 100;

/// Bytes of memory that a process holds.
pub fn resident(pid: Pid) -> u64 {
    let text = fs::read_to_string(format!("/proc/{}/status", pid.as_raw_nonzero())).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").trim().parse::<u64>().unwrap() * 1024
}

/// Processor time that a process has used.
pub fn cpu(pid: Pid) -> Duration {
    let text = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).unwrap();
    // User and system time are the 12th and 13th field after the name.
    ticks(after_name(&text).skip(11).take(2))
}

/// Processor time of a process and of the children that it has waited for, by what its `/proc/PID/stat` says.
pub fn cpu_of(stat: &str) -> Duration {
    ticks(after_name(stat).skip(11).take(4))
}

/// Processor time that a whole machine has used, by what its `/proc/stat` says.
pub fn cpu_of_machine(stat: &str) -> Duration {
    let line = stat.lines().find_map(|line| line.strip_prefix("cpu ")).unwrap();
    // user nice system idle iowait irq softirq
    let fields = line.split_whitespace().enumerate().filter(|(at, _)| ![3, 4].contains(at));
    ticks(fields.map(|(_, field)| field).take(5))
}

/// The name in parentheses may hold anything.
fn after_name(stat: &str) -> impl Iterator<Item = &str> {
    stat.rsplit_once(')').unwrap().1.split_whitespace()
}

fn ticks<'a>(fields: impl Iterator<Item = &'a str>) -> Duration {
    let ticks: u64 = fields.map(|field| field.parse::<u64>().unwrap()).sum();
    Duration::from_millis(ticks * 1000 / TICKS_PER_SECOND)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_counts_are_read() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4 0 0 0 0 10 20 300 4000 20 0 1 0";
        assert_eq!(cpu_of(stat), Duration::from_millis(43_300));
        let stat = "cpu  1 2 3 1000 2000 4 5 0 0 0\ncpu0 1 2 3 1000 2000 4 5 0 0 0\n";
        assert_eq!(cpu_of_machine(stat), Duration::from_millis(150));
    }
}
