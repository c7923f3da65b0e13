//! Times and sizes as people read them.

use std::time::UNIX_EPOCH;

/// `812ms`, `2.31s`, `1m04s`.
pub fn milliseconds(ms: u64) -> String {
    micros(ms.saturating_mul(1_000))
}

/// `740µs`, `812ms`, `2.31s`, `1m04s`.
pub fn micros(us: u64) -> String {
    match us {
        0 => "0".to_owned(),
        1..=999 => format!("{us}µs"),
        1_000..=9_999 if !us.is_multiple_of(1_000) => {
            format!("{}.{}ms", us / 1_000, us % 1_000 / 100)
        }
        1_000..=999_999 => format!("{}ms", us / 1_000),
        1_000_000..=59_999_999 => format!("{}.{:02}s", us / 1_000_000, us % 1_000_000 / 10_000),
        _ => format!("{}m{:02}s", us / 60_000_000, us / 1_000_000 % 60),
    }
}

/// `512B`, `64.3MiB`.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if count < 1024 {
        return format!("{count}B");
    }
    let mut unit = 0;
    let mut size: u128 = 1024;
    while u128::from(count) >= size * 1024 && unit + 1 < UNITS.len() {
        size *= 1024;
        unit += 1;
    }
    let tenths = (u128::from(count) * 10 + size / 2) / size;
    format!("{}.{}{}", tenths / 10, tenths % 10, UNITS[unit])
}

/// An age as kubectl shows it: `42s`, `7m3s`, `3h12m`, `5d`.
pub fn age(seconds: u64) -> String {
    match seconds {
        0..=119 => format!("{seconds}s"),
        120..=599 => format!("{}m{}s", seconds / 60, seconds % 60),
        600..=10_799 => format!("{}m", seconds / 60),
        10_800..=172_799 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// Microseconds since 1970 of an RFC 3339 time; `None` when it is none.
pub fn unix_micros(rfc3339: &str) -> Option<u64> {
    let time = humantime::parse_rfc3339(rfc3339).ok()?;
    let since = time.duration_since(UNIX_EPOCH).ok()?;
    u64::try_from(since.as_micros()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_keep_three_digits() {
        let shown = [0, 740, 1_000, 1_500, 812_400, 2_310_000, 64_000_000].map(micros);
        assert_eq!(
            shown,
            ["0", "740µs", "1ms", "1.5ms", "812ms", "2.31s", "1m04s"]
        );
    }

    #[test]
    fn sizes_change_unit_at_1024() {
        let shown = [0, 1023, 1024, 67_424_256, 1 << 40, u64::MAX].map(bytes);
        assert_eq!(
            shown,
            ["0B", "1023B", "1.0KiB", "64.3MiB", "1.0TiB", "16384.0PiB"]
        );
    }

    #[test]
    fn a_time_keeps_its_milliseconds_and_what_is_none_is_none() {
        assert_eq!(
            unix_micros("2026-11-24T11:00:00.250Z"),
            Some(1_795_518_000_250_000)
        );
        assert_eq!(unix_micros("soon"), None);
    }
}
