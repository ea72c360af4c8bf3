//! What `lvs` reports, as JSON.

use std::collections::BTreeMap;

use serde_json::Value;

/// The columns that are asked for.
pub(crate) const COLUMNS: &str = "lv_name,lv_tags,lv_size,lv_attr,lv_dm_path,lv_kernel_major,lv_kernel_minor,pool_lv,\
                                  data_percent,metadata_percent,lv_health_status";

/// The words that come before what is asked for.
pub(crate) const LVS: &[&str] =
    &["lvs", "--reportformat", "json", "--units", "b", "--nosuffix", "-o", COLUMNS];

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
    /// Major and minor number of its device, while it is active.
    pub(crate) device: Option<(u32, u32)>,
    /// The thin pool that it lies in.
    pub(crate) pool: String,
    /// How full it is, or how much of it is there: in hundredths of a percent.
    pub(crate) data: Option<u32>,
    /// Of a thin pool: how full the metadata is, in hundredths of a percent.
    pub(crate) metadata: Option<u32>,
    /// LVM's word for what is wrong; empty when nothing is.
    pub(crate) trouble: String,
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
            node: text("lv_dm_path").to_owned(),
            device: number("lv_kernel_major").zip(number("lv_kernel_minor")),
            pool: text("pool_lv").to_owned(),
            data: hundredths(text("data_percent")),
            metadata: hundredths(text("metadata_percent")),
            trouble: text("lv_health_status").to_owned(),
        }
    }

    fn attribute(&self, at: usize) -> char {
        self.attributes.chars().nth(at).unwrap_or('-')
    }

    pub(crate) fn is_thin_pool(&self) -> bool {
        self.attribute(0) == 't'
    }

    /// Whether what was never written reads as zeros, whatever lay there before.
    pub(crate) fn zeroes(&self) -> bool {
        self.attribute(7) == 'z'
    }

    pub(crate) fn is_active(&self) -> bool {
        self.device.is_some()
    }
}

/// `12.34` as 1234.
fn hundredths(text: &str) -> Option<u32> {
    let (whole, part) = text.split_once('.').unwrap_or((text, "0"));
    let whole: u32 = whole.parse().ok()?;
    let mut part = part.to_owned();
    part.truncate(2);
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
                  {"lv_name":"pool", "lv_tags":"", "lv_size":"1073741824", "lv_attr":"twi-aotz--", "lv_dm_path":"/dev/mapper/g-pool", "lv_kernel_major":"254", "lv_kernel_minor":"3", "pool_lv":"", "data_percent":"7.5", "metadata_percent":"100.00", "lv_health_status":""},
                  {"lv_name":"a", "lv_tags":"x,tandem:1", "lv_size":"4194304", "lv_attr":"Vwi---tz-k", "lv_dm_path":"/dev/mapper/g-a", "lv_kernel_major":"-1", "lv_kernel_minor":"-1", "pool_lv":"pool", "data_percent":"", "metadata_percent":"", "lv_health_status":""}
              ]
          }
      ]
  }"#;
        let lines: Vec<String> = text.lines().map(str::to_owned).collect();
        let report = Report::parse(&lines).unwrap();
        let pool = report.volume("pool").unwrap();
        assert!(pool.is_thin_pool() && pool.zeroes() && pool.is_active());
        assert_eq!((pool.data, pool.metadata, pool.device), (Some(750), Some(10_000), Some((254, 3))));
        let volume = report.volume("a").unwrap();
        assert_eq!(volume.tags, ["x", "tandem:1"]);
        assert!(!volume.is_active() && volume.data.is_none() && !volume.is_thin_pool());
        assert_eq!(report.volume("b"), None);
    }

    #[test]
    fn percents() {
        for (text, number) in [("0.00", 0), ("12.3", 1230), ("99.99", 9999), ("100", 10_000), ("7.129", 712)]
        {
            assert_eq!(hundredths(text), Some(number), "{text}");
        }
        for wrong in ["", "x", "-1.0", "1.x", "99999999999.0"] {
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
