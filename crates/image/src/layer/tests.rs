//! Archives, kind and hostile, applied for real. Needs root: device nodes, owners, `trusted.` attributes.

use std::io::{BufReader, Cursor, Read};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use coracle_domain::Result;
use proptest::prelude::*;
use tar::EntryType;
use tempfile::TempDir;

use super::apply::{Applied, OPAQUE, apply};
use super::archive::Archive;
use super::implicit::Finished;
use crate::merged::Merged;
use crate::testing::{TIME, Tar};

struct Fixture {
    scratch: TempDir,
}

impl Fixture {
    fn new() -> Self {
        let scratch = tempfile::tempdir().unwrap();
        std::fs::create_dir(scratch.path().join("layer")).unwrap();
        std::fs::write(scratch.path().join("outside"), "untouched").unwrap();
        Self { scratch }
    }

    fn path(&self, path: &str) -> std::path::PathBuf {
        self.scratch.path().join("layer").join(path)
    }

    fn apply(&self, tar: Tar) -> Result<Applied> {
        self.apply_bytes(&tar.bytes())
    }

    fn apply_bytes(&self, bytes: &[u8]) -> Result<Applied> {
        apply(&self.path(""), &mut Archive::new(Cursor::new(bytes)))
    }

    fn finish(&self, tar: Tar) -> Finished {
        let applied = self.apply(tar).unwrap();
        assert!(applied.is_self_contained(), "{applied:?}");
        applied.finish(&nothing()).unwrap()
    }

    fn opaque(&self, path: &str) -> bool {
        let mut value = [0; 8];
        rustix::fs::lgetxattr(self.path(path), OPAQUE, &mut value).is_ok_and(|length| &value[..length] == b"y")
    }

    fn whiteout(&self, path: &str) -> bool {
        std::fs::symlink_metadata(self.path(path)).is_ok_and(|m| m.file_type().is_char_device() && m.rdev() == 0)
    }

    fn text(&self, path: &str) -> String {
        std::fs::read_to_string(self.path(path)).unwrap()
    }

    /// Nothing but the layer itself was touched.
    fn assert_contained(&self) {
        let mut names: Vec<_> = std::fs::read_dir(self.scratch.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["layer", "outside"]);
        assert_eq!(std::fs::read_to_string(self.scratch.path().join("outside")).unwrap(), "untouched");
    }
}

fn nothing() -> Merged {
    Merged::open([]).unwrap()
}

fn attribute(path: &Path, name: &str) -> Option<Vec<u8>> {
    let mut value = [0; 256];
    rustix::fs::lgetxattr(path, name, &mut value).ok().map(|length| value[..length].to_vec())
}

