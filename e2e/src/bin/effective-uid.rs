//! Says which user it acts as. Set-user-ID root in an image, it shows whether `no_new_privs` holds.

#![forbid(unsafe_code)]

fn main() {
    println!("Effective uid: {}", rustix::process::geteuid().as_raw());
}
