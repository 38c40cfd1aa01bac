//! Where a grid stands, as it is written down for the next service.

use serde::{Deserialize, Serialize};

use super::table::Stand;
use crate::counters::Counters;

/// What the areas of a device's grid said when they were read last.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SavedGrid {
    /// By what the device is known: its uuid, or its name if it has none.
    pub device: Box<str>,
    regions: Vec<SavedStand>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct SavedStand {
    nonce: u32,
    areas: usize,
    /// The areas that have counted anything: mostly a few.
    counted: Vec<(usize, [u64; 12])>,
}

/// Areas of a region, at most. More than a budget allows, and little enough to make room for.
const AREAS_MAX: usize = 1 << 20;

impl SavedGrid {
    /// The grid of a device.
    #[must_use]
    pub fn new(device: &str, stands: &[Stand]) -> SavedGrid {
        let saved = |stand: &Stand| SavedStand {
            nonce: stand.nonce,
            areas: stand.areas.len(),
            counted: stand
                .areas
                .iter()
                .enumerate()
                .filter(|(_, area)| !area.is_zero())
                .map(|(at, area)| (at, area.values()))
                .collect(),
        };
        SavedGrid { device: device.into(), regions: stands.iter().map(saved).collect() }
    }

    /// Where it stood. What cannot be is left out.
    #[must_use]
    pub fn stands(&self) -> Vec<Stand> {
        let stand = |saved: &SavedStand| {
            let mut areas = vec![Counters::default(); saved.areas];
            for (at, values) in &saved.counted {
                *areas.get_mut(*at)? = Counters::from_values(*values);
            }
            Some(Stand { nonce: saved.nonce, areas })
        };
        self.regions.iter().filter(|saved| saved.areas <= AREAS_MAX).filter_map(stand).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_down_is_where_it_stood() {
        let area = |writes_completed| Counters { writes_completed, ..Counters::default() };
        let stands = vec![
            Stand { nonce: 7, areas: vec![area(0), area(3), area(0)] },
            Stand { nonce: 8, areas: Vec::new() },
        ];
        let text = serde_json::to_string(&SavedGrid::new("LVM-x", &stands)).unwrap();
        let saved: SavedGrid = serde_json::from_str(&text).unwrap();
        assert_eq!((&*saved.device, saved.stands()), ("LVM-x", stands));
    }

    #[test]
    fn what_cannot_be_is_left_out() {
        for region in [
            r#"{"nonce":1,"areas":1,"counted":[[1,[0,0,0,0,0,0,0,0,0,0,0,0]]]}"#,
            r#"{"nonce":1,"areas":99999999999,"counted":[]}"#,
        ] {
            let text = format!(r#"{{"device":"x","regions":[{region}]}}"#);
            let saved: SavedGrid = serde_json::from_str(&text).unwrap();
            assert_eq!(saved.stands(), []);
        }
    }
}
