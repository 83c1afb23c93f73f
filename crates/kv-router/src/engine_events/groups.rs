//! Which of an engine's groups of layers find prefixes.

/// Groups that are told apart; models have a handful.
const MAX_GROUPS: usize = 64;

/// Kinds of layers whose blocks stand for all tokens before them.
const MAIN_KINDS: [&[u8]; 3] = [b"full_attention", b"mla_attention", b"sink_full_attention"];

/// What stored events said of each group: removals name the group alone.
pub(super) struct Groups {
    is_main: [Option<bool>; MAX_GROUPS],
}

impl Groups {
    pub(super) fn new() -> Self {
        Self { is_main: [None; MAX_GROUPS] }
    }

    /// Whether events of a group count. Of a group that nothing is known of, only the first does.
    pub(super) fn admit(&mut self, group: Option<u32>, kind: Option<&[u8]>) -> bool {
        let said = kind.map(|kind| MAIN_KINDS.contains(&kind));
        let Some(group) = group else { return said.unwrap_or(true) };
        let Some(known) = self.is_main.get_mut(group as usize) else { return false };
        if said.is_some() {
            *known = said;
        }
        known.unwrap_or(group == 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn removals_are_judged_by_what_stores_said_of_their_group() {
        let mut groups = Groups::new();
        assert!(groups.admit(None, None));
        assert!(!groups.admit(None, Some(b"mamba")));
        assert!(groups.admit(Some(0), None) && !groups.admit(Some(1), None));
        assert!(!groups.admit(Some(0), Some(b"sliding_window")));
        assert!(groups.admit(Some(1), Some(b"mla_attention")));
        assert!(!groups.admit(Some(0), None) && groups.admit(Some(1), None));
        assert!(!groups.admit(Some(1_000_000), Some(b"full_attention")));
    }
}
