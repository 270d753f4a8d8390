//! The user that servers run as.

use std::process::Command;

use super::error::SandboxError;

/// A user of the system.
#[derive(Clone, Copy, Debug)]
pub(super) struct User {
    pub(super) uid: u32,
    pub(super) gid: u32,
}

/// The user that PostgreSQL runs as if this process runs as root, which PostgreSQL refuses.
pub(super) fn unprivileged() -> Result<Option<User>, SandboxError> {
    let id = Command::new("id").arg("-u").output()?;
    if id.stdout.trim_ascii() != b"0" {
        return Ok(None);
    }
    let passwd = std::fs::read_to_string("/etc/passwd")?;
    let find = |name: &str| {
        let mut fields = passwd.lines().find(|line| line.split(':').next() == Some(name))?.split(':').skip(2);
        Some(User { uid: fields.next()?.parse().ok()?, gid: fields.next()?.parse().ok()? })
    };
    find("postgres")
        .or_else(|| find("nobody"))
        .map(Some)
        .ok_or(SandboxError::Missing("a user to run PostgreSQL as", "USER to one that is not root"))
}
