//! The group descriptor, which lives in the aux_data of a group's leader.
//!
//! Groups are LVM2's notion; the kernel knows only regions. A group's leader is its lowest member,
//! the leader's id is the group's id, and the leader's aux_data holds the descriptor:
//!
//! ```text
//! DMS_GROUP="ALIAS":MEMBERS#USER      written by LVM2 from 1.02.197 on
//! DMS_GROUP=ALIAS:MEMBERS#USER        written before that
//! ```
//!
//! Both dialects are read here, and a group keeps the one it was found in.

use std::fmt;
use std::io::Write as _;

use crate::message::{Clockwork, Region, RegionId, is_space};

const TAG: &[u8] = b"DMS_GROUP=";

/// Longest row of a listing, without its line end, that LVM2 reads: it takes lines of 4,096 bytes.
/// One longer row makes every `dmstats` command fail for that program_id on that device.
pub const ROW_MAX: usize = 4094;

/// Longest aux_data, together with the digits of the region's id, that LVM2 can write back: it
/// builds messages in 1,024 bytes. Beyond that it still lists and reports the group.
pub const REWRITE_MAX: usize = 1006;

/// Our word in aux_data: which file a region maps, and in which incarnation of its group.
///
/// It is what tells our regions from everyone else's once no descriptor names them: after a cut
/// update, after a restart, after somebody deleted the group and re-used its id. Written
/// `fm=KEY.NONCE.`, in a descriptor `fm=KEY.NONCE.CLAIM.`; the dot at the end is there to be lost,
/// since LVM2 before 1.02.197 chops the last byte of a descriptor each time it rewrites one whose
/// region has options.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(Rust, packed(4))] // every followed file has one, and it would be a third larger
pub struct Mark {
    /// Stands for the file: the same in every run that follows it in the same mode.
    pub key: u64,
    /// Drawn anew whenever a group is made or first adopted.
    pub nonce: u32,
}

impl Mark {
    const PREFIX: &'static [u8] = b"fm=";

    /// The mark at the end of `text`, what stands before it and what behind.
    fn take_last(text: &[u8]) -> Option<(&[u8], Mark, &[u8])> {
        let at = text.windows(3).rposition(|window| window == Mark::PREFIX)?;
        let word = &text[at + 3..];
        let key = hex(word.get(..16)?)?;
        let nonce = hex(word.get(17..25)?).filter(|_| word[16] == b'.')?;
        let mark = Mark { key, nonce: u32::try_from(nonce).ok()? };
        Some((&text[..at], mark, &word[25..]))
    }

    /// The mark of a region that is no leader, if that is all its aux_data holds.
    #[must_use]
    pub fn of_member(aux: &[u8]) -> Option<Mark> {
        let (before, mark, _) = Mark::take_last(aux)?;
        before.is_empty().then_some(mark)
    }

    /// The mark of a region, whether it is a leader or not.
    #[must_use]
    pub fn of(region: &Region<'_>) -> Option<Mark> {
        match Descriptor::of(region) {
            Some(descriptor) => descriptor.mark,
            None => Mark::of_member(region.aux),
        }
    }
}

fn hex(digits: &[u8]) -> Option<u64> {
    let append = |number: u64, byte: &u8| {
        let digit = match byte {
            b'0'..=b'9' => byte - b'0',
            b'a'..=b'f' => byte - b'a' + 10,
            _ => return None,
        };
        Some(number.checked_mul(16)? + u64::from(digit))
    };
    if digits.is_empty() { None } else { digits.iter().try_fold(0, append) }
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Mark { key, nonce } = *self;
        write!(f, "fm={key:016x}.{nonce:08x}.")
    }
}

/// The ids of a group's members, as runs: `0-2,5`.
///
/// Runs and not single ids, because a descriptor is foreign text and may say `0-4294967295`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Members(Vec<(RegionId, RegionId)>);

impl Members {
    /// Whether `id` is a member.
    #[must_use]
    pub fn contains(&self, id: RegionId) -> bool {
        let after = self.0.partition_point(|run| run.0 <= id);
        after.checked_sub(1).is_some_and(|at| id <= self.0[at].1)
    }

    /// The lowest member: the leader.
    #[must_use]
    pub fn first(&self) -> Option<RegionId> {
        self.0.first().map(|run| run.0)
    }

    /// The highest member.
    #[must_use]
    pub fn last(&self) -> Option<RegionId> {
        self.0.last().map(|run| run.1)
    }

