//! Mounts and devices of a container.

use std::path::{Path, PathBuf};

use coracle_domain::{Device, ImageId, Mount, MountSource, PodRequest, Propagation, Refusal};

use crate::check::{self, Checked};
use crate::{user_namespace, v1};

/// What KEP-5855 allows in `mount_options`.
const OPTIONS: [&str; 3] = ["noexec", "nodev", "nosuid"];

/// The mount at `config.mounts[index]`.
pub(crate) fn parse(index: usize, message: &v1::Mount) -> Checked<Mount> {
    let at = |name: &str| format!("config.mounts[{index}].{name}");
    let propagation = propagation(&at("propagation"), message.propagation)?;
    let source = source(&at, message)?;
    if message.recursive_read_only && !(message.readonly && propagation == Propagation::Private) {
        return Err(Refusal::invalid(at("recursive_read_only"), "needs readonly and private propagation"));
    }
    if let Some(option) = message.mount_options.iter().find(|option| !OPTIONS.contains(&option.as_str())) {
        return Err(Refusal::invalid(at("mount_options"), format!("{option:?} is none of {}", OPTIONS.join(", "))));
    }
    Ok(Mount {
        target: target(&at("container_path"), &message.container_path)?,
        source,
        read_only: message.readonly,
        recursive_read_only: message.recursive_read_only,
        propagation,
        relabel: message.selinux_relabel,
        options: message.mount_options.clone(),
        mapping: user_namespace::of_mount(&at, message)?,
    })
}

/// Whether the mount at `config.mounts[index]` is possible in a pod: owners can be mapped in no other way than the pod's
/// users are, and what is mounted in a user namespace never reaches the node.
pub(crate) fn fits(index: usize, mount: &Mount, pod: &PodRequest) -> Checked<()> {
    if mount.mapping.is_some() && mount.mapping != pod.user_namespace {
        return Err(Refusal::invalid(
            format!("config.mounts[{index}].uidMappings"),
            "differs from the mapping of the pod's user namespace",
        ));
    }
    if mount.propagation == Propagation::Bidirectional && pod.user_namespace.is_some() {
        let problem = "mounts cannot travel to the node from a user namespace";
        return Err(Refusal::invalid(format!("config.mounts[{index}].propagation"), problem));
    }
    Ok(())
}

/// A path inside the container; never its root, which a mount would hide.
fn target(field: &str, path: &str) -> Checked<PathBuf> {
    let target = check::absolute(field, path)?;
    if target == Path::new("/") { Err(Refusal::invalid(field, "is the root directory")) } else { Ok(target) }
}

fn source(at: &impl Fn(&str) -> String, message: &v1::Mount) -> Checked<MountSource> {
    let Some(image) = &message.image else {
        if !message.image_sub_path.is_empty() {
            return Err(Refusal::invalid(at("image_sub_path"), "is set without an image"));
        }
        return check::absolute(&at("host_path"), &message.host_path).map(MountSource::Host);
    };
    if !message.host_path.is_empty() {
        return Err(Refusal::invalid(at("host_path"), "is set beside an image"));
    }
    if !message.readonly {
        return Err(Refusal::invalid(at("readonly"), "is not set, but an image can only be mounted read-only"));
    }
    let reference = check::required(&at("image.image"), &image.image)?;
    // The kubelet puts the id that PullImage answered into `image`; since 0.36 also into `image_ref`.
    let id = [&image.image_ref, &reference].into_iter().find_map(|text| text.parse::<ImageId>().ok());
    let sub_path = check::beneath_or_none(&at("image_sub_path"), &message.image_sub_path)?;
    Ok(MountSource::Image { id, sub_path, reference, user_specified: image.user_specified_image.clone() })
}

fn propagation(field: &str, value: i32) -> Checked<Propagation> {
    Ok(match check::known(field, value)? {
        v1::MountPropagation::PropagationPrivate => Propagation::Private,
        v1::MountPropagation::PropagationHostToContainer => Propagation::HostToContainer,
        v1::MountPropagation::PropagationBidirectional => Propagation::Bidirectional,
    })
}

