use super::filter::filter;
use super::jsonl::{JsonLines, SpanFields};
use super::{LogError, LogFormat, LogOptions};
use tracing::Subscriber;
use tracing_subscriber::Layer;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::Registry;

/// A subscriber that writes to `writer`.
pub fn subscriber<W>(
    options: &LogOptions,
    writer: W,
) -> Result<impl Subscriber + Send + Sync + 'static, LogError>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let lines: Box<dyn Layer<Registry> + Send + Sync> = match options.format {
        LogFormat::Jsonl => Box::new(SpanFields.and_then(JsonLines::new(writer))),
        LogFormat::Readable => {
            Box::new(tracing_subscriber::fmt::layer().with_ansi(options.ansi).with_writer(writer))
        }
    };
    Ok(tracing_subscriber::registry().with(lines).with(filter(options)?))
}

/// Installs the subscriber for the process, writing to standard error. Only a binary calls this, once.
pub fn install(options: &LogOptions) -> Result<(), LogError> {
    let subscriber = subscriber(options, std::io::stderr)?;
    tracing::subscriber::set_global_default(subscriber).map_err(|_| LogError::AlreadyInstalled)
}
