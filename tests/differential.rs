//! Holds `kernel::Memory` to a real kernel, and tries `kernel::Control` on it.

#[path = "support/vm.rs"]
mod vm;

use std::env;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};

use dmfilemapd::dm::{Device, Dm, Reply};
use dmfilemapd::extent::Extent;
use dmfilemapd::kernel::control::{Control, OpenErrorKind, device_mapper_major};
use dmfilemapd::kernel::memory::Memory;
use dmfilemapd::message::{Message, RegionId, parse_list};
use dmfilemapd::pace::{Paced, Pacer};
use nix::errno::Errno;

/// Messages of the random test, and its seed, unless the environment says otherwise:
/// `TEST_MESSAGES=300000 TEST_SEED=7 cargo test --test differential random`
const MESSAGES: u64 = 40_000;
const SEED: u64 = 1;

/// Sectors of the device; few, so that `-` makes a region of few areas.
const SECTORS: u64 = 1000;

/// Messages that would have the kernel allocate more than this are not sent: they cost time and
/// show nothing. (Those beyond all bounds are sent.)
const BYTES_MAX: u64 = 4 << 20;

/// The same device twice: in the kernel and in memory.
struct Twins {
    control: Control,
    memory: Memory,
    device: Device,
}

/// A reply or an errno.
type Answer = Result<Reply, Option<i32>>;

fn answer(dm: &mut impl Dm, device: Device, text: &[u8]) -> Answer {
    dm.message(device, text).map_err(|error| error.raw_os_error())
}

impl Twins {
    fn new() -> Twins {
        let node = vm::table("twin", &format!("0 {SECTORS} linear /dev/ram0 0"));
        let device = vm::device(&node);
        let control = Control::open().expect("the kernel has device-mapper");
        let mut memory = Memory::new();
        memory.add_device(device, SECTORS, "twin", "");
        memory.set_bytes_max(kernel_bytes_max());
        Twins { control, memory, device }
    }

    /// Sends `text` to both, unless it takes too much memory; returns the answers.
    fn send(&mut self, text: &[u8]) -> Option<(Answer, Answer)> {
        let mut memory = self.memory.clone();
        let in_memory = answer(&mut memory, self.device, text);
        if memory.bytes() > BYTES_MAX {
            return None;
        }
        self.memory = memory;
        Some((answer(&mut self.control, self.device, text), in_memory))
    }

    /// Sends `text` to both, whatever it takes, and returns the answer that they agree on.
    fn check(&mut self, text: &[u8]) -> Result<Vec<u8>, Errno> {
        let in_memory = answer(&mut self.memory, self.device, text);
        let in_kernel = answer(&mut self.control, self.device, text);
        let start = text[..text.len().min(60)].escape_ascii();
        assert!(in_kernel == in_memory, "{start}\n{}", differ(&in_kernel, &in_memory));
        in_kernel.map(|reply| reply.text).map_err(|errno| Errno::from_raw(errno.unwrap_or(0)))
    }
}

fn differ(in_kernel: &Answer, in_memory: &Answer) -> String {
    let show = |answer: &Answer| match answer {
        Ok(reply) => format!("{:.2000?}", reply.text.escape_ascii().to_string()),
        Err(errno) => format!("{:?}", errno.map(Errno::from_raw)),
    };
    format!("kernel: {}\nmemory: {}", show(in_kernel), show(in_memory))
}

/// What the regions may take: `__check_shared_memory()` counts in pages.
fn kernel_bytes_max() -> u64 {
    let kib = vm::sh("sed -n 's/^MemTotal: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo");
    let pages = kib.trim_end().parse::<u64>().expect("MemTotal is a number") / 4;
    (pages / 4) * 4096 + 4095
}

fn setting(name: &str, default: u64) -> u64 {
    env::var(name).map_or(default, |value| value.parse().expect("a number in the environment"))
}