    /// How many ids the runs name.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.0.iter().map(|run| u64::from(run.1.0 - run.0.0) + 1).sum()
    }

    /// Reads a list as liberally as LVM2 does: duplicates, overlaps, empty items, leading zeros
    /// and blanks pass; a falling run or anything else does not.
    fn parse(text: &[u8]) -> Option<Members> {
        let mut runs = Vec::new();
        for item in text.split(|&byte| byte == b',') {
            let item = item.trim_ascii();
            if item.is_empty() {
                continue;
            }
            let (low, high) = match item.iter().position(|&byte| byte == b'-') {
                Some(dash) => (id(&item[..dash])?, id(&item[dash + 1..])?),
                None => (id(item)?, id(item)?),
            };
            if high < low {
                return None;
            }
            runs.push((low, high));
        }
        runs.sort_unstable();
        runs.dedup_by(|next, run| {
            let touches = next.0.0 <= run.1.0.saturating_add(1);
            if touches {
                run.1 = run.1.max(next.1);
            }
            touches
        });
        (!runs.is_empty()).then_some(Members(runs))
    }
}

fn id(digits: &[u8]) -> Option<RegionId> {
    let digits = digits.trim_ascii();
    let number = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
    let digits = std::str::from_utf8(digits).ok().filter(|_| number)?;
    digits.parse().ok().map(RegionId).filter(|id| *id <= RegionId::MAX)
}

/// Collects ids in rising order.
impl FromIterator<RegionId> for Members {
    fn from_iter<I: IntoIterator<Item = RegionId>>(ids: I) -> Members {
        let mut runs: Vec<(RegionId, RegionId)> = Vec::new();
        for id in ids {
            match runs.last_mut() {
                Some(run) if run.1.0 + 1 == id.0 => run.1 = id,
                _ => runs.push((id, id)),
            }
        }
        Members(runs)
    }
}

impl fmt::Display for Members {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, (low, high)) in self.0.iter().enumerate() {
            let comma = if at > 0 { "," } else { "" };
            write!(f, "{comma}{low}")?;
            if low < high {
                write!(f, "-{high}")?;
            }
        }
        Ok(())
    }
}

/// Which of the two ways to write a descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// The alias stands in quotes. Both generations of LVM2 read it.
    Quoted,
    /// The alias stands bare. Newer LVM2 loses its first and last byte.
    Bare,
}

/// What a group's leader says of the group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// How it is written.
    pub dialect: Dialect,
    /// The group's name; may be empty.
    pub alias: Vec<u8>,
    /// The regions of the group.
    pub members: Members,
    /// What a user stored with the group; empty for nothing (written `-`).
    pub user: Vec<u8>,
    /// Our mark, behind the user's data.
    pub mark: Option<Mark>,
    /// Which process speaks for the group: the one that wrote this last. Drawn anew by each that
    /// takes the group over, so that two never follow one group: the earlier sees itself replaced.
    pub claim: Option<u32>,
}

impl Descriptor {
    /// The descriptor that a region holds, if it holds one that LVM2 would take: its lowest member
    /// must be the region itself.
    #[must_use]
    pub fn of(region: &Region<'_>) -> Option<Descriptor> {
        Descriptor::parse(region.id, region.aux)
    }

    /// Parses the aux_data of region `holder`.
    ///
    /// Aliases and user data are bare text that may hold the separators. So the alias ends where
    /// first a list of members follows that begins with the holder.
    #[must_use]
    pub fn parse(holder: RegionId, aux: &[u8]) -> Option<Descriptor> {
        let at = aux.windows(TAG.len()).position(|window| window == TAG)?;
        let body = &aux[at + TAG.len()..];
        let quoted = body.strip_prefix(b"\"").and_then(|body| parts(holder, body, b"\":"));
        let (dialect, (alias, members, user)) = match quoted {
            Some(parts) => (Dialect::Quoted, parts),
            None => (Dialect::Bare, parts(holder, body, b":")?), // maybe a bare quote
        };
        let (user, mark, claim) = take_mark(user);
        let (alias, user) = (alias.to_vec(), user.to_vec());
        Some(Descriptor { dialect, alias, members, user, mark, claim })
    }

    /// The aux_data that says this.
    ///
    /// A group without alias is always written in quotes: LVM2 reads the bare form of it as a group
    /// whose alias is its list of members.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut aux = TAG.to_vec();
        match self.dialect {
            Dialect::Bare if !self.alias.is_empty() => aux.extend_from_slice(&self.alias),
            _ => {
                aux.push(b'"');
                aux.extend_from_slice(&self.alias);
                aux.push(b'"');
            }
        }
        write!(aux, ":{}#", self.members).expect("a vector takes all that is written to it");
        aux.extend_from_slice(&self.user);
        if let Some(mark) = self.mark {
            let dot = if self.user.is_empty() { "" } else { "." };
            write!(aux, "{dot}{mark}").expect("a vector takes all that is written to it");
            if let Some(claim) = self.claim {
                write!(aux, "{claim:08x}.").expect("a vector takes all that is written to it");
            }
        } else if self.user.is_empty() {
            aux.push(b'-');
        }
        aux
    }
}

