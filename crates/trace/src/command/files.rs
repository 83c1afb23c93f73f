//! The files that commands read and write.

use std::{
    ffi::OsString,
    fs::File,
    io::{self, BufReader, BufWriter, Write},
    path::{Path, PathBuf},
};

use super::TraceToolError;

/// Large enough that system calls do not count beside parsing.
const BUFFER_BYTES: usize = 1 << 18;

pub(super) fn open(path: &Path) -> Result<BufReader<File>, TraceToolError> {
    let file = File::open(path).map_err(|source| error(path, source))?;
    Ok(BufReader::with_capacity(BUFFER_BYTES, file))
}

fn error(path: &Path, source: io::Error) -> TraceToolError {
    TraceToolError::File { path: path.display().to_string(), source }
}

/// A file to write, or standard output.
pub(super) enum Output {
    File(BufWriter<File>),
    Standard(BufWriter<io::Stdout>),
}

impl Output {
    /// `-` is standard output. The input must not be written over.
    pub(super) fn create(path: &Path, input: &Path) -> Result<Self, TraceToolError> {
        if path.as_os_str() == "-" {
            return Ok(Self::Standard(BufWriter::new(io::stdout())));
        }
        let same =
            path.canonicalize().is_ok_and(|path| input.canonicalize().is_ok_and(|input| input == path));
        if same {
            let why = io::Error::other("it is the input, too: give another file to write to");
            return Err(error(path, why));
        }
        let file = File::create(path).map_err(|source| error(path, source))?;
        Ok(Self::File(BufWriter::with_capacity(BUFFER_BYTES, file)))
    }

    /// Writes what is left, so that an error is not lost.
    pub(super) fn finish(mut self) -> io::Result<()> {
        self.flush()
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::File(file) => file.write(bytes),
            Self::Standard(standard) => standard.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::File(file) => file.flush(),
            Self::Standard(standard) => standard.flush(),
        }
    }
}

/// `trace.jsonl` with `synth` is `trace_synth.jsonl`.
pub(super) fn beside(input: &Path, suffix: &str) -> PathBuf {
    let mut name: OsString = input.file_stem().unwrap_or_default().to_owned();
    name.push(format!("_{suffix}.jsonl"));
    input.with_file_name(name)
}

/// The file's name without its folder.
pub(super) fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Tells people, beside what a program may read from standard output. Nobody to tell is no fault.
pub(super) fn say(text: &str) {
    let _ = io::stderr().write_all(text.as_bytes());
}