#[test]
fn files_of_all_kinds_come_out_exactly() {
    let fixture = Fixture::new();
    let capability = b"\x01\x00\x00\x02\x00\x0a\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00";
    let finished = fixture.finish(
        Tar::new()
            .entry(EntryType::Directory, "./", "", b"", |h| h.set_mode(0o750))
            .entry(EntryType::Directory, "d/", "", b"", |h| {
                h.set_mode(0o2775);
                h.set_gid(7)
            })
            .pax(&[
                ("mtime", b"1500000000.123456789"),
                ("atime", b"1400000000.5"),
                ("uid", b"3000000000"),
                ("SCHILY.xattr.security.capability", capability),
                ("SCHILY.xattr.user.note", b"a\nb"),
            ])
            .entry(EntryType::Regular, "d/program", "", b"hello", |h| h.set_mode(0o4755))
            .entry(EntryType::Symlink, "d/link", "../../../target", b"", |h| {
                h.set_uid(5);
                h.set_gid(6)
            })
            .hard_link("d/hard", "d/program")
            .hard_link("/d/hardlink-to-link", "d/link")
            .entry(EntryType::Char, "d/null", "", b"", |h| {
                h.set_mode(0o666);
                h.set_device_major(1).unwrap();
                h.set_device_minor(3).unwrap()
            })
            .entry(EntryType::Block, "d/loop", "", b"", |h| {
                h.set_mode(0o660);
                h.set_gid(6);
                h.set_device_major(7).unwrap();
                h.set_device_minor(300).unwrap()
            })
            .entry(EntryType::Fifo, "d/pipe", "", b"", |h| h.set_mode(0o622))
            .entry(EntryType::Regular, "old-directory/", "", b"", |_| {}),
    );
    assert!(finished.carries_root && !finished.opaque_root);
    let of = |path: &str| std::fs::symlink_metadata(fixture.path(path)).unwrap();
    assert_eq!(of("").mode() & 0o7777, 0o750);
    assert_eq!((of("d").mode() & 0o7777, of("d").gid(), of("d").mtime()), (0o2775, 7, TIME.cast_signed()));
    let program = of("d/program");
    assert_eq!((program.mode() & 0o7777, program.uid(), program.gid(), program.nlink()), (0o4755, 3_000_000_000, 0, 2));
    assert_eq!(
        (program.mtime(), program.mtime_nsec(), program.atime(), program.atime_nsec()),
        (1_500_000_000, 123_456_789, 1_400_000_000, 500_000_000)
    );
    assert_eq!(attribute(&fixture.path("d/program"), "security.capability").as_deref(), Some(&capability[..]));
    assert_eq!(attribute(&fixture.path("d/program"), "user.note").as_deref(), Some(&b"a\nb"[..]));
    assert_eq!((of("d/link").uid(), of("d/link").gid(), of("d/link").mtime(), of("d/link").nlink()), (5, 6, TIME.cast_signed(), 2));
    assert_eq!(std::fs::read_link(fixture.path("d/link")).unwrap(), Path::new("../../../target"));
    assert_eq!((of("d/null").rdev(), of("d/null").mode() & 0o7777), (rustix::fs::makedev(1, 3), 0o666));
    assert!(of("d/null").file_type().is_char_device() && of("d/loop").file_type().is_block_device());
    assert_eq!((of("d/loop").rdev(), of("d/loop").gid(), of("d/loop").mtime()), (rustix::fs::makedev(7, 300), 6, TIME.cast_signed()));
    assert!(of("d/pipe").file_type().is_fifo());
    assert!(of("old-directory").is_dir());
}

#[test]
fn long_names_come_in_both_dialects() {
    let fixture = Fixture::new();
    let (pax, gnu) = (format!("d/{}", "p".repeat(240)), format!("d/{}", "g".repeat(240)));
    let tar = Tar::new().dir("d").pax(&[("path", pax.as_bytes())]).file("short", "pax");
    let tar =
        tar.entry(EntryType::GNULongName, "././@LongLink", "", format!("{gnu}\0").as_bytes(), |h| *h = gnu_header(h)).file("short", "gnu");
    fixture.finish(tar);
    assert_eq!((fixture.text(&pax), fixture.text(&gnu)), ("pax".into(), "gnu".into()));
}

fn gnu_header(from: &tar::Header) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(from.entry_type());
    header.set_size(from.size().unwrap());
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}

#[test]
fn whiteouts_become_what_overlayfs_expects() {
    let fixture = Fixture::new();
    let finished = fixture.finish(
        Tar::new()
            .dir("d")
            .file("d/.wh.gone", "")
            .dir("o")
            .file("o/.wh..wh..opq", "")
            .file("o/new", "")
            // Whiteouts do not concern their own layer…
            .file("d/kept", "kept")
            .file("d/.wh.kept", "")
            // …but a directory of both loses what lies below.
            .dir("d/replaced")
            .file("d/replaced/inner", "")
            .file("d/.wh.replaced", "")
            .file("d/.wh.reborn", "")
            .dir("d/reborn")
            .file("d/.wh.file-again", "")
            .file("d/file-again", "again")
            .file("d/.wh..wh.plnk", "")
            .file(".wh.late", "")
            .file("late/inside", ""),
    );
    assert!(!finished.carries_root && !finished.opaque_root);
    assert!(fixture.whiteout("d/gone"));
    assert!(fixture.opaque("o") && fixture.path("o/new").exists() && !fixture.opaque("d"));
    assert_eq!(fixture.text("d/kept"), "kept");
    assert!(fixture.opaque("d/replaced") && fixture.path("d/replaced/inner").exists());
    assert!(fixture.opaque("d/reborn"));
    assert_eq!(fixture.text("d/file-again"), "again");
    assert!(fixture.opaque("late") && fixture.path("late/inside").exists());
    let names: Vec<_> = std::fs::read_dir(fixture.path("d")).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    assert!(!names.iter().any(|name| name.starts_with(".wh.")), "{names:?}");
}

