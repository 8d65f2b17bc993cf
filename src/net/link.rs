//! Addresses that this program brings along, for listeners that no address of the machine fits.
//!
//! They stand on an own dummy link where the kernel has such links, else on `lo`, and can be recognised: the link by
//! its name, an address on `lo` by its protocol number and, for IPv4, its label.

use std::io;
use std::net::IpAddr;

use futures_util::TryStreamExt;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage, AddressProtocol, AddressScope};
use rtnetlink::packet_route::link::LinkAttribute;
use rtnetlink::{LinkDummy, LinkUnspec};

use super::netlink::Netlink;

/// The dummy link.
pub const LINK: &str = "edgesplice0";
/// The label of an IPv4 address on `lo`.
const LABEL: &str = "lo:edgesplice";
/// `IFA_PROTO` of own addresses, shown by `ip address` as `proto 0xed`; the number of our routes as well.
const PROTOCOL: AddressProtocol = AddressProtocol::Other(237);
/// The index of `lo`, fixed by the kernel.
const LOOPBACK_INDEX: u32 = 1;

fn failed(error: rtnetlink::Error) -> io::Error {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.to_io(),
        other => io::Error::other(other.to_string()),
    }
}

/// Makes `ip` an address of this machine. One that somebody brought along already is left as it is.
pub async fn bring(ip: IpAddr) -> io::Result<()> {
    let link = Netlink::open()?;
    let known = addresses(&link).await?;
    if known.iter().any(|message| address(message) == Some(ip)) {
        return Ok(());
    }
    let (index, label) = match dummy(&link).await {
        Ok(index) => (index, None),
        // Kernels for edge devices are often built without dummy links.
        Err(error) => {
            tracing::debug!(%error, "no dummy link; the address goes to lo");
            (LOOPBACK_INDEX, ip.is_ipv4().then(|| LABEL.to_owned()))
        }
    };
    let prefix = if ip.is_ipv4() { 32 } else { 128 };
    let mut request = link.handle.address().add(index, ip, prefix);
    if ip.is_ipv4() {
        // So that it is nobody's source address on the way to somewhere else. `lo` is the device of routes of ours, and
        // its addresses are taken before those of other links.
        request.message_mut().header.scope =
            if index == LOOPBACK_INDEX { AddressScope::Host } else { AddressScope::Link };
    }
    let attributes = &mut request.message_mut().attributes;
    attributes.extend(label.map(AddressAttribute::Label));
    attributes.push(AddressAttribute::Protocol(PROTOCOL));
    request.execute().await.map_err(failed)
}

/// What of ours stands on this machine, each as a line for people.
pub async fn leftovers() -> io::Result<Vec<String>> {
    let link = Netlink::open()?;
    let mut found: Vec<String> = addresses(&link)
        .await?
        .iter()
        .filter(|message| is_own(message))
        .filter_map(|message| address(message).map(|ip| format!("address {ip} on lo")))
        .collect();
    if index_of(&link, LINK).await?.is_some() {
        found.push(format!("link {LINK}"));
    }
    Ok(found)
}

/// Takes away everything of ours. Returns what it was.
pub async fn remove() -> io::Result<()> {
    let link = Netlink::open()?;
    for message in addresses(&link).await?.into_iter().filter(is_own) {
        link.handle.address().del(message).execute().await.map_err(failed)?;
    }
    if let Some(index) = index_of(&link, LINK).await? {
        link.handle.link().del(index).execute().await.map_err(failed)?;
    }
    Ok(())
}

async fn addresses(link: &Netlink) -> io::Result<Vec<AddressMessage>> {
    link.handle.address().get().execute().try_collect().await.map_err(failed)
}

fn address(message: &AddressMessage) -> Option<IpAddr> {
    message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Address(ip) => Some(*ip),
        _ => None,
    })
}

/// Whether an address on `lo` is ours; those on the dummy link go with it.
fn is_own(message: &AddressMessage) -> bool {
    let marked = |attribute: &AddressAttribute| match attribute {
        AddressAttribute::Label(label) => label == LABEL,
        AddressAttribute::Protocol(protocol) => *protocol == PROTOCOL,
        _ => false,
    };
    message.header.index == LOOPBACK_INDEX && message.attributes.iter().any(marked)
}

async fn index_of(link: &Netlink, name: &str) -> io::Result<Option<u32>> {
    let links: Vec<_> = link.handle.link().get().execute().try_collect().await.map_err(failed)?;
    let named = |attribute: &LinkAttribute| matches!(attribute, LinkAttribute::IfName(own) if own == name);
    Ok(links.iter().find(|link| link.attributes.iter().any(named)).map(|link| link.header.index))
}

/// The dummy link's index, made and brought up if it is not there.
async fn dummy(link: &Netlink) -> io::Result<u32> {
    if index_of(link, LINK).await?.is_none() {
        link.handle.link().add(LinkDummy::new(LINK).build()).execute().await.map_err(failed)?;
    }
    let index = index_of(link, LINK).await?.ok_or(io::ErrorKind::NotFound)?;
    let up = LinkUnspec::new_with_index(index).up().build();
    link.handle.link().set(up).execute().await.map_err(failed)?;
    Ok(index)
}
