//! Compiles `proto/` with protox, so that no `protoc` is needed, into the Rust types that `src/pb.rs` includes and the
//! descriptor set that reflection serves.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::{env, fs, io};

/// The folder that imports are resolved against.
const ROOT: &str = "proto";
/// The folder of the files that are compiled, all of them.
const PACKAGE: &str = "proto/blobferry/v1";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    // The folder notices files that come and go, the files notice their own changes; protox says neither to cargo.
    println!("cargo::rerun-if-changed={PACKAGE}");
    let files = proto_files(Path::new(PACKAGE))?;
    for file in &files {
        println!("cargo::rerun-if-changed={}", file.display());
    }

    let mut compiler = protox::Compiler::new([ROOT])?;
    compiler.include_imports(true).include_source_info(true).open_files(&files)?;

    // Encoded by protox itself: its bytes keep the options that prost's types would drop, and the comments.
    let out_dir = PathBuf::from(env::var_os("OUT_DIR").ok_or("cargo did not set OUT_DIR")?);
    fs::write(out_dir.join("blobferry.v1.bin"), compiler.encode_file_descriptor_set())?;

    tonic_prost_build::configure()
        .bytes(".")
        .build_client(true)
        .build_server(true)
        // `connect` of the generated clients, by which tests speak as others do: for the feature `server` alone.
        .build_transport(env::var_os("CARGO_FEATURE_SERVER").is_some())
        .compile_fds(compiler.file_descriptor_set())?;
    Ok(())
}

/// The `.proto` files of a folder, sorted, so that the build is the same everywhere.
fn proto_files(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "proto") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}
