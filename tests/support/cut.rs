//! A device-mapper that fails at the message one chooses, with neighbours who act between two.

#![allow(dead_code)] // each file of tests uses its share

use std::collections::BTreeMap;
use std::io;

use dmfilemapd::dm::{Device, Dm, Reply};
use dmfilemapd::kernel::Memory;
use nix::errno::Errno;

pub const DEVICE: Device = Device { major: 253, minor: 7 };

/// A device whose table is this listing. What it holds is not shown to anybody in between.
pub fn table(listing: &[u8]) -> Memory {
    let mut memory = Memory::new();
    memory.add_device(DEVICE, 1 << 30, "vm", "LVM-vm");
    let mut fillers = Vec::new();
    for line in listing.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()) {
        let (id, row) = cut_at(line, b": ");
        loop {
            let create = creation(row);
            let given = send(&mut memory, &create);
            if given == id {
                break;
            }
            fillers.push(given); // an id below that is to be free
            assert!(fillers.len() < 1 << 16, "ids must rise: {}", line.escape_ascii());
        }
    }
    for id in fillers {
        send(&mut memory, &[b"@stats_delete ", id.as_slice()].concat());
    }
    assert_eq!(
        listing_of(&mut memory).escape_ascii().to_string(),
        listing.escape_ascii().to_string()
    );
    memory
}

/// The message that creates `RANGE STEP PROGRAM AUX[ OPTION...]`.
fn creation(row: &[u8]) -> Vec<u8> {
    let words: Vec<&[u8]> = row.split(|&byte| byte == b' ').collect();
    let [range, step, program_id, aux, options @ ..] = words.as_slice() else {
        panic!("no row: {}", row.escape_ascii())
    };
    let count = options.len().to_string();
    let mut message = vec![&b"@stats_create"[..], range, step, count.as_bytes()];
    message.extend(options);
    message.extend([program_id, aux]);
    message.join(&b' ')
}

fn cut_at<'a>(line: &'a [u8], mark: &[u8]) -> (&'a [u8], &'a [u8]) {
    let at = line.windows(mark.len()).position(|window| window == mark);
    let at = at.unwrap_or_else(|| panic!("no row: {}", line.escape_ascii()));
    (&line[..at], &line[at + mark.len()..])
}

/// Sends a message that must succeed, behind the back of whoever is being tested.
pub fn send(memory: &mut Memory, text: &[u8]) -> Vec<u8> {
    match memory.message(DEVICE, text) {
        Ok(reply) => reply.text,
        Err(error) => panic!("{}: {error}", text.escape_ascii()),
    }
}

pub fn listing_of(memory: &mut Memory) -> Vec<u8> {
    send(memory, b"@stats_list")
}

/// A message that the kernel refuses, and does not carry out.
#[derive(Clone, Copy, Debug)]
pub struct Refusal {
    /// Its number, from 0.
    pub at: usize,
    /// Whether every later one of its kind is refused too.
    pub forever: bool,
    pub errno: Errno,
}

/// What somebody else does. Neighbours create regions anywhere and delete none but their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deed {
    /// A neighbour creates a region with this program_id.
    Create(&'static str),
    /// A neighbour deletes the lowest region of the program `other`.
    DeleteLowest,
    /// A neighbour deletes the region that he created last.
    DeleteLast,
    /// Somebody deletes a region of the group.
    DeleteOurs(u32),
    /// Somebody renames the device.
    Rename,
    /// Somebody removes the device.
    RemoveDevice,
    /// Somebody removes the device, and another of this name and uuid appears under its number,
    /// with regions of others.
    ReplaceDevice(&'static str, &'static str),
}

/// Carries messages to a table in memory, as long as it lasts.
#[derive(Clone, Debug)]
pub struct Cut {
    pub memory: Memory,
    /// How many messages are answered before the power fails; `None` for all.
    pub fuel: Option<usize>,
    /// Whether the message at which it fails is carried out, and only the answer lost.
    pub applied: bool,
    /// Every message that was sent, those after the power failed included.
    pub log: Vec<Vec<u8>>,
    pub refusal: Option<Refusal>,
    /// What neighbours do before the message with this number, in this order.
    pub deeds: Vec<(usize, Deed)>,
    /// Rows of the listing that must stay as they are: those of neighbours, by id.
    pub theirs: BTreeMap<u32, Vec<u8>>,
    /// Ids that neighbours took or set free.
    pub touched: Vec<u32>,
    pub created: Vec<u32>,
    pub name: Option<&'static str>,
}

