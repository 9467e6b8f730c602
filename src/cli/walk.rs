//! Which files a list of paths means: files as they are, folders with all regular files in them, in the order of their
//! names. Symbolic links are not followed, except where one is named itself.

use std::cell::Cell;
use std::path::{Path, PathBuf};
use walkdir::WalkDir;

/// A file that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FoundFile {
    /// Where it is.
    pub(crate) path: PathBuf,
    /// Its size in bytes when it was found.
    pub(crate) size: u64,
}

/// A path that could not be looked into; the walk goes on behind it.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {problem}", path = path.display())]
pub(crate) struct WalkError {
    path: PathBuf,
    problem: String,
}

/// All regular files that these paths mean; `links` counts the symbolic links that are passed by. Reads folders as it goes:
/// for a blocking thread.
pub(crate) fn files(paths: Vec<PathBuf>, links: &Cell<u64>) -> impl Iterator<Item = Result<FoundFile, WalkError>> {
    paths.into_iter().flat_map(move |root| {
        WalkDir::new(&root).sort_by_file_name().into_iter().filter_map(move |entry| found(&root, entry, links))
    })
}

fn found(
    root: &Path,
    entry: Result<walkdir::DirEntry, walkdir::Error>,
    links: &Cell<u64>,
) -> Option<Result<FoundFile, WalkError>> {
    let wrong = |error: &walkdir::Error| {
        let problem = error.io_error().map_or_else(|| error.to_string(), ToString::to_string);
        WalkError { path: error.path().unwrap_or(root).to_path_buf(), problem }
    };
    let entry = match entry {
        Ok(entry) => entry,
        Err(error) => return Some(Err(wrong(&error))),
    };
    let path = entry.path().to_path_buf();
    // A link that was named itself stands for what it points to.
    let metadata = if entry.depth() == 0 {
        path.metadata().map_err(|error| WalkError { path: path.clone(), problem: error.to_string() })
    } else {
        entry.metadata().map_err(|error| wrong(&error))
    };
    match metadata {
        Ok(metadata) if metadata.is_file() => Some(Ok(FoundFile { path, size: metadata.len() })),
        Ok(metadata) if entry.depth() == 0 && !metadata.is_dir() => {
            Some(Err(WalkError { path, problem: "is neither a file nor a folder".to_owned() }))
        }
        Ok(metadata) => {
            links.set(links.get() + u64::from(metadata.is_symlink()));
            None
        }
        Err(error) => Some(Err(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::files;
    use std::cell::Cell;
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::path::PathBuf;

    #[test]
    fn finds_files_in_order_and_follows_no_link_inside() {
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path();
        fs::create_dir_all(top.join("a/deep")).unwrap();
        fs::write(top.join("a/deep/2"), "22").unwrap();
        fs::write(top.join("a/1"), "1").unwrap();
        fs::write(top.join("b"), "").unwrap();
        symlink(top, top.join("a/loop")).unwrap();
        symlink(top.join("b"), top.join("a/link")).unwrap();
        symlink("/dev/null", top.join("null")).unwrap();
        let links = Cell::new(0);
        let found: Vec<_> = files(vec![top.to_path_buf()], &links).map(Result::unwrap).collect();
        assert_eq!(links.get(), 3);
        let found: Vec<_> =
            found.iter().map(|file| (file.path.strip_prefix(top).unwrap().to_str().unwrap(), file.size)).collect();
        assert_eq!(found, [("a/1", 1), ("a/deep/2", 2), ("b", 0)]);
        let named: Vec<_> = files(vec![top.join("a/link")], &links).map(Result::unwrap).collect();
        assert_eq!((named.len(), named[0].size), (1, 0));
        assert_eq!(files(vec![top.join("a/loop")], &links).count(), 3);
    }

    #[test]
    fn says_what_is_missing_and_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("x"), "x").unwrap();
        let paths = vec![PathBuf::from("/no/such/path"), PathBuf::from("/dev/null"), dir.path().to_path_buf()];
        let found: Vec<_> = files(paths, &Cell::new(0)).collect();
        assert_eq!(found.len(), 3);
        assert!(found[0].as_ref().unwrap_err().to_string().starts_with("/no/such/path: "));
        assert!(found[1].as_ref().unwrap_err().to_string().contains("neither a file nor a folder"));
        assert_eq!(found[2].as_ref().unwrap().size, 1);
    }
}