#[test]
fn an_opaque_root_is_remembered() {
    let finished = Fixture::new().finish(Tar::new().file(".wh..wh..opq", "").file("a", ""));
    assert!(finished.opaque_root);
}

#[test]
fn later_members_replace_earlier_ones() {
    let fixture = Fixture::new();
    fixture.finish(
        Tar::new()
            .file("a", "first")
            .file("a", "second")
            .dir("b")
            .file("b/x", "")
            .file("b", "a file now")
            .file("c", "")
            .dir("c")
            .file("c/y", "")
            .dir("d")
            .file("d/kept", "")
            .dir("d")
            .symlink("e", "/outside")
            .file("e", "no link")
            .dir("f")
            .symlink("f", "a"),
    );
    assert_eq!((fixture.text("a"), fixture.text("b"), fixture.text("e")), ("second".into(), "a file now".into(), "no link".into()));
    assert!(fixture.path("c/y").exists() && fixture.path("d/kept").exists());
    assert!(fixture.opaque("c"), "the file hid what lies below");
    assert!(fixture.path("f").is_symlink());
    fixture.assert_contained();
}

#[test]
fn hostile_archives_stay_inside() {
    let attempts: Vec<(&str, Tar)> = vec![
        ("dots", Tar::new().file("../outside", "x").file("../../outside", "x").file("a/../../outside", "x")),
        ("absolute", Tar::new().file("/outside", "x")),
        ("absolute link", Tar::new().symlink("l", "/").file("l/outside", "x").file("l/tmp/coracle-escaped", "x")),
        ("climbing link", Tar::new().symlink("l", "..").file("l/outside", "x")),
        ("link chain", Tar::new().symlink("a", "b").symlink("b", "../..").file("a/outside", "x")),
        ("link onto file", Tar::new().symlink("f", "../outside").file("f", "x")),
        ("hard link out", Tar::new().hard_link("h", "../outside").file("h", "x")),
        ("hard link through link", Tar::new().symlink("up", "..").hard_link("h", "up/outside").file("h", "x")),
        ("whiteout through link", Tar::new().symlink("up", "..").file("up/.wh.outside", "")),
        ("opaque through link", Tar::new().symlink("up", "..").file("up/.wh..wh..opq", "")),
        ("directory over link", Tar::new().symlink("d", "..").dir("d").file("d/outside", "x")),
        ("directory attributes through link", Tar::new().symlink("d", "..").entry(EntryType::Directory, "d/.", "", b"", |h| h.set_mode(0))),
        ("device through link", Tar::new().symlink("d", "..").entry(EntryType::Char, "d/outside", "", b"", |_| {})),
        ("magic link", Tar::new().symlink("p", "/proc/self/root").file("p/tmp/coracle-escaped", "x")),
        ("loop", Tar::new().symlink("a", "b").symlink("b", "a").file("a/x", "x")),
    ];
    for (what, tar) in attempts {
        let fixture = Fixture::new();
        if let Ok(applied) = fixture.apply(tar) {
            let _ = applied.finish(&nothing());
        }
        fixture.assert_contained();
        assert!(!Path::new("/tmp/coracle-escaped").exists(), "{what}");
    }
}

