//! What is said on the control socket: one request, one reply, a line of JSON each.
//!
//! ```text
//! {"protocol":1,"request":"remove","path":"/var/lib/images/vm.img"}
//! {"protocol":1,"reply":"ok","text":"no longer followed"}
//! ```
//!
//! Fields that a reader does not know are passed over, so that new ones break no old program.

mod totals;

use std::borrow::Cow;
use std::ffi::OsString;
use std::fmt;
use std::io;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::mode::Mode;
pub use totals::{
    DeviceTotals, Errors, FileTotals, GridTotals, Remaps, SCHEMA, ServiceTotals, Source, Timing,
    Totals,
};

/// The version of what is said; stands in every line as `protocol`.
pub const PROTOCOL: u32 = 1;

/// What a client asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "lowercase")]
pub enum Request {
    /// How the service and its files are doing.
    Status {
        /// Only this file.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        path: Option<FilePath>,
    },
    /// What was counted. Devices that answer are read for it; those that do not keep it waiting for
    /// a moment, and show what was read before.
    Totals {
        /// Only this file.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        path: Option<FilePath>,
    },
    /// Follow a file from now on.
    Add {
        /// The file.
        path: FilePath,
        /// What to follow.
        mode: Mode,
        /// Name of its group, if not the file's.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        alias: Option<String>,
    },
    /// Follow a file no longer.
    Remove {
        /// The file.
        path: FilePath,
    },
    /// Read the configuration again.
    Reload,
    /// End the service.
    Stop,
    /// Follow a file whose group is there already.
    Follow(Follow),
}

/// The hand-over of a file from lvm2's command line. A descriptor of the file goes with it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Follow {
    /// The group that holds the file's regions.
    pub group_id: u32,
    /// The file's path.
    pub path: FilePath,
    /// What to follow.
    pub mode: Mode,
    /// Whether the client waits until the file is let go, which a second reply tells.
    pub foreground: bool,
}

/// An absolute path of any bytes.
///
/// In JSON a string in which `%` and every byte that is not part of UTF-8 is written `%XX`, in
/// hexadecimal: `/100%25`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FilePath(pub PathBuf);

/// As in JSON.
impl fmt::Display for FilePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&escape(&self.0))
    }
}

impl Serialize for FilePath {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&escape(&self.0))
    }
}

impl<'de> Deserialize<'de> for FilePath {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<FilePath, D::Error> {
        let text = Cow::<'de, str>::deserialize(deserializer)?;
        let path = unescape(&text).ok_or_else(|| {
            de::Error::custom(format_args!("{text:?} has a % without two hexadecimal digits"))
        })?;
        if !path.is_absolute() {
            return Err(de::Error::custom(format_args!("{text:?} is no absolute path")));
        }
        Ok(FilePath(path))
    }
}

fn escape(path: &Path) -> String {
    let mut text = String::new();
    for chunk in path.as_os_str().as_bytes().utf8_chunks() {
        text.push_str(&chunk.valid().replace('%', "%25"));
        text.extend(chunk.invalid().iter().map(|byte| format!("%{byte:02X}")));
    }
    text
}

fn unescape(text: &str) -> Option<PathBuf> {
    let mut parts = text.split('%');
    let mut bytes = parts.next()?.as_bytes().to_vec();
    for part in parts {
        let (digits, rest) = part.as_bytes().split_at_checked(2)?;
        let digit = |at: usize| char::from(digits[at]).to_digit(16);
        bytes.push(u8::try_from(digit(0)? * 16 + digit(1)?).ok()?);
        bytes.extend_from_slice(rest);
    }
    Some(PathBuf::from(OsString::from_vec(bytes)))
}

/// What the service answers.
#[derive(Clone, Debug, PartialEq)]
pub enum Reply {
    /// It was done; the text says what.
    Ok(String),
    /// It was not; the text says why.
    Error(String),
    /// How things are.
    Status(Box<Status>),
    /// What was counted.
    Totals(Box<Totals>),
}

