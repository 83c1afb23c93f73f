//! Engines' names for where a block lies.

use dynamo_engine_api::StorageTier;

/// The tier of a medium; none if the name is not known. No name at all is the device.
pub(super) fn tier_of(medium: Option<&[u8]>) -> Option<StorageTier> {
    const NAMES: [(&[&str], StorageTier); 4] = [
        (&["GPU", "DEVICE"], StorageTier::Device),
        (&["CPU", "CPU_PINNED", "CPU_TIER1"], StorageTier::HostPinned),
        (&["CPU_TIER2", "DISK", "NVME", "STORAGE"], StorageTier::Disk),
        (&["EXTERNAL", "NETWORK", "REMOTE", "SHARED"], StorageTier::External),
    ];
    let Some(medium) = medium else { return Some(StorageTier::Device) };
    let is_it = |name: &&str| name.as_bytes().eq_ignore_ascii_case(medium);
    NAMES.iter().find(|(names, _)| names.iter().any(is_it)).map(|&(_, tier)| tier)
}
