//! A tensor as a kernel sees it: where it lies, its extent, its row stride.

use crate::graph::Shape;
use crate::ops::Real;

/// A map in device memory. Copies look at the same memory.
#[derive(Clone, Copy, Debug)]
pub struct View<T> {
    ptr: *mut T,
    /// Extent.
    pub shape: Shape,
    /// Elements from one pixel to the next.
    pub row_stride: usize,
}

// SAFETY: a view is a pointer with an extent; devices hand the same element to two threads only for reading.
unsafe impl<T: Send> Send for View<T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for View<T> {}

impl<T: Copy> View<T> {
    /// # Safety
    /// All `rows * row_stride` elements from `ptr` on (the last row only up to `c`) stay valid while the view is used,
    /// and nobody else writes those that the holder reads.
    pub unsafe fn new(ptr: *mut T, shape: Shape, row_stride: usize) -> Self {
        Self { ptr, shape, row_stride }
    }

    /// First element.
    pub fn ptr(&self) -> *mut T {
        self.ptr
    }

    /// Pixel `row` as a pointer.
    pub fn row(&self, row: usize) -> *mut T {
        debug_assert!(row < self.shape.rows());
        // SAFETY: the row lies within the extent promised to `new`.
        unsafe { self.ptr.add(row * self.row_stride) }
    }

    /// Row index of a pixel.
    pub fn pixel(&self, n: usize, y: usize, x: usize) -> usize {
        (n * self.shape.h + y) * self.shape.w + x
    }

    /// Element at a pixel and channel.
    pub fn get(&self, row: usize, c: usize) -> T {
        assert!(row < self.shape.rows() && c < self.shape.c, "element ({row}, {c}) of {}", self.shape);
        // SAFETY: within the extent, as just checked.
        unsafe { *self.ptr.add(row * self.row_stride + c) }
    }

    /// Writes an element.
    pub fn set(&self, row: usize, c: usize, value: T) {
        assert!(row < self.shape.rows() && c < self.shape.c, "element ({row}, {c}) of {}", self.shape);
        // SAFETY: within the extent, as just checked.
        unsafe { *self.ptr.add(row * self.row_stride + c) = value }
    }

    /// Element `i` in row-major order.
    pub fn at(&self, i: usize) -> T {
        self.get(i / self.shape.c, i % self.shape.c)
    }

    /// The elements of a contiguous view.
    ///
    /// # Panics
    /// If rows are not adjacent.
    pub fn slice(&self) -> &[T] {
        assert!(self.row_stride == self.shape.c || self.shape.rows() == 1, "a slice needs contiguous rows");
        // SAFETY: contiguous and within the extent.
        unsafe { std::slice::from_raw_parts(self.ptr, self.shape.len()) }
    }
}

impl<T: Real> View<T> {
    /// Writes or adds, as an op's output flag asks.
    pub fn put(&self, row: usize, c: usize, value: T, accumulate: bool) {
        self.set(row, c, if accumulate { self.get(row, c) + value } else { value });
    }
}

/// The tensors of one op while it runs.
#[derive(Clone, Copy, Debug)]
pub struct Io<'a, T> {
    /// Tensors read.
    pub inputs: &'a [View<T>],
    /// Tensors written.
    pub outputs: &'a [View<T>],
    /// For each output, whether it adds to what is there.
    pub accumulate: &'a [bool],
}

impl<T: Real> Io<'_, T> {
    /// Writes an element of output `i`, honouring its flag.
    pub fn put(&self, i: usize, row: usize, c: usize, value: T) {
        self.outputs[i].put(row, c, value, self.accumulate[i]);
    }
}
