//! The images that critest, the CRI validation suite, asks for by name: made here, so that the suite runs where no
//! public registry can be reached. They hold what its specs look for and nothing else: busybox for everything, under
//! the name of nginx where a process of that name is looked for. Names, users and ports are those of the suite's
//! `pkg/validate` and `images`.

use serde_json::json;

use crate::image::{Image, architecture};
use crate::layer::{Compression, Layer};

/// An image and where the suite looks for it.
#[derive(Debug)]
pub struct SuiteImage {
    /// The repository in the registry that stands for all of the suite's.
    pub name: String,
    /// The tag.
    pub tag: &'static str,
    /// The image.
    pub image: Image,
}

/// The repository of the image that one spec asks for by the digest of its manifest.
pub const PINNED: &str = "k8s-staging-cri-tools/test-image-digest";

/// What busybox has no applet for in Debian's build.
const TOOLS: [(&str, &str); 2] = [
    ("bin/ipcs", "#!/bin/sh\n# Shared memory only.\nexec cat /proc/sysvipc/shm\n"),
    (
        "bin/pgrep",
        "#!/bin/sh\nfor process in /proc/[0-9]*; do\n    case \"$(cat \"$process/comm\" 2>/dev/null)\" in\n        *\"$1\"*) echo \"${process#/proc/}\" ;;\n    esac\ndone\n",
    ),
];

/// All of them. `effective_uid` is the statically linked program of that name.
pub fn images(effective_uid: &[u8]) -> Vec<SuiteImage> {
    let mut images = kubernetes_images(effective_uid);
    images.extend(cri_tools_images());
    images
}

/// Those of registry.k8s.io.
fn kubernetes_images(effective_uid: &[u8]) -> Vec<SuiteImage> {
    let set_uid = Layer::new().file("bin/effective-uid", 0o4755, effective_uid).into_tar();
    let escalating = base().layer(&set_uid, Compression::Gzip).set("Cmd", json!(["/bin/effective-uid"]));
    let httpd = web_server("echo 'serving with httpd'; exec httpd -f -v -p 80 -h /usr/share/nginx/html");
    vec![
        named("pause", "3.9", base().set("Cmd", json!(["/bin/sleep", "1000000"]))),
        named("e2e-test-images/busybox", "1.29-2", base()),
        named("e2e-test-images/nginx", "1.14-2", nginx(80)),
        named("e2e-test-images/httpd", "2.4.39-4", httpd),
        named("e2e-test-images/nonewprivs", "1.3", escalating),
    ]
}

/// Those of gcr.io/k8s-staging-cri-tools.
fn cri_tools_images() -> Vec<SuiteImage> {
    let ours = |name: &str, tag, image| named(&format!("k8s-staging-cri-tools/{name}"), tag, image);
    let mut images = vec![
        named(PINNED, "latest", marked("digest")),
        ours("test-image-latest", "latest", marked("latest")),
        ours("test-image-tag", "test", marked("tag")),
        ours("test-image-tag", "all", marked("all")),
        ours("test-image-1", "latest", marked("1")),
        ours("test-image-2", "latest", marked("2")),
        ours("test-image-3", "latest", marked("3")),
        ours("test-image-predefined-group", "latest", predefined_group()),
        ours(&format!("hostnet-nginx-{}", architecture()), "latest", nginx(12003)),
    ];
    images.extend(["1", "2", "3"].map(|tag| ours("test-image-tags", tag, marked("tags"))));
    let users = [("uid", "1002"), ("username", "www-data"), ("uid-group", "1003:users"), ("username-group", "www-data:www-data")];
    images.extend(users.map(|(name, user)| ours(&format!("test-image-user-{name}"), "latest", base().set("User", json!(user)))));
    images
}

fn named(name: &str, tag: &'static str, image: Image) -> SuiteImage {
    SuiteImage { name: name.to_owned(), tag, image }
}

/// busybox and its accounts, and the two tools it lacks.
fn base() -> Image {
    let tools = TOOLS.iter().fold(Layer::new(), |layer, (path, script)| layer.file(path, 0o755, script.as_bytes()));
    Image::busybox().layer(&tools.into_tar(), Compression::Gzip)
}

/// An image whose id is no other's.
fn marked(mark: &str) -> Image {
    base().layer(&Layer::new().file("mark", 0o644, mark.as_bytes()).into_tar(), Compression::Gzip)
}

/// A user of the image who is in a group of the image.
fn predefined_group() -> Image {
    let accounts = Layer::new()
        .file("etc/passwd", 0o644, b"root:x:0:0:root:/root:/bin/sh\ndefault-user:x:1000:1000::/home/default-user:/bin/sh\n")
        .file("etc/group", 0o644, b"root:x:0:\ndefault-user:x:1000:\ngroup-defined-in-image:x:50000:default-user\n");
    base().layer(&accounts.into_tar(), Compression::Gzip).set("User", json!("1000"))
}

/// busybox's web server as a process named nginx, with the master's words in its command line and its process id on file.
fn nginx(port: u16) -> Image {
    let serve = format!("exec -a httpd nginx -f -p {port} -r 'master process' -h /usr/share/nginx/html");
    web_server(&format!("echo $$ >/var/run/nginx.pid; {serve}"))
}

fn web_server(script: &str) -> Image {
    let owner = (0, 0);
    let site = ["var/run", "usr/share", "usr/share/nginx", "usr/share/nginx/html"]
        .iter()
        .fold(Layer::new(), |layer, path| layer.directory(path, 0o755, owner))
        .symlink("bin/nginx", "busybox")
        .file("usr/share/nginx/html/index.html", 0o644, b"ahoy\n");
    base().layer(&site.into_tar(), Compression::Gzip).set("Cmd", json!(["/bin/sh", "-c", script]))
}
