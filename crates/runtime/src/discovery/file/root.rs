//! The directory that holds everything, and single records in it.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rand::rngs::SmallRng;
use rand::{RngCore, SeedableRng};

use super::{MAX_RECORD_BYTES, TEMPORARY, is_missing, record_json, unlink};
use crate::discovery::key_path::Bucket;
use crate::discovery::owner::OwnerId;
use crate::discovery::table::Entry;
use crate::discovery::{DiscoveryError, RecordKey};

/// Where files go when nothing else is said: `DYN_FILE_KV`, else `$XDG_RUNTIME_DIR/dynamo`, else `<tmp>/dynamo-<uid>`.
pub fn default_root(env: impl Fn(&str) -> Option<String>) -> PathBuf {
    let named = |variable| env(variable).filter(|value| !value.is_empty());
    if let Some(root) = named("DYN_FILE_KV") {
        return root.into();
    }
    if let Some(runtime) = named("XDG_RUNTIME_DIR") {
        return Path::new(&runtime).join("dynamo");
    }
    let tmp = named("TMPDIR").unwrap_or_else(|| "/tmp".to_owned());
    Path::new(&tmp).join(format!("dynamo-{}", rustix::process::getuid().as_raw()))
}

/// The folder of this layout below the root.
const VERSION: &str = "v1";

/// A root that belongs to us.
pub(super) struct Root {
    path: PathBuf,
    /// Looked at by every poll, so made once.
    buckets: [PathBuf; Bucket::ALL.len()],
}

impl Root {
    /// Makes what is missing, with mode 0700, and refuses a root of someone else: they could read and forge records.
    pub(super) fn open(path: &Path) -> Result<Self, DiscoveryError> {
        let buckets = Bucket::ALL.map(|bucket| path.join(VERSION).join(bucket.name()));
        let root = Self { path: path.to_owned(), buckets };
        make_private(path)?;
        refuse_foreign(path)?;
        root.make()?;
        refuse_foreign(&root.base())?;
        Ok(root)
    }

    pub(super) fn make(&self) -> Result<(), DiscoveryError> {
        let owners = self.owners();
        for directory in self.buckets.iter().chain([&owners]) {
            make_private(directory)?;
        }
        Ok(())
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    fn base(&self) -> PathBuf {
        self.path.join(VERSION)
    }

    pub(super) fn bucket(&self, bucket: Bucket) -> &Path {
        &self.buckets[bucket as usize]
    }

    pub(super) fn owners(&self) -> PathBuf {
        self.base().join("owners")
    }

    pub(super) fn owner_lock(&self, owner: OwnerId) -> PathBuf {
        self.owners().join(owner.to_string())
    }

    pub(super) fn mutation_lock(&self) -> PathBuf {
        self.base().join("lock")
    }

    fn record(&self, key: &RecordKey) -> PathBuf {
        self.bucket(key.bucket()).join(key.file_name())
    }

    /// Puts the record in its place, whole.
    pub(super) fn write(&self, entry: &Entry) -> Result<(), DiscoveryError> {
        let key = entry.record.key();
        let json = record_json::encode(&entry.record, entry.owner)
            .map_err(|source| DiscoveryError::Encode { key: key.path(), source })?;
        if json.len() > MAX_RECORD_BYTES {
            return Err(DiscoveryError::TooLarge {
                key: key.path(),
                size: json.len(),
                limit: MAX_RECORD_BYTES,
            });
        }
        let temporary = temporary_in(self.bucket(key.bucket()));
        let place = self.record(&key);
        let written = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&temporary)
            .and_then(|mut file| file.write_all(&json));
        written.map_err(DiscoveryError::io("write", &temporary))?;
        fs::rename(&temporary, &place).map_err(|error| {
            // The rename's error is the one to report.
            let _ = fs::remove_file(&temporary);
            DiscoveryError::io("write", &place)(error)
        })
    }

    /// Deletes the record if its file names `owner`. Called under the mutation lock.
    pub(super) fn remove_if_owned(&self, key: &RecordKey, owner: OwnerId) -> Result<(), DiscoveryError> {
        let path = self.record(key);
        let json = match fs::read(&path) {
            Ok(json) => json,
            Err(error) if is_missing(&error) => return Ok(()),
            Err(error) => return Err(DiscoveryError::io("read", &path)(error)),
        };
        match record_json::decode(&json) {
            Ok((_, Some(found))) if found == owner => unlink(&path),
            _ => Ok(()),
        }
    }
}

fn make_private(directory: &Path) -> Result<(), DiscoveryError> {
    let making = DirBuilder::new().recursive(true).mode(0o700).create(directory);
    making.map_err(DiscoveryError::io("create", directory))
}

fn refuse_foreign(directory: &Path) -> Result<(), DiscoveryError> {
    let ours = rustix::process::geteuid().as_raw();
    let owner = fs::metadata(directory).map_err(DiscoveryError::io("look at", directory))?.uid();
    if owner == ours {
        Ok(())
    } else {
        Err(DiscoveryError::ForeignRoot { path: directory.to_owned(), owner, ours })
    }
}

/// A name that nobody else uses and every reader skips.
pub(super) fn temporary_in(directory: &Path) -> PathBuf {
    directory.join(format!("{TEMPORARY}{:016x}", SmallRng::from_os_rng().next_u64()))
}