#[test]
fn memory_answers_random_messages_as_the_kernel_does() {
    // Memory counts its room as Linux 6.1 does with one CPU.
    if !vm::inside_uml("memory_answers_random_messages_as_the_kernel_does") {
        return;
    }
    let (messages, seed) = (setting("TEST_MESSAGES", MESSAGES), setting("TEST_SEED", SEED));
    let (mut twins, mut random) = (Twins::new(), Random(seed.max(1)));
    let (mut replies, mut errors, mut skipped) = (0, [0; 140], 0);
    for number in 0..messages {
        let text =
            if number % 100 == 99 { b"@stats_list".to_vec() } else { random.message(number) };
        let Some((kernel, memory)) = twins.send(&text) else {
            skipped += 1;
            continue;
        };
        assert!(
            kernel == memory,
            "seed {seed}, message {number}: {}\n{}",
            text.escape_ascii(),
            differ(&kernel, &memory)
        );
        match kernel {
            Ok(_) => replies += 1,
            Err(errno) => errors[usize::try_from(errno.unwrap()).unwrap()] += 1,
        }
    }
    println!("{replies} replies, {skipped} not sent");
    assert!(replies > messages / 4 && skipped < messages / 100, "the messages are too odd");
    for (errno, count) in errors.iter().enumerate().filter(|(_, count)| **count > 0) {
        println!("{count} errors {:?}", Errno::from_raw(i32::try_from(errno).unwrap()));
    }
}

