//! libzfs_core: what the kernel is asked for directly. Every call blocks.
//!
//! Errors are the kernel's numbers; [`crate::error`] has the words. Without the feature `libzfs_core` the same functions
//! fail, and [`open`] says why.

use std::collections::BTreeMap;

/// An error number of the system, or one of OpenZFS' own from 1024 on.
pub(crate) type Errno = i32;

/// Properties by dataset, snapshot or bookmark.
pub(crate) type Tree = BTreeMap<String, BTreeMap<String, String>>;

/// How a stream is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Flags {
    pub(crate) large_blocks: bool,
    pub(crate) embedded: bool,
    pub(crate) compressed: bool,
    pub(crate) raw: bool,
}

impl Flags {
    /// Blocks go as they are.
    pub(crate) const fn whole() -> Self {
        Self { large_blocks: true, embedded: true, compressed: true, raw: false }
    }
}

#[cfg(feature = "libzfs_core")]
pub(crate) use linked::*;
#[cfg(not(feature = "libzfs_core"))]
pub(crate) use missing::*;

#[cfg(feature = "libzfs_core")]
mod linked {
    use std::collections::BTreeMap;
    use std::ffi::{CStr, CString};
    use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
    use std::path::Path;
    use std::ptr;
    use std::sync::OnceLock;

    use nvpair::{NvData, NvList, NvListRef};
    use tandem_sdk::{Error, Result, Retry};
    use zfs_core::{SendFlags, Zfs};
    use zfs_core_sys as sys;

    use crate::names::pool_of;
    use crate::{error, header};

    use super::{Errno, Flags, Tree};

    const EINVAL: Errno = 22;

    impl From<Flags> for SendFlags {
        fn from(flags: Flags) -> Self {
            Self {
                embed_data: flags.embedded,
                large_block: flags.large_blocks,
                compress: flags.compressed,
                raw: flags.raw,
            }
        }
    }

    /// The library, open from the first driver's opening on, and its descriptors of [`DEVICE`].
    static LIBRARY: OnceLock<(Zfs, Vec<RawFd>)> = OnceLock::new();
    const DEVICE: &str = "/dev/zfs";

    /// Whether the kernel's module answers. From then on the library stays open.
    pub(crate) fn open() -> Result<()> {
        let library = Zfs::new().map_err(|e| {
            Error::unavailable(format!(
                "this host's kernel has no ZFS: {e}; load the module zfs, and let the server open {DEVICE}"
            ))
            .retry(Retry::AfterOperator)
        })?;
        LIBRARY.get_or_init(|| {
            let all = std::fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
            let ours = all.filter(|fd| std::fs::read_link(fd.path()).is_ok_and(|to| to == Path::new(DEVICE)));
            (library, ours.filter_map(|fd| fd.file_name().to_str()?.parse().ok()).collect())
        });
        Ok(())
    }

