//! The calls of liblvm2cmd, made from lvm2cmd.h by bindgen; `cargo xtask tidy` says how, and compares.
#![allow(warnings, clippy::all, clippy::pedantic, unsafe_code, missing_docs, reason = "generated")]

pub const LVM2_LOG_SUPPRESS: u32 = 0;
pub const LVM2_LOG_FATAL: u32 = 2;
pub const LVM2_LOG_ERROR: u32 = 3;
pub const LVM2_LOG_PRINT: u32 = 4;
pub const LVM2_LOG_VERBOSE: u32 = 5;
pub const LVM2_LOG_VERY_VERBOSE: u32 = 6;
pub const LVM2_LOG_DEBUG: u32 = 7;
pub const LVM2_COMMAND_SUCCEEDED: u32 = 1;
pub const LVM2_NO_SUCH_COMMAND: u32 = 2;
pub const LVM2_INVALID_PARAMETERS: u32 = 3;
pub const LVM2_INIT_FAILED: u32 = 4;
pub const LVM2_PROCESSING_FAILED: u32 = 5;
pub type lvm2_log_fn_t = ::std::option::Option<
    unsafe extern "C" fn(
        level: ::std::os::raw::c_int,
        file: *const ::std::os::raw::c_char,
        line: ::std::os::raw::c_int,
        dm_errno: ::std::os::raw::c_int,
        message: *const ::std::os::raw::c_char,
    ),
>;
extern crate libloading;
pub struct Lvm2Cmd {
    __library: ::libloading::Library,
    pub lvm2_log_fn: unsafe extern "C" fn(log_fn: lvm2_log_fn_t),
    pub lvm2_init: unsafe extern "C" fn() -> *mut ::std::os::raw::c_void,
    pub lvm2_log_level:
        unsafe extern "C" fn(handle: *mut ::std::os::raw::c_void, level: ::std::os::raw::c_int),
    pub lvm2_run: unsafe extern "C" fn(
        handle: *mut ::std::os::raw::c_void,
        cmdline: *const ::std::os::raw::c_char,
    ) -> ::std::os::raw::c_int,
    pub lvm2_exit: unsafe extern "C" fn(handle: *mut ::std::os::raw::c_void),
}
impl Lvm2Cmd {
    pub unsafe fn new<P>(path: P) -> Result<Self, ::libloading::Error>
    where
        P: AsRef<::std::ffi::OsStr>,
    {
        let library = ::libloading::Library::new(path)?;
        Self::from_library(library)
    }
    pub unsafe fn from_library<L>(library: L) -> Result<Self, ::libloading::Error>
    where
        L: Into<::libloading::Library>,
    {
        let __library = library.into();
        let lvm2_log_fn = __library.get(b"lvm2_log_fn\0").map(|sym| *sym)?;
        let lvm2_init = __library.get(b"lvm2_init\0").map(|sym| *sym)?;
        let lvm2_log_level = __library.get(b"lvm2_log_level\0").map(|sym| *sym)?;
        let lvm2_run = __library.get(b"lvm2_run\0").map(|sym| *sym)?;
        let lvm2_exit = __library.get(b"lvm2_exit\0").map(|sym| *sym)?;
        Ok(Lvm2Cmd { __library, lvm2_log_fn, lvm2_init, lvm2_log_level, lvm2_run, lvm2_exit })
    }
    pub unsafe fn lvm2_log_fn(&self, log_fn: lvm2_log_fn_t) -> () {
        (self.lvm2_log_fn)(log_fn)
    }
    pub unsafe fn lvm2_init(&self) -> *mut ::std::os::raw::c_void {
        (self.lvm2_init)()
    }
    pub unsafe fn lvm2_log_level(
        &self,
        handle: *mut ::std::os::raw::c_void,
        level: ::std::os::raw::c_int,
    ) -> () {
        (self.lvm2_log_level)(handle, level)
    }
    pub unsafe fn lvm2_run(
        &self,
        handle: *mut ::std::os::raw::c_void,
        cmdline: *const ::std::os::raw::c_char,
    ) -> ::std::os::raw::c_int {
        (self.lvm2_run)(handle, cmdline)
    }
    pub unsafe fn lvm2_exit(&self, handle: *mut ::std::os::raw::c_void) -> () {
        (self.lvm2_exit)(handle)
    }
}
