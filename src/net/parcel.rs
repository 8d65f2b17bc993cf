//! Text on a Unix socket, with descriptors beside it.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};

/// Descriptors beside one text at most. A data plane has one socket a thread; the kernel's own limit is 253.
pub const MOST: usize = 128;
/// Bytes that are taken at once: a verb, and a name or a short sentence of this program.
pub const LONGEST: usize = 256;

/// Sends `text` as one message, with `descriptors` beside. Waits for room.
pub fn send<S: AsFd>(socket: impl AsFd, text: &str, descriptors: &[S]) -> io::Result<()> {
    let descriptors: Vec<BorrowedFd<'_>> = descriptors.iter().map(AsFd::as_fd).collect();
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
    let mut beside = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !beside.push(SendAncillaryMessage::ScmRights(&descriptors)) {
        return Err(io::Error::other("too many descriptors for one packet"));
    }
    sendmsg(socket, &[IoSlice::new(text.as_bytes())], &mut beside, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// What has come, up to [`LONGEST`] bytes of it, and the descriptors beside; `None` at the end of the stream. A socket of
/// messages gives one message each time, a stream never more than up to the next descriptors.
pub fn receive(socket: impl AsFd, flags: RecvFlags) -> io::Result<Option<(String, Vec<OwnedFd>)>> {
    let mut text = [0; LONGEST];
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
    let mut beside = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [IoSliceMut::new(&mut text)];
    let length = loop {
        match recvmsg(&socket, &mut parts, &mut beside, flags | RecvFlags::CMSG_CLOEXEC) {
            Ok(got) => break got.bytes,
            Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::CONNRESET) => return Ok(None),
            Err(errno) => return Err(errno.into()),
        }
    };
    let mut descriptors = Vec::new();
    for message in beside.drain() {
        if let RecvAncillaryMessage::ScmRights(found) = message {
            descriptors.extend(found);
        }
    }
    if length == 0 {
        return Ok(None);
    }
    Ok(Some((String::from_utf8_lossy(&text[..length]).into_owned(), descriptors)))
}
