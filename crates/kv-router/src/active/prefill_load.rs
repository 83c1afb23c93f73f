//! How prompts count while they are computed.

use std::str::FromStr;

/// What counts of a prompt between its choice and its first token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PrefillLoadModel {
    /// All of its tokens.
    #[default]
    None,
    /// Of a rank's oldest prompt what is left after the time that has passed, at the speed at which the rank computed
    /// prompts before; at least a sixteenth until the first token comes. All of it before a rank's speed is known.
    Measured,
}

impl PrefillLoadModel {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::None, Self::Measured];

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Measured => "measured",
        }
    }
}

/// A name that no model has.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParsePrefillLoadModelError {
    /// A predictor of another project, which is a program of its own.
    #[error(
        "`{0}` needs a predictor that is not a part of this program: use measured, which learns from the workers"
    )]
    Foreign(String),
    /// No model at all.
    #[error("`{0}` is no prefill load model: use none or measured")]
    Unknown(String),
}

impl FromStr for PrefillLoadModel {
    type Err = ParsePrefillLoadModelError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let lower = text.trim().to_ascii_lowercase();
        match Self::ALL.into_iter().find(|model| model.name() == lower) {
            Some(model) => Ok(model),
            None if matches!(&*lower, "ais" | "aic") => Err(ParsePrefillLoadModelError::Foreign(lower)),
            None => Err(ParsePrefillLoadModelError::Unknown(text.to_owned())),
        }
    }
}

impl std::fmt::Display for PrefillLoadModel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back_and_others_are_told_what_to_use() {
        for model in PrefillLoadModel::ALL {
            assert_eq!(model.to_string().parse(), Ok(model));
        }
        assert_eq!(" Measured ".parse(), Ok(PrefillLoadModel::Measured));
        let error = |name: &str| name.parse::<PrefillLoadModel>().unwrap_err().to_string();
        for name in ["ais", "aic", "AIC"] {
            assert!(error(name).contains("use measured"), "{}", error(name));
        }
        assert_eq!(error("linear"), "`linear` is no prefill load model: use none or measured");
    }
}
