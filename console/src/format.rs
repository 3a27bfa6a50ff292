//! Times and numbers as people read them.

use chrono::{DateTime, TimeDelta, Utc};

/// "2.3 s", "4 min 12 s", "3 h 5 min", "2 d 4 h".
pub fn duration(duration: TimeDelta) -> String {
    let milliseconds = duration.num_milliseconds().max(0);
    let seconds = milliseconds / 1000;
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    if milliseconds < 59_950 {
        let tenths = (milliseconds + 50) / 100;
        format!("{}.{} s", tenths / 10, tenths % 10)
    } else if seconds < 60 {
        "1 min 0 s".to_owned()
    } else if hours == 0 {
        format!("{minutes} min {} s", seconds % 60)
    } else if days == 0 {
        format!("{hours} h {} min", minutes % 60)
    } else {
        format!("{days} d {} h", hours % 24)
    }
}

/// How long something runs so far, to the second: "39 s".
pub fn running(so_far: TimeDelta) -> String {
    let seconds = so_far.num_seconds().max(0);
    if seconds < 60 { format!("{seconds} s") } else { duration(TimeDelta::seconds(seconds)) }
}

/// How long ago `time` was: "3 min ago". What is more than a month ago, or to come, is a date.
pub fn ago(time: DateTime<Utc>, now: DateTime<Utc>) -> String {
    let past = now - time;
    match (past.num_minutes(), past.num_hours(), past.num_days()) {
        _ if past < TimeDelta::zero() => self::time(time),
        (0, ..) => "just now".to_owned(),
        (minutes, 0, _) => format!("{minutes} min ago"),
        (_, hours, 0) => format!("{hours} h ago"),
        (.., days @ ..30) => format!("{days} d ago"),
        _ => self::time(time),
    }
}

/// "1,245".
pub fn count(number: i64) -> String {
    let digits = number.unsigned_abs().to_string();
    let mut text = String::new();
    for (position, digit) in digits.chars().enumerate() {
        if position > 0 && (digits.len() - position).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    if number < 0 { format!("-{text}") } else { text }
}

/// A time to the second: "2026-11-23 18:58:18".
pub fn time(time: DateTime<Utc>) -> String {
    time.format("%Y-%m-%d %H:%M:%S").to_string()
}

/// A time as machines read it, to the microsecond.
pub fn machine_time(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(chrono::SecondsFormat::Micros, true)
}

/// The address `path` with those of `parameters` that have a value.
pub fn address(path: &str, parameters: &[(&str, &str)]) -> String {
    let mut query = form_urlencoded::Serializer::new(String::new());
    query.extend_pairs(parameters.iter().filter(|(_, value)| !value.is_empty()));
    let query = query.finish();
    if query.is_empty() { path.to_owned() } else { format!("{path}?{query}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (milliseconds, text) in [
            (-5, "0.0 s"),
            (0, "0.0 s"),
            (2_349, "2.3 s"),
            (2_350, "2.4 s"),
            (59_949, "59.9 s"),
            (59_950, "1 min 0 s"),
            (252_999, "4 min 12 s"),
            (11_100_000, "3 h 5 min"),
            (187_200_000, "2 d 4 h"),
        ] {
            assert_eq!(duration(TimeDelta::milliseconds(milliseconds)), text);
        }
    }

    #[test]
    fn running_durations() {
        for (milliseconds, text) in
            [(-5, "0 s"), (39_999, "39 s"), (59_999, "59 s"), (60_000, "1 min 0 s")]
        {
            assert_eq!(running(TimeDelta::milliseconds(milliseconds)), text);
        }
    }

    #[test]
    fn how_long_ago() {
        let now = DateTime::UNIX_EPOCH + TimeDelta::days(1000);
        for (seconds, text) in [
            (-1, "1972-09-27 00:00:01"),
            (59, "just now"),
            (60, "1 min ago"),
            (7_199, "1 h ago"),
            (86_400, "1 d ago"),
            (86_400 * 30 - 1, "29 d ago"),
            (86_400 * 30, "1972-08-28 00:00:00"),
        ] {
            assert_eq!(ago(now - TimeDelta::seconds(seconds), now), text);
        }
    }

    #[test]
    fn counts() {
        for (number, text) in [(0, "0"), (999, "999"), (1000, "1,000"), (-1_234_567, "-1,234,567")]
        {
            assert_eq!(count(number), text);
        }
    }
}
