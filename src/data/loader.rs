//! Batches staged ahead by a background thread, in buffers that are used again.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use super::Images;

/// Images and labels ready to be copied to a device.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Batch {
    /// Raw values 0 to 255, NHWC, `batch * height * width * channels` of them.
    pub pixels: Vec<f32>,
    /// Class of each image.
    pub labels: Vec<f32>,
    /// Index of each image in the part that it comes from: with seed and epoch the key of its augmentation.
    pub indices: Vec<f32>,
    /// How many of the images are part of the data; those after are padding, copies of the last one.
    pub rows: usize,
}

/// Stages the batches of one pass over the data. It is an [`Iterator`] of [`Batch`]es; hand each back with
/// [`Loader::recycle`] when done, and no memory is allocated after the first few.
pub struct Loader {
    /// Taken by `drop`, so that the thread notices and ends.
    staged: Option<Receiver<Batch>>,
    spent: SyncSender<Batch>,
    thread: Option<JoinHandle<()>>,
    batches: usize,
}

impl Loader {
    /// Batches of `batch` images in the given order of indices, up to `depth` of them staged ahead. Images that do
    /// not fill a last batch are dropped.
    ///
    /// # Panics
    /// If `batch` is zero or an index is not below `images.len()`.
    pub fn new(images: Arc<Images>, order: Vec<u32>, batch: usize, depth: usize) -> Self {
        let batches = order.len().checked_div(batch).expect("a batch has at least one image");
        Self::start(images, order, batch, depth, batches)
    }

    /// Like [`Loader::new`], but a last batch that is not full is padded with copies of its last image; its
    /// [`Batch::rows`] says how many are real.
    ///
    /// # Panics
    /// If `batch` is zero or an index is not below `images.len()`.
    pub fn padded(images: Arc<Images>, order: Vec<u32>, batch: usize, depth: usize) -> Self {
        assert!(batch > 0, "a batch has at least one image");
        let batches = order.len().div_ceil(batch);
        Self::start(images, order, batch, depth, batches)
    }

    fn start(images: Arc<Images>, order: Vec<u32>, batch: usize, depth: usize, batches: usize) -> Self {
        // Checked here: a panic on the thread would look like the end of the data.
        let beyond = order.iter().find(|&&index| index as usize >= images.len());
        assert!(beyond.is_none(), "index {beyond:?} of {} images", images.len());
        let depth = depth.max(1);
        let (stage, staged) = sync_channel(depth);
        // Room for every batch there can be: `depth` staged, one being filled, one with the user.
        let (spent, respent) = sync_channel::<Batch>(depth + 2);
        let thread = std::thread::spawn(move || {
            for rows in order.chunks(batch).take(batches) {
                let mut next = respent.try_recv().unwrap_or_default();
                fill(&mut next, &images, rows, batch);
                if stage.send(next).is_err() {
                    return;
                }
            }
        });
        Self { staged: Some(staged), spent, thread: Some(thread), batches }
    }

    /// Batches of the whole pass.
    pub fn batches(&self) -> usize {
        self.batches
    }

    /// Gives the buffers of a batch back for a later one.
    pub fn recycle(&self, batch: Batch) {
        // Full only if the user recycles batches of other loaders too: then the buffers are simply freed.
        let _ = self.spent.try_send(batch);
    }
}

impl Iterator for Loader {
    type Item = Batch;

    /// The next batch; waits for it if need be. `None` at the end of the pass.
    fn next(&mut self) -> Option<Batch> {
        self.staged.as_ref()?.recv().ok()
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        self.staged = None;
        if let Some(thread) = self.thread.take() {
            // It cannot panic (the indices were checked), and nothing could be done here if it did.
            let _ = thread.join();
        }
    }
}

fn fill(out: &mut Batch, images: &Images, rows: &[u32], batch: usize) {
    out.pixels.clear();
    out.labels.clear();
    out.indices.clear();
    out.rows = rows.len();
    let padding = std::iter::repeat_n(&rows[rows.len() - 1], batch - rows.len());
    for &index in rows.iter().chain(padding) {
        out.pixels.extend(images.image(index as usize).iter().map(|&value| f32::from(value)));
        out.labels.push(images.labels[index as usize] as f32);
        out.indices.push(index as f32);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Geometry;

    fn images(n: usize) -> Arc<Images> {
        let geometry = Geometry { height: 1, width: 2, channels: 1 };
        let pixels = (0..2 * n).map(|value| value as u8).collect();
        Arc::new(Images { geometry, pixels, labels: (0..n as u32).map(|i| i % 3).collect() })
    }

    #[test]
    fn batches_follow_the_order_and_drop_the_rest() {
        let mut loader = Loader::new(images(5), vec![4, 0, 3, 1, 2], 2, 3);
        assert_eq!(loader.batches(), 2);
        let first = loader.next().unwrap();
        assert_eq!(first.pixels, [8.0, 9.0, 0.0, 1.0]);
        assert_eq!((first.labels, first.indices, first.rows), (vec![1.0, 0.0], vec![4.0, 0.0], 2));
        assert_eq!(loader.next().unwrap().indices, [3.0, 1.0]);
        assert_eq!(loader.next(), None);
        assert_eq!(loader.next(), None);
    }

    #[test]
    fn padding_repeats_the_last_image() {
        let last = Loader::padded(images(5), vec![0, 1, 2, 3, 4], 4, 1).last().unwrap();
        assert_eq!((last.rows, &last.indices[..]), (1, &[4.0; 4][..]));
        assert_eq!(last.pixels.len(), 8);
        assert_eq!(Loader::padded(images(5), Vec::new(), 4, 1).count(), 0);
    }

    #[test]
    fn recycled_buffers_come_back() {
        let mut loader = Loader::new(images(250), (0..250).collect(), 5, 2);
        let mut seen = std::collections::HashSet::new();
        while let Some(batch) = loader.next() {
            seen.insert(batch.pixels.as_ptr());
            loader.recycle(batch);
        }
        assert!(seen.len() <= 4, "{} buffers", seen.len());
    }

    #[test]
    fn a_loader_can_be_dropped_at_any_time() {
        for taken in 0..4 {
            let loader = Loader::new(images(100), (0..100).collect(), 1, 2);
            assert_eq!(loader.take(taken).count(), taken);
        }
    }

    #[test]
    #[should_panic(expected = "index Some(5) of 5 images")]
    fn indices_are_checked_at_once() {
        Loader::new(images(5), vec![0, 5], 1, 1);
    }
}