#[test]
fn malformed_archives_are_refused() {
    let fixture = Fixture::new();
    for bad in [".wh.", ".wh..", "d/.wh..."] {
        assert!(fixture.apply(Tar::new().file(bad, "")).is_err(), "{bad}");
    }
    for bad in [
        Tar::new().hard_link("a", "a"),
        Tar::new().file("f", "").file("f/below", ""),
        Tar::new().file(".", ""),
        Tar::new().entry(EntryType::new(b'Z'), "z", "", b"", |_| {}),
        Tar::new().pax(&[("uid", b"4294967295")]).file("f", ""),
        Tar::new().pax(&[("path", b"a\0b")]).file("f", ""),
    ] {
        assert!(fixture.apply(bad).is_err());
    }
    let good = Tar::new().file("a", &"x".repeat(3000)).bytes();
    assert!(fixture.apply_bytes(&good[..1024]).is_err(), "ends within a file");
    assert!(fixture.apply_bytes(&good[..100]).is_err(), "ends within a header");
    let mut flipped = good.clone();
    flipped[0] ^= 1;
    assert!(fixture.apply_bytes(&flipped).is_err(), "checksum");
    let mut huge = Tar::new().entry(EntryType::XHeader, "x", "", b"", |h| h.set_size(1 << 40)).bytes();
    huge.truncate(512);
    assert!(fixture.apply_bytes(&huge).unwrap_err().to_string().contains("longer than"));
    fixture.assert_contained();
}

/// The same bytes again and again.
struct Again {
    bytes: Vec<u8>,
    at: usize,
    left: usize,
}

impl Read for Again {
    fn read(&mut self, target: &mut [u8]) -> std::io::Result<usize> {
        if self.at == self.bytes.len() && self.left > 0 {
            (self.at, self.left) = (0, self.left - 1);
        }
        let read = (&self.bytes[self.at..]).read(target)?;
        self.at += read;
        Ok(read)
    }
}

#[test]
fn what_is_noted_of_an_archive_is_bounded() {
    let path = vec!["d".repeat(200); 19].join("/");
    let whole = |tar: Tar| {
        // Without the two blocks that end it.
        let bytes = tar.bytes();
        bytes[..bytes.len() - 1024].to_vec()
    };
    let directory = |path: &str| Tar::new().pax(&[("path", path.as_bytes())]).dir("short");
    let parents: Vec<u8> = (1..19).flat_map(|depth| whole(directory(&path[..depth * 201 - 1]))).collect();
    let link = Tar::new().pax(&[("linkpath", format!("nowhere/{path}").as_bytes())]).hard_link("h", "short");
    for member in [directory(&path), link] {
        let fixture = Fixture::new();
        let again = Again { bytes: whole(member), at: 0, left: 40_000 };
        let mut archive = Archive::new(BufReader::new(Cursor::new(parents.clone()).chain(again)));
        let error = apply(&fixture.path(""), &mut archive).unwrap_err().to_string();
        assert!(error.contains("too many directories"), "{error}");
    }
}

#[test]
fn only_files_have_content() {
    let fixture = Fixture::new();
    let sized = |h: &mut tar::Header| h.set_size(512);
    fixture.finish(
        Tar::new()
            .entry(EntryType::Directory, "d", "", b"", sized)
            .file("after", "a directory's size says nothing")
            .entry(EntryType::Regular, "old/", "", &[0; 512], |_| {})
            .file("last", "a file's does, although its name makes it a directory"),
    );
    assert!(fixture.path("d").is_dir() && fixture.path("old").is_dir());
    assert!(fixture.text("after").starts_with("a directory") && fixture.text("last").starts_with("a file"));
}

#[test]
fn overlayfs_own_attributes_cannot_be_smuggled_in() {
    let fixture = Fixture::new();
    fixture.finish(Tar::new().pax(&[("SCHILY.xattr.trusted.overlay.redirect", b"/etc"), ("SCHILY.xattr.trusted.other", b"1")]).dir("d"));
    assert_eq!(attribute(&fixture.path("d"), "trusted.overlay.redirect"), None);
    assert!(attribute(&fixture.path("d"), "trusted.other").is_some());
}