/// Mounts as statuses show them; `images` are the ids of the images among them, in order.
pub(crate) fn messages(mounts: &[Mount], images: &[ImageId]) -> Vec<v1::Mount> {
    let mut images = images.iter();
    let shown = mounts.iter().map(|mount| match mount.source {
        MountSource::Image { .. } => message(mount, images.next()),
        MountSource::Host(_) => message(mount, None),
    });
    shown.collect()
}

fn message(mount: &Mount, found: Option<&ImageId>) -> v1::Mount {
    let propagation = match mount.propagation {
        Propagation::Private => v1::MountPropagation::PropagationPrivate,
        Propagation::HostToContainer => v1::MountPropagation::PropagationHostToContainer,
        Propagation::Bidirectional => v1::MountPropagation::PropagationBidirectional,
    };
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let (host_path, image, image_sub_path) = match &mount.source {
        MountSource::Host(path) => (text(path), None, String::new()),
        MountSource::Image { reference, id, sub_path, user_specified } => {
            let image_ref = found.or(id.as_ref()).map(|id| id.as_str().to_owned()).unwrap_or_default();
            let (image, user_specified_image) = (reference.clone(), user_specified.clone());
            let image = v1::ImageSpec { image, image_ref, user_specified_image, ..Default::default() };
            (String::new(), Some(image), sub_path.as_deref().map(text).unwrap_or_default())
        }
    };
    v1::Mount {
        container_path: text(&mount.target),
        host_path,
        readonly: mount.read_only,
        selinux_relabel: mount.relabel,
        propagation: propagation.into(),
        recursive_read_only: mount.recursive_read_only,
        image,
        image_sub_path,
        mount_options: mount.options.clone(),
        uid_mappings: mount.mapping.map(|mapping| user_namespace::mapping_message(mapping.uids)).unwrap_or_default(),
        gid_mappings: mount.mapping.map(|mapping| user_namespace::mapping_message(mapping.gids)).unwrap_or_default(),
    }
}

