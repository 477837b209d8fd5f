//! Compiled kernels on disk, named by the hash of all that decides them. An entry begins with its contents' checksum; one
//! that is damaged counts as missing.

use std::path::{Path, PathBuf};

use crate::data::hash::Hasher;
use crate::device::source::{HEADERS, Source};
use crate::files::write_atomically;

/// A folder of entries; none if there is no place for it.
pub(super) struct Cache {
    folder: Option<PathBuf>,
}

fn checksum(cubin: &[u8]) -> [u8; 16] {
    let mut hasher = Hasher::new("supernet cubin contents");
    hasher.field(cubin);
    hasher.finish()
}

impl Cache {
    /// Entries in `cuda` below the folder.
    pub fn new(folder: Option<&Path>) -> Self {
        Self { folder: folder.map(|folder| folder.join("cuda")) }
    }

    /// The file of a source compiled with options, which name the architecture, by a version of NVRTC.
    fn file(&self, source: &Source, options: &[String], version: (i32, i32)) -> Option<PathBuf> {
        let mut hasher = Hasher::new("supernet cubin");
        for text in [source.stem, source.cuda].into_iter().chain(HEADERS.iter().flat_map(|(name, text)| [*name, *text]))
        {
            hasher.field(text.as_bytes());
        }
        hasher.number(version.0 as u64);
        hasher.number(version.1 as u64);
        for option in options {
            hasher.field(option.as_bytes());
        }
        let name = format!("{}-{}.cubin", source.stem, hasher.hex());
        self.folder.as_ref().map(|folder| folder.join(name))
    }

    /// The entry, if it is whole.
    fn read(file: &Path) -> Option<Vec<u8>> {
        let bytes = std::fs::read(file).ok()?;
        let (sum, cubin) = bytes.split_at_checked(16)?;
        (checksum(cubin) == sum).then(|| cubin.to_vec())
    }

    /// The entry, or what `compile` makes, kept for the next time. A folder that cannot be written costs only time.
    pub fn get<E>(
        &self,
        source: &Source,
        options: &[String],
        version: (i32, i32),
        compile: impl FnOnce() -> Result<Vec<u8>, E>,
    ) -> Result<Vec<u8>, E> {
        let file = self.file(source, options, version);
        if let Some(cubin) = file.as_deref().and_then(Self::read) {
            return Ok(cubin);
        }
        let cubin = compile()?;
        if let Some((file, folder)) = file.as_deref().and_then(|file| Some((file, file.parent()?))) {
            let bytes = [&checksum(&cubin)[..], &cubin].concat();
            let _ = std::fs::create_dir_all(folder).map(|()| write_atomically(file, &bytes));
        }
        Ok(cubin)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::source::SOURCES;

    #[test]
    fn entries_are_kept_and_damage_is_rebuilt() {
        let folder = std::env::temp_dir().join(format!("supernet-cubins-{}", std::process::id()));
        let cache = Cache::new(Some(&folder));
        let [a, b] = [vec!["-a".to_owned()], vec!["-b".to_owned()]];
        let get = |options: &[String], version, made: &[u8]| {
            cache.get::<()>(&SOURCES[0], options, version, || Ok(made.to_vec())).unwrap()
        };
        assert_eq!(get(&a, (13, 0), b"first"), b"first");
        assert_eq!(get(&a, (13, 0), b"second"), b"first");
        assert_eq!(get(&b, (13, 0), b"other options"), b"other options");
        assert_eq!(get(&a, (13, 1), b"other version"), b"other version");
        let file = cache.file(&SOURCES[0], &a, (13, 0)).unwrap();
        let whole = std::fs::read(&file).unwrap();
        for damaged in [&whole[..whole.len() - 1], &whole[..3], b"", &[&whole[..], b"x"].concat()] {
            std::fs::write(&file, damaged).unwrap();
            assert_eq!(get(&a, (13, 0), b"rebuilt"), b"rebuilt");
            assert_eq!(get(&a, (13, 0), b"not asked"), b"rebuilt");
            std::fs::write(&file, &whole).unwrap();
        }
        let nowhere = Cache::new(None);
        assert_eq!(nowhere.get::<()>(&SOURCES[0], &a, (13, 0), || Ok(vec![1])).unwrap(), [1]);
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
