//! One value that the host looks at after every replay without waiting for it: each replay copies it to one of a few small
//! buffers, and the newest that has arrived answers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::AHEAD;
use crate::error::{Error, Result};

/// The value that is looked at.
pub(super) struct Peek {
    followed: Option<Followed>,
    slots: Vec<Slot>,
    /// Copies so far.
    count: u64,
}

struct Followed {
    page: u32,
    first: usize,
    value: f32,
    /// The copy that `value` is from; older ones that arrive later are not news.
    copy: u64,
}

struct Slot {
    buffer: wgpu::Buffer,
    /// The copy that the buffer holds or waits for.
    copy: Option<u64>,
    arrived: Arc<AtomicBool>,
}

impl Peek {
    pub fn new(device: &wgpu::Device) -> Self {
        let slot = |_| Slot {
            buffer: device.create_buffer(&wgpu::BufferDescriptor {
                label: Some("peek"),
                size: 4,
                usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
                mapped_at_creation: false,
            }),
            copy: None,
            arrived: Arc::default(),
        };
        Self { followed: None, slots: (0..AHEAD + 1).map(slot).collect(), count: 0 }
    }

    /// Copies the value at the end of a replay, if there is room for it; answers the slot to be mapped.
    pub fn copy(&mut self, pages: &[wgpu::Buffer], encoder: &mut wgpu::CommandEncoder) -> Option<usize> {
        let followed = self.followed.as_ref()?;
        let index = self.slots.iter().position(|slot| slot.copy.is_none())?;
        let slot = &mut self.slots[index];
        self.count += 1;
        slot.copy = Some(self.count);
        slot.arrived = Arc::default();
        encoder.copy_buffer_to_buffer(&pages[followed.page as usize], followed.first as u64 * 4, &slot.buffer, 0, 4);
        Some(index)
    }

    /// Asks for what a replay that was just submitted has copied.
    pub fn map(&mut self, slot: Option<usize>) {
        let Some(slot) = slot.map(|index| &self.slots[index]) else { return };
        let arrived = Arc::clone(&slot.arrived);
        slot.buffer.map_async(wgpu::MapMode::Read, .., move |mapped| arrived.store(mapped.is_ok(), Ordering::Release));
    }

    /// The newest value that has arrived; None if it is another one that is followed.
    ///
    /// # Errors
    /// [`Error::Device`] if the device failed.
    pub fn value(&mut self, page: u32, first: usize) -> Result<Option<f32>> {
        for slot in &mut self.slots {
            let Some(copy) = slot.copy.filter(|_| slot.arrived.load(Ordering::Acquire)) else { continue };
            {
                let bytes = slot.buffer.get_mapped_range(..);
                let bytes = bytes.map_err(|error| Error::device(format!("wgpu: reading back: {error}")))?;
                if let Some(followed) = self.followed.as_mut().filter(|followed| followed.copy < copy) {
                    followed.value = bytemuck::pod_read_unaligned(&bytes);
                    followed.copy = copy;
                }
            }
            slot.buffer.unmap();
            slot.copy = None;
        }
        Ok(self.followed.as_ref().filter(|f| f.page == page && f.first == first).map(|f| f.value))
    }

    /// Follows a value from now on.
    pub fn follow(&mut self, page: u32, first: usize, value: f32) {
        self.followed = Some(Followed { page, first, value, copy: self.count });
    }

    /// The host has written values: what is on its way of them is out of date.
    pub fn forget(&mut self, page: u32, first: usize, len: usize) {
        if self.followed.as_ref().is_some_and(|f| f.page == page && (first..first + len).contains(&f.first)) {
            self.followed = None;
        }
    }
}
