//! Room to work in, one for each thread: used within one poll and never across two, so that a connection that waits
//! holds no buffer.

use std::cell::RefCell;

use super::super::strict::HeadReader;

/// Bytes that are read at once: a loopback segment at its largest.
const READ: usize = 64 * 1024;
/// Buffers kept for later, and the largest that is.
const SPARE: usize = 64;
const LARGEST_SPARE: usize = 16 * 1024;

/// What lies on it.
pub(super) struct Desk {
    /// Where bytes are read into.
    pub(super) read: Box<[u8]>,
    /// Where what goes to the other side is put together.
    pub(super) out: Vec<u8>,
    spare: Vec<Vec<u8>>,
    readers: Vec<HeadReader>,
}

thread_local! {
    static DESK: RefCell<Desk> = RefCell::new(Desk {
        read: vec![0; READ].into(),
        out: Vec::new(),
        spare: Vec::new(),
        readers: Vec::new(),
    });
}

/// Works at this thread's desk. Not twice at a time.
pub(super) fn with<T>(work: impl FnOnce(&mut Desk) -> T) -> T {
    DESK.with_borrow_mut(work)
}

impl Desk {
    /// An empty buffer, often one with room in it.
    pub(super) fn buffer(&mut self) -> Vec<u8> {
        self.spare.pop().unwrap_or_default()
    }

    /// Takes a buffer back.
    pub(super) fn put_buffer(&mut self, mut buffer: Vec<u8>) {
        if (1..=LARGEST_SPARE).contains(&buffer.capacity()) && self.spare.len() < SPARE {
            buffer.clear();
            self.spare.push(buffer);
        }
    }

    /// A reader at the beginning of a head.
    pub(super) fn reader(&mut self) -> HeadReader {
        self.readers.pop().unwrap_or_default()
    }

    /// Takes a reader back.
    pub(super) fn put_reader(&mut self, mut reader: HeadReader) {
        if self.readers.len() < SPARE {
            reader.reset();
            self.readers.push(reader);
        }
    }
}

/// Takes a buffer back.
pub(super) fn put(buffer: Vec<u8>) {
    with(|desk| desk.put_buffer(buffer));
}