/// Alias, members and user data of a descriptor, whose alias ends in `split`.
fn parts<'a>(
    holder: RegionId,
    body: &'a [u8],
    split: &[u8],
) -> Option<(&'a [u8], Members, &'a [u8])> {
    let mut ends =
        body.windows(split.len()).enumerate().filter(|(_, window)| *window == split).map(|at| at.0);
    ends.find_map(|end| {
        let tail = &body[end + split.len()..];
        let hash = tail.iter().position(|&byte| byte == b'#');
        let members = Members::parse(&tail[..hash.unwrap_or(tail.len())])?;
        let user = hash.map_or(&b""[..], |hash| &tail[hash + 1..]);
        (members.first() == Some(holder)).then_some((&body[..end], members, user))
    })
}

/// Parts the user's data from our mark and claim.
fn take_mark(user: &[u8]) -> (&[u8], Option<Mark>, Option<u32>) {
    let (user, mark, claim) = match Mark::take_last(user) {
        Some((before, mark, behind)) => {
            let claim = behind.get(1..9).and_then(hex).and_then(|claim| u32::try_from(claim).ok());
            (before.strip_suffix(b".").unwrap_or(before), Some(mark), claim)
        }
        None => (user, None, None),
    };
    (if user == b"-" { b"" } else { user }, mark, claim)
}

/// Bytes that a leader's row leaves for the list of members, under [`ROW_MAX`], when the rest of
/// its aux_data takes `aux_len` bytes.
///
/// The row's numbers are taken at their longest, and the list may grow by two ids after it was
/// measured: a group can change its leader.
#[must_use]
pub fn room_for_members(program_id: &[u8], clockwork: Clockwork<'_>, aux_len: usize) -> usize {
    let numbers = "2147483647: 18446744073709551615+18446744073709551615 18446744073709551615 ";
    let options = match (clockwork.precise, clockwork.bounds.len()) {
        (false, 0) => 0,
        (_, bounds) => " precise_timestamps histogram:".len() + bounds,
    };
    let ids = ",2147483647,2147483647".len();
    let rest = numbers.len() + program_id.len() + 1 + aux_len + options + ids;
    ROW_MAX.saturating_sub(rest)
}

/// Whether both generations of LVM2 can read, write and print `alias`.
#[must_use]
pub fn is_safe_alias(alias: &[u8]) -> bool {
    !alias.is_empty() && alias.iter().all(|&byte| is_safe(byte))
}

/// The nearest alias that is safe: every byte that is not becomes `_`.
#[must_use]
pub fn safe_alias(name: &[u8]) -> Vec<u8> {
    name.iter().map(|&byte| if is_safe(byte) { byte } else { b'_' }).collect()
}