#[test]
fn missing_parents_are_completed_from_below() {
    let (below, above) = (Fixture::new(), Fixture::new());
    below.finish(
        Tar::new()
            .pax(&[("mtime", b"1000.25"), ("SCHILY.xattr.user.kept", b"1")])
            .entry(EntryType::Directory, "a", "", b"", |h| {
                h.set_mode(0o1777);
                h.set_uid(9)
            })
            .symlink("lib", "usr/lib")
            .dir("usr")
            .entry(EntryType::Directory, "usr/lib", "", b"", |h| h.set_mode(0o711)),
    );
    let applied = above.apply(Tar::new().file("a/b/file", "").file("lib/inner", "").dir("own").file("own/x", "")).unwrap();
    assert!(!applied.is_self_contained());
    applied.finish(&Merged::open([&below.path("")]).unwrap()).unwrap();
    let of = |path: &str| std::fs::symlink_metadata(above.path(path)).unwrap();
    assert_eq!((of("a").mode() & 0o7777, of("a").uid(), of("a").mtime(), of("a").mtime_nsec()), (0o1777, 9, 1000, 250_000_000));
    assert_eq!(attribute(&above.path("a"), "user.kept").as_deref(), Some(&b"1"[..]));
    assert_eq!((of("a/b").mode() & 0o7777, of("a/b").uid()), (0o755, 0));
    assert_eq!(of("lib").mode() & 0o7777, 0o711);
    assert_eq!(of("own").mtime(), TIME.cast_signed());
}

#[test]
fn a_parent_that_comes_later_is_not_missing() {
    let fixture = Fixture::new();
    fixture.finish(Tar::new().file("d/e/file", "").dir("d").entry(EntryType::Directory, "d/e", "", b"", |h| h.set_mode(0o700)));
    assert_eq!(std::fs::metadata(fixture.path("d/e")).unwrap().mode() & 0o7777, 0o700);
}

#[test]
fn a_dangling_link_leads_to_a_directory_below() {
    let (below, above) = (Fixture::new(), Fixture::new());
    below.finish(Tar::new().dir("usr").entry(EntryType::Directory, "usr/bin", "", b"", |h| h.set_mode(0o750)));
    let applied = above.apply(Tar::new().symlink("bin", "usr/bin").file("bin/tool", "tool")).unwrap();
    applied.finish(&Merged::open([&below.path("")]).unwrap()).unwrap();
    assert!(above.path("bin").is_symlink());
    assert_eq!(above.text("usr/bin/tool"), "tool");
    assert_eq!(std::fs::metadata(above.path("usr/bin")).unwrap().mode() & 0o7777, 0o750);
}

/// A file behind `links` dangling links, each of which leads `depth` directories down from the next.
fn behind_links(links: usize, depth: usize) -> Tar {
    let way = "/a".repeat(depth);
    let tar = (0..links).fold(Tar::new(), |tar, link| {
        let target = format!("l{}{way}", link + 1);
        tar.pax(&[("linkpath", target.as_bytes())]).symlink(&format!("l{link}"), "short")
    });
    tar.pax(&[("path", b"l0/file")]).file("short", "found")
}

#[test]
fn a_long_way_over_dangling_links_is_walked_or_refused_and_takes_no_stack() {
    let (long, endless) = (Fixture::new(), Fixture::new());
    long.apply(behind_links(10, 150)).unwrap();
    assert_eq!(long.text("l0/file"), "found");
    let error = endless.apply(behind_links(12, 2_000)).unwrap_err().to_string();
    assert!(error.contains("l0/file"), "{error}");
    let error = Fixture::new().apply(behind_links(41, 1)).unwrap_err().to_string();
    assert!(error.contains("symbolic links"), "{error}");
    for fixture in [long, endless] {
        crate::tree::remove(&fixture.path("")).unwrap();
    }
}

