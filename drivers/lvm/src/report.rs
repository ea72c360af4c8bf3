//! What `lvs` reports, as JSON.

use std::collections::BTreeMap;

use serde_json::Value;

/// The columns that are asked for.
pub(crate) const COLUMNS: &str = "lv_name,lv_tags,lv_size,lv_attr,lv_dm_path,lv_kernel_major,lv_kernel_minor,pool_lv,\
                                  data_percent,metadata_percent,lv_health_status,vg_extent_size,vg_mda_size,vg_mda_free";

/// The words that come before what is asked for.
pub(crate) const LVS: &[&str] =
    &["lvs", "--reportformat", "json", "--units", "b", "--nosuffix", "-o", COLUMNS];

/// The same, for what a volume is alone.
pub(crate) const TAGS: [&str; 5] = ["lvs", "--reportformat", "json", "-o", "lv_name,lv_tags"];

/// A report: its volumes.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Report(pub(crate) Vec<Volume>);

/// A logical volume.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Volume {
    pub(crate) name: String,
    pub(crate) tags: Vec<String>,
    pub(crate) size_bytes: u64,
    /// lvs(8), "lv_attr".
    pub(crate) attributes: String,
    /// Its node, such as `/dev/mapper/group-name`, while it is active.
    pub(crate) node: String,
    /// What the kernel has of it.
    pub(crate) state: State,
    /// Major and minor number of its device, while there is one.
    pub(crate) device: Option<(u32, u32)>,
    /// The thin pool that it lies in.
    pub(crate) pool: String,
    /// How full it is, or how much of it is there: in hundredths of a percent. Unknown while nothing of it is active.
    pub(crate) data: Option<u32>,
    /// Of a thin pool: how full the metadata is, in hundredths of a percent.
    pub(crate) metadata: Option<u32>,
    /// LVM's word for what is wrong; empty when nothing is.
    pub(crate) trouble: String,
    /// Of its group: sizes are multiples of so many bytes.
    pub(crate) extent_bytes: u64,
    /// Of its group: how full the area is in which LVM keeps the group's metadata, in hundredths of a percent.
    pub(crate) group_metadata: Option<u32>,
}

/// What the kernel has of a volume: lvs(8), "lv_attr", the fifth letter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum State {
    /// Nothing.
    #[default]
    Inactive,
    Active,
    /// A device whose writers and readers wait: a command of LVM was cut in the middle.
    Suspended,
    /// A device that does nothing yet, or has no node, likewise.
    Broken,
}

impl State {
    fn of(letter: char) -> Self {
        match letter {
            '-' => Self::Inactive,
            // A thin pool that is to be checked is `c`.
            'a' | 'c' => Self::Active,
            's' | 'C' => Self::Suspended,
            _ => Self::Broken,
        }
    }
}

impl Report {
    /// Reads a report; `None` when it is none.
    pub(crate) fn parse(lines: &[String]) -> Option<Self> {
        let text = lines.join("\n");
        let json: Value = serde_json::from_str(text.get(text.find('{')?..)?).ok()?;
        let mut volumes = Vec::new();
        for report in json.get("report")?.as_array()? {
            let rows = report.as_object()?.values().filter_map(Value::as_array).flatten();
            volumes.extend(rows.filter_map(Value::as_object).map(|row| {
                let row: BTreeMap<&str, &str> =
                    row.iter().filter_map(|(name, value)| Some((name.as_str(), value.as_str()?))).collect();
                Volume::of(&row)
            }));
        }
        Some(Self(volumes))
    }

    /// The volume of a name.
    pub(crate) fn volume(&self, name: &str) -> Option<&Volume> {
        self.0.iter().find(|volume| volume.name == name)
    }
}

impl Volume {
    fn of(row: &BTreeMap<&str, &str>) -> Self {
        let text = |column: &str| row.get(column).copied().unwrap_or_default();
        let number = |column: &str| text(column).parse::<u32>().ok();
        Self {
            name: text("lv_name").to_owned(),
            tags: text("lv_tags").split(',').filter(|tag| !tag.is_empty()).map(str::to_owned).collect(),
            size_bytes: text("lv_size").parse().unwrap_or(0),
            attributes: text("lv_attr").to_owned(),
            state: State::of(attribute(text("lv_attr"), 4)),
            node: text("lv_dm_path").to_owned(),
            device: number("lv_kernel_major").zip(number("lv_kernel_minor")),
            pool: text("pool_lv").to_owned(),
            data: hundredths(text("data_percent")),
            metadata: hundredths(text("metadata_percent")),
            trouble: text("lv_health_status").to_owned(),
            extent_bytes: text("vg_extent_size").parse().unwrap_or(SECTOR).max(SECTOR),
            group_metadata: group_metadata(text("vg_mda_size"), text("vg_mda_free")),
        }
    }

    /// Whether anything uses its device.
    pub(crate) fn is_open(&self) -> bool {
        attribute(&self.attributes, 5) == 'o'
    }

