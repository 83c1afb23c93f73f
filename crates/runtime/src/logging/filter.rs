use super::{LogError, LogOptions};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::Directive;

/// Crates whose `info` and `warn` lines say nothing to an operator: only their errors are shown unless asked for.
const NOISY: [&str; 13] = [
    "h2",
    "tower",
    "hyper",
    "hyper_util",
    "async_nats",
    "rustls",
    "tokenizers",
    "axum",
    "tonic",
    "hf_hub",
    "opentelemetry",
    "opentelemetry_sdk",
    "neli",
];

/// The filter of `options`: level, noisy crates, the file's filters, `DYN_LOG`; a later one replaces an earlier one for
/// the same target.
pub(super) fn filter(options: &LogOptions) -> Result<EnvFilter, LogError> {
    let mut filter = EnvFilter::default();
    filter = add(filter, "log_level", &options.level)?;
    for target in NOISY {
        filter = add(filter, "built in", &format!("{target}=error"))?;
    }
    for (target, level) in &options.filters {
        filter = add(filter, "log_filters", &format!("{target}={level}"))?;
    }
    for directive in options.directives.split(',').map(str::trim).filter(|directive| !directive.is_empty()) {
        filter = add(filter, "DYN_LOG", directive)?;
    }
    Ok(filter)
}

fn add(filter: EnvFilter, origin: &str, text: &str) -> Result<EnvFilter, LogError> {
    let directive: Directive = text.parse().map_err(|error| LogError::Filter {
        origin: origin.to_owned(),
        filter: text.to_owned(),
        reason: format!("{error}"),
    })?;
    Ok(filter.add_directive(directive))
}
