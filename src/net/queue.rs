//! Packets that the packet filter holds until this process has decided about them (NFQUEUE), over netlink.
//!
//! Spoken directly, as in `diag`: the crate `nfq` gives its descriptor to nobody, so that it would need a thread that
//! blocks, and neither `libnetfilter_queue` nor another crate has more to offer for three kinds of message.

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, sendto, setsockopt,
    socket, sockopt,
};
use tokio::net::UnixDatagram;

// Numbers of `linux/netlink.h`, `linux/netfilter/nfnetlink.h`, `nfnetlink_queue.h` and `netfilter.h`.
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLMSG_ERROR: u16 = 2;
const SUBSYSTEM: u16 = 3 << 8;
const PACKET: u16 = SUBSYSTEM;
const VERDICT: u16 = SUBSYSTEM | 1;
const CONFIG: u16 = SUBSYSTEM | 2;
const PACKET_HEADER: u16 = 1;
const VERDICT_HEADER: u16 = 2;
const MARK: u16 = 3;
const PAYLOAD: u16 = 10;
const CONFIG_COMMAND: u16 = 1;
const CONFIG_PARAMETERS: u16 = 2;
const CONFIG_LENGTH: u16 = 3;
const CONFIG_MASK: u16 = 4;
const CONFIG_FLAGS: u16 = 5;
const COMMAND_BIND: u8 = 1;
const COMMAND_UNBIND: u8 = 2;
const COPY_PACKET: u8 = 2;
const FAIL_OPEN: u32 = 1;
const NF_DROP: u32 = 0;
const NF_REPEAT: u32 = 4;
/// Sizes of `struct nlmsghdr` and `struct nfgenmsg`, and of an attribute's head.
const HEADER: usize = 16;
const GENERAL: usize = 4;
const ATTRIBUTE: usize = 4;

/// Bytes of a packet that are shown: an IP header with options and the fixed part of a TCP header.
const SHOWN: u32 = 128;
/// Room for a message about a packet: what is shown, and some dozen attributes.
pub const MESSAGE: usize = 2048;
/// Room for packets that have not been read. What comes beyond it is let through.
const BUFFER: usize = 2 << 20;

/// One queue of held packets, owned by this process until it is closed or dropped. The kernel then drops what is held,
/// and rules with `--queue-bypass` let through what comes.
#[derive(Debug)]
pub struct Queue {
    socket: OwnedFd,
    number: u16,
}

/// A held packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet<'a> {
    /// By which the kernel knows it.
    pub id: u32,
    /// Its mark.
    pub mark: u32,
    /// The packet from its IP header on, not all of it.
    pub bytes: &'a [u8],
}

/// What is to become of a held packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It never was.
    Drop,
    /// It passes the hook that held it once more, with this mark.
    Again(u32),
}

impl Queue {
    /// Takes queue `number`, in which at most `most` packets are held; what comes beyond that is let through.
    ///
    /// Fails with `EPERM` if another process has it, and with `EOPNOTSUPP` or `EINVAL` where the kernel has no queues.
    pub fn bind(number: u16, most: u32) -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkNetFilter)?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        // Beyond the system's limit that needs CAP_NET_ADMIN, without which there is no queue anyhow.
        let _ = setsockopt(&socket, sockopt::RcvBufForce, &BUFFER);
        let queue = Self { socket, number };
        queue.configure(&[(CONFIG_COMMAND, &[COMMAND_BIND, 0, 0, 0])])?;
        let [a, b, c, d] = SHOWN.to_be_bytes();
        queue.configure(&[
            (CONFIG_PARAMETERS, &[a, b, c, d, COPY_PACKET]),
            (CONFIG_LENGTH, &most.to_be_bytes()),
            (CONFIG_MASK, &FAIL_OPEN.to_be_bytes()),
            (CONFIG_FLAGS, &FAIL_OPEN.to_be_bytes()),
        ])?;
        Ok(queue)
    }

    /// What brings the messages about packets, on the current runtime; see [`Packet::read`].
    pub fn messages(&self) -> io::Result<UnixDatagram> {
        // To tokio a netlink socket is as good as any socket that takes whole messages, and this type's way there is the
        // one without `unsafe`.
        UnixDatagram::from_std(self.socket.try_clone()?.into())
    }

    /// Decides about a packet. Fails with `ENOENT` if it is held no more.
    pub fn decide(&self, id: u32, verdict: Verdict) -> io::Result<()> {
        let (code, mark) = match verdict {
            Verdict::Drop => (NF_DROP, None),
            Verdict::Again(mark) => (NF_REPEAT, Some(mark.to_be_bytes())),
        };
        let mut header = [0; 8];
        header[..4].copy_from_slice(&code.to_be_bytes());
        header[4..].copy_from_slice(&id.to_be_bytes());
        let mut attributes: [(u16, &[u8]); 2] = [(VERDICT_HEADER, &header), (MARK, &[])];
        let count = match &mark {
            Some(mark) => {
                attributes[1].1 = mark;
                2
            }
            None => 1,
        };
        self.send(&message(VERDICT, NLM_F_REQUEST, self.number, &attributes[..count]))
    }

    /// Gives the queue back: what is held is dropped, what comes is let through.
    pub fn close(&self) -> io::Result<()> {
        let command: &[u8] = &[COMMAND_UNBIND, 0, 0, 0];
        self.send(&message(CONFIG, NLM_F_REQUEST, self.number, &[(CONFIG_COMMAND, command)]))
    }

    fn send(&self, message: &[u8]) -> io::Result<()> {
        sendto(self.socket.as_raw_fd(), message, &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
        Ok(())
    }

    /// Sends a request and takes its answer, which is there when `sendto` returns. Packets may come before it as soon as the
    /// queue is bound; they are let through.
    fn configure(&self, attributes: &[(u16, &[u8])]) -> io::Result<()> {
        self.send(&message(CONFIG, NLM_F_REQUEST | NLM_F_ACK, self.number, attributes))?;
        let mut buffer = [0; MESSAGE];
        loop {
            let length = recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
            let answer = buffer.get(..length).unwrap_or_default();
            if u16_at(answer, 4) == Some(NLMSG_ERROR) {
                let code = u32_at(answer, HEADER).map_or(0, |code| u32::from_ne_bytes(code).cast_signed());
                let fault = || io::Error::from_raw_os_error(code.wrapping_neg());
                return if code == 0 { Ok(()) } else { Err(fault()) };
            }
            if let Some(early) = packet(answer) {
                self.decide(early.id, Verdict::Again(early.mark))?;
            }
        }
    }
}

