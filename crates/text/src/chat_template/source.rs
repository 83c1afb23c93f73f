//! Where a template's source comes from, and what is changed in it before it is compiled.

use crate::{ChatTemplates, SpecialTokens, TokenizerConfig};

/// The places where a template may be, best first.
#[derive(Clone, Copy, Debug, Default)]
pub struct TemplateSources<'a> {
    /// The user's own template.
    pub custom: Option<&'a str>,
    /// The contents of `chat_template.jinja`.
    pub file: Option<&'a str>,
    /// `tokenizer_config.json`: its `chat_template`, and the special tokens for whichever template is used.
    pub tokenizer_config: Option<&'a TokenizerConfig>,
}

/// The sources to compile.
pub(super) struct Chosen {
    pub(super) default: Option<String>,
    pub(super) tool_use: Option<String>,
}

impl TemplateSources<'_> {
    pub(super) fn choose(&self) -> Chosen {
        let one = self.custom.or(self.file);
        match (one, self.tokenizer_config.and_then(|config| config.chat_template.as_ref())) {
            (Some(template), _) => Chosen { default: Some(prepare(template)), tool_use: None },
            (None, Some(ChatTemplates::One(template))) => {
                Chosen { default: Some(prepare(template)), tool_use: None }
            }
            (None, Some(ChatTemplates::Named(list))) => {
                let named =
                    |name| list.iter().find(|(entry, _)| entry == name).map(|(_, text)| prepare(text));
                let only = || if let [(_, text)] = list.as_slice() { Some(prepare(text)) } else { None };
                Chosen { default: named("default").or_else(only), tool_use: named("tool_use") }
            }
            (None, None) => Chosen { default: None, tool_use: None },
        }
    }

    pub(super) fn special_tokens(&self) -> SpecialTokens {
        self.tokenizer_config.map(|config| config.special_tokens.clone()).unwrap_or_default()
    }
}

/// `{% generation %}` marks the assistant's words for training. It becomes a condition that always holds, which
/// keeps the white-space control of its tags.
fn prepare(template: &str) -> String {
    let mut out = String::with_capacity(template.len());
    let mut rest = template;
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at);
        out.push_str(before);
        let inside = tag[2..].find("%}").map_or(&tag[2..], |end| &tag[2..2 + end]);
        let word = inside.trim_matches(|symbol: char| symbol.is_whitespace() || matches!(symbol, '-' | '+'));
        let plain = match word {
            "generation" => "if true",
            "endgeneration" => "endif",
            _ => {
                out.push_str("{%");
                rest = &tag[2..];
                continue;
            }
        };
        out.push_str("{%");
        out.push_str(&inside.replacen(word, plain, 1));
        rest = &tag[2 + inside.len()..];
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generation_tags_become_conditions() {
        let template = "{%- if x %}{% generation %}a{%- endgeneration -%}\n{% endif %}{{ generation }}{% gen";
        let expected = "{%- if x %}{% if true %}a{%- endif -%}\n{% endif %}{{ generation }}{% gen";
        assert_eq!(prepare(template), expected);
    }

    #[test]
    fn the_users_template_comes_first() {
        let config = TokenizerConfig::parse(br#"{"chat_template": "c"}"#).unwrap();
        let sources = TemplateSources { custom: Some("a"), file: Some("b"), tokenizer_config: Some(&config) };
        assert_eq!(sources.choose().default.as_deref(), Some("a"));
        let sources = TemplateSources { custom: None, ..sources };
        assert_eq!(sources.choose().default.as_deref(), Some("b"));
        let sources = TemplateSources { file: None, ..sources };
        assert_eq!(sources.choose().default.as_deref(), Some("c"));
        assert!(TemplateSources::default().choose().default.is_none());
    }
}
