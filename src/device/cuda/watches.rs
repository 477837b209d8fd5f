//! Single values of which copies come back behind every replay, so that a flag is known without stopping the stream.

use std::collections::VecDeque;
use std::rc::Rc;

use super::context::{Buffer, Context, Event, Pinned};
use super::driver::Outcome;

/// Replays that the host may be ahead of the value it is told.
const AHEAD: usize = 8;

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
            watch.events[slot].record(context.stream)?;
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