/// Both dialects break at `:`, the older at blanks, the newer at `#` and quotes; LVM2 writes
/// control bytes and A0 unescaped, which splits its message.
fn is_safe(byte: u8) -> bool {
    byte > b' ' && byte != 0x7F && !is_space(byte) && !matches!(byte, b':' | b'#' | b'"' | b'\\')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MARK: Mark = Mark { key: 0x1234_5678_9abc_def0, nonce: 7 };

    fn parse(holder: u32, aux: &str) -> Option<(String, String, String)> {
        let found = Descriptor::parse(RegionId(holder), aux.as_bytes())?;
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        Some((text(found.alias), found.members.to_string(), text(found.user)))
    }

    fn check(holder: u32, aux: &str, alias: &str, members: &str, user: &str) {
        let expected = (alias.to_owned(), members.to_owned(), user.to_owned());
        assert_eq!(parse(holder, aux), Some(expected), "{aux}");
    }

    #[test]
    fn both_dialects_are_read() {
        check(0, r#"DMS_GROUP="vm.img":0-2,5#-"#, "vm.img", "0-2,5", "");
        check(0, r"DMS_GROUP=vm.img:0-2,5#-", "vm.img", "0-2,5", "");
        check(0, r"DMS_GROUP=:0-1#-", "", "0-1", "");
        check(0, r#"DMS_GROUP="":0-1#-"#, "", "0-1", "");
        check(3, r#"DMS_GROUP="a b#c":3#note"#, "a b#c", "3", "note");
        check(0, r#"DMS_GROUP="say ":1":":0#-"#, "say \":1\":", "0", "");
    }

    #[test]
    fn the_list_of_members_is_read_as_liberally_as_lvm2_does() {
        check(0, r#"DMS_GROUP="a":0,0-2,1-3,,007,#-"#, "a", "0-3,7", "");
        check(0, r#"DMS_GROUP="a":0 , 2 - 3#-"#, "a", "0,2-3", "");
        check(0, r#"DMS_GROUP="a":0-1"#, "a", "0-1", "");
        for list in ["2-1", "x", "0x1", "", ",", "-", "0-", "0--1", "99999999999"] {
            assert_eq!(parse(0, &format!("DMS_GROUP=\"a\":{list}#-")), None, "{list}");
        }
    }

    #[test]
    fn a_descriptor_in_a_region_that_is_not_its_lowest_member_is_none() {
        assert_eq!(parse(3, r#"DMS_GROUP="a":0,3-4#-"#), None);
        assert_eq!(parse(0, "-"), None);
        assert_eq!(parse(0, "DMS_GROUP="), None);
    }

    #[test]
    fn separators_in_user_data_do_not_mislead() {
        check(0, r"DMS_GROUP=a:0-2#at:12", "a", "0-2", "at:12");
        check(0, r"DMS_GROUP=a:0-2#at:0", "a", "0-2", "at:0");
    }

    #[test]
    fn the_mark_stands_behind_the_users_data_and_outlives_one_chopped_byte() {
        let text = r#"DMS_GROUP="a":0#note"#;
        let mut found = Descriptor::parse(RegionId(0), text.as_bytes()).unwrap();
        found.mark = Some(MARK);
        found.claim = Some(0xabc);
        let mut aux = found.encode();
        assert_eq!(aux, br#"DMS_GROUP="a":0#note.fm=123456789abcdef0.00000007.00000abc."#);
        aux.pop();
        assert_eq!(Descriptor::parse(RegionId(0), &aux), Some(found));
    }

    #[test]
    fn a_member_is_marked_only_by_a_mark_that_stands_alone() {
        assert_eq!(Mark::of_member(MARK.to_string().as_bytes()), Some(MARK));
        for aux in ["-", "fm=", "fm=12", "xfm=123456789abcdef0.00000007.", "fm=123456789ABCDEF0.0"]
        {
            assert_eq!(Mark::of_member(aux.as_bytes()), None, "{aux}");
        }
    }

    #[test]
    fn a_group_without_alias_is_never_written_bare() {
        let found = Descriptor::parse(RegionId(0), b"DMS_GROUP=:0-1#-").unwrap();
        assert_eq!(found.encode(), br#"DMS_GROUP="":0-1#-"#);
        let found = Descriptor::parse(RegionId(0), b"DMS_GROUP=ab:0-1#-").unwrap();
        assert_eq!(found.encode(), b"DMS_GROUP=ab:0-1#-", "the dialect is kept");
    }

    #[test]
    fn a_run_of_all_ids_costs_no_memory() {
        let found = Descriptor::parse(RegionId(0), b"DMS_GROUP=a:0-2147483647#-").unwrap();
        assert_eq!((found.members.count(), found.members.last()), (1 << 31, Some(RegionId::MAX)));
        assert!(found.members.contains(RegionId::MAX));
    }

    #[test]
    fn safe_aliases() {
        assert!(is_safe_alias("vm-1_\u{fc}.img".as_bytes()));
        for alias in ["", "a:b", "a b", "a#b", "a\"b", "a\\b", "a\nb", "voil\u{e0}"] {
            assert!(!is_safe_alias(alias.as_bytes()), "{alias}");
        }
        assert_eq!(safe_alias("a:b c\u{e0}".as_bytes()), b"a_b_c\xC3_");
    }

    fn descriptor() -> impl Strategy<Value = (RegionId, Descriptor)> {
        let ids = prop::collection::btree_set(0..40u32, 1..12);
        let mark = prop::option::of((any::<u64>(), any::<u32>(), prop::option::of(any::<u32>())));
        let texts = ("[a-z0-9.=-]{0,6}", "([a-z0-9=_][a-z0-9=_.-]{0,5}[a-z])?");
        (ids, texts, any::<bool>(), mark).prop_map(|(ids, (alias, user), quoted, mark)| {
            let first = RegionId(*ids.first().unwrap());
            let dialect = match quoted || alias.is_empty() {
                true => Dialect::Quoted,
                false => Dialect::Bare,
            };
            let members = ids.into_iter().map(RegionId).collect();
            let claim = mark.and_then(|(_, _, claim)| claim);
            let mark = mark.map(|(key, nonce, _)| Mark { key, nonce });
            let (alias, user) = (alias.into_bytes(), user.into_bytes());
            (first, Descriptor { dialect, alias, members, user, mark, claim })
        })
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back((holder, descriptor) in descriptor()) {
            prop_assert_eq!(Descriptor::parse(holder, &descriptor.encode()), Some(descriptor));
        }

        #[test]
        fn no_aux_data_panics(aux in prop::collection::vec(any::<u8>(), 0..60), at in 0..60usize) {
            let mut tagged = aux.clone();
            tagged.splice(at.min(aux.len())..at.min(aux.len()), TAG.iter().copied());
            let _ = Descriptor::parse(RegionId(0), &aux);
            let _ = Descriptor::parse(RegionId(0), &tagged);
            let _ = Mark::of_member(&aux);
        }
    }
}
