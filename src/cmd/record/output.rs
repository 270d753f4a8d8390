//! Where a recording is written: standard output, a file, or numbered files.
//!
//! Owns the files. It must not know what a line says. Invariants: the lines of a transaction are in
//! one file; no existing file is overwritten; after [`Output::sync`], what was written survives a
//! crash.

use std::fs::{self, File};
use std::io::{self, BufWriter, Read as _, Seek as _, SeekFrom, Stdout, Write as _};
use std::path::{Path, PathBuf};

use crate::change::Lsn;
use crate::cmd::display::printable;
use crate::cmd::failure::Failure;
use crate::source::recording::write::RecordedTransaction;

/// When a new file is begun.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rotation {
    /// The size at which a file is full, in bytes.
    pub(super) bytes_max: u64,
    /// How many files are kept. `None` for all.
    pub(super) keep: Option<u32>,
}

/// Where transactions are written.
pub(super) struct Output {
    destination: RecordDestination,
    /// Something was written since the last sync.
    dirty: bool,
}

enum RecordDestination {
    Standard(BufWriter<Stdout>),
    File(PathBuf, BufWriter<File>),
    Files(NumberedFiles),
}

impl Output {
    /// Opens a file, or the first numbered one. Without a path, or with `-`, opens standard output.
    pub(super) fn open(path: Option<&Path>, rotation: Option<Rotation>) -> Result<Self, Failure> {
        let destination = match (path.filter(|path| path.as_os_str() != "-"), rotation) {
            (None, None) => RecordDestination::Standard(BufWriter::new(io::stdout())),
            (None, Some(_)) => return Err(Failure::usage("--rotate-size needs a file: name one with --output")),
            (Some(path), None) => {
                let file = append(path).map_err(|error| unwritten(path, &error))?;
                RecordDestination::File(path.to_owned(), BufWriter::new(file))
            }
            (Some(path), Some(rotation)) => {
                RecordDestination::Files(NumberedFiles::open(path, rotation).map_err(|error| unwritten(path, &error))?)
            }
        };
        Ok(Self { destination, dirty: false })
    }

    /// Writes a whole transaction.
    pub(super) fn write(&mut self, transaction: RecordedTransaction, end_lsn: Lsn) -> io::Result<()> {
        self.dirty = true;
        match &mut self.destination {
            RecordDestination::Standard(standard) => transaction.commit(end_lsn, standard).map(drop),
            RecordDestination::File(path, file) => {
                transaction.commit(end_lsn, file).map(drop).map_err(|error| at(path, error))
            }
            RecordDestination::Files(files) => files.write(transaction, end_lsn),
        }
    }

    /// Flushes standard output, for its reader.
    pub(super) fn flush_stdout(&mut self) -> io::Result<()> {
        match &mut self.destination {
            RecordDestination::Standard(standard) if self.dirty => standard.flush(),
            RecordDestination::Standard(_) | RecordDestination::File(..) | RecordDestination::Files(_) => Ok(()),
        }
    }

    /// Flushes what was written to disk.
    pub(super) fn sync(&mut self) -> io::Result<()> {
        if !std::mem::take(&mut self.dirty) {
            return Ok(());
        }
        match &mut self.destination {
            RecordDestination::Standard(standard) => standard.flush(),
            RecordDestination::File(path, file) => sync(file).map_err(|error| at(path, error)),
            RecordDestination::Files(files) => files.sync(),
        }
    }
}

/// Opens a file to append to. Its last line must be complete.
fn append(path: &Path) -> io::Result<File> {
    let mut file = File::options().read(true).append(true).create(true).open(path)?;
    let regular = file.metadata()?.is_file();
    if regular && file.seek(SeekFrom::End(0))? > 0 {
        let mut last = [0];
        file.seek(SeekFrom::End(-1))?;
        file.read_exact(&mut last)?;
        if last != *b"\n" {
            return Err(io::Error::other(
                "its last line is not complete; complete it, remove it, or name another file",
            ));
        }
    }
    Ok(file)
}

fn sync(file: &mut BufWriter<File>) -> io::Result<()> {
    file.flush()?;
    match file.get_ref().sync_data() {
        // What is not a file on a disk, such as a pipe, cannot be synced.
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(()),
        syncd => syncd,
    }
}

/// Numbered files: `FILE.000001.ndjson`, `FILE.000002.ndjson`, …
struct NumberedFiles {
    directory: PathBuf,
    stem: String,
    rotation: Rotation,
    number: u64,
    /// The current file. `None` from when it is full until there is something to write.
    file: Option<BufWriter<File>>,
    bytes: u64,
}

