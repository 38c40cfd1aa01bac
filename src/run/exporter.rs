//! Metrics to where they are wanted: over HTTP, and to a file.
//!
//! Both ask main as a client of the control socket does, and main waits for neither.

use std::fs::{self, File, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use log::{info, warn};

use super::http::{self, Ask, Http};
use crate::config::Settings;
use crate::metrics::{Dialect, render};

/// Begins to give out the metrics that the settings want; until the end, as threads of their own.
///
/// # Errors
///
/// The address cannot be had, or a thread cannot.
pub(super) fn start(settings: &Settings, ask: &Ask) -> io::Result<Option<Http>> {
    if let Some(path) = &settings.metrics_textfile {
        let textfile = Textfile { path: path.clone(), failing: None };
        let (ask, interval) = (ask.clone(), settings.metrics_interval);
        let body = move || textfile.keep_up_to_date(&ask, interval);
        thread::Builder::new().name("textfile".to_owned()).spawn(body)?;
    }
    let Some(listen) = &settings.metrics_listen else { return Ok(None) };
    let http = http::serve(listen, ask.clone())?;
    info!("metrics are at {}, path /metrics", http.address);
    Ok(Some(http))
}

/// A file for the textfile collector of `node_exporter`.
struct Textfile {
    path: PathBuf,
    /// What did not work the last time.
    failing: Option<String>,
}

impl Textfile {
    fn keep_up_to_date(mut self, ask: &Ask, interval: Duration) {
        loop {
            let written = ask().and_then(|totals| {
                let text = render(&totals, Dialect::Classic);
                replace(&self.path, text.as_bytes()).map_err(|error| error.to_string())
            });
            self.say(written.err());
            thread::sleep(interval); // the end of the process does not wait for threads
        }
    }

    /// Says once what does not work, and that it works again.
    fn say(&mut self, failing: Option<String>) {
        let path = self.path.display();
        match (&failing, &self.failing) {
            (Some(why), before) if before.as_ref() != Some(why) => {
                warn!("metrics to {path}: {why}; trying again");
            }
            (None, Some(_)) => info!("metrics to {path}: works again"),
            _ => {}
        }
        self.failing = failing;
    }
}

/// Puts the text in place of what is there, as a whole: a reader sees the one or the other.
///
/// The collector passes over the new file by its name while it is written. It is for everybody to
/// read, since the collector is another user.
fn replace(path: &Path, text: &[u8]) -> io::Result<()> {
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let mut file = File::create(&new)?;
    file.set_permissions(Permissions::from_mode(0o644))?; // whatever the umask is
    file.write_all(text)?;
    fs::rename(&new, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_as_a_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.prom");
        replace(&path, b"one\n").unwrap();
        let reader = fs::File::open(&path).unwrap();
        replace(&path, b"two\n").unwrap();
        assert_eq!(io::read_to_string(reader).unwrap(), "one\n");
        assert_eq!(fs::read_to_string(&path).unwrap(), "two\n");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        assert!(replace(&folder.path().join("none/x.prom"), b"").is_err());
    }
}