/// How the service is doing.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The service itself.
    pub service: ServiceStatus,
    /// The devices on which followed files lie.
    pub devices: Vec<DeviceStatus>,
    /// The followed files, or the one that was asked for.
    pub files: Vec<FileStatus>,
}

/// How the process is doing.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ServiceStatus {
    /// Of the program.
    pub version: String,
    /// Of the process.
    pub pid: u32,
    /// Since it started.
    pub uptime_seconds: f64,
    /// Number of followed files.
    pub files: u64,
    /// How long the look that is longest overdue is so.
    pub lag_seconds: f64,
    /// Kernel memory of all regions on the machine, whoever made them, if the kernel says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel_stats_bytes: Option<u64>,
    /// Why the configuration could not be read when it was last tried.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_error: Option<String>,
}

/// How a device is doing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DeviceStatus {
    /// `MAJOR:MINOR`.
    pub device: String,
    /// Its name in `/dev/mapper`.
    pub name: String,
    /// Its uuid, empty if it has none.
    pub uuid: String,
    /// Number of followed files on it.
    pub files: u64,
    /// Whether it answers.
    pub state: DeviceState,
    /// Regions on it, whoever made them, when it was last listed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub regions: Option<u64>,
    /// Members of the groups of followed files.
    #[serde(default)]
    pub own_regions: u64,
    /// What these add to the time of each I/O on the device, at [`REGION_COST_NS`] a region.
    #[serde(default)]
    pub own_io_cost_estimated_ns: u64,
    /// Regions created on it by the service so far, each of which stopped its I/O for a moment.
    pub creates: u64,
    /// How long all of these took; no I/O waited for longer.
    #[serde(default)]
    pub creates_time_ns: u64,
    /// How long it has not answered.
    pub stuck_seconds: f64,
}

/// What a region adds to the time of each I/O on its device, in or out of it: the kernel goes
/// through the list of them when an I/O begins and when it ends. Measured with a thousand regions;
/// other processors differ.
pub const REGION_COST_NS: u64 = 17;

/// Whether a device answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DeviceState {
    /// It does.
    Ok,
    /// It has not for a while.
    Stuck,
    /// It does, though its I/O waits until somebody resumes it.
    Suspended,
    /// It is no longer there.
    Gone,
}

impl DeviceState {
    /// The word for it, as in JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            DeviceState::Ok => "ok",
            DeviceState::Stuck => "stuck",
            DeviceState::Suspended => "suspended",
            DeviceState::Gone => "gone",
        }
    }
}

/// How a file is doing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FileStatus {
    /// Its path.
    pub path: FilePath,
    /// What it is followed by.
    pub mode: Mode,
    /// The device it lies on, as `MAJOR:MINOR`.
    pub device: String,
    /// Name of that device.
    pub device_name: String,
    /// Id of its group, if it has one.
    pub group: Option<u32>,
    /// Members of the group.
    pub regions: u32,
    /// Regions that the group may have, as things are.
    #[serde(default)]
    pub max_regions: u32,
    /// Extents of its last map.
    pub extents: u32,
    /// Bytes in them.
    pub mapped_bytes: u64,
    /// Bytes between them that the group counts, too, since there are more extents than it may
    /// have regions.
    #[serde(default)]
    pub foreign_bytes: u64,
    /// Bytes of the file that are in none: holes, and what is not written yet.
    pub unmapped_bytes: u64,
    /// One word, such as `following`. A file that is wanted and not followed is `unfit` if it
    /// cannot be, and `away` if it went with its filesystem or its device and may come back.
    pub state: String,
    /// When its group was last made to show another map.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_change_unix_seconds: Option<u64>,
    /// What does not work.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
    /// How long its look is overdue.
    pub lag_seconds: f64,
    /// The time between two looks.
    pub interval_seconds: f64,
    /// Name of its group.
    pub alias: String,
}