/// Random messages: xorshift, by George Marsaglia.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % end as u64).expect("less than `end`")
    }

    /// True once in `times`.
    fn once_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }

    fn pick<T: Copy>(&mut self, items: &[T]) -> T {
        items[self.below(items.len())]
    }

    /// One message. Tables grow and shrink by turns, so that ids are freed and given again.
    fn message(&mut self, number: u64) -> Vec<u8> {
        let growing = number / 200 % 2 == 0;
        let (creates, deletes) = if growing { (40, 10) } else { (10, 40) };
        let mut words = match self.below(100) {
            at if at < creates => self.create(),
            at if at < creates + deletes => vec![b"@stats_delete".to_vec(), self.id()],
            50..60 => vec![b"@stats_list".to_vec()],
            60..64 => vec![b"@stats_list".to_vec(), self.word()],
            64..68 => vec![b"@stats_clear".to_vec(), self.id()],
            68..82 => self.print(),
            82..94 => vec![b"@stats_set_aux".to_vec(), self.id(), self.word()],
            94..96 => vec![self.pick(&[&b"@cancel_deferred_remove"[..], b"@stats", b"x"]).to_vec()],
            _ => vec![self.word(), self.word()],
        };
        if self.once_in(10) {
            self.spoil(&mut words);
        }
        self.join(&words)
    }

    fn create(&mut self) -> Vec<Vec<u8>> {
        let mut words = vec![b"@stats_create".to_vec(), self.range(), self.step()];
        if self.once_in(3) {
            let options = self.below(4);
            let count = if self.once_in(10) { self.below(6) } else { options };
            words.push(self.written(count as u64));
            for _ in 0..options {
                words.push(self.option());
            }
        }
        for _ in 0..self.below(3) {
            words.push(self.word());
        }
        words
    }

    fn print(&mut self) -> Vec<Vec<u8>> {
        let keyword = self.pick(&[&b"@stats_print"[..], b"@stats_print_clear"]);
        let mut words = vec![keyword.to_vec(), self.id()];
        if self.once_in(2) {
            for _ in 0..2 {
                let number = self.pick(&[0, 1, 2, 3, 7, 900, 1 << 63, u64::MAX]);
                words.push(if self.once_in(4) { b"-".to_vec() } else { self.written(number) });
            }
        }
        words
    }

    fn id(&mut self) -> Vec<u8> {
        let id = self.below(32) as u64;
        let far = self.pick(&[i32::MAX as u64, 1 << 31, 1 << 32, u64::MAX]);
        let id = if self.once_in(20) { far } else { id };
        self.written(id)
    }

    fn range(&mut self) -> Vec<u8> {
        if self.once_in(8) {
            return b"-".to_vec();
        }
        let start = self.pick(&[0, 1, 5, 999, 1000, 1 << 20, 1 << 54, 1 << 63, u64::MAX]);
        let len = self.pick(&[0, 1, 2, 3, 8, 9, 100, 1000, 1 << 40, 1 << 63, u64::MAX]);
        [self.written(start), b"+".to_vec(), self.written(len)].concat()
    }

    fn step(&mut self) -> Vec<u8> {
        let small = self.pick(&[1, 2, 3, 7, 8, 10, 1000, 2000]);
        let large = self.pick(&[0, u64::from(u32::MAX), 1 << 32, 1 << 54, 1 << 63, u64::MAX]);
        let step = if self.once_in(6) { large } else { small };
        let slash = if self.once_in(2) { &b"/"[..] } else { b"" };
        [slash.to_vec(), self.written(step)].concat()
    }

    fn option(&mut self) -> Vec<u8> {
        match self.below(20) {
            0 => return self.word(),
            1..8 => return b"precise_timestamps".to_vec(),
            _ => {}
        }
        let mut option = b"histogram:".to_vec();
        let mut bound = self.below(8) as u64;
        for i in 0..self.below(6) {
            if i > 0 {
                option.push(b',');
            }
            option.extend(self.written(bound));
            bound = bound.wrapping_add(self.pick(&[0, 1, 1, 1, 5, 5, 5, 1 << 40, 1 << 63]));
        }
        option
    }

    /// A number, at times in a form that only the kernel's `sscanf()` takes, or not even that.
    fn written(&mut self, number: u64) -> Vec<u8> {
        let wide = u128::from(number);
        let text = match self.below(60) {
            0 => format!("00{number}"),
            1 => format!("{}", wide + (1 << 32)),
            2 => format!("{}", wide + (1 << 64)),
            3 => format!("{}", wide + (7 << 64)),
            4 => format!("-{number}"),
            5 => format!("-{}", (1 << 32) - (wide & 0xffff_ffff)),
            6 => format!("+{number}"),
            7 => format!("\\ {number}"),
            8 => format!("\\\t\\\u{c}{number}"),
            9 => format!("{number}\\ "),
            10 => format!("{number}x"),
            11 => format!("0x{number:x}"),
            12 => format!("{number}-"),
            13 => format!("-\\ {number}"),
            14 => String::new(),
            15 => "9".repeat(1 + self.below(40)),
            _ => format!("{number}"),
        };
        text.into_bytes()
    }

    /// A program_id, aux_data or anything, as it stands in a message.
    fn word(&mut self) -> Vec<u8> {
        const WORDS: [&[u8]; 16] = [
            b"-",
            b"dmstats",
            b"dmstats",
            b"a",
            b"b",
            b"1234",
            b"0",
            b"/1",
            b"p\\ q",
            b"\\\\",
            b"\\@",
            b"DMS_GROUP=\"x\":0-2,5#-",
            b"precise_timestamps",
            b"histogram:1,2",
            b"voil\xc3\xa0",
            b"voil\xc3\\\xa0\\\n",
        ];
        if !self.once_in(6) {
            return self.pick(&WORDS).to_vec();
        }
        let escape = self.once_in(2);
        let mut word = Vec::new();
        for _ in 0..=self.below(12) {
            if escape {
                word.push(b'\\');
            }
            word.push(u8::try_from(1 + self.below(255)).expect("not more than 255"));
        }
        word
    }

    /// Makes something of a message that it should not be.
    fn spoil(&mut self, words: &mut Vec<Vec<u8>>) {
        let at = self.below(words.len());
        match self.below(6) {
            0 => words.insert(at, self.word()),
            1 => drop(words.remove(at)),
            2 => words.push(words[at].clone()),
            3 => words[at].make_ascii_uppercase(),
            4 => words[at].insert(0, b'\\'),
            _ => {
                let byte = self.below(words[at].len().max(1));
                if let Some(byte) = words[at].get_mut(byte) {
                    *byte = u8::try_from(1 + self.below(255)).expect("not more than 255");
                }
            }
        }
    }

    fn join(&mut self, words: &[Vec<u8>]) -> Vec<u8> {
        let mut text = Vec::new();
        for (i, word) in words.iter().enumerate() {
            if i > 0 || self.once_in(40) {
                text.push(b' ');
            }
            if self.once_in(40) {
                text.push(self.pick(b" \t\n\x0b\x0c\r\xa0"));
            }
            text.extend_from_slice(word);
        }
        if self.once_in(20) {
            text.push(self.pick(b" \t\xa0\\"));
        }
        text
    }
}