    pub(crate) fn is_thin_pool(&self) -> bool {
        attribute(&self.attributes, 0) == 't'
    }

    /// Whether what was never written reads as zeros, whatever lay there before.
    pub(crate) fn zeroes(&self) -> bool {
        attribute(&self.attributes, 7) == 'z'
    }

    /// The size of a volume of the same group that is to hold so many bytes: whole extents.
    pub(crate) fn rounded(&self, bytes: u64) -> u64 {
        bytes.div_ceil(self.extent_bytes).saturating_mul(self.extent_bytes)
    }
}

/// LVM takes no parts of a sector.
const SECTOR: u64 = 512;

fn attribute(attributes: &str, at: usize) -> char {
    attributes.chars().nth(at).unwrap_or('-')
}

/// LVM writes the new metadata beside the old, so that half of the area is what there is; `free` is what of that half is
/// left.
fn group_metadata(size: &str, free: &str) -> Option<u32> {
    let (half, free) = (size.parse::<u64>().ok()? / 2, free.parse::<u64>().ok()?);
    u32::try_from(half.saturating_sub(free).checked_mul(10_000)?.checked_div(half)?).ok()
}

/// `12.34` as 1234.
fn hundredths(text: &str) -> Option<u32> {
    let (whole, part) = text.split_once('.').unwrap_or((text, "0"));
    let whole: u32 = whole.parse().ok()?;
    let part: String = part.chars().take(2).collect();
    let part: u32 = format!("{part:0<2}").parse().ok()?;
    whole.checked_mul(100)?.checked_add(part)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_report_is_read() {
        let text = r#"  {
      "report": [
          {
              "lv": [
                  {"lv_name":"pool", "lv_tags":"", "lv_size":"1073741824", "lv_attr":"twi-aotz--", "lv_dm_path":"/dev/mapper/g-pool", "lv_kernel_major":"254", "lv_kernel_minor":"3", "pool_lv":"", "data_percent":"7.5", "metadata_percent":"100.00", "lv_health_status":"", "vg_extent_size":"4194304", "vg_mda_size":"1044480", "vg_mda_free":"130560"},
                  {"lv_name":"a", "lv_tags":"x,tandem:1", "lv_size":"4194304", "lv_attr":"Vwi---tz-k", "lv_dm_path":"/dev/mapper/g-a", "lv_kernel_major":"-1", "lv_kernel_minor":"-1", "pool_lv":"pool", "data_percent":"", "metadata_percent":"", "lv_health_status":""}
              ]
          }
      ]
  }"#;
        let lines: Vec<String> = text.lines().map(str::to_owned).collect();
        let report = Report::parse(&lines).unwrap();
        let pool = report.volume("pool").unwrap();
        assert!(pool.is_thin_pool() && pool.zeroes());
        assert_eq!((pool.state, pool.group_metadata), (State::Active, Some(7500)));
        assert_eq!(pool.rounded(1), 4 << 20);
        assert_eq!((pool.rounded(8 << 20), pool.rounded((8 << 20) + 1)), (8 << 20, 12 << 20));
        assert_eq!((pool.data, pool.metadata, pool.device), (Some(750), Some(10_000), Some((254, 3))));
        let volume = report.volume("a").unwrap();
        assert_eq!(volume.tags, ["x", "tandem:1"]);
        assert!(volume.state == State::Inactive && volume.data.is_none() && !volume.is_thin_pool());
        assert_eq!(report.volume("b"), None);
    }

    #[test]
    fn what_the_kernel_has_of_a_volume() {
        for (attributes, state) in [
            ("Vwi---tz-k", State::Inactive),
            ("Vwi-aotz-k", State::Active),
            ("twi-cotz--", State::Active),
            ("Vwi-s-tz-k", State::Suspended),
            ("Vwi-i-tz-k", State::Broken),
            ("Vwi-d-tz-k", State::Broken),
            ("Vwi-XXtz-k", State::Broken),
            ("", State::Inactive),
        ] {
            let row = [("lv_attr", attributes)].into_iter().collect();
            assert_eq!(Volume::of(&row).state, state, "{attributes}");
        }
        let other = Volume::of(&BTreeMap::new());
        assert_eq!((other.rounded(513), other.group_metadata), (1024, None));
        assert_eq!(group_metadata("0", "0"), None);
    }

    #[test]
    fn percents() {
        for (text, number) in [("0.00", 0), ("12.3", 1230), ("99.99", 9999), ("100", 10_000), ("7.129", 712)]
        {
            assert_eq!(hundredths(text), Some(number), "{text}");
        }
        for wrong in ["", "x", "-1.0", "1.x", "99999999999.0", "0.\u{800}"] {
            assert_eq!(hundredths(wrong), None, "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_harmless(text in ".*", json in "[\\[\\]{}\":,a-z0-9 ]{0,80}") {
            let _ = Report::parse(std::slice::from_ref(&text));
            let _ = Report::parse(&[json]);
            let _ = hundredths(&text);
        }
    }
}
