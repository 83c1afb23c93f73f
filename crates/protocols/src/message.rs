//! The messages of a conversation, as clients send them and as chat templates want to see them.

use std::{borrow::Cow, fmt};

use serde::{
    Deserialize, Deserializer, Serialize,
    de::{SeqAccess, Visitor, value::SeqAccessDeserializer},
};

/// One message of a conversation. Serialized, it is the map that chat templates index: absent fields are left out, but
/// `content` is always there (`null` for a message of tool calls alone).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ChatMessage {
    /// Who speaks: `system`, `developer`, `user`, `assistant`, `tool` or `function`.
    pub role: String,
    /// What is said.
    #[serde(default)]
    pub content: Option<MessageContent>,
    /// The speaker's own name, or the function's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The assistant's calls.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_calls: Option<Vec<ToolCall>>,
    /// The call that a `tool` message answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_call_id: Option<String>,
    /// What the assistant thought before it answered.
    #[serde(default, alias = "reasoning", skip_serializing_if = "Option::is_none")]
    pub reasoning_content: Option<String>,
    /// The assistant's refusal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refusal: Option<String>,
}

impl ChatMessage {
    /// A message of plain text.
    pub fn text(role: impl Into<String>, text: impl Into<String>) -> Self {
        Self { role: role.into(), content: Some(MessageContent::Text(text.into())), ..Self::default() }
    }
}

/// What a message says: a string, or parts.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum MessageContent {
    /// Plain text.
    Text(String),
    /// Text and media, in order.
    Parts(Vec<ContentPart>),
}

impl MessageContent {
    /// All text of it, parts joined without a separator.
    pub fn joined_text(&self) -> Cow<'_, str> {
        match self {
            Self::Text(text) => Cow::Borrowed(text),
            Self::Parts(parts) => match parts.as_slice() {
                [ContentPart::Text { text }] => Cow::Borrowed(text),
                _ => Cow::Owned(self.text_parts().collect()),
            },
        }
    }

    /// The texts in it, in order; media are passed over.
    pub fn text_parts(&self) -> impl Iterator<Item = &str> {
        let (whole, parts) = match self {
            Self::Text(text) => (Some(text.as_str()), &[][..]),
            Self::Parts(parts) => (None, parts.as_slice()),
        };
        whole.into_iter().chain(parts.iter().filter_map(|part| match part {
            ContentPart::Text { text } => Some(text.as_str()),
            _ => None,
        }))
    }

    /// Whether something in it is not text.
    pub fn has_media(&self) -> bool {
        match self {
            Self::Text(_) => false,
            Self::Parts(parts) => parts
                .iter()
                .any(|part| !matches!(part, ContentPart::Text { .. } | ContentPart::Refusal { .. })),
        }
    }
}

impl<'de> Deserialize<'de> for MessageContent {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ContentVisitor;

        impl<'de> Visitor<'de> for ContentVisitor {
            type Value = MessageContent;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a string or an array of content parts")
            }

            fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
                Ok(MessageContent::Text(text.to_owned()))
            }

            fn visit_string<E>(self, text: String) -> Result<Self::Value, E> {
                Ok(MessageContent::Text(text))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, parts: A) -> Result<Self::Value, A::Error> {
                Deserialize::deserialize(SeqAccessDeserializer::new(parts)).map(MessageContent::Parts)
            }
        }

        deserializer.deserialize_any(ContentVisitor)
    }
}

/// A piece of a message.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ContentPart {
    /// Text.
    Text {
        /// It.
        text: String,
    },
    /// A refusal of the assistant's, from an earlier answer.
    Refusal {
        /// Its words.
        refusal: String,
    },
    /// A picture.
    ImageUrl {
        /// Where it is.
        image_url: MediaUrl,
    },
    /// A film.
    VideoUrl {
        /// Where it is.
        video_url: MediaUrl,
    },
    /// A sound.
    AudioUrl {
        /// Where it is.
        audio_url: MediaUrl,
    },
    /// A sound, inline.
    InputAudio {
        /// OpenAI's `{data, format}`.
        input_audio: serde_json::Value,
    },
}

/// Where a medium is: an address or a `data:` URL.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MediaUrl {
    /// The address.
    pub url: String,
    /// `auto`, `low` or `high`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

/// A call of a tool.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ToolCall {
    /// Names the call.
    pub id: String,
    /// `function`.
    #[serde(rename = "type", default = "function_type")]
    pub kind: String,
    /// Which function, and with what.
    pub function: FunctionCall,
}

fn function_type() -> String {
    "function".to_owned()
}

/// Which function is called, and with what.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FunctionCall {
    /// The function's name.
    pub name: String,
    /// Its arguments: a JSON text. Templates that want an object parse it.
    #[serde(default)]
    pub arguments: String,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parse(value: serde_json::Value) -> ChatMessage {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn templates_see_what_clients_sent() {
        for value in [
            json!({"role": "user", "content": "hi"}),
            json!({"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "data:,"}}]}),
            json!({"role": "assistant", "content": null, "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{\"x\":1}"}}]}),
            json!({"role": "tool", "content": "4", "tool_call_id": "c1"}),
            json!({"role": "assistant", "content": "4", "reasoning_content": "2 + 2", "refusal": "no", "name": "bob"}),
        ] {
            assert_eq!(serde_json::to_value(parse(value.clone())).unwrap(), value);
        }
    }

    #[test]
    fn text_is_found_in_strings_and_in_parts() {
        let parts = parse(json!({"role": "user", "content": [
            {"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "u"}}, {"type": "text", "text": "b"}]}));
        let content = parts.content.unwrap();
        assert_eq!(content.joined_text(), "ab");
        assert_eq!(content.text_parts().collect::<Vec<_>>(), ["a", "b"]);
        assert!(content.has_media());
        let plain = ChatMessage::text("user", "hi").content.unwrap();
        assert_eq!(plain.joined_text(), "hi");
        assert!(!plain.has_media());
    }

    #[test]
    fn wrong_content_says_what_is_expected() {
        let error = serde_json::from_str::<ChatMessage>(r#"{"role":"user","content":5}"#).unwrap_err();
        assert!(error.to_string().contains("a string or an array of content parts"), "{error}");
    }
}
