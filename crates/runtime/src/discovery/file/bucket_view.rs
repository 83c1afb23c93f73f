//! What one bucket's directory held when it was last looked at. Looking again costs one stat while nothing changed.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use super::root::Root;
use super::{MAX_RECORD_BYTES, TEMPORARY, is_missing, record_json};
use crate::discovery::DiscoveryError;
use crate::discovery::key_path::Bucket;
use crate::discovery::table::{Entry, MAX_RECORDS};

/// Times in a file system move in ticks. A directory that changed this short a time before it was read may have changed
/// again within the tick, so it is read once more.
const TICK: Duration = Duration::from_millis(100);

#[derive(Default)]
pub(super) struct BucketView {
    /// When the directory had last changed, if that was long enough before it was read.
    settled: Option<SystemTime>,
    files: HashMap<OsString, File>,
}

struct File {
    version: Version,
    /// None when the file is not a record of this software.
    entry: Option<Entry>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct Version {
    inode: u64,
    size: u64,
    modified: (i64, i64),
}

impl BucketView {
    /// Reads the directory if it may have changed; whether it did so.
    pub(super) fn scan(&mut self, root: &Root, bucket: Bucket) -> Result<bool, DiscoveryError> {
        let directory = root.bucket(bucket);
        let modified = match modified(directory) {
            Ok(modified) => modified,
            Err(error) if is_missing(&error) => {
                root.make()?;
                *self = Self::default();
                return Ok(true);
            }
            Err(error) => return Err(DiscoveryError::io("look at", directory)(error)),
        };
        if self.settled == Some(modified) {
            return Ok(false);
        }
        let started = SystemTime::now();
        self.read(directory, bucket)?;
        let age = started.duration_since(modified).unwrap_or_default();
        self.settled = (age >= TICK).then_some(modified);
        Ok(true)
    }

    pub(super) fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.files.values().filter_map(|file| file.entry.as_ref())
    }

    fn read(&mut self, directory: &Path, bucket: Bucket) -> Result<(), DiscoveryError> {
        let listing = fs::read_dir(directory).map_err(DiscoveryError::io("list", directory))?;
        let mut files = HashMap::with_capacity(self.files.len());
        for item in listing {
            let item = item.map_err(DiscoveryError::io("list", directory))?;
            let name = item.file_name();
            if name.as_encoded_bytes().starts_with(TEMPORARY.as_bytes()) {
                continue;
            }
            if files.len() == MAX_RECORDS {
                tracing::warn!(directory = %directory.display(), limit = MAX_RECORDS, "more records than the bound");
                break;
            }
            // A file that went since the listing is not there.
            let Ok(metadata) = item.metadata() else { continue };
            let version = Version {
                inode: metadata.ino(),
                size: metadata.len(),
                modified: (metadata.mtime(), metadata.mtime_nsec()),
            };
            let file = match self.files.remove(&name) {
                Some(known) if known.version == version => known,
                _ => File { version, entry: read_entry(&item.path(), version.size, bucket) },
            };
            files.insert(name, file);
        }
        self.files = files;
        Ok(())
    }
}

fn modified(directory: &Path) -> std::io::Result<SystemTime> {
    fs::metadata(directory)?.modified()
}

/// Reads a record; none, with a warning, when it is not one.
fn read_entry(path: &Path, size: u64, bucket: Bucket) -> Option<Entry> {
    let shown = path.display();
    if size > MAX_RECORD_BYTES as u64 {
        tracing::warn!(path = %shown, size, "skipped a discovery file that is too large");
        return None;
    }
    let json = fs::read(path).ok()?;
    match record_json::decode(&json) {
        Ok((record, Some(owner))) => {
            let key = record.key();
            let at_home =
                key.bucket() == bucket && path.file_name().is_some_and(|n| n == key.file_name().as_str());
            if !at_home {
                tracing::warn!(path = %shown, "skipped a discovery file that is not where its record belongs");
            }
            at_home.then_some(Entry { record, owner })
        }
        Ok((_, None)) => {
            tracing::warn!(path = %shown, "skipped a discovery file without an owner: nobody could tell when it dies");
            None
        }
        Err(error) => {
            tracing::warn!(path = %shown, %error, "skipped a discovery file that cannot be read");
            None
        }
    }
}