#[test]
fn memory_and_kernel_agree_at_their_limits() {
    // Memory counts its room as Linux 6.1 does with one CPU.
    if !vm::inside_uml("memory_and_kernel_agree_at_their_limits") {
        return;
    }
    let mut twins = Twins::new();
    check_room(&mut twins); // first: deleted regions are accounted for until their memory is free
    check_long_words(&mut twins);
    vm::sh("dmsetup create bare --notable");
    let minor = vm::sh("dmsetup info -c --noheadings -o minor bare");
    twins.device.minor = minor.trim().parse().expect("a number");
    twins.memory.add_device(twins.device, 0, "bare", "");
    twins.check(b"@stats_create - /1").expect("a region without a table");
    assert_eq!(twins.check(b"@stats_list"), Ok(b"0: 0+1 1 - -\n".to_vec()));
}

fn check_room(twins: &mut Twins) {
    let accounted = || {
        let bytes = vm::sh("cat /sys/module/dm_mod/parameters/stats_current_allocated_bytes");
        bytes.trim_end().parse::<u64>().expect("a number")
    };
    for create in ["- /1", "0+100 7", "- 1 2 histogram:1,5 precise_timestamps", "0+1 5"] {
        twins.check(format!("@stats_create {create}").as_bytes()).expect("there is room");
        assert_eq!(twins.memory.bytes(), accounted(), "{create}");
    }
    let mut create = |areas: u64, bounds: u64| {
        let bounds = (1..=bounds).map(|bound| bound.to_string()).collect::<Vec<_>>().join(",");
        twins.check(format!("@stats_create 0+{areas} 1 1 histogram:{bounds}").as_bytes())
    };
    assert_eq!(create(1 << 57, 14), Err(Errno::ENOMEM));
    assert_eq!(create(1 << 57, 15), Err(Errno::EOVERFLOW));
    let areas = (kernel_bytes_max() - twins.memory.bytes() - 136) / 240;
    let too_long = format!("@stats_create 0+{} 1", areas + 1);
    assert_eq!(twins.check(too_long.as_bytes()), Err(Errno::ENOMEM));
    twins.check(format!("@stats_create 0+{areas} 1").as_bytes()).expect("the room is all used");
    assert_eq!(twins.memory.bytes(), accounted());
    twins.check(b"@stats_delete 4").expect("the large one");
}

