//! The subnet that the kubelet gave the node. It says so once and takes it for done, whatever becomes of the daemon that
//! heard it; so it is on record for the next one.

use std::io::ErrorKind;

use coracle_domain::{During, Result};
use coracle_network::Subnet;

use crate::{Layout, record};

/// Puts it on record.
pub(crate) fn keep(layout: &Layout, subnet: Subnet) -> Result<()> {
    let path = layout.subnet();
    record::replace(&path, &subnet).during("writing down the pods' subnet in", path.display())
}

/// The one on record. Where that is damaged there is none, until the kubelet is started again.
pub(crate) fn kept(layout: &Layout) -> Option<Subnet> {
    let path = layout.subnet();
    let read = record::read(&path);
    if let Err(error) = &read
        && error.kind() != ErrorKind::NotFound
    {
        layout.quarantine().take(&path, error);
    }
    read.ok()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_last_subnet_is_kept() {
        let scratch = tempfile::tempdir().unwrap();
        let layout = Layout::new(scratch.path());
        assert_eq!(kept(&layout), None);
        for text in ["10.1.0.0/16", "10.2.3.0/24"] {
            let subnet: Subnet = text.parse().unwrap();
            keep(&layout, subnet).unwrap();
            assert_eq!(kept(&layout), Some(subnet));
        }
    }

    #[test]
    fn a_damaged_record_is_put_aside_and_costs_nothing_else() {
        let scratch = tempfile::tempdir().unwrap();
        let layout = Layout::new(scratch.path());
        for damaged in ["", "\0\0\0\0", "\"10.0.0.1/8\"", "{\"V9\":{}}"] {
            fs::write(layout.subnet(), damaged).unwrap();
            assert_eq!(kept(&layout), None, "{damaged:?}");
            assert!(!layout.subnet().exists(), "{damaged:?}");
        }
        assert_eq!(fs::read_dir(scratch.path().join("quarantine")).unwrap().count(), 4);
    }

    #[test]
    fn what_cannot_be_written_down_is_an_error_that_names_the_file() {
        let scratch = tempfile::tempdir().unwrap();
        let layout = Layout::new(scratch.path().join("absent"));
        let error = keep(&layout, Subnet::DEFAULT).unwrap_err().to_string();
        assert!(error.contains(&*layout.subnet().to_string_lossy()), "{error}");
    }
}