/// The device at `config.devices[index]`. Without a path of its own inside it keeps the node's.
pub(crate) fn device(index: usize, message: &v1::Device) -> Checked<Device> {
    let at = |name: &str| format!("config.devices[{index}].{name}");
    let host = check::absolute(&at("host_path"), &message.host_path)?;
    let target = check::absolute_or_none(&at("container_path"), &message.container_path)?;
    let permissions = &message.permissions;
    if permissions.is_empty() || !permissions.chars().all(|letter| "rwm".contains(letter)) {
        return Err(Refusal::invalid(at("permissions"), format!("{permissions:?} is not made of the letters r, w and m")));
    }
    Ok(Device { target: target.unwrap_or_else(|| host.clone()), host, permissions: permissions.clone() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bind() -> v1::Mount {
        v1::Mount { container_path: "/data".to_owned(), host_path: "/srv".to_owned(), ..Default::default() }
    }

    fn image() -> v1::Mount {
        let image = v1::ImageSpec { image: format!("sha256:{}", "0".repeat(64)), ..Default::default() };
        v1::Mount {
            container_path: "/model".to_owned(),
            readonly: true,
            image: Some(image),
            image_sub_path: "weights/small".to_owned(),
            ..Default::default()
        }
    }

    #[test]
    fn mounts_come_back_as_they_were_given() {
        let full = v1::Mount {
            readonly: true,
            selinux_relabel: true,
            recursive_read_only: true,
            mount_options: vec!["noexec".to_owned(), "nosuid".to_owned()],
            ..bind()
        };
        let shared = v1::Mount { propagation: v1::MountPropagation::PropagationBidirectional.into(), ..bind() };
        let ids = |host_id| vec![v1::IdMapping { host_id, container_id: 0, length: 65_536 }];
        let mapped = v1::Mount { uid_mappings: ids(65_536), gid_mappings: ids(131_072), ..bind() };
        for mount in [bind(), full, shared, mapped] {
            assert_eq!(messages(&[parse(0, &mount).unwrap()], &[]), [mount]);
        }
    }

    #[test]
    fn an_image_is_mounted_by_the_id_that_the_kubelet_pulled() {
        let status = message(&parse(0, &image()).unwrap(), None);
        assert_eq!(status.image.map(|image| (image.image_ref == image.image, image.image.len())), Some((true, 71)));
        assert_eq!(status.image_sub_path, "weights/small");
    }

    #[test]
    fn a_status_tells_which_image_a_name_meant() {
        let mut named = image();
        named.image = Some(v1::ImageSpec { image: "models:1".to_owned(), user_specified_image: "models".to_owned(), ..Default::default() });
        let (first, second) = (format!("sha256:{}", "1".repeat(64)), format!("sha256:{}", "2".repeat(64)));
        let mounts = [named, bind(), image()].map(|message| parse(0, &message).unwrap());
        let told = messages(&mounts, &[first.parse().unwrap(), second.parse().unwrap()]);
        let images: Vec<_> =
            told.into_iter().map(|mount| mount.image.map(|image| (image.image, image.user_specified_image, image.image_ref))).collect();
        let named = ("models:1".to_owned(), "models".to_owned(), first);
        assert_eq!(images, [Some(named), None, Some((format!("sha256:{}", "0".repeat(64)), String::new(), second))]);
    }

    #[test]
    fn contradictions_are_refused_by_field() {
        type Spoil = fn(&mut v1::Mount);
        let cases: [(&str, v1::Mount, Spoil); 15] = [
            ("container_path", bind(), |m| m.container_path = "data".to_owned()),
            ("container_path", bind(), |m| m.container_path.clear()),
            ("container_path", bind(), |m| m.container_path = "/".to_owned()),
            ("container_path", bind(), |m| m.container_path = "/a\0".to_owned()),
            ("host_path", bind(), |m| m.host_path = "srv".to_owned()),
            ("host_path", bind(), |m| m.host_path.clear()),
            ("propagation", bind(), |m| m.propagation = 3),
            ("recursive_read_only", bind(), |m| m.recursive_read_only = true),
            ("mount_options", bind(), |m| m.mount_options = vec!["suid".to_owned()]),
            ("gidMappings", bind(), |m| m.uid_mappings = vec![v1::IdMapping { host_id: 1, container_id: 0, length: 1 }]),
            ("image_sub_path", bind(), |m| m.image_sub_path = "a".to_owned()),
            ("host_path", image(), |m| m.host_path = "/srv".to_owned()),
            ("readonly", image(), |m| m.readonly = false),
            ("image_sub_path", image(), |m| m.image_sub_path = "../etc".to_owned()),
            ("image.image", image(), |m| m.image = Some(v1::ImageSpec::default())),
        ];
        for (name, mut mount, spoil) in cases {
            spoil(&mut mount);
            match parse(3, &mount) {
                Err(Refusal::Invalid { field, .. }) => assert_eq!(field, format!("config.mounts[3].{name}")),
                other => panic!("{name}: {other:?}"),
            }
        }
        let shared_and_recursive = v1::Mount { readonly: true, recursive_read_only: true, propagation: 1, ..bind() };
        assert!(parse(0, &shared_and_recursive).is_err());
    }

    #[test]
    fn a_device_has_some_of_three_letters() {
        let message =
            |permissions: &str| v1::Device { host_path: "/dev/fuse".to_owned(), permissions: permissions.to_owned(), ..Default::default() };
        assert_eq!(device(0, &message("rw")).unwrap().target, Path::new("/dev/fuse"));
        for permissions in ["", "x", "rwx"] {
            assert!(device(0, &message(permissions)).is_err(), "{permissions:?}");
        }
    }
}
