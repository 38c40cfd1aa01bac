//! Keeps groups of device-mapper statistics regions equal to the extents of files, by polling.
//!
//! Device-mapper can count the I/O on any range of a device (`dmstats`). A file is a set of such
//! ranges, its extents, and they move: files grow, shrink, are punched, defragmented, replaced.
//! This crate keeps a group of regions where the file is, so that a reader of the group sees the
//! I/O that really goes to that file: below the page cache, under LVM and LUKS.
//!
//! # The path of one look
//!
//! 1. The [`engine`] says which files are due, device by device. A sampler [looks](sample) at them:
//!    one `stat` each; that is all while nothing happens.
//! 2. If the [stamp](sight::Stamp) differs, or a map is due for another reason, a sampler reads
//!    the extents (`FIEMAP`, never with a sync), in [normal form](extent::Extents).
//! 3. If their [fingerprint](extent::Extents::fingerprint) is not the one of the map that the group
//!    shows, the extents go to a thread that talks to the device-mapper.
//! 4. [`update`] lists the device's regions, finds ours, [plans](plan), and sends the messages in
//!    an order in which any of them may be the last. What it found and did comes back as an event.
//!
//! # The map of the code
//!
//! Each floor uses only those above it in this list; reading order is the order of the list.
//!
//! | floor | modules | |
//! |---|---|---|
//! | 0: values, no I/O | [`extent`] | sectors, maps in normal form |
//! | | [`message`], [`group`], [`dm`] | the protocol, the group descriptor, the seam |
//! | | [`counters`] | what the kernel counts, in one unit |
//! | | [`mode`], [`sight`] | what a file is followed by, what a look gives |
//! | | [`values`] | intervals, bounds and words, as people write them |
//! | | [`plan`], [`fit`] | from regions and extents to a delta, short enough to be read |
//! | | [`shape`], [`merge`], [`fold`] | what a group is to cover, within limits on its regions |
//! | 1: decisions | [`update`] | one group, from what it is to what it should be |
//! | | [`ledger`] | what files have counted in all, whatever becomes of their regions |
//! | | [`engine`] | `(now, event)` to actions: what is due, what is under way, when to stop |
//! | | [`grid`] | counts of every part of a device, and whose they are |
//! | 2: the kernel | [`kernel`] | FIEMAP, `/dev/mapper/control`, a table in memory, forks |
//! | 3: the program | [`sample`], [`place`], [`entry`] | one look at one file; where it lies |
//! | | [`home`], [`mounts`] | which device that is, and whether its filesystem is mounted |
//! | | [`paths`] | paths of many files, in few pieces of memory |
//! | | [`pace`] | pauses between creates, for the device's I/O |
//! | | [`config`] | settings and entries: what is followed, and how |
//! | | [`mod@run`] | threads, queues, signals |
//! | | [`request`] | what is said on the control socket |
//! | | [`survey`] | what was counted, as the kernel says it |
//! | | [`metrics`] | the same as Prometheus reads it |
//! | 4: front doors | [`compat`], [`cli`], [`launch`] | lvm2's command line, ours, a library |
//! | | [`socket`], [`client`] | the two ends of the control socket |
//!
//! What is *not* there, and is to stay so (`tests/tidy.rs` holds the code to it):
//!
//! * Floors 0 and 1 know no file, clock, thread, log or system call.
//! * There is no `unsafe` outside [`kernel`].
//! * Threads are started in [`mod@run`] only, and at most one at a time talks to a device-mapper
//!   device.
//! * Nothing that is remembered about the kernel is trusted: every update begins with a listing.
//! * Nothing uses inotify or fanotify, and nothing asks for a writeback.
//!
//! # Words
//!
//! | word | meaning |
//! |---|---|
//! | sector | 512 bytes, whatever the device's block size |
//! | extent | a run of sectors of one device, never empty |
//! | map | all extents of a file, in normal form: sorted, disjoint, merged |
//! | region | the kernel's object: an id, an extent, `program_id`, `aux_data`, counters |
//! | area | a part of a region with counters of its own; those of groups have one |
//! | grid | regions of many areas, in no group, which count whatever lies there |
//! | patch | one region of a grid, as it is planned |
//! | tenant | a file with sectors in an area |
//! | blank | sectors that a file has and has never written |
//! | stand | what the areas of a region said when they were read last |
//! | group | regions that are reported together; LVM2's notion, unknown to the kernel |
//! | leader | the lowest member of a group; its id is the group's |
//! | descriptor | what names the members; lives in the leader's `aux_data` |
//! | mark | our word in `aux_data` that says which file a region maps |
//! | claim | our word in the descriptor that says which process follows the group |
//! | orphan | a region with a mark that no descriptor names: the leftover of a cut update |
//! | setting | what may be set for the whole service; the last source that says it counts |
//! | rule | a `[[file]]` of the configuration: a pattern, and settings of its own |
//! | terms | the settings that hold for one file |
//! | turn | a lock on a device: shared for an update, alone for who deletes orphans |
//! | clockwork | what a region counts besides the thirteen counters: precise times, a histogram |
//! | anchor | the one region of a group whose file has no extent; lies beyond every device |
//! | stamp | what `stat` says, as far as a change may show in it |
//! | imprint | what is remembered of a stamp: enough to tell another one from it |
//! | fingerprint | what is remembered of a map, likewise |
//! | look | one `stat`, and one reading of the map if it is due; a full look reads it anyway |
//! | lane | the work for one device; how much of it may be under way is bounded |
//! | gauge | a device's write counter: while it stands still, idle files are not looked at |
//! | sweep | one listing of a device, to see what others did to our groups |
//! | roster | what a service was asked for and no rule wants, written down for the next one |
//! | reading | what a region has counted, at one moment; or one of all groups of a device |
//! | ledger | what each file has counted in all, in an account, and the last readings |
//! | holder | whose account it is: a file, by what is the same after a restart of the machine |
//! | limits | how many regions a group may have |
//! | shape | what a group covers within its limits, and what of it is to be one region |
//! | merge | to take the gap between two extents in, so that one region covers both |
//! | fold | to have one region in the place of neighbours that cover one extent |
//! | foreign | of sectors: what a group counts and its file does not have |
//! | delta | what to keep, create and delete |
//! | message, reply | one line of text to the kernel, and its answer |

#![allow(clippy::must_use_candidate)] // says nothing that the signature does not

pub mod cli;
pub mod client;
pub mod compat;
pub mod config;
pub mod counters;
pub mod dm;
pub mod engine;
pub mod entry;
pub mod extent;
pub mod fit;
pub mod fold;
pub mod grid;
pub mod group;
pub mod home;
pub mod kernel;
pub mod launch;
pub mod ledger;
pub mod merge;
pub mod message;
pub mod metrics;
pub mod mode;
pub mod mounts;
pub mod pace;
pub mod paths;
pub mod place;
pub mod plan;
pub mod request;
pub mod run;
pub mod sample;
pub mod shape;
pub mod sight;
pub mod socket;
pub mod survey;
pub mod update;
pub mod values;
