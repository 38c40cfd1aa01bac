//! What was counted on a machine, as the kernel says it: of every group, whoever made it.
//!
//! Needs no service. The groups are known by their names; where their files are, nobody says.

use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::counters::{Histogram, Reading};
use crate::dm::{Device, Dm};
use crate::extent::SECTOR_BYTES;
use crate::home::{label, sysfs};
use crate::kernel::devices::Named;
use crate::request::{
    DeviceState, DeviceTotals, FileTotals, REGION_COST_NS, SCHEMA, Source, Totals,
};
use crate::update::{ANCHOR, Count, Counted, read_all};

/// What all groups on these devices have counted, and the devices themselves. A device that cannot
/// be read says why, and has no files.
pub fn survey(dm: &mut impl Dm, devices: &[Named]) -> Totals {
    let mut totals =
        Totals { schema: SCHEMA, kernel_stats_bytes: kernel_stats_bytes(), ..Totals::default() };
    for device in devices {
        let read = read_all(&mut *dm, device.device);
        let mut row = device_totals(device.device, &String::from_utf8_lossy(&device.name));
        match read {
            Ok((groups, regions)) => {
                row.files = groups.len() as u64;
                row.regions = regions as u64;
                row.own_regions = groups.iter().map(|group| group.counts.len() as u64).sum();
                row.own_io_cost_estimated_ns = row.own_regions * REGION_COST_NS;
                totals.files.extend(groups.iter().map(|group| file_totals(group, &row)));
            }
            Err(error) if error.is_no_device() => continue, // removed since
            Err(error) => row.read_error = Some(error.to_string()),
        }
        totals.devices.push(row);
    }
    totals
}

/// The row of a device, as far as sysfs knows: nothing is listed or followed yet.
pub fn device_totals(device: Device, name: &str) -> DeviceTotals {
    let stat = sysfs(device, "stat");
    let reading = stat.and_then(|stat| Reading::of_device(&stat));
    DeviceTotals {
        device: device.to_string(),
        name: name.to_owned(),
        uuid: String::from_utf8_lossy(&label(device).unwrap_or_default().uuid).into_owned(),
        files: 0,
        regions: 0,
        own_regions: 0,
        own_io_cost_estimated_ns: 0,
        creates: 0,
        creates_time_ns: 0,
        state: DeviceState::Ok,
        stuck_seconds: 0.0,
        read_unix_seconds: Some(unix_seconds()),
        read_error: None,
        grid: None,
        io_now: reading.as_ref().map_or(0, |reading| reading.io_now),
        counters: reading.map(|reading| reading.counters),
    }
}

/// Kernel memory that all regions of the machine take, as `dm_mod` accounts for it.
pub fn kernel_stats_bytes() -> Option<u64> {
    let path = "/sys/module/dm_mod/parameters/stats_current_allocated_bytes";
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// Now, by the clock on the wall.
pub fn unix_seconds() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

fn file_totals(group: &Counted, device: &DeviceTotals) -> FileTotals {
    let mut sum = Reading::default();
    let mut histogram = Histogram::default();
    for Count { reading, bounds_ns, .. } in &group.counts {
        sum += reading;
        if !bounds_ns.is_empty() {
            histogram.add(bounds_ns, &reading.bins);
        }
    }
    let mapped = group.counts.iter().filter(|count| count.extent.start() != ANCHOR);
    FileTotals {
        path: None,
        alias: String::from_utf8_lossy(&group.descriptor.alias).into_owned(),
        mode: None,
        inode: None,
        device: device.device.clone(),
        device_name: device.name.clone(),
        group: Some(group.id.0),
        state: String::new(),
        regions: group.counts.len() as u64,
        extents: None,
        mapped_bytes: mapped.map(|count| count.extent.len()).sum::<u64>() * SECTOR_BYTES,
        foreign_bytes: None,
        unmapped_bytes: None,
        shared_bytes: None,
        last_change_unix_seconds: None,
        last_error: None,
        source: Source::Regions,
        uncertain_bytes: None,
        since_unix_seconds: None,
        resets: 0,
        io_now: sum.io_now,
        counters: sum.counters,
        histogram: (!histogram.counts.is_empty()).then_some(histogram),
    }
}