    /// The descriptors that the library's calls go through.
    pub(crate) fn devices() -> &'static [RawFd] {
        LIBRARY.get().map_or(&[], |(_, devices)| devices)
    }

    fn name(text: &str) -> Result<CString, Errno> {
        CString::new(text).map_err(|_| EINVAL)
    }

    /// The number behind an error of the standard library.
    fn number(e: &std::io::Error) -> Errno {
        e.raw_os_error().unwrap_or(EINVAL)
    }

    fn zfs() -> Result<Zfs, Errno> {
        Zfs::new().map_err(|e| number(&e))
    }

    /// The number behind an error of a call on a list of one.
    fn first(e: zfs_core::Error) -> Errno {
        match e {
            zfs_core::Error::Io { source } => number(&source),
            zfs_core::Error::List { source } => source.iter().next().map_or(EINVAL, |(_, e)| number(&e)),
        }
    }

    fn done(code: i32) -> Result<(), Errno> {
        if code == 0 { Ok(()) } else { Err(code) }
    }

    /// Whether a dataset or snapshot is there.
    pub(crate) fn exists(dataset: &str) -> bool {
        name(dataset).is_ok_and(|dataset| zfs().is_ok_and(|zfs| zfs.exists(dataset.as_c_str())))
    }

    /// Makes a snapshot, by its full name.
    pub(crate) fn snapshot(snapshot: &str) -> Result<(), Errno> {
        zfs()?.snapshot([name(snapshot)?.as_c_str()]).map_err(first)
    }

    /// Holds a snapshot.
    pub(crate) fn hold(snapshot: &str, tag: &str) -> Result<(), Errno> {
        let (snapshot, tag) = (name(snapshot)?, name(tag)?);
        zfs()?.hold(&[(snapshot.as_c_str(), tag.as_c_str())], None).map_err(first)
    }

    /// Lets a snapshot go.
    pub(crate) fn release(snapshot: &str, tag: &str) -> Result<(), Errno> {
        let (snapshot, tag) = (name(snapshot)?, name(tag)?);
        zfs()?.release(&[(snapshot.as_c_str(), [tag.as_c_str()])]).map_err(first)
    }

    /// Waits until everything written so far is on the disks.
    pub(crate) fn sync(pool: &str) -> Result<(), Errno> {
        zfs()?.sync(name(pool)?.as_c_str(), false).map_err(|e| number(&e))
    }

    /// Takes a file system back to a snapshot, which must be its newest.
    pub(crate) fn rollback(dataset: &str, snapshot: &str) -> Result<(), Errno> {
        let (dataset, snapshot) = (name(dataset)?, name(snapshot)?);
        zfs()?.rollback_to(dataset.as_c_str(), snapshot.as_c_str()).map_err(|e| number(&e))
    }

    /// Most instructions and bytes of a channel program: OpenZFS' own limits, since instances may have many snapshots.
    const INSTRUCTIONS: u64 = 100_000_000;
    const MEMORY: u64 = 100 << 20;

    /// The strings of a list.
    fn texts(list: &NvListRef) -> BTreeMap<String, String> {
        let text = |data: NvData<'_>| match data {
            NvData::Str(text) => Some(text.to_string_lossy().into_owned()),
            _ => None,
        };
        let pair =
            |pair: &nvpair::NvPair| Some((pair.name().to_string_lossy().into_owned(), text(pair.data())?));
        list.iter().filter_map(pair).collect()
    }

    /// What a channel program of ours returned.
    fn returned(list: &NvListRef) -> Tree {
        let mut tree = Tree::new();
        for pair in list {
            let NvData::NvListRef(returned) = pair.data() else { continue };
            for pair in returned {
                if let NvData::NvListRef(values) = pair.data() {
                    tree.insert(pair.name().to_string_lossy().into_owned(), texts(values));
                }
            }
        }
        tree
    }

    /// The properties of an instance's dataset and of all below it, in one look: a channel program, since `zfs get` takes
    /// a process.
    pub(crate) fn look(dataset: &str) -> Result<Tree, Errno> {
        let zfs = zfs()?;
        let mut tree = ask(&zfs, dataset, include_str!("look.lua"))?;
        let versions: Vec<String> = tree.keys().filter(|name| !name.contains('@')).cloned().collect();
        for version in versions {
            bookmarks(&zfs, &version, &mut tree)?;
        }
        Ok(tree)
    }

    /// What a channel program that changes nothing returns for a dataset.
    fn ask(zfs: &Zfs, dataset: &str, program: &str) -> Result<Tree, Errno> {
        let mut arguments = NvList::new_unique_names();
        arguments.insert(c"name", name(dataset)?.as_c_str()).map_err(|e| number(&e))?;
        let (pool, text) = (name(pool_of(dataset))?, name(program)?);
        let out = zfs
            .channel_program_nosync(pool.as_c_str(), text.as_c_str(), INSTRUCTIONS, MEMORY, &arguments)
            .map_err(|e| number(&e))?;
        Ok(returned(&out))
    }

    /// Whether what is made below a dataset, which may not be there yet, is encrypted.
    pub(crate) fn encrypts(dataset: &str) -> Result<bool, Errno> {
        let mut up = std::iter::successors(Some(dataset), |name| Some(name.rsplit_once('/')?.0));
        let there = up.find(|name| exists(name)).ok_or(error::ENOENT)?;
        let program = "local args = ...\n\
                       return { key = { status = zfs.get_prop(args.name, 'keystatus') or 'none' } }";
        let tree = ask(&zfs()?, there, program)?;
        Ok(tree.get("key").and_then(|key| key.get("status")).is_some_and(|status| status != "none"))
    }

    /// Bookmarks, of which channel programs do not tell.
    fn bookmarks(zfs: &Zfs, dataset: &str, tree: &mut Tree) -> Result<(), Errno> {
        let mut properties = NvList::new_unique_names();
        for property in [c"guid", c"createtxg"] {
            properties.insert(property, &()).map_err(|e| number(&e))?;
        }
        let all = match zfs.get_bookmarks_raw(name(dataset)?.as_c_str(), &properties) {
            Ok(all) => all,
            // Destroyed meanwhile.
            Err(e) if number(&e) == 2 => return Ok(()),
            Err(e) => return Err(number(&e)),
        };
        for pair in &all {
            let NvData::NvListRef(found) = pair.data() else { continue };
            let mut values = BTreeMap::new();
            for property in found {
                let NvData::NvListRef(value) = property.data() else { continue };
                if let Ok(value) = value.lookup_uint64(c"value") {
                    values.insert(property.name().to_string_lossy().into_owned(), value.to_string());
                }
            }
            tree.insert(format!("{dataset}#{}", pair.name().to_string_lossy()), values);
        }
        Ok(())
    }

    /// Sets user properties of a dataset, all at once.
    pub(crate) fn set(dataset: &str, properties: &BTreeMap<String, String>) -> Result<(), Errno> {
        let zfs = zfs()?;
        let mut list = NvList::new_unique_names();
        for (property, value) in properties {
            list.insert(name(property)?.as_c_str(), name(value)?.as_c_str()).map_err(|e| number(&e))?;
        }
        let mut arguments = NvList::new_unique_names();
        arguments.insert(c"name", name(dataset)?.as_c_str()).map_err(|e| number(&e))?;
        arguments.insert::<_, NvListRef>(c"properties", &list).map_err(|e| number(&e))?;
        let (pool, text) = (name(pool_of(dataset))?, name(include_str!("set.lua"))?);
        let out = zfs
            .channel_program(pool.as_c_str(), text.as_c_str(), INSTRUCTIONS, MEMORY, &arguments)
            .map_err(|e| number(&e))?;
        let error = returned(&out).get("set").and_then(|set| set.get("error")?.parse().ok());
        done(error.unwrap_or(EINVAL))
    }

    /// Destroys a dataset that has neither snapshots nor children.
    pub(crate) fn destroy(dataset: &str) -> Result<(), Errno> {
        zfs()?.destroy(name(dataset)?.as_c_str()).map_err(|e| number(&e))
    }

    fn one(key: &str) -> Result<NvList, Errno> {
        let mut list = NvList::new();
        list.insert(name(key)?.as_c_str(), &()).map_err(|e| number(&e))?;
        Ok(list)
    }

    /// Calls a function of the library that answers with a list of errors besides its number. zfs-core takes that list for
    /// granted where there may be none, hence the plain call.
    #[allow(unsafe_code)]
    fn listed(call: impl FnOnce(*mut *mut sys::nvlist_t) -> i32) -> Result<(), Errno> {
        let mut errors = ptr::null_mut();
        let code = call(&raw mut errors);
        if !errors.is_null() {
            // SAFETY: the library made the list for us to free.
            drop(unsafe { <NvList as foreign::ForeignType>::from_ptr(errors) });
        }
        done(code)
    }

    use foreign_types as foreign;

    /// Destroys a snapshot; one that is still held or cloned by somebody goes when they let go.
    #[allow(unsafe_code)]
    pub(crate) fn destroy_snapshot(snapshot: &str) -> Result<(), Errno> {
        let _library = zfs()?;
        let list = one(snapshot)?;
        // SAFETY: the library is initialised, and reads the list during the call only.
        listed(|errors| unsafe { sys::lzc_destroy_snaps(list.as_ptr().cast_mut().cast(), 1, errors) })
    }

    /// Makes a bookmark of a snapshot.
    #[allow(unsafe_code)]
    pub(crate) fn bookmark(bookmark: &str, snapshot: &str) -> Result<(), Errno> {
        let _library = zfs()?;
        let mut list = NvList::new();
        list.insert(name(bookmark)?.as_c_str(), name(snapshot)?.as_c_str()).map_err(|e| number(&e))?;
        // SAFETY: as above.
        listed(|errors| unsafe { sys::lzc_bookmark(list.as_ptr().cast_mut().cast(), errors) })
    }

    /// Destroys a bookmark.
    #[allow(unsafe_code)]
    pub(crate) fn destroy_bookmark(bookmark: &str) -> Result<(), Errno> {
        let _library = zfs()?;
        let list = one(bookmark)?;
        // SAFETY: as above.
        listed(|errors| unsafe { sys::lzc_destroy_bookmarks(list.as_ptr().cast_mut().cast(), errors) })
    }

    fn optional(text: &Option<CString>) -> *const std::ffi::c_char {
        text.as_deref().map_or(ptr::null(), CStr::as_ptr)
    }

    /// About how many bytes a stream will have.
    #[allow(unsafe_code)]
    pub(crate) fn send_space(snapshot: &str, from: Option<&str>, flags: Flags) -> Result<u64, Errno> {
        let _library = zfs()?;
        let (snapshot, from) = (name(snapshot)?, from.map(name).transpose()?);
        let mut bytes = 0;
        let flags = u32::from(SendFlags::from(flags));
        // SAFETY: the strings outlive the call; zfs-core lacks the full stream, which is a null pointer.
        done(unsafe { sys::lzc_send_space(snapshot.as_ptr(), optional(&from), flags, &raw mut bytes) })?;
        Ok(bytes)
    }

    /// Writes a stream to a pipe; going on at an object and an offset where a token says so.
    #[allow(unsafe_code)]
    pub(crate) fn send(
        snapshot: &str,
        from: Option<&str>,
        to: BorrowedFd<'_>,
        flags: Flags,
        resume: Option<(u64, u64)>,
    ) -> Result<(), Errno> {
        let zfs = zfs()?;
        let (snapshot, from) = (name(snapshot)?, from.map(name).transpose()?);
        let Some((object, offset)) = resume else {
            let sent = zfs.send(snapshot.as_c_str(), from.as_deref(), to.as_raw_fd(), flags.into());
            return sent.map_err(|e| number(&e));
        };
        let flags = u32::from(SendFlags::from(flags));
        // SAFETY: the strings and the pipe outlive the call; zfs-core lacks resuming a full stream.
        done(unsafe {
            sys::lzc_send_resume(snapshot.as_ptr(), optional(&from), to.as_raw_fd(), flags, object, offset)
        })
    }

    /// A stream's first record, as the library wants it.
    #[repr(C, align(8))]
    struct Record([u8; header::BYTES]);

    /// Reads a stream from a pipe into a snapshot that it makes; `record` is its first record where that has been read
    /// already. What arrived before a cut stays, to go on from.
    #[allow(unsafe_code)]
    pub(crate) fn receive(
        snapshot: &str,
        raw: bool,
        record: Option<&[u8; header::BYTES]>,
        from: BorrowedFd<'_>,
    ) -> Result<(), Errno> {
        let _library = zfs()?;
        let (snapshot, from) = (name(snapshot)?, from.as_raw_fd());
        let (properties, origin, force, raw) = (ptr::null_mut(), ptr::null(), 0, raw.into());
        // SAFETY: as above; zfs-core lacks receiving without an origin. Never by force: that destroys what is newer.
        let code = match record.map(|record| Record(*record)) {
            None => unsafe {
                sys::lzc_receive_resumable(snapshot.as_ptr(), properties, origin, force, raw, from)
            },
            // SAFETY: a record has as many bytes as the library's structure, and is aligned like it.
            Some(record) => unsafe {
                let record = (&raw const record).cast();
                sys::lzc_receive_with_header(
                    snapshot.as_ptr(),
                    properties,
                    origin,
                    force,
                    1,
                    raw,
                    from,
                    record,
                )
            },
        };
        done(code)
    }
}

