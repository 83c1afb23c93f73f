//! Cards of LoRA adapters: an adapter is a model of its own name on the workers of its base model.

use serde::{Deserialize, Serialize};

use super::{ModelCard, slug};

/// Bytes of an adapter's name at most: such names are in records, requests and labels.
pub const MAX_ADAPTER_NAME: usize = 256;
/// Bytes of a slug that is a part of a record's key as it is: with each byte percent-encoded, the key is still the name
/// of a file.
const MAX_SUFFIX: usize = 40;
/// Bytes that are left of a longer one, before its hash.
const SUFFIX_HEAD: usize = 23;

/// What a card says of the adapter that it is for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoraCard {
    /// The adapter, as requests name it to the engine.
    pub name: String,
    /// Adapters that a worker has room for at once, where it says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_gpu_lora_count: Option<u32>,
    /// The public name of the base model. Cards of other software do not have it: their base model is the one with the
    /// same `source_path`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base_model: Option<String>,
}

/// Why an adapter cannot have a name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AdapterNameError {
    /// None at all.
    #[error("an adapter's name is empty: give one")]
    Empty,
    /// Over [`MAX_ADAPTER_NAME`].
    #[error("an adapter's name has {0} bytes: give one of at most {MAX_ADAPTER_NAME}")]
    TooLong(usize),
    /// Requests could not tell it from the base model.
    #[error("the adapter {0} has the name of its base model: give it another one")]
    OfBase(String),
}

impl ModelCard {
    /// The card of an adapter of this model: all but the name is the base's.
    pub fn adapter_card(
        &self,
        name: &str,
        max_gpu_lora_count: Option<u32>,
    ) -> Result<Self, AdapterNameError> {
        if name.is_empty() {
            return Err(AdapterNameError::Empty);
        }
        if name.len() > MAX_ADAPTER_NAME {
            return Err(AdapterNameError::TooLong(name.len()));
        }
        if name == self.display_name {
            return Err(AdapterNameError::OfBase(name.to_owned()));
        }
        let base_model = Some(self.display_name.clone());
        Ok(Self {
            display_name: name.to_owned(),
            slug: slug(name),
            lora: Some(LoraCard { name: name.to_owned(), max_gpu_lora_count, base_model }),
            ..self.clone()
        })
    }

    /// The last part of the key of an adapter's record; none for a base model.
    pub fn key_suffix(&self) -> Option<String> {
        self.lora.as_ref()?;
        if self.slug.len() <= MAX_SUFFIX {
            return Some(self.slug.clone());
        }
        let hash = blake3::hash(self.display_name.as_bytes()).to_hex();
        // Slugs are ASCII.
        Some(format!("{}-{}", &self.slug[..SUFFIX_HEAD], &hash[..MAX_SUFFIX - SUFFIX_HEAD - 1]))
    }

    /// Whether it is of an adapter of that base model.
    pub fn is_adapter_of(&self, base: &Self) -> bool {
        let named = self.lora.as_ref().and_then(|lora| lora.base_model.as_ref());
        let same_base = match named {
            Some(named) => *named == base.display_name,
            None => self.base_identity() == base.base_identity(),
        };
        same_base
            && self.display_name != base.display_name
            && self.kv_cache_block_size == base.kv_cache_block_size
    }

    /// Whether both may be served at one endpoint, as far as adapters go: all of them are adapters of one base model, and
    /// none has its name. What two base models have in common is for others to judge.
    pub fn is_compatible(&self, other: &Self) -> bool {
        match (&self.lora, &other.lora) {
            (None, None) => true,
            (Some(_), None) => self.is_adapter_of(other),
            (None, Some(_)) => other.is_adapter_of(self),
            (Some(own), Some(others)) => match (&own.base_model, &others.base_model) {
                (Some(own), Some(others)) => own == others,
                _ => self.base_identity() == other.base_identity(),
            },
        }
    }

    /// What adapters and base models of other software have in common.
    fn base_identity(&self) -> &str {
        if self.source_path.is_empty() { &self.display_name } else { &self.source_path }
    }
}

