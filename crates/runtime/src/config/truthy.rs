/// Text that is neither truthy nor falsy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected 1, true, on or yes, or 0, false, off or no")]
pub struct TruthError;

/// `1|true|on|yes` and `0|false|off|no`, in any case and with spaces around.
pub fn parse_bool(text: &str) -> Result<bool, TruthError> {
    let text = text.trim();
    let is_one_of = |words: [&str; 4]| words.iter().any(|word| text.eq_ignore_ascii_case(word));
    if is_one_of(["1", "true", "on", "yes"]) {
        Ok(true)
    } else if is_one_of(["0", "false", "off", "no"]) {
        Ok(false)
    } else {
        Err(TruthError)
    }
}
