//! Messages to prompt text, by the model's own Jinja template.

mod environment;
mod local_time;
mod python_json;
mod python_text;
mod shape;
mod source;

use std::{error::Error as _, sync::Arc};

use minijinja::{Environment, Value, context};
use serde::Serialize;

use environment::Raised;
use shape::Shape;

pub use local_time::LocalTime;
pub use shape::ContentShape;
pub use source::TemplateSources;

/// Says what time it is, for templates that print the date (`strftime_now`).
pub type TemplateClock = Arc<dyn Fn() -> LocalTime + Send + Sync>;

/// Why a template could not be compiled or rendered. All but the first two are the request's fault: 400.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TemplateError {
    /// No template in any place.
    #[error(
        "the model has no chat template; give one, or put it into chat_template.jinja or tokenizer_config.json"
    )]
    NoTemplate,
    /// The template itself is wrong.
    #[error("the chat template could not be compiled: {0}")]
    Compile(String),
    /// The template refused the messages with `raise_exception`; its own words.
    #[error("{0}")]
    Raised(String),
    /// The template stumbled over the messages.
    #[error("the chat template could not be rendered: {0}")]
    Render(String),
    /// Content that is no text, for a template that reads only text.
    #[error(
        "messages[{message}].content[{part}] is of type `{kind}`, and this model's chat template takes only text"
    )]
    TextOnly {
        /// The message's place, from 0.
        message: usize,
        /// The part's place, from 0.
        part: usize,
        /// The part's type.
        kind: String,
    },
}

impl TemplateError {
    /// Whether another request could succeed: the messages are at fault, not the template.
    pub fn is_request_fault(&self) -> bool {
        !matches!(self, Self::NoTemplate | Self::Compile(_))
    }
}

impl From<minijinja::Error> for TemplateError {
    fn from(error: minijinja::Error) -> Self {
        let mut source = error.source();
        while let Some(cause) = source {
            if let Some(Raised(message)) = cause.downcast_ref() {
                return Self::Raised(message.clone());
            }
            source = cause.source();
        }
        Self::Render(describe(&error))
    }
}

/// The error and its causes in one line.
fn describe(error: &minijinja::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

/// What to render.
#[derive(Clone, Copy, Debug)]
pub struct RenderInput<'a, M: Serialize + ?Sized> {
    /// A list of messages, each with a `role`.
    pub messages: &'a M,
    /// The tools' schemas; an empty list counts as none.
    pub tools: Option<&'a serde_json::Value>,
    /// Whether to open the assistant's turn.
    pub add_generation_prompt: bool,
    /// Further variables; they win over all others.
    pub args: Option<&'a serde_json::Map<String, serde_json::Value>>,
}

/// A model's chat template, compiled and probed once. Shared by all requests.
pub struct ChatTemplate {
    environment: Environment<'static>,
    default: Option<Shape>,
    tool_use: Option<Shape>,
    /// The special tokens.
    base: Value,
}

impl std::fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChatTemplate")
            .field("default", &self.default)
            .field("tool_use", &self.tool_use)
            .finish()
    }
}

/// The names of the compiled templates; they appear in error messages.
const DEFAULT: &str = "chat_template";
const TOOL_USE: &str = "tool_use";

impl ChatTemplate {
    /// Compiles the best of the sources and finds out, by rendering probes, which shape of messages it reads.
    pub fn new(sources: &TemplateSources<'_>, clock: TemplateClock) -> Result<Self, TemplateError> {
        let chosen = sources.choose();
        if chosen.default.is_none() && chosen.tool_use.is_none() {
            return Err(TemplateError::NoTemplate);
        }
        let mut environment = environment::environment(clock);
        let base: Value =
            sources.special_tokens().iter().map(|(name, text)| (name, Value::from(text))).collect();
        for (name, text) in [(DEFAULT, chosen.default), (TOOL_USE, chosen.tool_use)] {
            if let Some(text) = text {
                environment
                    .add_template_owned(name, text)
                    .map_err(|error| TemplateError::Compile(describe(&error)))?;
            }
        }
        let probe = |name| environment.get_template(name).ok().map(|template| Shape::probe(&template, &base));
        Ok(Self { default: probe(DEFAULT), tool_use: probe(TOOL_USE), base, environment })
    }

    /// The shape of content that the template for requests without tools reads.
    pub fn content_shape(&self) -> ContentShape {
        self.default.or(self.tool_use).map_or(ContentShape::Text, |shape| shape.content)
    }

    /// The prompt's text.
    pub fn render<M: Serialize + ?Sized>(&self, input: &RenderInput<'_, M>) -> Result<String, TemplateError> {
        let tools = input.tools.filter(|tools| tools.as_array().is_none_or(|list| !list.is_empty()));
        let (name, shape) = match (tools, self.tool_use, self.default) {
            (Some(_), Some(shape), _) | (None, Some(shape), None) => (TOOL_USE, shape),
            (_, _, Some(shape)) => (DEFAULT, shape),
            (_, None, None) => return Err(TemplateError::NoTemplate),
        };
        let messages = shape.apply(Value::from_serialize(input.messages))?;
        let tools = shape::complete_tools(tools.map_or(Value::from(()), Value::from_serialize))?;
        let template = self.environment.get_template(name)?;
        let add_generation_prompt = input.add_generation_prompt;
        let text = match input.args {
            None => template.render(context! { messages, tools, add_generation_prompt, ..self.base.clone() }),
            Some(args) => template.render(context! {
                ..Value::from_serialize(args),
                ..context! { messages, tools, add_generation_prompt, ..self.base.clone() },
            }),
        };
        Ok(text?)
    }
}

#[cfg(test)]
mod tests;
