//! Totals as they are given out, from the engine, the ledger and what was read of the devices.

use std::path::Path;

use super::Run;
use super::accounts::OnGrid;
use super::books::{Books, unix_time};
use super::control::not_followed;
use crate::engine::{self, FileId};
use crate::extent::SECTOR_BYTES;
use crate::request::{
    DeviceTotals, FilePath, FileTotals, Reply, SCHEMA, ServiceTotals, Source, Totals,
};
use crate::survey::kernel_stats_bytes;

impl Run {
    pub(super) fn totals_of(&self, path: Option<&Path>) -> Reply {
        let Some(books) = &self.books else {
            return Reply::Error("nothing is counted here".to_owned());
        };
        let totals = self.totals(books, path);
        match path {
            Some(path) if totals.files.is_empty() => not_followed(path),
            _ => Reply::Totals(Box::new(totals)),
        }
    }

    fn totals(&self, books: &Books, path: Option<&Path>) -> Totals {
        let statuses = self.engine.device_statuses();
        let devices: Vec<DeviceTotals> =
            statuses.map(|status| self.device_totals(books, &status)).collect();
        let wanted = |file: &FileId| path.is_none_or(|path| self.is_at(*file, path));
        let files = self.followed().filter(wanted);
        let files = files.filter_map(|file| self.file_totals(books, &devices, file)).collect();
        Totals {
            schema: SCHEMA,
            service: Some(self.service_totals(books)),
            kernel_stats_bytes: kernel_stats_bytes(),
            devices,
            files,
        }
    }

    fn service_totals(&self, books: &Books) -> ServiceTotals {
        let status = self.service_status();
        ServiceTotals {
            version: status.version,
            pid: status.pid,
            uptime_seconds: status.uptime_seconds,
            lag_seconds: status.lag_seconds,
            files: status.files,
            unfit_files: self.service.as_ref().map_or(0, |service| service.unfit.len() as u64),
            scans: books.scans,
            readings: books.readings,
            updates: books.updates,
            remaps: books.remaps,
            errors: books.errors,
            resets: books.resets,
            state_saved_unix_seconds: books.saved,
        }
    }

    fn file_totals(
        &self,
        books: &Books,
        devices: &[DeviceTotals],
        id: FileId,
    ) -> Option<FileTotals> {
        let now = self.now();
        let status = self.engine.file_status(now, id)?;
        let file = &self.files[id.index()];
        let account = self.holder(id).and_then(|holder| books.ledger.account(&holder));
        let account = account.cloned().unwrap_or_default();
        let device = status.device.to_string();
        let named = devices.iter().find(|row| row.device == device);
        let mapped_bytes = status.sectors * SECTOR_BYTES;
        let changed = status.changed.map(|at| unix_time().saturating_sub(now.since(at)).as_secs());
        let on_grid = file.on_grid == OnGrid::Yes;
        let uncertain = account.over.max(account.under);
        let is_known = account != crate::ledger::Account::default();
        let histogram = Some(account.histogram).filter(|histogram| !histogram.counts.is_empty());
        Some(FileTotals {
            path: Some(FilePath(file.path.to_path_buf())),
            alias: String::from_utf8_lossy(&file.alias()).into_owned(),
            mode: Some(status.mode),
            inode: status.inode,
            device_name: named.map(|row| row.name.clone()).unwrap_or_default(),
            device,
            group: status.group.map(|group| group.0),
            state: status.state.as_str().to_owned(),
            regions: status.regions.into(),
            extents: Some(status.extents.into()),
            mapped_bytes,
            foreign_bytes: Some(status.foreign_sectors * SECTOR_BYTES),
            unmapped_bytes: status.size.map(|size| size.saturating_sub(mapped_bytes)),
            shared_bytes: Some(status.shared_sectors * SECTOR_BYTES),
            last_change_unix_seconds: changed,
            last_error: status.failing.map(str::to_owned),
            source: if on_grid { Source::Grid } else { Source::Regions },
            uncertain_bytes: (on_grid || uncertain > 0).then_some(uncertain),
            since_unix_seconds: is_known.then_some(account.since),
            resets: account.resets,
            io_now: account.io_now,
            counters: account.counters,
            histogram,
        })
    }

    fn device_totals(&self, books: &Books, status: &engine::DeviceStatus) -> DeviceTotals {
        let seen = books.devices.get(&status.device);
        let grid = self.grids.as_ref().and_then(|grids| grids.totals(status.device)).cloned();
        let whole = seen.and_then(|seen| seen.whole.as_ref());
        let status = self.device_status(status);
        DeviceTotals {
            device: status.device,
            name: status.name,
            uuid: status.uuid,
            files: status.files,
            regions: seen.map_or(0, |seen| seen.regions as u64),
            own_regions: status.own_regions,
            own_io_cost_estimated_ns: status.own_io_cost_estimated_ns,
            creates: status.creates,
            creates_time_ns: status.creates_time_ns,
            state: status.state,
            stuck_seconds: status.stuck_seconds,
            read_unix_seconds: seen.and_then(|seen| seen.at),
            read_error: seen.and_then(|seen| seen.error.clone()),
            grid,
            io_now: whole.map_or(0, |whole| whole.io_now),
            counters: whole.map(|whole| whole.counters),
        }
    }
}