#[test]
fn a_hard_link_brings_its_file_up_from_below() {
    let (below, above) = (Fixture::new(), Fixture::new());
    below.finish(Tar::new().dir("d").entry(EntryType::Regular, "d/target", "", b"content", |h| {
        h.set_mode(0o4711);
        h.set_uid(3)
    }));
    let stack = || Merged::open([&below.path("")]).unwrap();
    let applied = above.apply(Tar::new().dir("new").hard_link("new/link", "d/target").hard_link("new/second", "d/target")).unwrap();
    applied.finish(&stack()).unwrap();
    let link = std::fs::metadata(above.path("new/link")).unwrap();
    assert_eq!((link.mode() & 0o7777, link.uid(), link.nlink(), link.mtime()), (0o4711, 3, 3, TIME.cast_signed()));
    assert_eq!(above.text("d/target"), "content");
    assert_eq!(std::fs::metadata(above.path("new")).unwrap().mtime(), TIME.cast_signed());

    let lost = Fixture::new().apply(Tar::new().hard_link("link", "nowhere")).unwrap();
    assert!(lost.finish(&stack()).unwrap_err().to_string().contains("no layer has its target nowhere"));
}

#[test]
fn layers_are_seen_as_overlayfs_shows_them() {
    let (low, mid, top) = (Fixture::new(), Fixture::new(), Fixture::new());
    low.finish(
        Tar::new()
            .dir("d")
            .file("d/low", "low")
            .file("d/hidden", "")
            .dir("o")
            .file("o/low", "")
            .file("f", "low")
            .dir("deep")
            .dir("deep/er"),
    );
    mid.finish(
        Tar::new()
            .dir("d")
            .file("d/.wh.hidden", "")
            .file("d/mid", "mid")
            .dir("o")
            .file("o/.wh..wh..opq", "")
            .file("o/mid", "")
            .file("f", "mid"),
    );
    top.finish(
        Tar::new()
            .symlink("link", "d/low")
            .symlink("absolute", "/d")
            .symlink("up", "../../../../d/../f")
            .symlink("loop", "loop")
            .file("deep", "file now"),
    );
    let merged = Merged::open([&top.path(""), &mid.path(""), &low.path("")]).unwrap();
    let exists = |path: &str| merged.find(Path::new(path)).unwrap().is_some();
    for path in ["d", "d/low", "d/mid", "o/mid", "f", "link", "absolute/low", "/absolute/mid", "up", "deep", "d/../f", ".."] {
        assert!(exists(path), "{path}");
    }
    for path in ["d/hidden", "o/low", "deep/er", "nowhere", "f/below", "link/below"] {
        assert!(!exists(path), "{path}");
    }
    assert!(merged.find(Path::new("loop")).is_err());
    assert_eq!(merged.find(Path::new("up")).unwrap().unwrap().stat.st_size, 3);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// A good archive with some bytes changed, checksums mended: nothing panics, nothing gets out.
    #[test]
    fn damaged_archives_are_survived(changes in proptest::collection::vec((0usize..4096, any::<u8>()), 1..12), mend in any::<bool>()) {
        let fixture = Fixture::new();
        let tar = Tar::new().dir("d").symlink("d/up", "../..").pax(&[("path", b"d/up/outside"), ("size", b"2")]).file("x", "ab").hard_link("h", "d/up/outside");
        let mut bytes = tar.bytes();
        for (at, byte) in changes {
            if let Some(slot) = bytes.get_mut(at) {
                *slot = byte;
            }
        }
        if mend {
            for block in bytes.chunks_exact_mut(512).filter(|block| block[257..262] == *b"ustar") {
                let mut header = tar::Header::new_old();
                header.as_mut_bytes().copy_from_slice(block);
                // A device number of the node's must not be made by chance.
                if matches!(header.as_old().linkflag, [b'3' | b'4']) {
                    header.set_entry_type(EntryType::Fifo);
                }
                header.set_cksum();
                block.copy_from_slice(header.as_bytes());
            }
        }
        if let Ok(applied) = fixture.apply_bytes(&bytes) {
            let _ = applied.finish(&nothing());
        }
        fixture.assert_contained();
    }

    #[test]
    fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
        let fixture = Fixture::new();
        let _ = fixture.apply_bytes(&bytes);
        fixture.assert_contained();
    }
}