impl NumberedFiles {
    /// Continues after the last existing file.
    fn open(path: &Path, rotation: Rotation) -> io::Result<Self> {
        let name = path.file_name().ok_or_else(|| io::Error::other("it is not the name of a file"))?.to_string_lossy();
        let stem = name.strip_suffix(".ndjson").unwrap_or(&name).to_owned();
        let directory = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
            _ => PathBuf::from("."),
        };
        let mut files = Self { directory, stem, rotation, number: 0, file: None, bytes: 0 };
        files.number = files.numbers()?.last().copied().unwrap_or(0);
        files.create_next()?;
        Ok(files)
    }

    fn path(&self, number: u64) -> PathBuf {
        self.directory.join(format!("{}.{number:06}.ndjson", self.stem))
    }

    /// The numbers of the existing files, in order.
    fn numbers(&self) -> io::Result<Vec<u64>> {
        let mut numbers = Vec::new();
        for entry in fs::read_dir(&self.directory)? {
            let name = entry?.file_name();
            let number = name.to_str().and_then(|name| {
                let digits = name.strip_prefix(self.stem.as_str())?.strip_prefix('.')?.strip_suffix(".ndjson")?;
                let plain = digits.len() >= 6 && digits.bytes().all(|byte| byte.is_ascii_digit());
                plain.then(|| digits.parse::<u64>().ok()).flatten()
            });
            numbers.extend(number);
        }
        numbers.sort_unstable();
        Ok(numbers)
    }

    /// Creates the next file, and deletes the oldest if there are too many.
    fn create_next(&mut self) -> io::Result<()> {
        self.number += 1;
        let path = self.path(self.number);
        let file = File::options().write(true).create_new(true).open(&path).map_err(|error| at(&path, error))?;
        (self.file, self.bytes) = (Some(BufWriter::new(file)), 0);
        let Some(keep) = self.rotation.keep else { return Ok(()) };
        let numbers = self.numbers()?;
        let surplus = numbers.len().saturating_sub(usize::try_from(keep).unwrap_or(usize::MAX));
        for number in numbers.into_iter().take(surplus) {
            let path = self.path(number);
            fs::remove_file(&path).map_err(|error| at(&path, error))?;
        }
        Ok(())
    }

    fn write(&mut self, transaction: RecordedTransaction, end_lsn: Lsn) -> io::Result<()> {
        if self.file.is_none() {
            self.create_next()?;
        }
        let path = self.path(self.number);
        let Some(file) = &mut self.file else { return Ok(()) };
        self.bytes += transaction.commit(end_lsn, file).map_err(|error| at(&path, error))?;
        if self.bytes >= self.rotation.bytes_max {
            self.sync()?;
            self.file = None;
        }
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        let path = self.path(self.number);
        match &mut self.file {
            Some(file) => sync(file).map_err(|error| at(&path, error)),
            None => Ok(()),
        }
    }
}

/// The error, with the name of the file.
fn at(path: &Path, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("cannot write {}: {error}", printable(path.display().to_string())))
}

fn unwritten(path: &Path, error: &io::Error) -> Failure {
    Failure::usage(format!("cannot write {}: {error}", printable(path.display().to_string())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::change::{Begin, Change, Operation, Relation, RelationId, TableName, Xid};
    use crate::cmd::failure::Exit;
    use crate::source::recording::write::Redaction;
    use tempfile::TempDir;

    fn transaction(xid: u32) -> RecordedTransaction {
        let begin = Begin { xid: Xid::new(xid), commit_lsn: Lsn::new(1), at: std::time::SystemTime::UNIX_EPOCH };
        let relation = Relation {
            id: RelationId::new(1),
            name: TableName::parse("public.t"),
            also: Vec::new(),
            columns: Vec::new(),
        };
        let change =
            Change { relation: std::sync::Arc::new(relation), operation: Operation::Truncate, old: None, new: None };
        let mut transaction = RecordedTransaction::new(begin);
        for _ in 0..3 {
            transaction.push(&change, &Redaction::default()).unwrap();
        }
        transaction
    }

    fn names(directory: &TempDir) -> Vec<String> {
        let entries = fs::read_dir(directory.path()).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_transaction_is_in_one_file_and_the_oldest_go() {
        let directory = TempDir::new().unwrap();
        fs::write(directory.path().join("other.000001.ndjson"), "").unwrap();
        fs::write(directory.path().join("changes.x.ndjson"), "").unwrap();
        let path = directory.path().join("changes.ndjson");
        let rotation = Some(Rotation { bytes_max: 100, keep: Some(2) });
        for run in 0..2 {
            let mut output = Output::open(Some(&path), rotation).unwrap();
            for xid in 1..=4 {
                output.write(transaction(xid), Lsn::new(7)).unwrap();
            }
            output.sync().unwrap();
            let (before, last) = (run * 4 + 3, run * 4 + 4);
            let expected = [
                format!("changes.{before:06}.ndjson"),
                format!("changes.{last:06}.ndjson"),
                "changes.x.ndjson".to_owned(),
                "other.000001.ndjson".to_owned(),
            ];
            assert_eq!(names(&directory), expected);
            let text = fs::read_to_string(directory.path().join(&expected[1])).unwrap();
            assert!(text.lines().count() == 3 && text.lines().all(|line| line.contains("\"xid\":4,")), "{text}");
        }
    }

    #[test]
    fn a_file_is_continued_at_the_end_of_a_line() {
        let directory = TempDir::new().unwrap();
        let path = directory.path().join("changes.ndjson");
        for lines in [3, 6] {
            let mut output = Output::open(Some(&path), None).unwrap();
            output.write(transaction(1), Lsn::new(7)).unwrap();
            output.sync().unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap().lines().count(), lines);
        }
        fs::write(&path, "{\"half").unwrap();
        let failure = Output::open(Some(&path), None).err().unwrap();
        assert!(failure.exit == Exit::Usage && failure.message.contains("not complete"), "{failure:?}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "{\"half");
    }
}
