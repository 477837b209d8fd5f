//! Launches made of jobs. A kernel of this form takes [`JobsParams`] and a table of jobs; everything else a block needs
//! stands in its job's record. Jobs of many ops can therefore share a launch: the edges of a cell, and (by
//! [`merge`](super::merge)) whatever ops of a program do not depend on each other.
//!
//! A job record begins with the fields `first_block` and `blocks`. A job may go on over further records (a list of
//! gradients, say): those behind the first have no blocks, and the first block of whatever comes next. A block finds its
//! job by bisection: the last record whose first block is not beyond it.

use super::{BLOCK, HALF, Launch, PAGES, Place, Record, Slots, TABLE_BYTES, grid, record};

record! {
    /// Parameters of all kernels that take jobs.
    JobsParams {
        /// Blocks that have work.
        blocks: u32,
        /// Records of the table.
        jobs: u32,
        /// Zero.
        unused_0: u32,
        /// Zero.
        unused_1: u32,
    }
}

/// What `launches` is told of one job.
pub struct Job<R> {
    /// Its records, without `first_block` and `blocks`.
    pub records: Vec<R>,
    /// Blocks that it takes.
    pub blocks: usize,
    /// All groups of four channels that it touches are aligned and whole.
    pub wide: bool,
}

/// Words of a record at which a [`super::Spot`] begins.
fn spots(fields: &[(&str, &str)]) -> Vec<usize> {
    let mut word = 0;
    let mut found = Vec::new();
    for (_, kind) in fields {
        if *kind == "Spot" {
            found.push(word);
        }
        word += if *kind == "Spot" { 2 } else { 1 };
    }
    found
}

/// Bytes of the record that `table` holds for `fields`.
fn size(fields: &[(&str, &str)]) -> usize {
    fields.iter().map(|(_, kind)| if *kind == "Spot" { 8 } else { 4 }).sum()
}

/// Launches of one kernel over jobs that do not depend on each other, as few as tables and pages allow. `write` makes the
/// records of an item, naming its tensors through the slots.
///
/// # Panics
/// If one job needs more pages or a larger table than a launch has.
pub(super) fn launches<T, R: Record>(
    source: &'static str,
    kernel: &'static str,
    items: &[T],
    write: impl Fn(&T, &mut Slots) -> Job<R>,
) -> Vec<Launch> {
    let mut done: Vec<Launch> = Vec::new();
    for item in items {
        let mut slots = Slots::default();
        let job = write(item, &mut slots);
        if job.blocks == 0 {
            continue;
        }
        let one = single(source, kernel, &job, slots);
        match done.last_mut() {
            Some(last) if joins(last, &one) => join(last, &one),
            _ => done.push(one),
        }
    }
    done
}

/// Puts items into launches so that no two of one launch write the same place, and those that do keep their order.
pub(super) fn waves<T>(items: impl IntoIterator<Item = T>, written: impl Fn(&T) -> Vec<Place>) -> Vec<Vec<T>> {
    let mut waves: Vec<Vec<T>> = Vec::new();
    for item in items {
        let places = written(&item);
        let clashes = |other: &T| written(other).iter().any(|a| places.iter().any(|b| a.overlaps(*b)));
        let after = waves.iter().rposition(|wave| wave.iter().any(clashes)).map_or(0, |last| last + 1);
        if after == waves.len() {
            waves.push(Vec::new());
        }
        waves[after].push(item);
    }
    waves
}

/// One job as a launch of its own.
fn single<R: Record>(source: &'static str, kernel: &'static str, job: &Job<R>, slots: Slots) -> Launch {
    let Slots { pages, halves, read: reads, written: writes } = slots;
    assert!(R::FIELDS[0] == ("first_block", "u32") && R::FIELDS[1] == ("blocks", "u32"), "{} is no job", R::NAME);
    assert!(pages.len() <= PAGES, "{kernel}: one job spans more than {PAGES} pages");
    assert!(size_of_val(&job.records[..]) <= TABLE_BYTES, "{kernel}: the records of one job exceed a table");
    let mut table: Vec<u32> = bytemuck::cast_slice(&job.records).to_vec();
    let words = size_of::<R>() / 4;
    for (index, record) in table.chunks_mut(words).enumerate() {
        let blocks = job.blocks as u32;
        (record[0], record[1]) = if index == 0 { (0, blocks) } else { (blocks, 0) };
    }
    let mut launch = Launch {
        source,
        kernel,
        wide: job.wide,
        halves,
        params: Vec::new(),
        table: bytemuck::cast_slice(&table).to_vec(),
        pages,
        grid: [1; 3],
        block: BLOCK,
        jobs: Some(R::FIELDS),
        reads,
        writes,
    };
    count(&mut launch, job.blocks);
    launch
}

/// Blocks of a launch of jobs.
fn blocks(launch: &Launch) -> usize {
    bytemuck::pod_read_unaligned::<JobsParams>(&launch.params).blocks as usize
}

fn count(launch: &mut Launch, blocks: usize) {
    let jobs = launch.table.len() / size(launch.jobs.unwrap_or(&[])).max(1);
    let params = JobsParams { blocks: blocks as u32, jobs: jobs as u32, ..Default::default() };
    launch.params = bytemuck::bytes_of(&params).to_vec();
    launch.grid = grid(blocks);
}

fn page_slots(pages: &mut Vec<u32>, more: &[u32]) -> Vec<u32> {
    let slot = |page: &u32| {
        let known = pages.iter().position(|p| p == page);
        known.unwrap_or_else(|| {
            pages.push(*page);
            pages.len() - 1
        }) as u32
    };
    more.iter().map(slot).collect()
}

/// Whether two launches can become one, as far as kernel, table and pages are concerned.
pub(super) fn joins(a: &Launch, b: &Launch) -> bool {
    let same = (a.source, a.kernel) == (b.source, b.kernel) && a.jobs.is_some() && b.jobs.is_some();
    same && (a.wide, a.halves) == (b.wide, b.halves) && a.table.len() + b.table.len() <= TABLE_BYTES && {
        let mut pages = a.pages.clone();
        page_slots(&mut pages, &b.pages);
        pages.len() <= PAGES
    }
}

/// Adds the jobs of `b` to those of `a`.
pub(super) fn join(a: &mut Launch, b: &Launch) {
    let (fields, before) = (b.jobs.unwrap_or(&[]), blocks(a));
    let slots = page_slots(&mut a.pages, &b.pages);
    let (words, spots) = (size(fields) / 4, spots(fields));
    let word = |bytes: &[u8]| bytemuck::pod_read_unaligned::<u32>(bytes);
    let mut table: Vec<u32> = b.table.chunks_exact(size_of::<u32>()).map(word).collect();
    for record in table.chunks_mut(words) {
        record[0] += before as u32;
        for &at in &spots {
            // A spot that a record does not use is zero, and stays within the launch's pages.
            let half = record[at] & HALF;
            record[at] = slots.get((record[at] ^ half) as usize).map_or(0, |slot| slot | half);
        }
    }
    a.table.extend_from_slice(bytemuck::cast_slice(&table));
    a.reads.extend_from_slice(&b.reads);
    a.writes.extend_from_slice(&b.writes);
    count(a, before + blocks(b));
}