fn check_long_words(twins: &mut Twins) {
    for (len, fits) in [(4000, true), ((4 << 20) - 1, true), (4 << 20, false)] {
        let word = vec![b'x'; len];
        let expected = if fits { Ok(Vec::new()) } else { Err(Errno::ENOMEM) };
        let mut check = |text: &[u8]| twins.check(&[text, &word].concat());
        assert_eq!(check(b"@stats_list "), expected);
        assert_eq!(check(b"@stats_set_aux 9 "), Err(Errno::ENOENT));
        assert_eq!(check(b"@stats_set_aux 0 "), expected);
        twins.check(b"@stats_list").expect("a listing, long or short");
        twins.check(b"@stats_set_aux 0 -").expect("region 0");
    }
    let create = |fill: usize| [b"@stats_create - /1 p ", b"x".repeat(fill).as_slice()].concat();
    twins.check(&create(32 * 1024 - 21)).expect("32 KiB are allowed");
    assert_eq!(twins.check(&create(32 * 1024 - 20)), Err(Errno::ENOMEM));
    let bounds = (1..=5000).map(|bound: u32| bound.to_string()).collect::<Vec<_>>().join(",");
    let create = format!("@stats_create - /1 1 histogram:{bounds}");
    let id = twins.check(create.as_bytes()).expect("many bounds");
    twins.check(b"@stats_list").expect("a long listing");
    twins.check(&[b"@stats_print ", id.as_slice()].concat()).expect("many bins");
}

#[test]
fn memory_counts_io_as_the_kernel_does() {
    if !vm::inside("memory_counts_io_as_the_kernel_does") {
        return;
    }
    let (mut twins, mut random, disk) = (Twins::new(), Random(SEED), Disk::open());
    for create in ["- /1", "10+100 7", "50+8 3", "300+900 64", "40+200 16 1 histogram:1000000"] {
        twins.check(format!("@stats_create {create}").as_bytes()).expect("there is room");
    }
    for number in 0..2000 {
        let start = random.below(1000);
        let len = 1 + random.below(60.min(1000 - start));
        let io = Extent::new(start as u64, len as u64).expect("not empty");
        let write = random.once_in(2);
        disk.io(io, write);
        twins.memory.io(twins.device, io, write);
        let keyword = random.pick(&["@stats_print", "@stats_print", "@stats_print_clear"]);
        let text = format!("{keyword} {}", random.below(5));
        let in_kernel = answer(&mut twins.control, twins.device, text.as_bytes()).expect("rows");
        let in_memory = answer(&mut twins.memory, twins.device, text.as_bytes()).expect("rows");
        assert_eq!(counts(&in_kernel), counts(&in_memory), "{text} after I/O {number}, at {io}");
    }
}

/// The device, without the page cache.
struct Disk(File);

impl Disk {
    fn open() -> Disk {
        let mut options = OpenOptions::new();
        options.read(true).write(true).custom_flags(nix::libc::O_DIRECT);
        Disk(options.open("/dev/mapper/twin").expect("the device"))
    }

    /// One I/O. Its buffer must lie on a multiple of 512 bytes.
    fn io(&self, sectors: Extent, write: bool) {
        let len = usize::try_from(sectors.len() * 512).expect("a small I/O");
        let mut buffer = vec![0; len + 512];
        let at = buffer.as_ptr().align_offset(512);
        let buffer = &mut buffer[at..at + len];
        let at = sectors.start() * 512;
        let done = if write { self.0.write_at(buffer, at) } else { self.0.read_at(buffer, at) };
        assert_eq!(done.expect("a ramdisk does not fail"), len);
    }
}

/// Of each row: what is counted, without the merges and the times, which memory does not know.
fn counts(reply: &Reply) -> Vec<Vec<String>> {
    let rows = String::from_utf8(reply.text.clone()).expect("numbers");
    let counted = |row: &str| {
        let fields = row.split(' ').map(str::to_owned).enumerate();
        fields.filter(|(i, _)| [0, 1, 3, 5, 7, 9, 14].contains(i)).map(|(_, field)| field).collect()
    };
    rows.lines().map(counted).collect()
}

