//! A time of day for templates, and `strftime`.

use std::fmt::Write;

/// A point in local time. Templates get it from a [`super::TemplateClock`], since this crate has no clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LocalTime {
    /// Seconds since 1970-01-01 00:00 of the local calendar.
    local_seconds: i64,
    /// Seconds east of UTC.
    offset: i32,
}

const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

struct Date {
    year: i64,
    month: usize,
    day: i64,
    /// From 0.
    day_of_year: i64,
}

impl LocalTime {
    /// From seconds since the epoch in UTC, and seconds east of UTC.
    pub fn from_unix(seconds: i64, offset: i32) -> Self {
        Self { local_seconds: seconds.saturating_add(i64::from(offset)), offset }
    }

    /// C's `strftime` in the C locale, for the conversions that have no locale or platform in them. Others stay as
    /// they are written.
    pub fn strftime(&self, format: &str) -> String {
        let mut out = String::new();
        let mut symbols = format.chars();
        while let Some(symbol) = symbols.next() {
            if symbol != '%' {
                out.push(symbol);
                continue;
            }
            let (bare, conversion) = match symbols.next() {
                Some('-') => (true, symbols.next()),
                other => (false, other),
            };
            match conversion {
                Some(conversion) => self.convert(conversion, bare, &mut out),
                None => out.push('%'),
            }
        }
        out
    }

    fn convert(&self, conversion: char, bare: bool, out: &mut String) {
        let date = self.date();
        let weekday = self.days().saturating_add(4).rem_euclid(7);
        let of_day = self.local_seconds.rem_euclid(86_400);
        let (hour, minute, second) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
        let hour12 = (hour + 11) % 12 + 1;
        let month = MONTHS[date.month];
        let day = DAYS[usize::try_from(weekday).unwrap_or_default()];
        // Writing to a string cannot fail.
        let mut number = |value: i64, width: usize| {
            let _ = if bare { write!(out, "{value}") } else { write!(out, "{value:0width$}") };
        };
        match conversion {
            'Y' => number(date.year, 1),
            'y' => number(date.year.rem_euclid(100), 2),
            'm' => number(date.month as i64 + 1, 2),
            'd' => number(date.day, 2),
            'H' => number(hour, 2),
            'I' => number(hour12, 2),
            'M' => number(minute, 2),
            'S' => number(second, 2),
            'f' => number(0, 6),
            'j' => number(date.day_of_year + 1, 3),
            'u' => number((weekday + 6) % 7 + 1, 1),
            'w' => number(weekday, 1),
            'U' => number((date.day_of_year + 7 - weekday) / 7, 2),
            'W' => number((date.day_of_year + 7 - (weekday + 6) % 7) / 7, 2),
            's' => number(self.local_seconds - i64::from(self.offset), 1),
            'e' => out.push_str(&format!("{:>2}", date.day)),
            'A' => out.push_str(day),
            'a' => out.push_str(&day[..3]),
            'B' => out.push_str(month),
            'b' | 'h' => out.push_str(&month[..3]),
            'p' => out.push_str(if hour < 12 { "AM" } else { "PM" }),
            'z' => {
                let minutes = self.offset.abs() / 60;
                let sign = if self.offset < 0 { '-' } else { '+' };
                out.push_str(&format!("{sign}{:02}{:02}", minutes / 60, minutes % 60));
            }
            'Z' if self.offset == 0 => out.push_str("UTC"),
            'F' => out.push_str(&self.strftime("%Y-%m-%d")),
            'T' | 'X' => out.push_str(&self.strftime("%H:%M:%S")),
            'D' | 'x' => out.push_str(&self.strftime("%m/%d/%y")),
            'R' => out.push_str(&self.strftime("%H:%M")),
            'c' => out.push_str(&self.strftime("%a %b %e %H:%M:%S %Y")),
            'n' => out.push('\n'),
            't' => out.push('\t'),
            '%' => out.push('%'),
            other => {
                out.push_str(if bare { "%-" } else { "%" });
                out.push(other);
            }
        }
    }

    fn days(&self) -> i64 {
        self.local_seconds.div_euclid(86_400)
    }

    /// The Gregorian calendar, extended both ways; years begin in March while counting, so that a leap day is last.
    fn date(&self) -> Date {
        let from_march_0 = self.days() + 719_468;
        let era = from_march_0.div_euclid(146_097);
        let of_era = from_march_0.rem_euclid(146_097);
        let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
        let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let march_month = (5 * of_year + 2) / 153;
        let day = of_year - (153 * march_month + 2) / 5 + 1;
        let month = (march_month + 2) % 12;
        let year = year_of_era + era * 400 + i64::from(month < 2);
        let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
        let day_of_year = if month < 2 { of_year - 306 } else { of_year + 59 + i64::from(leap) };
        Date { year, month: usize::try_from(month).unwrap_or_default(), day, day_of_year }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        let cases = [
            (0, "1970-01-01 Thu 001 00:00:00"),
            (951_782_400, "2000-02-29 Tue 060 00:00:00"),
            (978_307_199, "2000-12-31 Sun 366 23:59:59"),
            (1_709_210_096, "2024-02-29 Thu 060 12:34:56"),
            (4_107_542_400, "2100-03-01 Mon 060 00:00:00"),
            (-1, "1969-12-31 Wed 365 23:59:59"),
        ];
        for (seconds, expected) in cases {
            assert_eq!(LocalTime::from_unix(seconds, 0).strftime("%Y-%m-%d %a %j %H:%M:%S"), expected);
        }
    }

    #[test]
    fn conversions_follow_c() {
        let time = LocalTime::from_unix(1_709_210_096, -5 * 3600 - 1800);
        assert_eq!(time.strftime("%d %b %Y, %-d %B, %A"), "29 Feb 2024, 29 February, Thursday");
        assert_eq!(time.strftime("%I:%M %p %z %y %e|%-m|%%|%Q|%"), "07:04 AM -0530 24 29|2|%|%Q|%");
        assert_eq!(time.strftime("%c"), "Thu Feb 29 07:04:56 2024");
        assert_eq!(time.strftime("%U %W %u %w"), "08 09 4 4");
    }
}
