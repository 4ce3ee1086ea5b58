//! Reading what `-f` names: a file, every YAML file of a directory, or standard input.

use std::{
    fs,
    io::{self, Read},
    path::{Path, PathBuf},
};

use mesh_control::store::SourceFile;

use super::{BAD_INPUT, Failure};

/// What `-f` names.
#[derive(Clone, Debug, Default, clap::Args)]
pub(super) struct Files {
    /// A file, a directory (its .yaml, .yml and .json files), or - for standard input; may be repeated.
    #[arg(short = 'f', long = "filename", value_name = "FILE|DIR|-")]
    paths: Vec<PathBuf>,
    /// The directories below those named, too.
    #[arg(short = 'R', long)]
    recursive: bool,
}

impl Files {
    pub(super) fn is_empty(&self) -> bool {
        self.paths.is_empty()
    }

    /// With files that were named without `-f`.
    pub(super) fn and(mut self, more: Vec<PathBuf>) -> Self {
        self.paths.extend(more);
        self
    }

    /// Everything named, in that order; a directory's files by name.
    pub(super) fn read(&self) -> Result<Vec<SourceFile>, Failure> {
        let mut files = Vec::new();
        for path in &self.paths {
            if path.as_os_str() == "-" {
                let mut bytes = Vec::new();
                io::stdin().read_to_end(&mut bytes).map_err(|error| cannot_read(path, &error))?;
                files.push(source(path, bytes)?);
            } else if path.is_dir() {
                let before = files.len();
                self.read_directory(path, &mut files)?;
                if files.len() == before {
                    let message = format!("{} holds no .yaml, .yml or .json file", path.display());
                    return Err(Failure::new(BAD_INPUT, message));
                }
            } else {
                files.push(read_file(path)?);
            }
        }
        Ok(files)
    }

    fn read_directory(&self, directory: &Path, files: &mut Vec<SourceFile>) -> Result<(), Failure> {
        let listing = || -> io::Result<Vec<PathBuf>> {
            let entries = fs::read_dir(directory)?.map(|entry| entry.map(|entry| entry.path()));
            let mut paths = entries.collect::<io::Result<Vec<_>>>()?;
            paths.sort();
            Ok(paths)
        };
        for path in listing().map_err(|error| cannot_read(directory, &error))? {
            if path.is_dir() {
                if self.recursive {
                    self.read_directory(&path, files)?;
                }
            } else if path.extension().is_some_and(|ext| ["yaml", "yml", "json"].iter().any(|known| ext == *known)) {
                files.push(read_file(&path)?);
            }
        }
        Ok(())
    }
}

fn read_file(path: &Path) -> Result<SourceFile, Failure> {
    source(path, fs::read(path).map_err(|error| cannot_read(path, &error))?)
}

fn source(path: &Path, bytes: Vec<u8>) -> Result<SourceFile, Failure> {
    let name = path.display().to_string();
    match String::from_utf8(bytes) {
        Ok(text) => Ok(SourceFile { name, text }),
        Err(error) => {
            let valid = &error.as_bytes()[..error.utf8_error().valid_up_to()];
            let line = valid.iter().filter(|byte| **byte == b'\n').count() + 1;
            let column = valid.iter().rev().take_while(|byte| **byte != b'\n').count() + 1;
            Err(Failure::new(BAD_INPUT, format!("{name}:{line}:{column}: this is not UTF-8 text")))
        }
    }
}

fn cannot_read(path: &Path, error: &io::Error) -> Failure {
    Failure::new(BAD_INPUT, format!("{} cannot be read: {error}", path.display()))
}
