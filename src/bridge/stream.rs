//! Reads and writes on a stream that both directions of a connection share.

use std::io::{self, ErrorKind, Read, Write};
use std::task::{Context, Poll, ready};

use socket2::SockRef;
use tokio::io::Interest;
use tokio::net::TcpStream;

/// Receives bytes once; returns their number, 0 at the end.
pub(super) fn poll_read(
    stream: &TcpStream,
    buffer: &mut [u8],
    context: &mut Context<'_>,
) -> Poll<io::Result<usize>> {
    loop {
        ready!(stream.poll_read_ready(context))?;
        let mut received = 0;
        let read = stream.try_io(Interest::READABLE, || {
            received = (&*SockRef::from(stream)).read(buffer)?;
            // A partial read has emptied the socket: the next one has to wait for an event.
            let is_partial = (1..buffer.len()).contains(&received);
            if is_partial { Err(ErrorKind::WouldBlock.into()) } else { Ok(()) }
        });
        match read {
            Err(error) if error.kind() != ErrorKind::WouldBlock => return Poll::Ready(Err(error)),
            Err(_) if received == 0 => {}
            _ => return Poll::Ready(Ok(received)),
        }
    }
}

/// Sends bytes once; returns the number of those that the receiver has taken.
pub(super) fn poll_write(
    stream: &TcpStream,
    bytes: &[u8],
    context: &mut Context<'_>,
) -> Poll<io::Result<usize>> {
    loop {
        ready!(stream.poll_write_ready(context))?;
        let mut sent = 0;
        let written = stream.try_io(Interest::WRITABLE, || {
            sent = (&*SockRef::from(stream)).write(bytes)?;
            // A partial write has filled the socket.
            if sent < bytes.len() { Err(ErrorKind::WouldBlock.into()) } else { Ok(()) }
        });
        match written {
            Err(error) if error.kind() != ErrorKind::WouldBlock => return Poll::Ready(Err(error)),
            Err(_) if sent == 0 => {}
            _ => return Poll::Ready(Ok(sent)),
        }
    }
}

/// Returns two ends of a connection: one of this runtime, and one for plain calls.
#[cfg(test)]
pub(super) fn pair() -> (TcpStream, std::net::TcpStream) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let far = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (near, _) = listener.accept().unwrap();
    near.set_nonblocking(true).unwrap();
    (TcpStream::from_std(near).unwrap(), far)
}