impl<'a> Packet<'a> {
    /// Reads the message about a packet. `None`: it is about something else.
    pub fn read(message: &'a [u8]) -> Option<Self> {
        packet(message)
    }
}

fn message(kind: u16, flags: u16, queue: u16, attributes: &[(u16, &[u8])]) -> Vec<u8> {
    let mut text = vec![0; HEADER + GENERAL];
    for (name, value) in attributes {
        let length = u16::try_from(ATTRIBUTE + value.len()).unwrap_or(u16::MAX);
        text.extend_from_slice(&length.to_ne_bytes());
        text.extend_from_slice(&name.to_ne_bytes());
        text.extend_from_slice(value);
        text.resize(text.len().next_multiple_of(4), 0);
    }
    let length = u32::try_from(text.len()).unwrap_or(u32::MAX);
    text[..4].copy_from_slice(&length.to_ne_bytes());
    text[4..6].copy_from_slice(&kind.to_ne_bytes());
    text[6..8].copy_from_slice(&flags.to_ne_bytes());
    // Family and version are 0; the queue's number is in network order.
    text[HEADER + 2..HEADER + 4].copy_from_slice(&queue.to_be_bytes());
    text
}

fn packet(message: &[u8]) -> Option<Packet<'_>> {
    if u16_at(message, 4)? != PACKET {
        return None;
    }
    let (mut id, mut mark, mut bytes) = (None, 0, &[][..]);
    let mut at = HEADER + GENERAL;
    while let (Some(length), Some(name)) = (u16_at(message, at), u16_at(message, at + 2)) {
        let length = usize::from(length).max(ATTRIBUTE);
        let value = message.get(at + ATTRIBUTE..at + length)?;
        match name {
            PACKET_HEADER => id = u32_at(value, 0).map(u32::from_be_bytes),
            MARK => mark = u32_at(value, 0).map_or(0, u32::from_be_bytes),
            PAYLOAD => bytes = value,
            _ => {}
        }
        at += length.next_multiple_of(4);
    }
    Some(Packet { id: id?, mark, bytes })
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at + 2)?.try_into().ok().map(u16::from_ne_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<[u8; 4]> {
    bytes.get(at..at + 4)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packet_is_read_back_from_its_message() {
        let header = [0, 0, 1, 2, 8, 0, 3];
        let text = message(
            PACKET,
            0,
            7,
            &[(PACKET_HEADER, &header), (MARK, &0x30_u32.to_be_bytes()), (99, &[1]), (PAYLOAD, b"bytes")],
        );
        assert_eq!(packet(&text), Some(Packet { id: 0x102, mark: 0x30, bytes: b"bytes" }));
        assert_eq!(u16_at(&text, HEADER + 2), Some(7_u16.to_be()));
        // Cut short anywhere, it is no packet or one without what was cut off, and never a panic.
        for length in 0..text.len() {
            let _ = packet(&text[..length]);
        }
        assert_eq!(packet(&message(CONFIG, 0, 7, &[])), None);
    }

    #[test]
    fn an_attribute_that_claims_more_than_there_is_is_no_packet() {
        let mut text = message(PACKET, 0, 7, &[(PAYLOAD, b"bytes")]);
        text[HEADER + GENERAL] = 200;
        assert_eq!(packet(&text), None);
    }
}
