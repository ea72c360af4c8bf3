//! Numbers as people read them.

/// Bytes in binary units, three digits at most: `0 B`, `1.5 KiB`, `200 MiB`.
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    // 999.95 would print as 1000.0.
    while value >= 999.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    match unit {
        0 => format!("{bytes} B"),
        _ if value >= 99.95 => format!("{value:.0} {}", UNITS[unit]),
        _ => format!("{value:.1} {}", UNITS[unit]),
    }
}

/// A stretch of time in its two largest units: `0s`, `59s`, `1m 05s`, `2h 03m`, `3d 04h`.
pub(crate) fn duration(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m {:02}s", seconds % 60),
        (0, _, _) => format!("{hours}h {:02}m", minutes % 60),
        _ => format!("{days}d {:02}h", hours % 24),
    }
}

/// A moment without its fraction: `2026-11-21 03:04:05`.
pub(crate) fn moment(rfc3339: &str) -> String {
    let whole = rfc3339.split(['.', 'Z', '+']).next().unwrap_or(rfc3339);
    whole.replacen('T', " ", 1)
}

/// Text that may hold anything, made safe for a terminal: what would move the cursor is shown escaped.
pub(crate) fn safe(text: &str) -> String {
    text.chars()
        .flat_map(|c| {
            let escaped = c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
            if escaped { c.escape_default().collect::<Vec<_>>() } else { vec![c] }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_keep_three_digits() {
        for (bytes, text) in [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1.0 KiB"),
            (1536, "1.5 KiB"),
            (209_715_200, "200 MiB"),
            (1 << 30, "1.0 GiB"),
            (u64::MAX, "16.0 EiB"),
        ] {
            assert_eq!(size(bytes), text);
        }
    }

    #[test]
    fn durations_have_two_units() {
        for (seconds, text) in
            [(0, "0s"), (59, "59s"), (65, "1m 05s"), (3600, "1h 00m"), (7380, "2h 03m"), (273_600, "3d 04h")]
        {
            assert_eq!(duration(seconds), text);
        }
    }

    #[test]
    fn moments_lose_their_fraction() {
        assert_eq!(moment("2026-11-21T03:04:05.123456Z"), "2026-11-21 03:04:05");
    }

    #[test]
    fn names_cannot_move_the_cursor() {
        assert_eq!(safe("a\u{1b}[2Jb\nc é"), "a\\u{1b}[2Jb\\nc é");
    }
}
