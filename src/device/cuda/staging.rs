//! Pinned memory between host and stream: values on their way to the device, for which the host does not wait, and copies
//! of single values that come back behind every replay, so that a flag is known without stopping the stream.

use std::collections::VecDeque;
use std::ops::Range;
use std::rc::Rc;

use super::context::{Buffer, Context, Event, Pinned};
use super::driver::Outcome;

/// Bytes of the ring of values on their way.
const RING: usize = 16 << 20;
/// Most bytes of one copy: some are under way while the next is filled.
const PIECE: usize = RING / 4;
/// Replays that the host may be ahead of the value it is told.
const AHEAD: usize = 8;

/// Values on their way to the device.
#[derive(Default)]
pub(super) struct Staging {
    memory: Option<Pinned>,
    head: usize,
    /// Copies under way, the oldest first.
    flights: VecDeque<(Range<usize>, Event)>,
    spare: Vec<Event>,
}

impl Staging {
    /// Starts to copy values to the byte `first` of a buffer, after all that was started. The values may change afterwards.
    pub fn write(&mut self, context: &Rc<Context>, buffer: &Buffer, first: usize, values: &[u8]) -> Outcome<()> {
        assert!(first + values.len() <= buffer.bytes, "a write stays within its page");
        for (index, piece) in values.chunks(PIECE).enumerate() {
            let place = self.take(piece.len())?;
            let event = match self.spare.pop() {
                Some(event) => event,
                None => Event::new(context, false)?,
            };
            let memory = match &mut self.memory {
                Some(memory) => memory,
                none => none.insert(Pinned::new(context, RING)?),
            };
            let to = buffer.address + (first + index * PIECE) as u64;
            // SAFETY: `place` lies within the ring and no copy under way reads it; the target is within the buffer.
            unsafe {
                let staged = memory.at(place.start);
                std::ptr::copy_nonoverlapping(piece.as_ptr(), staged, piece.len());
                context.driver.cuMemcpyHtoDAsync_v2(to, staged.cast(), piece.len(), context.stream)?;
            }
            event.record()?;
            self.flights.push_back((place, event));
        }
        Ok(())
    }

    /// A stretch of the ring that no copy under way reads.
    fn take(&mut self, bytes: usize) -> Outcome<Range<usize>> {
        let bytes = bytes.next_multiple_of(64);
        if self.head + bytes > RING {
            self.head = 0;
        }
        let place = self.head..self.head + bytes;
        self.head = place.end;
        let meets = |other: &Range<usize>| other.start < place.end && place.start < other.end;
        while let Some((_, oldest)) = self.flights.front() {
            if self.flights.iter().any(|(other, _)| meets(other)) {
                oldest.wait()?;
            } else if !oldest.reached()? {
                break;
            }
            self.spare.extend(self.flights.pop_front().map(|(_, event)| event));
        }
        Ok(place)
    }
}

/// A value of which a copy comes back behind every replay.
struct Watch {
    page: u32,
    /// Its element.
    element: usize,
    memory: Pinned,
    events: Vec<Event>,
    /// Slots whose copies are under way, the oldest first, each with the number of writes to the value before it.
    flights: VecDeque<(usize, u64)>,
    next: usize,
    writes: u64,
    /// The newest that is known.
    value: f32,
}

impl Watch {
    /// Takes in the copies that are there; waits for the oldest if all slots are under way and `wait` says so.
    fn collect(&mut self, wait: bool) -> Outcome<()> {
        while let Some(&(slot, writes)) = self.flights.front() {
            if wait && self.flights.len() == AHEAD {
                self.events[slot].wait()?;
            } else if !self.events[slot].reached()? {
                break;
            }
            self.flights.pop_front();
            if writes == self.writes {
                // SAFETY: the slot lies within the memory, is aligned, and its copy is done.
                self.value = unsafe { self.memory.at(4 * slot).cast::<f32>().read_volatile() };
            }
        }
        Ok(())
    }
}

/// All values that somebody asks for again and again.
#[derive(Default)]
pub(super) struct Watches {
    list: Vec<Watch>,
}

impl Watches {
    /// The newest copy of a value that is watched.
    pub fn newest(&mut self, page: u32, element: usize) -> Outcome<Option<f32>> {
        match self.list.iter_mut().find(|watch| watch.page == page && watch.element == element) {
            Some(watch) => watch.collect(false).map(|()| Some(watch.value)),
            None => Ok(None),
        }
    }

    /// Watches a value from now on.
    pub fn add(&mut self, context: &Rc<Context>, page: u32, element: usize, value: f32) -> Outcome<()> {
        let events = (0..AHEAD).map(|_| Event::new(context, false)).collect::<Outcome<Vec<_>>>()?;
        let memory = Pinned::new(context, 4 * AHEAD)?;
        let (flights, next, writes) = (VecDeque::new(), 0, 0);
        self.list.push(Watch { page, element, memory, events, flights, next, writes, value });
        Ok(())
    }

    /// Sends copies after what was started.
    pub fn follow(&mut self, context: &Context, pages: &[Rc<Buffer>]) -> Outcome<()> {
        for watch in &mut self.list {
            watch.collect(true)?;
            let slot = watch.next;
            watch.next = (slot + 1) % AHEAD;
            let from = pages[watch.page as usize].address + 4 * watch.element as u64;
            let to = watch.memory.at(4 * slot).cast();
            // SAFETY: the value lies within its page, and no copy into the slot is under way.
            unsafe { context.driver.cuMemcpyDtoHAsync_v2(to, from, 4, context.stream)? };
            watch.events[slot].record()?;
            watch.flights.push_back((slot, watch.writes));
        }
        Ok(())
    }

    /// Notes that the host writes values: copies from before do not count any more.
    pub fn written(&mut self, page: u32, first: usize, values: &[f32]) {
        for watch in self.list.iter_mut().filter(|watch| watch.page == page && watch.element >= first) {
            if let Some(&value) = values.get(watch.element - first) {
                watch.writes += 1;
                watch.value = value;
            }
        }
    }

    /// Forgets values behind the first `keep` pages.
    pub fn release(&mut self, keep: usize) {
        self.list.retain(|watch| (watch.page as usize) < keep);
    }
}
