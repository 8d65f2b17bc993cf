//! The connection between two agents on one node: lines, some with descriptors beside them.

use std::collections::VecDeque;
use std::io;
use std::net::Shutdown;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::net::RecvFlags;
use socket2::SockRef;
use tokio::io::Interest;
use tokio::net::UnixStream;

use crate::handover::words::Word;
use crate::net::parcel;

/// Most bytes of a line: no version says anything longer.
const LONGEST_LINE: usize = 4096;

/// One end.
#[derive(Debug)]
pub(super) struct Channel {
    stream: UnixStream,
    text: String,
    descriptors: VecDeque<OwnedFd>,
}

impl Channel {
    pub(super) fn new(stream: UnixStream) -> Self {
        Self { stream, text: String::new(), descriptors: VecDeque::new() }
    }

    /// The next word and the descriptors beside it; `None` at the end, however it came. What this version does not
    /// understand is passed over. Nothing is lost when this is dropped halfway.
    pub(super) async fn hear(&mut self) -> Option<(Word, Vec<OwnedFd>)> {
        loop {
            while let Some(end) = self.text.find('\n') {
                let line: String = self.text.drain(..=end).collect();
                let Some(word) = Word::parse(line.trim_end()) else {
                    tracing::debug!(line, "the other agent says what this version does not know");
                    continue;
                };
                let count = word.descriptors().min(self.descriptors.len());
                if count < word.descriptors() {
                    return None;
                }
                let beside = self.descriptors.drain(..count).collect();
                return Some((word, beside));
            }
            if self.text.len() > LONGEST_LINE {
                return None;
            }
            let take = || parcel::receive(&self.stream, RecvFlags::DONTWAIT);
            let (text, beside) = self.stream.async_io(Interest::READABLE, take).await.ok()??;
            self.text.push_str(&text);
            self.descriptors.extend(beside);
        }
    }

    /// Says `word`, with `descriptors` beside.
    pub(super) async fn say(&self, word: &Word, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let line = format!("{word}\n");
        let give = || parcel::send(&self.stream, &line, descriptors);
        self.stream.async_io(Interest::WRITABLE, give).await
    }

    /// Tells the other side that nothing more will be said; it may go on speaking.
    pub(super) fn fall_silent(&self) {
        let _ = SockRef::from(&self.stream).shutdown(Shutdown::Write);
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;

    use super::*;

    #[tokio::test]
    async fn descriptors_come_with_their_line_however_the_bytes_come() {
        let (one, other) = UnixStream::pair().unwrap();
        let (here, mut there) = (Channel::new(one), Channel::new(other));
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        here.say(&Word::Sockets(vec![1, 2]), &[]).await.unwrap();
        here.say(&Word::Listener("admin".to_owned()), &[listener.as_fd()]).await.unwrap();
        parcel::send::<OwnedFd>(&here.stream, "something of the future\ndo", &[]).unwrap();
        parcel::send::<OwnedFd>(&here.stream, "ne\n", &[]).unwrap();
        here.fall_silent();
        assert_eq!(there.hear().await.unwrap().0, Word::Sockets(vec![1, 2]));
        let (word, mut beside) = there.hear().await.unwrap();
        assert_eq!(word, Word::Listener("admin".to_owned()));
        let same = std::net::TcpListener::from(beside.pop().unwrap());
        assert_eq!(same.local_addr().unwrap(), listener.local_addr().unwrap());
        assert_eq!(there.hear().await.unwrap().0, Word::Done);
        assert!(there.hear().await.is_none());
    }
}
