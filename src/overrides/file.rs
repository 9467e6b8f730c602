//! The copy of the document beside the queue: written whole to a temporary name, synced, renamed, the folder synced. A crash
//! leaves the old document or the new one. Blocking work is done on blocking threads.

use super::document::Document;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Write as _};
use std::path::{Path, PathBuf};

/// The document, if there is a file. One that is not understood is put aside under another name.
pub(super) async fn read(path: PathBuf) -> io::Result<Option<Document>> {
    blocking(move || {
        let named = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(named(error)),
        };
        match Document::decode(&bytes) {
            Ok(document) => Ok(Some(document)),
            Err(error) => {
                let aside = path.with_extension("json.unreadable");
                tracing::error!(file = %path.display(), aside = %aside.display(), %error, "the overrides' file cannot be read");
                fs::rename(&path, &aside).map_err(named)?;
                Ok(None)
            }
        }
    })
    .await
}

/// Replaces the document.
pub(super) async fn write(path: PathBuf, bytes: Vec<u8>) -> io::Result<()> {
    blocking(move || {
        let temporary = path.with_extension("json.tmp");
        let mut file = File::create(&temporary)?;
        file.write_all(&bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, &path)?;
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(folder)?.sync_all()
    })
    .await
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}