/// The names of all requests, in the order of [`Request`].
const NAMES: [&str; 7] = ["status", "totals", "add", "remove", "reload", "stop", "follow"];

#[derive(Deserialize)]
struct Head<'a> {
    protocol: Option<u32>,
    #[serde(borrow)]
    request: Option<Cow<'a, str>>,
}

#[derive(Serialize)]
struct Line<'a> {
    protocol: u32,
    #[serde(flatten)]
    request: &'a Request,
}

impl Request {
    /// Reads a line, with or without its end.
    ///
    /// # Errors
    ///
    /// What is wrong with it, to be told to the client: no JSON, another protocol, a request that
    /// there is not, a field that is missing or not what it should be.
    pub fn read(line: &[u8]) -> Result<Request, String> {
        let head: Head<'_> = serde_json::from_slice(line)
            .map_err(|error| format!("the line is no request in JSON: {error}"))?;
        match head.protocol {
            Some(PROTOCOL) => {}
            Some(other) => {
                return Err(format!("protocol {other} is not spoken here; speak {PROTOCOL}"));
            }
            None => return Err(format!("there is no protocol in the line; give {PROTOCOL}")),
        }
        let name = head.request.ok_or("there is no request in the line")?;
        if !NAMES.contains(&&*name) {
            return Err(format!("there is no request {name:?}; there are {}", NAMES.join(", ")));
        }
        serde_json::from_slice(line).map_err(|error| format!("the request {name}: {error}"))
    }

    /// The line that says it, with its end.
    #[must_use]
    pub fn to_line(&self) -> Vec<u8> {
        let line = Line { protocol: PROTOCOL, request: self };
        let mut line = serde_json::to_vec(&line).expect("strings and numbers are JSON");
        line.push(b'\n');
        line
    }
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    Ok,
    Error,
    Status,
    Totals,
}

/// A flat line, because an enum would be read into a tree first: a status may be long.
#[derive(Serialize, Deserialize)]
struct ReplyLine<'a> {
    protocol: u32,
    reply: Kind,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    text: Option<Cow<'a, str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    status: Option<Cow<'a, Status>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    totals: Option<Cow<'a, Totals>>,
}

impl Reply {
    /// Reads a line, with or without its end.
    ///
    /// # Errors
    ///
    /// `InvalidData`: it is no reply, or one of another protocol.
    pub fn read(line: &[u8]) -> io::Result<Reply> {
        let line: ReplyLine<'_> = serde_json::from_slice(line)?;
        let wrong = |what: String| Err(io::Error::new(io::ErrorKind::InvalidData, what));
        match line {
            ReplyLine { protocol, .. } if protocol != PROTOCOL => {
                wrong(format!("the service speaks protocol {protocol}, not {PROTOCOL}"))
            }
            ReplyLine { reply: Kind::Ok, text: Some(text), .. } => Ok(Reply::Ok(text.into())),
            ReplyLine { reply: Kind::Error, text: Some(text), .. } => Ok(Reply::Error(text.into())),
            ReplyLine { reply: Kind::Status, status: Some(status), .. } => {
                Ok(Reply::Status(Box::new(status.into_owned())))
            }
            ReplyLine { reply: Kind::Totals, totals: Some(totals), .. } => {
                Ok(Reply::Totals(Box::new(totals.into_owned())))
            }
            _ => wrong("the reply is not whole".to_owned()),
        }
    }