impl Cut {
    pub fn new(memory: &Memory, theirs: &BTreeMap<u32, Vec<u8>>) -> Cut {
        Cut {
            memory: memory.clone(),
            fuel: None,
            applied: false,
            log: Vec::new(),
            refusal: None,
            deeds: Vec::new(),
            theirs: theirs.clone(),
            touched: Vec::new(),
            created: Vec::new(),
            name: None,
        }
    }

    /// The same table, with power and without a past.
    pub fn afresh(&self) -> Cut {
        Cut::new(&self.memory, &self.theirs)
    }

    /// The messages, one a line.
    pub fn story(&self) -> String {
        let lines = self.log.iter().map(|text| format!("{}\n", text.escape_ascii()));
        lines.collect::<String>()
    }

    /// How many of the messages begin so.
    pub fn count(&self, keyword: &str) -> usize {
        self.log.iter().filter(|text| text.starts_with(keyword.as_bytes())).count()
    }

    fn act(&mut self, deed: Deed) {
        match deed {
            Deed::Create(program_id) => self.create(program_id),
            Deed::DeleteLowest => {
                let other = self.theirs.iter().find(|(_, row)| is_of_other(row));
                let id = other.map(|(id, _)| *id);
                self.delete(id);
            }
            Deed::DeleteLast => {
                let id = self.created.pop();
                self.delete(id);
            }
            Deed::DeleteOurs(id) => {
                send(&mut self.memory, format!("@stats_delete {id}").as_bytes());
            }
            Deed::Rename => self.name = Some("renamed"),
            Deed::RemoveDevice => self.memory.remove_device(DEVICE),
            Deed::ReplaceDevice(name, uuid) => {
                self.memory.add_device(DEVICE, 1 << 30, name, uuid);
                self.theirs.clear();
                (0..8).for_each(|_| self.create("dmstats"));
            }
        }
    }

    fn create(&mut self, program_id: &str) {
        let text = format!("@stats_create 4000+8 /1 0 {program_id} theirs");
        let id = String::from_utf8(send(&mut self.memory, text.as_bytes())).unwrap();
        let row = format!("{id}: 4000+8 8 {program_id} theirs");
        let id = id.parse().unwrap();
        self.theirs.insert(id, row.into_bytes());
        self.created.push(id);
        self.touched.push(id);
    }

    fn delete(&mut self, id: Option<u32>) {
        if let Some(id) = id {
            send(&mut self.memory, format!("@stats_delete {id}").as_bytes());
            self.theirs.remove(&id);
            self.touched.push(id);
        }
    }

    /// Whether the message just logged is refused.
    fn is_refused(&self) -> Option<Errno> {
        let refusal = self.refusal?;
        let at = self.log.len() - 1;
        let same_kind = |a: &[u8], b: &[u8]| a.get(..9) == b.get(..9);
        let again =
            refusal.forever && at > refusal.at && same_kind(&self.log[at], &self.log[refusal.at]);
        (at == refusal.at || again).then_some(refusal.errno)
    }
}

fn is_of_other(row: &[u8]) -> bool {
    row.split(|&byte| byte == b' ').nth(3) == Some(b"other")
}

impl Dm for Cut {
    fn message(&mut self, device: Device, text: &[u8]) -> io::Result<Reply> {
        self.carry(text, |memory| memory.message(device, text))
    }

    fn message_to(&mut self, device: Device, uuid: &[u8], text: &[u8]) -> io::Result<Reply> {
        self.carry(text, |memory| memory.message_to(device, uuid, text))
    }
}

impl Cut {
    fn carry(
        &mut self,
        text: &[u8],
        carry: impl Fn(&mut Memory) -> io::Result<Reply>,
    ) -> io::Result<Reply> {
        let at = self.log.len();
        self.log.push(text.to_vec());
        if self.fuel.is_some_and(|fuel| at > fuel) {
            return Err(Errno::EIO.into());
        }
        let due: Vec<Deed> =
            self.deeds.iter().filter(|(before, _)| *before == at).map(|(_, deed)| *deed).collect();
        for deed in due {
            self.act(deed);
        }
        if let Some(errno) = self.is_refused() {
            return Err(errno.into());
        }
        if self.fuel == Some(at) {
            if self.applied {
                carry(&mut self.memory).ok();
            }
            return Err(Errno::EIO.into());
        }
        let mut reply = carry(&mut self.memory)?;
        if let Some(name) = self.name {
            reply.label.name = name.into();
        }
        Ok(reply)
    }
}