#[cfg(not(feature = "libzfs_core"))]
mod missing {
    use std::collections::BTreeMap;
    use std::os::fd::{BorrowedFd, RawFd};

    use tandem_sdk::{Error, Result, Retry};

    use crate::header;

    use super::{Errno, Flags, Tree};

    const ENOSYS: Errno = 38;

    pub(crate) fn open() -> Result<()> {
        Err(Error::unavailable(
            "this driver was built without libzfs_core; install its development files (libzfslinux-dev on Debian) and \
             build it with the feature `libzfs_core`, as cargo xtask does by itself",
        )
        .retry(Retry::AfterOperator))
    }

    pub(crate) fn devices() -> &'static [RawFd] {
        &[]
    }

    pub(crate) fn exists(_: &str) -> bool {
        false
    }

    pub(crate) fn look(_: &str) -> Result<Tree, Errno> {
        Err(ENOSYS)
    }

    pub(crate) fn encrypts(_: &str) -> Result<bool, Errno> {
        Err(ENOSYS)
    }

    pub(crate) fn set(_: &str, _: &BTreeMap<String, String>) -> Result<(), Errno> {
        Err(ENOSYS)
    }

    pub(crate) fn destroy(_: &str) -> Result<(), Errno> {
        Err(ENOSYS)
    }

    pub(crate) fn snapshot(_: &str) -> Result<(), Errno> {
        Err(ENOSYS)
    }

    pub(crate) fn hold(_: &str, _: &str) -> Result<(), Errno> {
        Err(ENOSYS)
    }

    pub(crate) fn release(_: &str, _: &str) -> Result<(), Errno> {
        Err(ENOSYS)
    }

    pub(crate) fn sync(_: &str) -> Result<(), Errno> {
        Err(ENOSYS)
    }

    pub(crate) fn rollback(_: &str, _: &str) -> Result<(), Errno> {
        Err(ENOSYS)
    }

    pub(crate) fn destroy_snapshot(_: &str) -> Result<(), Errno> {
        Err(ENOSYS)
    }

    pub(crate) fn bookmark(_: &str, _: &str) -> Result<(), Errno> {
        Err(ENOSYS)
    }

    pub(crate) fn destroy_bookmark(_: &str) -> Result<(), Errno> {
        Err(ENOSYS)
    }

    pub(crate) fn send_space(_: &str, _: Option<&str>, _: Flags) -> Result<u64, Errno> {
        Err(ENOSYS)
    }

    pub(crate) fn send(
        _: &str,
        _: Option<&str>,
        _: BorrowedFd<'_>,
        _: Flags,
        _: Option<(u64, u64)>,
    ) -> Result<(), Errno> {
        Err(ENOSYS)
    }

    pub(crate) fn receive(
        _: &str,
        _: bool,
        _: Option<&[u8; header::BYTES]>,
        _: BorrowedFd<'_>,
    ) -> Result<(), Errno> {
        Err(ENOSYS)
    }
}