    /// Writes the line that says it, piece by piece, and flushes.
    ///
    /// # Errors
    ///
    /// Those of the writer.
    pub fn write(&self, mut out: impl io::Write) -> io::Result<()> {
        let line = ReplyLine {
            protocol: PROTOCOL,
            reply: Kind::Ok,
            text: None,
            status: None,
            totals: None,
        };
        let line = match self {
            Reply::Ok(text) => ReplyLine { text: Some(text.into()), ..line },
            Reply::Error(text) => ReplyLine { reply: Kind::Error, text: Some(text.into()), ..line },
            Reply::Status(status) => {
                ReplyLine { reply: Kind::Status, status: Some(Cow::Borrowed(status)), ..line }
            }
            Reply::Totals(totals) => {
                ReplyLine { reply: Kind::Totals, totals: Some(Cow::Borrowed(totals)), ..line }
            }
        };
        serde_json::to_writer(&mut out, &line)?;
        out.write_all(b"\n")?;
        out.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(bytes: &[u8]) -> FilePath {
        FilePath(PathBuf::from(OsString::from_vec(bytes.to_vec())))
    }

    #[test]
    fn a_request_is_read_as_it_is_written() {
        let all = [
            Request::Status { path: None },
            Request::Status { path: Some(path(b"/a b\n\"")) },
            Request::Totals { path: None },
            Request::Add { path: path(b"/x"), mode: Mode::Path, alias: Some("x".to_owned()) },
            Request::Add { path: path(b"/x"), mode: Mode::Inode, alias: None },
            Request::Remove { path: path(b"/100%\xff\xfe%41") },
            Request::Reload,
            Request::Stop,
            Request::Follow(Follow {
                group_id: 7,
                path: path(b"/x"),
                mode: Mode::Inode,
                foreground: true,
            }),
        ];
        for request in all {
            let line = request.to_line();
            assert_eq!(line.iter().position(|byte| *byte == b'\n'), Some(line.len() - 1));
            assert_eq!(Request::read(&line), Ok(request));
        }
    }

    #[test]
    fn the_words_on_the_wire_stay() {
        let request = Request::Remove { path: path(b"/100%\xff") };
        let expected = "{\"protocol\":1,\"request\":\"remove\",\"path\":\"/100%25%FF\"}\n";
        assert_eq!(String::from_utf8(request.to_line()).unwrap(), expected);
    }

    #[test]
    fn what_is_no_request_is_told_why() {
        let check = |line: &str, expected: &str| {
            let error = Request::read(line.as_bytes()).unwrap_err();
            assert!(error.contains(expected), "{line}: {error}");
        };
        check("", "no request in JSON");
        check("[1]x", "no request in JSON");
        check("{}", "no protocol");
        check(r#"{"protocol":2,"request":"stop"}"#, "protocol 2");
        check(r#"{"protocol":1}"#, "no request in the line");
        check(r#"{"protocol":1,"request":"dance"}"#, "\"dance\"; there are status, totals, add");
        check(r#"{"protocol":1,"request":"remove"}"#, "path");
        check(r#"{"protocol":1,"request":"remove","path":"x"}"#, "absolute");
        check(r#"{"protocol":1,"request":"remove","path":"/%4"}"#, "hexadecimal");
        check(r#"{"protocol":1,"request":"add","path":"/x","mode":"nose"}"#, "nose");
    }

    #[test]
    fn a_field_that_is_not_known_does_no_harm() {
        let line = br#"{"protocol":1,"request":"stop","new":[1]}"#;
        assert_eq!(Request::read(line), Ok(Request::Stop));
    }

    #[test]
    fn a_reply_is_read_as_it_is_written() {
        let status = Box::new(Status::default());
        let totals = Box::new(Totals::default());
        let all = [
            Reply::Ok("x".into()),
            Reply::Error("\n".into()),
            Reply::Status(status),
            Reply::Totals(totals),
        ];
        for reply in all {
            let mut line = Vec::new();
            reply.write(&mut line).unwrap();
            assert_eq!(Reply::read(&line).unwrap(), reply);
        }
    }

    #[test]
    fn what_is_no_reply_is_told_why() {
        for line in ["", "{}", r#"{"protocol":2,"reply":"ok","text":""}"#] {
            let error = Reply::read(line.as_bytes()).unwrap_err();
            assert!(error.kind() != io::ErrorKind::Other, "{line}: {error:?}");
        }
        let cut = Reply::read(br#"{"protocol":1,"reply":"status"}"#).unwrap_err();
        assert_eq!(cut.kind(), io::ErrorKind::InvalidData);
    }
}