/// The adapter that a registered card is for, as requests name it to the engine; none for a base model.
pub(crate) fn adapter_of<'a>(card: &'a ModelCard, suffix: Option<&str>) -> Option<&'a str> {
    match &card.lora {
        Some(lora) => Some(&lora.name),
        None => suffix.map(|_| card.display_name.as_str()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::card::tests::tiny_card as base;

    #[test]
    fn an_adapter_has_its_bases_card_under_its_own_name() {
        let adapter = base().adapter_card("Org/SQL v2", Some(4)).unwrap();
        assert_eq!((adapter.display_name.as_str(), adapter.slug.as_str()), ("Org/SQL v2", "org-sql-v2"));
        assert_eq!(adapter.key_suffix().as_deref(), Some("org-sql-v2"));
        assert_eq!(adapter.files().count(), base().files().count());
        assert_ne!(adapter.checksum(), base().checksum());
        let json = serde_json::to_value(&adapter).unwrap();
        let lora =
            serde_json::json!({"name": "Org/SQL v2", "max_gpu_lora_count": 4, "base_model": "tiny-llama"});
        assert_eq!(json["lora"], lora);
        assert_eq!(serde_json::from_value::<ModelCard>(json).unwrap(), adapter);
        let json = serde_json::to_value(base()).unwrap();
        assert!(!json.as_object().unwrap().contains_key("lora"));
        assert_eq!(base().key_suffix(), None);
    }

    #[test]
    fn names_that_no_adapter_can_have_are_refused() {
        let refused = |name: &str| base().adapter_card(name, None).unwrap_err();
        assert_eq!(refused(""), AdapterNameError::Empty);
        assert_eq!(refused("tiny-llama"), AdapterNameError::OfBase("tiny-llama".into()));
        assert_eq!(refused(&"x".repeat(257)), AdapterNameError::TooLong(257));
    }

    #[test]
    fn keys_of_long_names_are_short_and_differ() {
        let suffix = |name: String| base().adapter_card(&name, None).unwrap().key_suffix().unwrap();
        let (one, other) = (suffix("x".repeat(200)), suffix("x".repeat(201)));
        assert_eq!((one.len(), other.len()), (MAX_SUFFIX, MAX_SUFFIX));
        assert_ne!(one, other);
    }

    #[test]
    fn an_adapter_belongs_to_the_base_that_it_names_or_whose_source_it_has() {
        let adapter = base().adapter_card("sql", None).unwrap();
        assert!(
            adapter.is_adapter_of(&base())
                && adapter.is_compatible(&base())
                && base().is_compatible(&adapter)
        );
        let moved = ModelCard { source_path: "/elsewhere".into(), ..base() };
        assert!(adapter.is_adapter_of(&moved), "the same model in another folder");
        let other = ModelCard { display_name: "other".into(), ..moved.clone() };
        assert!(!adapter.is_compatible(&other) && !other.is_compatible(&adapter));
        let of_other = other.adapter_card("chat", None).unwrap();
        assert!(!adapter.is_compatible(&of_other));
        assert!(adapter.is_compatible(&base().adapter_card("chat", None).unwrap()));
        // The cards of other software name no base model.
        let lora = Some(LoraCard { name: "sql".into(), max_gpu_lora_count: None, base_model: None });
        let foreign = ModelCard { lora, ..adapter };
        assert!(foreign.is_adapter_of(&base()) && !foreign.is_adapter_of(&other));
        let namesake = ModelCard { display_name: "sql".into(), ..base() };
        assert!(!foreign.is_compatible(&namesake), "they could not be told apart");
        let blocks = ModelCard { kv_cache_block_size: 32, ..base() };
        assert!(!foreign.is_adapter_of(&blocks));
    }

    #[test]
    fn a_record_with_a_suffix_is_an_adapters_whatever_its_card_says() {
        let card = base();
        assert_eq!(adapter_of(&card, None), None);
        assert_eq!(adapter_of(&card, Some("s")), Some("tiny-llama"));
        let adapter = card.adapter_card("sql", None).unwrap();
        assert_eq!(adapter_of(&adapter, None), Some("sql"));
    }
}
