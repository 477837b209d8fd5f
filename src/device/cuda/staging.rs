//! Values on their way to the device, for which the host does not wait.
//!
//! All go through a ring of pinned memory. Small ones are copied to their page by the compute stream, in its turn. Large ones
//! would stand in its way: a second stream brings them into a ring in the device's memory while a replay is under way, and
//! the compute stream, in its turn, waits for that and copies them into their page, which is a matter of microseconds. So it
//! sees all writes in the order in which they were made. Of both rings, a place is used again only after the copy out of it:
//! in pinned memory the host waits for that, in the device's memory the second stream does.

use std::collections::VecDeque;
use std::ops::Range;
use std::rc::Rc;

use cudarc::driver::sys::CUdeviceptr;

use super::context::{Buffer, Context, Event, Pinned};
use super::driver::{OUT_OF_MEMORY, Outcome};

/// Bytes of each of the two rings. A piece has the same place in both.
const RING: usize = 16 << 20;
/// Most bytes of one copy: some are under way while the next is filled.
const PIECE: usize = RING / 4;
/// Values of so many bytes take the second stream. Smaller ones are there sooner than two streams have waited for each other.
const LARGE: usize = 64 << 10;

/// Places of a ring, each with an event behind the copy out of it.
type Places = VecDeque<(Range<usize>, Event)>;

/// The ring in the device's memory.
enum Landing {
    /// Nobody has asked for it.
    Unasked,
    /// There is no memory for it: all values are copied by the compute stream.
    Refused,
    /// There it is.
    Ring(Buffer),
}

/// Values on their way to the device.
pub(super) struct Staging {
    memory: Option<Pinned>,
    landing: Landing,
    head: usize,
    /// Places of pinned memory.
    sent: Places,
    /// Places of the device's memory.
    landed: Places,
    spare: Vec<Event>,
}

impl Staging {
    /// No memory is taken before the first write.
    pub fn new() -> Self {
        let (sent, landed, spare) = (Places::new(), Places::new(), Vec::new());
        Self { memory: None, landing: Landing::Unasked, head: 0, sent, landed, spare }
    }

    /// Starts to copy values to the byte `first` of a buffer, after all that was started. The values may change afterwards.
    pub fn write(&mut self, context: &Rc<Context>, buffer: &Buffer, first: usize, values: &[u8]) -> Outcome<()> {
        assert!(first + values.len() <= buffer.bytes, "a write stays within its page");
        let ring = if values.len() >= LARGE { self.ring(context)? } else { None };
        for (index, piece) in values.chunks(PIECE).enumerate() {
            let place = self.take(piece.len())?;
            let memory = match &mut self.memory {
                Some(memory) => memory,
                none => none.insert(Pinned::new(context, RING)?),
            };
            let staged = memory.at(place.start);
            // SAFETY: `place` lies within the ring and no copy under way reads it.
            unsafe { std::ptr::copy_nonoverlapping(piece.as_ptr(), staged, piece.len()) };
            let sent = self.event(context)?;
            let to = buffer.address + (first + index * PIECE) as u64;
            match ring {
                None => {
                    // SAFETY: the source lies within the ring, the target within the buffer.
                    unsafe {
                        context.driver.cuMemcpyHtoDAsync_v2(to, staged.cast(), piece.len(), context.stream)?;
                    }
                    sent.record(context.stream)?;
                }
                Some(ring) => {
                    let taken = self.event(context)?;
                    clear(&mut self.landed, &place, &mut self.spare, |taken| taken.hold(context.uploads))?;
                    let landing = ring + place.start as u64;
                    // SAFETY: source and landing lie within the rings, the target within the buffer. The stream that
                    // writes the landing waits for those that read it earlier, and the stream that reads it for that.
                    unsafe {
                        context.driver.cuMemcpyHtoDAsync_v2(landing, staged.cast(), piece.len(), context.uploads)?;
                        sent.record(context.uploads)?;
                        sent.hold(context.stream)?;
                        context.driver.cuMemcpyDtoDAsync_v2(to, landing, piece.len(), context.stream)?;
                    }
                    taken.record(context.stream)?;
                    self.landed.push_back((place.clone(), taken));
                }
            }
            self.sent.push_back((place, sent));
        }
        Ok(())
    }

    /// Where the ring in the device's memory begins, if there is memory for it.
    fn ring(&mut self, context: &Rc<Context>) -> Outcome<Option<CUdeviceptr>> {
        if matches!(self.landing, Landing::Unasked) {
            self.landing = match Buffer::new(context, RING) {
                Ok(buffer) => Landing::Ring(buffer),
                Err(fault) if fault.code == OUT_OF_MEMORY => Landing::Refused,
                Err(fault) => return Err(fault),
            };
        }
        Ok(match &self.landing {
            Landing::Ring(buffer) => Some(buffer.address),
            Landing::Unasked | Landing::Refused => None,
        })
    }

    /// A stretch of pinned memory that no copy under way reads.
    fn take(&mut self, bytes: usize) -> Outcome<Range<usize>> {
        let bytes = bytes.next_multiple_of(64);
        if self.head + bytes > RING {
            self.head = 0;
        }
        let place = self.head..self.head + bytes;
        self.head = place.end;
        clear(&mut self.sent, &place, &mut self.spare, Event::wait)?;
        while let Some((_, oldest)) = self.sent.front() {
            if !oldest.reached()? {
                break;
            }
            self.spare.extend(self.sent.pop_front().map(|(_, event)| event));
        }
        Ok(place)
    }

    fn event(&mut self, context: &Rc<Context>) -> Outcome<Event> {
        match self.spare.pop() {
            Some(event) => Ok(event),
            None => Event::new(context, false),
        }
    }
}

/// Has `wait` wait for the copies out of whatever meets a place, and forgets them.
fn clear(
    places: &mut Places,
    place: &Range<usize>,
    spare: &mut Vec<Event>,
    wait: impl Fn(&Event) -> Outcome<()>,
) -> Outcome<()> {
    let meets = |(other, _): &(Range<usize>, Event)| other.start < place.end && place.start < other.end;
    while let Some(index) = places.iter().position(meets) {
        wait(&places[index].1)?;
        spare.extend(places.remove(index).map(|(_, event)| event));
    }
    Ok(())
}
