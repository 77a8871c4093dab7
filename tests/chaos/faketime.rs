//! Processes whose clock is wrong, by libfaketime.

use std::path::Path;

use crate::support::servers::process;

/// The library. It is not in the linker's path.
pub struct Faketime(String);

impl Faketime {
    pub fn installed() -> Option<Self> {
        let architecture = std::env::consts::ARCH;
        let found = [
            format!("/usr/lib/{architecture}-linux-gnu/faketime/libfaketimeMT.so.1"),
            "/usr/lib64/faketime/libfaketimeMT.so.1".to_owned(),
            "/usr/lib/faketime/libfaketimeMT.so.1".to_owned(),
            "/usr/local/lib/faketime/libfaketimeMT.so.1".to_owned(),
        ]
        .into_iter()
        .find(|path| !process::hidden() && Path::new(path).is_file());
        if found.is_none() {
            process::missing("libfaketime (Debian: apt-get install faketime)");
        }
        found.map(Self)
    }

    /// The environment of a process whose wall clock is that far off. Time spans it measures rightly.
    pub fn shifted<'a>(&'a self, by: &'a str) -> [(&'a str, &'a str); 4] {
        [
            ("LD_PRELOAD", &self.0),
            ("FAKETIME", by),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
            ("DONT_FAKE_MONOTONIC", "1"),
        ]
    }
}
