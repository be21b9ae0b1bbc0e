//! Layers: archives as they come (also compressed, by the first byte 0) or made by a script, so that names, links and hard links meet.
//! Nothing outside of the layer's directory may change.
#![no_main]

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use tar::{EntryType, Header};
use tempfile::TempDir;

static SCRATCH: LazyLock<TempDir> = LazyLock::new(|| {
    let scratch = TempDir::new().unwrap();
    std::fs::create_dir(scratch.path().join("outside")).unwrap();
    std::fs::write(scratch.path().join("outside/file"), "as it was").unwrap();
    scratch
});

fuzz_target!(|bytes: &[u8]| {
    let Some((kind, rest)) = bytes.split_first() else { return };
    let scratch = SCRATCH.path();
    let layer = scratch.join("layer");
    std::fs::create_dir(&layer).unwrap();
    let before = outside(scratch);
    let archive = if *kind == 0 { rest.to_vec() } else { written(rest, scratch) };
    coracle_image::fuzzing::unpack(&layer, &archive);
    assert_eq!(outside(scratch), before);
    std::fs::remove_dir_all(&layer).unwrap();
});

/// All there is beside the layer, with everything that could be changed.
fn outside(scratch: &Path) -> Vec<(PathBuf, [u64; 7], Vec<u8>)> {
    let mut seen = Vec::new();
    for directory in [scratch, &scratch.join("outside")] {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.ends_with("layer") {
                continue;
            }
            let stat = std::fs::symlink_metadata(&path).unwrap();
            let stat = [stat.mode().into(), stat.uid().into(), stat.gid().into(), stat.nlink(), stat.ino(), stat.mtime() as u64, stat.ctime_nsec() as u64];
            let content = std::fs::read(&path).unwrap_or_default();
            seen.push((path, stat, content));
        }
    }
    seen
}

const NAMES: [&str; 16] = [
    "a", "a/b", "a/b/c", "l", "l/file", "l/x/y", ".", "/", "../outside/file", "a/../../outside/n", "a/.wh.b", ".wh.a", "l/.wh..wh..opq", ".wh.l", "/a", "a/b/",
];

/// An archive of what `script` says: for each member a type, a name, a target, a mode and a length.
fn written(mut script: &[u8], scratch: &Path) -> Vec<u8> {
    let outside = scratch.join("outside").to_str().unwrap().to_owned();
    let beyond = format!("{outside}/file");
    let targets = ["a", "/", "..", "../../outside", &outside, &beyond, "../outside/file", "l", "b", "a/b", "/proc/self/root", "l/file", "", ".", "../..", "a/l"];
    let mut archive = tar::Builder::new(Vec::new());
    while let Some(([kind, names, mode, length], rest)) = script.split_first_chunk() {
        let (content, rest) = rest.split_at(rest.len().min((*length).into()));
        script = rest;
        let mut header = if kind & 0x80 == 0 { Header::new_gnu() } else { Header::new_ustar() };
        let types = [EntryType::Regular, EntryType::Directory, EntryType::Symlink, EntryType::Link, EntryType::Char, EntryType::Fifo, EntryType::XHeader, EntryType::GNULongName];
        let kind = types[usize::from(kind % 8)];
        let (name, target) = (NAMES[usize::from(names % 16)], targets[usize::from(names / 16)]);
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.as_old_mut().linkname[..target.len()].copy_from_slice(target.as_bytes());
        header.set_entry_type(kind);
        header.set_mode(u32::from(*mode) << 4);
        (header.set_uid(u64::from(*mode)), header.set_gid(0), header.set_mtime(1));
        let body = matches!(kind, EntryType::Regular | EntryType::XHeader | EntryType::GNULongName);
        header.set_size(if body { content.len() as u64 } else { 0 });
        header.set_cksum();
        archive.append(&header, if body { content } else { &[][..] }).unwrap();
    }
    archive.into_inner().unwrap()
}