#[test]
fn a_reply_says_which_device_answered() {
    if !vm::inside("a_reply_says_which_device_answered") {
        return;
    }
    vm::sh("dmsetup create one -u LVM-x --table '0 8 linear /dev/ram0 0'");
    let device = vm::device("/dev/mapper/one".as_ref());
    let mut control = Control::open().unwrap();
    let who =
        |reply: Reply| (String::from_utf8(reply.label.name), String::from_utf8(reply.label.uuid));
    let expected = |name: &str, uuid: &str| (Ok(name.to_owned()), Ok(uuid.to_owned()));
    let reply = control.message(device, b"@stats_create - /1").unwrap();
    assert_eq!(reply.text, b"0");
    assert_eq!(who(reply), expected("one", "LVM-x"));
    let reply = control.message(device, b"@stats_set_aux 0 x").unwrap();
    assert_eq!(reply.text, b"", "nothing to say");
    vm::sh("dmsetup rename one two");
    assert_eq!(who(control.message(device, b"@stats_list").unwrap()), expected("two", "LVM-x"));

    assert!(!control.is_suspended(device).unwrap());
    vm::sh("dmsetup suspend two");
    assert!(control.is_suspended(device).unwrap());
    assert_eq!(control.message(device, b"@stats_delete 0").unwrap().text, b"");
    vm::sh("dmsetup resume two");

    vm::sh("dmsetup remove two");
    let error = |control: &mut Control, device, text: &[u8]| answer(control, device, text).err();
    let enxio = Some(Some(Errno::ENXIO as i32));
    assert_eq!(error(&mut control, device, b"@stats_list"), enxio);
    assert_eq!(control.is_suspended(device).unwrap_err().raw_os_error(), enxio.flatten());
    assert_eq!(error(&mut control, Device { major: 1, minor: 0 }, b"@stats_list"), enxio);
    assert_eq!(error(&mut control, Device { major: 5000, minor: 0 }, b"@stats_list"), enxio);

    let reused = vm::table("three", "0 8 linear /dev/ram0 0");
    assert_eq!(vm::device(&reused), device, "the lowest free number");
    assert_eq!(who(control.message(device, b"@stats_list").unwrap()), expected("three", ""));
    let einval = Some(Some(Errno::EINVAL as i32));
    assert_eq!(error(&mut control, device, b"@stats_create - /1\0 x"), einval);
    assert_eq!(control.message(device, b"@stats_list").unwrap().text, b"", "it was not sent");
    assert_eq!(device_mapper_major().unwrap(), Some(device.major));
    assert_eq!(control.version()[0], 4);
}

#[test]
fn a_long_listing_leaves_small_messages_small() {
    if !vm::inside("a_long_listing_leaves_small_messages_small") {
        return;
    }
    let device = vm::device(&vm::linear("long", 0));
    let mut control = Control::open().unwrap();
    let mut cost = |text: &[u8]| {
        let before = control.traffic();
        let reply = control.message(device, text).unwrap();
        let after = control.traffic();
        (reply.text, after.messages - before.messages, after.bytes - before.bytes)
    };
    for _ in 0..5000 {
        let (_, messages, bytes) = cost(b"@stats_create 8+8 /1 dmstats");
        assert_eq!((messages, bytes), (1, 1024));
    }
    let (listing, messages, _) = cost(b"@stats_list");
    assert!(messages > 1, "the first listing does not fit");
    let rows = parse_list(&listing).unwrap();
    assert_eq!((rows.len(), rows[4999].id), (5000, RegionId(4999)));

    let (again, messages, bytes) = cost(b"@stats_list");
    assert_eq!((again == listing, messages), (true, 1), "the size was remembered");
    assert!(bytes < 2 * listing.len() as u64, "{bytes} bytes for {}", listing.len());
    let (none, messages, _) = cost(b"@stats_list nobody");
    assert_eq!((none.as_slice(), messages), (&b""[..], 1));
    let (again, messages, _) = cost(b"@stats_list dmstats");
    assert_eq!((again == listing, messages <= 2), (true, true), "one empty listing in between");

    let aux = vec![b'a'; 4000];
    let set_aux = Message::SetAux { id: RegionId(7), aux: &aux }.encode();
    let (_, messages, bytes) = cost(&set_aux);
    assert_eq!(messages, 1);
    assert!(bytes < 4400, "{bytes} bytes for a message of 4,017");
    let (listing, ..) = cost(b"@stats_list");
    assert_eq!(parse_list(&listing).unwrap()[7].aux, aux);
    for text in [&b"@stats_delete 7"[..], b"@stats_set_aux 8 x", b"@stats_print 8"] {
        let (_, messages, bytes) = cost(text);
        assert_eq!((messages, bytes), (1, 1024), "{}", text.escape_ascii());
    }

    vm::sh("dmsetup remove long");
    control.message(device, b"@stats_list").unwrap_err();
    assert_eq!(vm::device(&vm::linear("another", 0)), device, "the lowest free number");
    let before = control.traffic().bytes;
    control.message(device, b"@stats_list").unwrap();
    assert_eq!(control.traffic().bytes - before, 16 << 10, "what was remembered is forgotten");
}

