//! Names and buckets, as an operator may set them.

/// The prefix of all families, where nobody set one.
const PREFIX: &str = "dynamo_frontend";
/// Buckets of one histogram at most: each is a series per model.
const MAX_BUCKETS: usize = 512;

/// Names and buckets.
#[derive(Clone, Debug, PartialEq)]
pub struct MetricsConfig {
    /// What all names start with, without the last `_`.
    pub prefix: String,
    /// Seconds of a whole request.
    pub request_duration: BucketSpec,
    /// Tokens of a prompt.
    pub input_sequence: BucketSpec,
    /// Tokens of an answer.
    pub output_sequence: BucketSpec,
    /// Seconds to the first token.
    pub time_to_first_token: BucketSpec,
    /// Seconds between tokens.
    pub inter_token_latency: BucketSpec,
}

/// Zero, and `count - 1` bounds evenly apart on a logarithmic scale from `min` (not itself among them) to `max`.
#[derive(Clone, Copy, Debug, PartialEq)]
#[allow(missing_docs, reason = "named in the type's own text")]
pub struct BucketSpec {
    pub min: f64,
    pub max: f64,
    pub count: usize,
}

impl MetricsConfig {
    /// The defaults, changed by the variables that `variable` knows. A histogram with an unusable variable keeps its
    /// defaults, as the incumbent's does.
    pub fn from_env(variable: &dyn Fn(&str) -> Option<String>) -> Self {
        let spec = |name: &str, min, max, count| {
            BucketSpec::from_env(variable, name, BucketSpec { min, max, count })
        };
        Self {
            prefix: valid_prefix(&variable("DYN_METRICS_PREFIX").unwrap_or_default()),
            request_duration: spec("REQUEST_DURATION", 1.0, 256.0, 10),
            input_sequence: spec("INPUT_SEQUENCE", 50.0, 128_000.0, 12),
            output_sequence: spec("OUTPUT_SEQUENCE", 50.0, 32_000.0, 10),
            time_to_first_token: spec("TTFT", 0.001, 480.0, 18),
            inter_token_latency: spec("ITL", 0.001, 2.0, 13),
        }
    }
}

impl BucketSpec {
    fn from_env(variable: &dyn Fn(&str) -> Option<String>, name: &str, default: Self) -> Self {
        let value = |part: &str| variable(&format!("DYN_METRICS_{name}_{part}"));
        let number = |part, default: f64| match value(part) {
            None => Some(default),
            Some(text) => text.trim().parse().ok().filter(|number: &f64| number.is_finite()),
        };
        let count = match value("COUNT") {
            None => Some(default.count),
            Some(text) => text.trim().parse().ok(),
        };
        match (number("MIN", default.min), number("MAX", default.max), count) {
            (Some(min), Some(max), Some(count))
                if min > 0.0 && min < max && (1..=MAX_BUCKETS).contains(&count) =>
            {
                Self { min, max, count }
            }
            _ => default,
        }
    }

    /// The upper bounds, rounded to two significant digits, without repeats.
    pub fn bounds(self) -> Vec<f64> {
        let steps = self.count.saturating_sub(1);
        let mut bounds = vec![0.0];
        for step in 1..=steps {
            let exponent = step as f64 / steps as f64;
            let bound = two_digits(self.min * (self.max / self.min).powf(exponent));
            if bounds.last().is_some_and(|&last| bound > last) {
                bounds.push(bound);
            }
        }
        bounds
    }
}

fn two_digits(value: f64) -> f64 {
    // By way of text, so that 0.0013 is the number nearest to 0.0013 and looks like it.
    format!("{value:.1e}").parse().unwrap_or(value)
}

fn valid_prefix(asked: &str) -> String {
    let trimmed = asked.trim().trim_end_matches('_');
    let starts_well = trimmed.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_');
    let valid = |it: char| if it.is_ascii_alphanumeric() || it == '_' || it == ':' { it } else { '_' };
    match trimmed {
        "" => PREFIX.to_owned(),
        _ if starts_well => trimmed.chars().map(valid).collect(),
        _ => format!("_{}", trimmed.chars().map(valid).collect::<String>()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_follow_the_rule() {
        let bounds = BucketSpec { min: 1.0, max: 256.0, count: 10 }.bounds();
        assert_eq!(bounds, [0.0, 1.9, 3.4, 6.3, 12.0, 22.0, 40.0, 75.0, 140.0, 260.0]);
        let repeats = BucketSpec { min: 1.0, max: 1.001, count: 5 }.bounds();
        assert_eq!(repeats, [0.0, 1.0]);
        assert_eq!(BucketSpec { min: 1.0, max: 2.0, count: 1 }.bounds(), [0.0]);
    }

    #[test]
    fn variables_set_buckets_or_leave_them() {
        let env = |name: &str| {
            let value = match name {
                "DYN_METRICS_TTFT_MAX" => "10",
                "DYN_METRICS_ITL_MIN" => "-1",
                "DYN_METRICS_INPUT_SEQUENCE_COUNT" => "513",
                "DYN_METRICS_PREFIX" => "my-prefix_",
                _ => return None,
            };
            Some(value.to_owned())
        };
        let config = MetricsConfig::from_env(&env);
        let default = MetricsConfig::from_env(&|_| None);
        assert_eq!(config.time_to_first_token.max, 10.0);
        assert_eq!(config.inter_token_latency, default.inter_token_latency);
        assert_eq!(config.input_sequence, default.input_sequence);
        assert_eq!((config.prefix.as_str(), default.prefix.as_str()), ("my_prefix", "dynamo_frontend"));
    }
}
