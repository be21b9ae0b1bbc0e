//! The images that critest, the CRI validation suite, asks for by name: made here, so that the suite runs where no
//! public registry can be reached. They hold what its specs look for and nothing else: busybox for everything, under
//! the name of nginx where a process of that name is looked for. Names, users and ports are those of the suite's
//! `pkg/validate` and `images`.

use std::path::Path;

use serde_json::json;

use crate::image::{Image, architecture};
use crate::layer::{self, Compression, Layer};

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
const SCRIPTS: [(&str, &str); 2] = [
    ("bin/ipcs", "#!/bin/sh\n# Shared memory only.\nexec cat /proc/sysvipc/shm\n"),
    (
        "bin/pgrep",
        "#!/bin/sh\nfor process in /proc/[0-9]*; do\n    case \"$(cat \"$process/comm\" 2>/dev/null)\" in\n        *\"$1\"*) echo \"${process#/proc/}\" ;;\n    esac\ndone\n",
    ),
];

/// All of them. `programs` is a directory with what busybox-static is not: `bin/sh`, a busybox that looks for programs
/// also where it has applets, with its libraries, and `bin/effective-uid`, statically linked and set-user-ID.
pub fn images(programs: &Path) -> Vec<SuiteImage> {
    let base = Base::new(programs);
    let mut images = base.kubernetes();
    images.extend(base.cri_tools());
    images
}

/// What all the images have: busybox and its accounts, the programs and the scripts.
#[derive(Debug)]
struct Base(Image);

impl Base {
    fn new(programs: &Path) -> Self {
        // Not a link, because a spec masks it and goes on using the rest.
        let own = Layer::new().file("bin/ls", 0o755, &layer::busybox_program());
        let own = SCRIPTS.iter().fold(own, |layer, (path, script)| layer.file(path, 0o755, script.as_bytes()));
        Self(Image::busybox().layer(&own.tree(programs).into_tar(), Compression::Gzip))
    }

    /// Those of registry.k8s.io.
    fn kubernetes(&self) -> Vec<SuiteImage> {
        let httpd = "echo 'serving with httpd'; exec httpd -f -v -p 80 -h /usr/share/nginx/html";
        vec![
            named("pause", "3.9", self.0.clone().set("Cmd", json!(["/bin/sleep", "1000000"]))),
            named("e2e-test-images/busybox", "1.29-2", self.0.clone()),
            named("e2e-test-images/nginx", "1.14-2", self.nginx(80)),
            named("e2e-test-images/httpd", "2.4.39-4", self.web_server(httpd)),
            named("e2e-test-images/nonewprivs", "1.3", self.0.clone().set("Cmd", json!(["/bin/effective-uid"]))),
        ]
    }

    /// Those of gcr.io/k8s-staging-cri-tools.
    fn cri_tools(&self) -> Vec<SuiteImage> {
        let ours = |name: &str, tag, image| named(&format!("k8s-staging-cri-tools/{name}"), tag, image);
        let mut images = vec![
            named(PINNED, "latest", self.marked("digest")),
            ours("test-image-latest", "latest", self.marked("latest")),
            ours("test-image-tag", "test", self.marked("tag")),
            ours("test-image-tag", "all", self.marked("all")),
            ours("test-image-1", "latest", self.marked("1")),
            ours("test-image-2", "latest", self.marked("2")),
            ours("test-image-3", "latest", self.marked("3")),
            ours("test-image-predefined-group", "latest", self.predefined_group()),
            ours(&format!("hostnet-nginx-{}", architecture()), "latest", self.nginx(12003)),
        ];
        images.extend(["1", "2", "3"].map(|tag| ours("test-image-tags", tag, self.marked("tags"))));
        let users = [("uid", "1002"), ("username", "www-data"), ("uid-group", "1003:users"), ("username-group", "www-data:www-data")];
        let user = |(name, user)| ours(&format!("test-image-user-{name}"), "latest", self.0.clone().set("User", json!(user)));
        images.extend(users.map(user));
        images
    }

    fn with(&self, layer: Layer) -> Image {
        self.0.clone().layer(&layer.into_tar(), Compression::Gzip)
    }

    /// An image whose id is no other's.
    fn marked(&self, mark: &str) -> Image {
        self.with(Layer::new().file("mark", 0o644, mark.as_bytes()))
    }

    /// A user of the image who is in a group of the image.
    fn predefined_group(&self) -> Image {
        let passwd = b"root:x:0:0:root:/root:/bin/sh\ndefault-user:x:1000:1000::/home/default-user:/bin/sh\n";
        let group = b"root:x:0:\ndefault-user:x:1000:\ngroup-defined-in-image:x:50000:default-user\n";
        let accounts = Layer::new().file("etc/passwd", 0o644, passwd).file("etc/group", 0o644, group);
        self.with(accounts).set("User", json!("1000"))
    }

    /// busybox's web server as a process named nginx, with the master's words in its command line and its process id on file.
    fn nginx(&self, port: u16) -> Image {
        let serve = format!("exec -a httpd /bin/nginx -f -p {port} -r 'master process' -h /usr/share/nginx/html");
        self.web_server(&format!("echo $$ >/var/run/nginx.pid; {serve}"))
    }

    fn web_server(&self, script: &str) -> Image {
        let site = ["var/run", "usr/share", "usr/share/nginx", "usr/share/nginx/html"]
            .iter()
            .fold(Layer::new(), |layer, path| layer.directory(path, 0o755, (0, 0)))
            .symlink("bin/nginx", "busybox")
            .file("usr/share/nginx/html/index.html", 0o644, b"ahoy\n");
        self.with(site).set("Cmd", json!(["/bin/sh", "-c", script]))
    }
}

fn named(name: &str, tag: &'static str, image: Image) -> SuiteImage {
    SuiteImage { name: name.to_owned(), tag, image }
}