/// That the pauses are as long as they should be is a unit test, with a clock of its own.
#[test]
fn creates_are_paced_and_nothing_else_is() {
    if !vm::inside("creates_are_paced_and_nothing_else_is") {
        return;
    }
    let disk = |i| vm::device(&vm::table(&format!("disk{i}"), "0 8 linear /dev/ram0 0"));
    let disks: Vec<Device> = (0..10).map(disk).collect();
    let pacer = Pacer::new(25);
    let paced = || Paced::new(Control::open().unwrap(), pacer.clone());
    let (mut control, mut other) = (paced(), paced());
    let create: &[u8] = b"@stats_create - /1";
    for disk in &disks[1..] {
        control.message(disks[0], create).unwrap();
        control.message(*disk, create).unwrap();
        assert_eq!(pacer.toll(*disk).pauses, 0, "the first on its device");
    }
    for _ in 0..100 {
        control.message(disks[0], create).unwrap();
        other.message(disks[0], create).unwrap();
    }
    let toll = pacer.toll(disks[0]);
    assert!(toll.pauses > 100, "they wait for each other: {toll:?}");
    assert_eq!(toll.creates, 209);
    for text in [&b"@stats_set_aux 0 x"[..], b"@stats_list", b"@stats_print 7", b"@stats_delete 1"]
    {
        control.message(disks[0], text).unwrap();
    }
    assert_eq!(pacer.toll(disks[0]).pauses, toll.pauses);
}

#[test]
fn it_is_told_why_the_control_node_cannot_be_used() {
    if !vm::inside("it_is_told_why_the_control_node_cannot_be_used") {
        return;
    }
    let check = |kind, words: &[&str]| {
        let error = Control::open().unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(words.iter().all(|word| error.to_string().contains(word)), "{error}");
    };
    if !nix::unistd::geteuid().is_root() {
        return check(OpenErrorKind::NoPermission, &["CAP_SYS_ADMIN", "root"]);
    }
    for mode in ["600", "666"] {
        let program = env::current_exe().unwrap();
        let program = program.display();
        vm::sh(&format!(
            "chmod {mode} /dev/mapper/control
             setpriv --reuid=65534 --regid=65534 --clear-groups {program} \
                 --exact it_is_told_why_the_control_node_cannot_be_used"
        ));
    }
    vm::sh("mv /dev/mapper/control /dev/mapper/moved");
    check(OpenErrorKind::NoNode, &["/dev/mapper/control", "does not exist", "modprobe"]);
    vm::sh("mknod /dev/mapper/control c 10 254");
    check(OpenErrorKind::NoDriver, &["modprobe"]);
    vm::sh("rm /dev/mapper/control; mknod /dev/mapper/control c 1 3");
    check(OpenErrorKind::WrongVersion, &["version 4"]);
    vm::sh("mv /dev/mapper/moved /dev/mapper/control");
    Control::open().unwrap();
}
