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
    // The name in parentheses may hold anything; user and system time are the 12th and 13th field after it.
    let rest = text.rsplit_once(')').unwrap().1;
    let ticks: u64 =
        rest.split_whitespace().skip(11).take(2).map(|field| field.parse::<u64>().unwrap()).sum();
    Duration::from_millis(ticks * 1000 / TICKS_PER_SECOND)
}
