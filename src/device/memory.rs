//! Blocks of floats on the host, aligned for the widest vectors.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ptr::NonNull;

use crate::error::{Error, Result};

/// Bytes to which a block is aligned: a cache line and the widest vector.
const ALIGNMENT: usize = 64;

/// Elements to which the parts of a block are rounded, so that each starts on the alignment.
pub const GRAIN: usize = ALIGNMENT / size_of::<f32>();

/// A block of zeros. The pages that nothing touches cost nothing.
#[derive(Debug)]
pub struct Block {
    raw: NonNull<f32>,
    layout: Layout,
    start: usize,
    len: usize,
}

// SAFETY: the block owns its memory; sharing a pointer into it is the business of whoever asked for one.
unsafe impl Send for Block {}
// SAFETY: as above; `&Block` gives only shared slices.
unsafe impl Sync for Block {}

impl Block {
    /// A block of `len` zeros.
    ///
    /// # Errors
    /// [`Error::Memory`] if the system has not that much.
    pub fn new(len: usize) -> Result<Self> {
        let refuse = || Error::Memory(format!("the system refused {:.1} MiB", len as f64 * 4.0 / (1024.0 * 1024.0)));
        // The alignment of the request stays small: larger ones are zeroed by hand, page by page. Never empty.
        let layout = Layout::array::<f32>(len + GRAIN).map_err(|_| refuse())?;
        // SAFETY: the layout is not empty.
        let raw = NonNull::new(unsafe { alloc_zeroed(layout) }.cast::<f32>()).ok_or_else(refuse)?;
        let start = raw.as_ptr().align_offset(ALIGNMENT).min(GRAIN);
        Ok(Self { raw, layout, start, len })
    }

    /// First element.
    pub fn ptr(&self) -> *mut f32 {
        // SAFETY: the allocation has `GRAIN` elements more than `len`, and `start` is at most that.
        unsafe { self.raw.as_ptr().add(self.start) }
    }

    /// Elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Bytes that were allocated.
    pub fn bytes(&self) -> usize {
        self.layout.size()
    }

    /// All elements.
    pub fn slice(&self) -> &[f32] {
        // SAFETY: `len` initialised elements; whoever writes through `ptr` holds the block exclusively.
        unsafe { std::slice::from_raw_parts(self.ptr(), self.len) }
    }

    /// All elements, to be changed.
    pub fn slice_mut(&mut self) -> &mut [f32] {
        // SAFETY: as above, and the block is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.ptr(), self.len) }
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout.
        unsafe { dealloc(self.raw.as_ptr().cast(), self.layout) }
    }
}
