//! The `blobferry` command.

fn main() {}
