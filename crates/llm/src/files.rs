//! Model files, named by digest and size, and where a frontend gets them.
//!
//! A file is taken from its path if the digest agrees, else from this host's cache, else from the worker that
//! registered it, over the request plane; what comes is checked against digest and size before it is used.

use std::{
    fs,
    io::{self, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

/// The largest file that is described, sent or taken. Tokenizers of 150,000 entries have some 10 MB.
pub const MAX_FILE_BYTES: u64 = 256 << 20;

const DIGEST_PREFIX: &str = "blake3:";

/// A file of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ModelFileKind {
    /// The architecture.
    Config,
    /// The tokenizer.
    Tokenizer,
    /// Special tokens and the chat template.
    TokenizerConfig,
    /// A chat template in a file of its own.
    ChatTemplate,
    /// Default sampling and end tokens.
    GenerationConfig,
}

impl ModelFileKind {
    /// The name in a Hugging Face model directory.
    pub const fn file_name(self) -> &'static str {
        match self {
            Self::Config => "config.json",
            Self::Tokenizer => "tokenizer.json",
            Self::TokenizerConfig => "tokenizer_config.json",
            Self::ChatTemplate => "chat_template.jinja",
            Self::GenerationConfig => "generation_config.json",
        }
    }
}

/// A file as a card names it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelFile {
    /// Where it lies on the worker's host.
    pub path: String,
    /// `blake3:` and the digest in hexadecimal.
    pub checksum: String,
    /// Bytes.
    pub size: u64,
}

/// Why a file can't be had.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The file system says no.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// Over [`MAX_FILE_BYTES`].
    #[error("{path} has {size} bytes; model files of more than {MAX_FILE_BYTES} bytes are not taken")]
    TooLarge {
        /// The file.
        path: String,
        /// Its size.
        size: u64,
    },
    /// Other bytes than the card names.
    #[error("{path}: the contents do not have the digest {checksum} that the model card names")]
    WrongDigest {
        /// The file.
        path: String,
        /// What the card says.
        checksum: String,
    },
}

/// The digest of a file's bytes, as cards write it.
pub(crate) fn digest(bytes: &[u8]) -> String {
    format!("{DIGEST_PREFIX}{}", blake3::hash(bytes).to_hex())
}

impl ModelFile {
    /// Reads and digests a file.
    pub fn describe(path: &Path) -> Result<Self, FileError> {
        let bytes = read_capped(path)?;
        let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        Ok(Self { path: path.display().to_string(), checksum: digest(&bytes), size: bytes.len() as u64 })
    }

    /// Like [`Self::describe`], but `None` where there is no such file.
    pub fn describe_if_there(path: &Path) -> Result<Option<Self>, FileError> {
        if path.exists() { Self::describe(path).map(Some) } else { Ok(None) }
    }

    /// The bytes at [`Self::path`], if they are the ones that the card names.
    pub fn read_in_place(&self) -> Result<Vec<u8>, FileError> {
        self.check(read_capped(Path::new(&self.path))?)
    }

    /// `bytes`, if they are the ones that the card names.
    pub fn check(&self, bytes: Vec<u8>) -> Result<Vec<u8>, FileError> {
        if bytes.len() as u64 == self.size && digest(&bytes) == self.checksum {
            Ok(bytes)
        } else {
            Err(FileError::WrongDigest { path: self.path.clone(), checksum: self.checksum.clone() })
        }
    }
}

