//! A grid, read and given away as a service would do it.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;

use dmfilemapd::counters::Counters;
use dmfilemapd::dm::Device;
use dmfilemapd::extent::{Extent, Extents};
use dmfilemapd::grid::owners::Owners;
use dmfilemapd::grid::plan::{Change, Patch};
use dmfilemapd::grid::shares::{Shares, in_question};
use dmfilemapd::grid::table::Grid;
use dmfilemapd::kernel::fiemap::Pages;
use dmfilemapd::kernel::{Control, fsmap};
use dmfilemapd::sample::{open_regular, read_map};

use crate::guest::Disk;
use crate::vm;

/// Which file, as the workloads number them.
pub type Number = u32;

pub struct Account {
    control: Control,
    device: Device,
    grid: Grid,
    owners: Owners<Number>,
    files: BTreeMap<Number, File>,
    root: File,
    pages: Pages,
    phase: u64,
    shares: Shares<Number>,
    counted: Counters,
    creates: usize,
}

impl Account {
    /// Counts the whole device in areas of so many bytes.
    pub fn open(disk: &Disk, kind: &str, area: u64) -> Account {
        let mut control = Control::open().unwrap();
        let device = vm::device(&disk.node);
        let sectors = vm::sh(&format!("blockdev --getsz {}", disk.node.display()));
        let extent = Extent::new(0, sectors.trim().parse().unwrap()).unwrap();
        let mut grid = Grid::find(&mut control, device, 1, true, &[]).unwrap();
        assert_eq!(grid.patches(), []);
        let create = vec![Patch { extent, step: area / 512 }];
        let change = Change { delete: Vec::new(), create };
        let creates = grid.change(&mut control, &change, 7).unwrap().created;
        Account {
            control,
            device,
            grid,
            owners: Owners::new(kind == "ext4"),
            files: BTreeMap::new(),
            root: File::open(&disk.mount).unwrap(),
            pages: Pages::default(),
            phase: 0,
            shares: Shares::default(),
            counted: Counters::default(),
            creates,
        }
    }

    /// Follows a file, which is there.
    pub fn follow(&mut self, number: Number, path: &Path) {
        let file = open_regular(path).unwrap();
        let map = read_map(&file, &mut self.pages).unwrap();
        self.owners.add(number, map.extents, map.blank);
        self.files.insert(number, file);
    }

    /// What one round of a service does.
    pub fn tick(&mut self) {
        let areas = self.grid.read(&mut self.control).unwrap();
        for (number, file) in &self.files {
            let map = read_map(file, &mut self.pages).unwrap();
            self.owners.set(*number, map.extents, map.blank);
        }
        let extents: Vec<Extent> = areas.iter().map(|area| area.extent).collect();
        let tenancies = self.owners.tenancies(&extents, &Extents::default());
        let mut free = Vec::new();
        for area in in_question(&areas, &tenancies) {
            fsmap::free(&self.root, self.device, area, &mut free).unwrap();
        }
        let tenancies = self.owners.tenancies(&extents, &free.into_iter().collect());
        self.shares.give(&areas, &tenancies, self.phase);
        self.phase += 1;
        self.owners.settle();
        for area in &areas {
            self.counted += &area.counters;
        }
    }

    pub fn found(&self) -> &Shares<Number> {
        &self.shares
    }

    /// What files and others got is what was counted, and that is what the kernel says.
    pub fn assert_adds_up(&mut self) {
        self.tick();
        let mut sum = self.shares.others;
        self.shares.files.values().for_each(|share| sum += &share.counters);
        assert_eq!(sum, self.counted);
        let mut stands = Counters::default();
        for stand in self.grid.stands() {
            stand.areas.iter().for_each(|area| stands += area);
        }
        assert_eq!(sum, stands);
    }

    pub fn assert_one_create(&mut self) {
        assert_eq!(self.creates, 1);
        assert_eq!(self.grid.patches().len(), 1);
        let listing = vm::sh(
            "for d in $(dmsetup ls -o blkdevname | cut -f1); do \
                              dmsetup message $d 0 @stats_list; done",
        );
        assert_eq!(listing.lines().count(), 1, "{listing}");
    }
}
