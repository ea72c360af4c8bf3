//! Where each back end's driver comes from: this process, a process of its own, or another host.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use serde_json::Value;
use tandem_contract::Error;
use tandem_host::remote::{DriverHost, FarDriver, Processes, driver_host_program};
use tandem_host::{Discovery, Library, Options};
use tandem_manager::{BackendConfig, OpenBackend};
use tandem_server::native::DriverFile;

use crate::settings::{Backend, Runs, Settings};

/// Everything that drivers are opened from.
pub(crate) struct Drivers {
    discovery: Discovery,
    plugins: PathBuf,
    processes: Processes,
    hosts: BTreeMap<String, DriverHost>,
}

impl Drivers {
    pub(crate) fn new(settings: &Settings, discovery: Discovery) -> Self {
        let from = settings.host.clone().unwrap_or_default();
        let hosts = settings.hosts.iter().filter_map(|(name, host)| {
            let tls = settings.tls.clone()?;
            Some((name.clone(), DriverHost::new(&from, name, &host.address, tls)))
        });
        let processes = Processes {
            program: settings.driver_host.clone().unwrap_or_else(driver_host_program),
            plugins: settings.plugins.clone(),
            locks: settings.state.join("processes"),
        };
        Self { hosts: hosts.collect(), processes, plugins: settings.plugins.clone(), discovery }
    }

    /// A back end whose driver is opened when the manager asks, and asked for again while that fails.
    pub(crate) fn backend(&self, settings: &Backend) -> BackendConfig {
        let local = self.discovery.drivers.get(&settings.driver).filter(|_| settings.host.is_none());
        BackendConfig {
            name: settings.name.clone(),
            driver: settings.driver.clone(),
            driver_version: local.map(|library| library.manifest().version.clone()).unwrap_or_default(),
            availability_zone: settings.availability_zone.clone(),
            reserved_percentage: settings.reserved_percentage,
            max_over_subscription_ratio: settings.max_over_subscription_ratio,
            open: self.open(settings, local.cloned()),
        }
    }

    fn open(&self, settings: &Backend, local: Option<Library>) -> OpenBackend {
        let (name, driver) = (settings.name.clone(), settings.driver.clone());
        let values = Arc::new(Value::Object(settings.settings.clone()));
        let host = settings.host.as_ref().and_then(|host| self.hosts.get(host)).cloned();
        if let Some(host) = host {
            return Arc::new(move || {
                let (host, name, driver) = (host.clone(), name.clone(), driver.clone());
                let values = Arc::clone(&values);
                Box::pin(async move { host.open(&name, &driver, &values, Options::default()).await })
            });
        }
        if settings.runs == Runs::Process {
            let processes = self.processes.clone();
            return Arc::new(move || {
                let (processes, name, driver) = (processes.clone(), name.clone(), driver.clone());
                let values = Arc::clone(&values);
                Box::pin(async move { processes.open(&name, &driver, &values, Options::default()).await })
            });
        }
        let folder = self.plugins.display().to_string();
        Arc::new(move || {
            let (library, values, name) = (local.clone(), Arc::clone(&values), name.clone());
            let missing = format!(
                "no driver `{driver}` was loaded from {folder}; `tandem drivers` shows what is there and why a file \
                 was refused"
            );
            Box::pin(async move {
                let library: Library = library.ok_or_else(|| Error::not_found(missing))?;
                library.open(&name, &values, Options::default()).await
            })
        })
    }

    /// What the folder of drivers holds, here and, as far as they were reached, on the other hosts.
    pub(crate) fn files(&self) -> Arc<dyn Fn() -> Vec<DriverFile> + Send + Sync> {
        let here = self.discovery.report();
        let hosts: Vec<DriverHost> = self.hosts.values().cloned().collect();
        Arc::new(move || {
            let mut files: Vec<DriverFile> = here.iter().cloned().map(|file| entry(None, file)).collect();
            for host in &hosts {
                let report = host.report();
                files.extend(report.drivers.into_iter().map(|file| entry(Some(host.name()), file)));
                if let Some(away) = report.away {
                    let file = FarDriver { file: String::new(), driver: Err(away) };
                    files.push(entry(Some(host.name()), file));
                }
            }
            files
        })
    }
}

fn entry(host: Option<&str>, file: FarDriver) -> DriverFile {
    DriverFile { host: host.map(str::to_owned), file: file.file, driver: file.driver }
}