fn read_capped(path: &Path) -> Result<Vec<u8>, FileError> {
    let fault = |source| FileError::Read { path: path.display().to_string(), source };
    let too_large = |size| FileError::TooLarge { path: path.display().to_string(), size };
    let metadata = fs::metadata(path).map_err(fault)?;
    // Before it is opened, which could wait on a pipe for ever.
    if !metadata.is_file() {
        return Err(fault(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file")));
    }
    if metadata.len() > MAX_FILE_BYTES {
        return Err(too_large(metadata.len()));
    }
    let mut bytes = Vec::with_capacity(usize::try_from(metadata.len()).unwrap_or(0));
    // It may have grown since.
    let file = fs::File::open(path).map_err(fault)?;
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(fault)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(too_large(bytes.len() as u64));
    }
    Ok(bytes)
}

/// This host's cache of model files, by digest.
#[derive(Clone, Debug)]
pub struct FileCache {
    directory: PathBuf,
}

impl FileCache {
    /// A cache in that directory, which is made when the first file comes.
    pub fn new(directory: PathBuf) -> Self {
        Self { directory }
    }

    /// The file from its own path or from the cache; `None` if neither has it.
    pub fn find(&self, file: &ModelFile) -> Option<Vec<u8>> {
        if let Ok(bytes) = file.read_in_place() {
            return Some(bytes);
        }
        let cached = self.path_of(file)?;
        file.check(read_capped(&cached).ok()?).ok()
    }

    /// Keeps a file that was checked. A cache that can't be written costs a transfer next time, no more.
    pub fn keep(&self, file: &ModelFile, bytes: &[u8]) -> io::Result<()> {
        let Some(target) = self.path_of(file) else { return Ok(()) };
        fs::create_dir_all(&self.directory)?;
        let temporary = self.directory.join(format!(".tmp_{}_{:016x}", std::process::id(), rand_suffix()));
        let written = write_private(&temporary, bytes).and_then(|()| fs::rename(&temporary, target));
        if written.is_err() {
            // What is left of it may be nothing.
            let _ = fs::remove_file(&temporary);
        }
        written
    }

    /// The digest names the file; anything but hexadecimal digits there is not ours.
    fn path_of(&self, file: &ModelFile) -> Option<PathBuf> {
        let hex = file.checksum.strip_prefix(DIGEST_PREFIX)?;
        let plain = hex.len() == 64 && hex.bytes().all(|byte| byte.is_ascii_hexdigit());
        plain.then(|| self.directory.join(hex))
    }
}

/// A chat template may be a secret of the model's owner.
fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut options = fs::OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600).open(path)?.write_all(bytes)
}

/// Tells writers in one process apart.
fn rand_suffix() -> u64 {
    use std::sync::atomic::{AtomicU64, Ordering};
    static COUNT: AtomicU64 = AtomicU64::new(0);
    COUNT.fetch_add(1, Ordering::Relaxed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_found_in_place_then_in_the_cache_then_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokenizer.json");
        fs::write(&path, b"{}").unwrap();
        let file = ModelFile::describe(&path).unwrap();
        let cache = FileCache::new(folder.path().join("cache"));
        assert_eq!(cache.find(&file).unwrap(), b"{}");
        fs::write(&path, b"[]").unwrap();
        assert!(cache.find(&file).is_none());
        cache.keep(&file, b"{}").unwrap();
        assert_eq!(cache.find(&file).unwrap(), b"{}");
    }

    #[test]
    fn other_bytes_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.json");
        fs::write(&path, b"{}").unwrap();
        let file = ModelFile::describe(&path).unwrap();
        assert!(matches!(file.check(b"[]".to_vec()), Err(FileError::WrongDigest { .. })));
    }

    #[test]
    fn what_is_not_a_regular_file_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let error = ModelFile::describe(folder.path()).unwrap_err();
        assert!(error.to_string().contains("not a regular file"), "{error}");
    }

    #[test]
    fn cached_files_are_their_owners_alone() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let cache = FileCache::new(folder.path().to_owned());
        let file = ModelFile { path: "/nonexistent".into(), checksum: digest(b"{}"), size: 2 };
        cache.keep(&file, b"{}").unwrap();
        let cached = fs::metadata(cache.path_of(&file).unwrap()).unwrap();
        assert_eq!(cached.permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_digest_that_is_a_path_is_not_followed() {
        let cache = FileCache::new(PathBuf::from("/tmp"));
        let file =
            ModelFile { path: "/nonexistent".into(), checksum: "blake3:../../etc/passwd".into(), size: 1 };
        assert!(cache.path_of(&file).is_none());
    }
}
