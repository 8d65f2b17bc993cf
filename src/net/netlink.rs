//! A connection to the kernel's routing tables, links and addresses.

use std::io;

use rtnetlink::Handle;

/// A netlink connection in the network namespace of the thread that opened it. It ends when this is dropped.
pub struct Netlink {
    /// What requests are made through.
    pub handle: Handle,
    task: tokio::task::JoinHandle<()>,
}

impl Netlink {
    /// Opens a connection. Needs a runtime.
    pub fn open() -> io::Result<Self> {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        Ok(Self { handle, task: tokio::spawn(connection) })
    }
}

impl Drop for Netlink {
    fn drop(&mut self) {
        self.task.abort();
    }
}
