//! LVM's library: opened at run time, called by one thread.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::sync::{Mutex, PoisonError};

use crate::lvm2cmd::{LVM2_LOG_ERROR, LVM2_LOG_FATAL, LVM2_LOG_PRINT, Lvm2Cmd};
use crate::wire::{MOST_WORDS, Said, is_word};

/// The interface that the bindings were made from.
const LIBRARY: &str = "liblvm2cmd.so.2.03";
/// More than this of a report is no report of ours.
const MOST_LINES: usize = 500_000;

/// What the library says while a command runs. It calls back with nothing that would tell who is meant, hence a static.
static SAID: Mutex<Said> = Mutex::new(Said { status: 0, printed: Vec::new(), errors: Vec::new() });

/// The open library. Not `Sync`: one thread alone may call it.
pub(crate) struct Library {
    calls: Lvm2Cmd,
    handle: *mut c_void,
}

impl Library {
    /// Opens it. `LVM_SYSTEM_DIR` is read now.
    ///
    /// # Errors
    /// A sentence for a person.
    #[allow(unsafe_code)]
    pub(crate) fn open() -> Result<Self, String> {
        // SAFETY: a library of the system, whose constructors do nothing but set up its own data.
        let calls = unsafe { Lvm2Cmd::new(LIBRARY) }.map_err(|e| {
            format!(
                "LVM's library {LIBRARY} cannot be opened; install lvm2 2.03 with it (liblvm2cmd2.03): {e}"
            )
        })?;
        // SAFETY: `hear` lives as long as the program, and fits the header's type.
        unsafe { calls.lvm2_log_fn(Some(hear)) };
        // SAFETY: no argument; a null pointer is its failure.
        let handle = unsafe { calls.lvm2_init() };
        if handle.is_null() {
            return Err(format!("LVM does not start: {}", taken().errors.join("; ")));
        }
        Ok(Self { calls, handle })
    }

    /// Runs a command.
    #[allow(unsafe_code)]
    pub(crate) fn run(&self, words: &[String]) -> Said {
        let fits = words.len() <= MOST_WORDS && words.iter().all(|word| is_word(word));
        let Some(line) = CString::new(words.join(" ")).ok().filter(|_| fits) else {
            return refused("a command that LVM would read in another way was not run");
        };
        drop(taken());
        // SAFETY: the handle is the library's own and this thread alone uses it; the line ends with a zero byte.
        let status = unsafe { self.calls.lvm2_run(self.handle, line.as_ptr()) };
        Said { status, ..taken() }
    }
}

impl Drop for Library {
    #[allow(unsafe_code)]
    fn drop(&mut self) {
        // SAFETY: as above; it is not used again.
        unsafe { self.calls.lvm2_exit(self.handle) };
    }
}

/// An answer to what was not run.
pub(crate) fn refused(why: &str) -> Said {
    Said { status: 0, printed: Vec::new(), errors: vec![why.to_owned()] }
}

fn taken() -> Said {
    std::mem::take(&mut *SAID.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Called by the library for each line that it has to say.
#[allow(unsafe_code)]
unsafe extern "C" fn hear(level: c_int, _: *const c_char, _: c_int, _: c_int, message: *const c_char) {
    let level = u32::try_from(level).unwrap_or(u32::MAX);
    if message.is_null() || level > LVM2_LOG_PRINT {
        return;
    }
    // SAFETY: the library gives a string that ends with a zero byte and lives until this returns.
    let text = unsafe { CStr::from_ptr(message) }.to_string_lossy().into_owned();
    let mut said = SAID.lock().unwrap_or_else(PoisonError::into_inner);
    let lines = match level {
        LVM2_LOG_FATAL | LVM2_LOG_ERROR => &mut said.errors,
        // They come as if they were printed, amid a report.
        LVM2_LOG_PRINT if text.trim_start().starts_with("WARNING") => &mut said.errors,
        _ => &mut said.printed,
    };
    if lines.len() < MOST_LINES {
        lines.push(text);
    }
}
