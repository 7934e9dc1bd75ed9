//! The channel through which a running server passes its sockets to its successor.
//!
//! A message is one line of JSON. Its open descriptors travel beside its first byte (`SCM_RIGHTS`,
//! unix(7)), so they have all arrived once the line is complete. Every wait has a deadline.
//!
//! Imports no other module.

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::time::timeout;

/// The version of the protocol; a server refuses a successor with another one.
///
/// New fields do not change it: a reader ignores fields that it does not know.
pub const VERSION: u32 = 1;

/// Maximum descriptors of one message; the kernel allows 253 (`SCM_MAX_FD`).
pub const MAX_DESCRIPTORS: usize = 250;

/// Maximum length of a message, in bytes; 250 sockets with IPv6 addresses take some 20,000.
const MAX_LINE_BYTES: usize = 64 * 1024;

/// Size of a read, in bytes.
const READ_BYTES: usize = 4096;

/// A step of the take-over.
///
/// The running server closes the channel when it has ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "kebab-case")]
pub enum Step {
    /// The successor asks for the sockets.
    Hello {
        /// The [`VERSION`] of the sender.
        version: u32,
        /// The process ID of the sender.
        process: u32,
    },
    /// The running server passes sockets and locks, in the order of the message's descriptors.
    Passed {
        /// What the descriptors are.
        descriptors: Vec<PassedDescriptor>,
        /// Whether another message of this step follows.
        more: bool,
        /// Whether the running server has the data of every registry.
        complete: bool,
    },
    /// The running server passes nothing, and keeps serving.
    Refused {
        /// The reason, as a sentence for people.
        reason: String,
    },
    /// The successor answers queries, and the running server must drain.
    Serving,
}

/// What a passed descriptor is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PassedDescriptor {
    /// The purpose, such as `dns` or `lock`.
    pub name: String,
    /// The local address of a socket, for people.
    pub address: String,
}

/// Error of the channel; the take-over ends with it.
#[derive(Debug, thiserror::Error)]
pub enum HandoverError {
    /// The other process has ended or closed the channel.
    #[error("the other process ended before the take-over was complete")]
    Closed,
    /// A deadline has passed.
    #[error("the other process did not respond within {}", humantime::format_duration(*.0))]
    TimedOut(Duration),
    /// Some descriptors of a message were lost.
    #[error(
        "not all sockets could be passed: the limit on open files (ulimit -n) of this process is \
         too low"
    )]
    Truncated,
    /// The message exceeds 64 KiB or [`MAX_DESCRIPTORS`].
    #[error("a message of the take-over is too long")]
    TooLong,
    /// The message is not valid.
    #[error("cannot understand the other process, which may be another version of svcdns: {0}")]
    Invalid(#[from] serde_json::Error),
    /// The system reports an error.
    #[error("cannot reach the other process: {0}")]
    Io(#[from] io::Error),
}

/// A message on the wire.
#[derive(Debug, Serialize, Deserialize)]
struct Frame<T> {
    /// Number of descriptors that belong to the message.
    count: usize,
    message: T,
}

/// One end of the channel.
#[derive(Debug)]
pub struct HandoverChannel {
    stream: UnixStream,
    /// Bytes received after the last complete message.
    received: Vec<u8>,
    /// Descriptors received after those of the last complete message.
    descriptors: VecDeque<OwnedFd>,
}

impl HandoverChannel {
    /// Creates the end of a channel on a connected socket.
    pub fn new(stream: UnixStream) -> Self {
        Self { stream, received: Vec::new(), descriptors: VecDeque::new() }
    }

    /// Returns the user ID of the other process if that user may not take part.
    ///
    /// Only root and the own user may. The system notes the user when the other process connects,
    /// or begins to listen.
    ///
    /// # Errors
    /// If the system does not know the user.
    pub fn stranger(&self) -> io::Result<Option<u32>> {
        let user = self.stream.peer_cred()?.uid();
        let is_allowed = [0, rustix::process::geteuid().as_raw()].contains(&user);
        Ok((!is_allowed).then_some(user))
    }

    /// Sends a message with its descriptors.
    ///
    /// # Errors
    /// If the message is too long, or was not taken within this time.
    pub async fn send<T: Serialize>(
        &mut self,
        message: &T,
        descriptors: &[BorrowedFd<'_>],
        within: Duration,
    ) -> Result<(), HandoverError> {
        let mut line = serde_json::to_vec(&Frame { count: descriptors.len(), message })?;
        line.push(b'\n');
        if line.len() > MAX_LINE_BYTES || descriptors.len() > MAX_DESCRIPTORS {
            return Err(HandoverError::TooLong);
        }
        let send = self.send_line(&line, descriptors);
        timeout(within, send).await.map_err(|_| HandoverError::TimedOut(within))?
    }

    /// Receives a message with its descriptors, which are closed in child processes.
    ///
    /// # Errors
    /// If the message is not complete within this time, or is not valid.
    pub async fn receive<T: DeserializeOwned>(
        &mut self,
        within: Duration,
    ) -> Result<(T, Vec<OwnedFd>), HandoverError> {
        let line = timeout(within, self.receive_line());
        let line = line.await.map_err(|_| HandoverError::TimedOut(within))??;
        let Frame { count, message } = serde_json::from_slice(&line)?;
        if count > self.descriptors.len() {
            return Err(HandoverError::Truncated);
        }
        Ok((message, self.descriptors.drain(..count).collect()))
    }

    async fn send_line(
        &self,
        line: &[u8],
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(), HandoverError> {
        let mut sent = 0;
        while sent < line.len() {
            let send = || {
                let mut space =
                    [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
                let mut ancillary = SendAncillaryBuffer::new(&mut space);
                if sent == 0
                    && !descriptors.is_empty()
                    && !ancillary.push(SendAncillaryMessage::ScmRights(descriptors))
                {
                    return Err(io::Error::from(io::ErrorKind::OutOfMemory));
                }
                let rest = [IoSlice::new(&line[sent..])];
                Ok(sendmsg(&self.stream, &rest, &mut ancillary, SendFlags::NOSIGNAL)?)
            };
            match self.stream.async_io(Interest::WRITABLE, send).await {
                Ok(count) => sent += count,
                Err(error) if is_closed(&error) => return Err(HandoverError::Closed),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    async fn receive_line(&mut self) -> Result<Vec<u8>, HandoverError> {
        let Self { stream, received, descriptors } = self;
        let mut searched = 0;
        loop {
            if let Some(end) = received[searched..].iter().position(|&byte| byte == b'\n') {
                let rest = received.split_off(searched + end + 1);
                return Ok(std::mem::replace(received, rest));
            }
            searched = received.len();
            if searched > MAX_LINE_BYTES || descriptors.len() > 2 * MAX_DESCRIPTORS {
                return Err(HandoverError::TooLong);
            }
            let mut is_truncated = false;
            let receive = || {
                let mut bytes = [0; READ_BYTES];
                let mut space =
                    [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
                let mut ancillary = RecvAncillaryBuffer::new(&mut space);
                let mut buffers = [IoSliceMut::new(&mut bytes)];
                let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
                let message = recvmsg(&*stream, &mut buffers, &mut ancillary, flags)?;
                for item in ancillary.drain() {
                    if let RecvAncillaryMessage::ScmRights(passed) = item {
                        descriptors.extend(passed);
                    }
                }
                is_truncated = message.flags.contains(ReturnFlags::CTRUNC);
                received.extend_from_slice(&bytes[..message.bytes]);
                Ok(message.bytes)
            };
            match stream.async_io(Interest::READABLE, receive).await {
                _ if is_truncated => return Err(HandoverError::Truncated),
                Ok(0) => return Err(HandoverError::Closed),
                Ok(_) => {}
                Err(error) if is_closed(&error) => return Err(HandoverError::Closed),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// Returns whether the error means that the other process has closed the channel.
fn is_closed(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Write};
    use std::net::UdpSocket;
    use std::os::fd::AsFd;

    use tokio::io::AsyncWriteExt;

    use super::*;

    /// A generous deadline for a step that takes no time.
    const SOON: Duration = Duration::from_secs(60);

    fn channels() -> (HandoverChannel, HandoverChannel) {
        let (one, other) = UnixStream::pair().unwrap();
        (HandoverChannel::new(one), HandoverChannel::new(other))
    }

    fn passed(count: usize) -> Step {
        let name = "dns".to_owned();
        let one = PassedDescriptor { name, address: "[2001:db8::ffff:1:2:3]:65535".to_owned() };
        Step::Passed { descriptors: vec![one; count], more: false, complete: true }
    }

    #[tokio::test]
    async fn descriptors_arrive_with_their_message() {
        let (mut old, mut new) = channels();
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let (mut reader, mut writer) = io::pipe().unwrap();
        old.send(&passed(1), &[socket.as_fd()], SOON).await.unwrap();
        old.send(&Step::Serving, &[], SOON).await.unwrap();
        old.send(&passed(1), &[reader.as_fd()], SOON).await.unwrap();

        let (step, mut descriptors) = new.receive::<Step>(SOON).await.unwrap();
        assert_eq!((step, descriptors.len()), (passed(1), 1));
        let same = UdpSocket::from(descriptors.remove(0));
        assert_eq!(same.local_addr().unwrap(), socket.local_addr().unwrap());
        let flags = rustix::io::fcntl_getfd(&same).unwrap();
        assert!(flags.contains(rustix::io::FdFlags::CLOEXEC), "child processes do not get it");
        let (step, descriptors) = new.receive::<Step>(SOON).await.unwrap();
        assert_eq!((step, descriptors.len()), (Step::Serving, 0));
        let (_, mut descriptors) = new.receive::<Step>(SOON).await.unwrap();
        let mut same = File::from(descriptors.remove(0));
        writer.write_all(b"x").unwrap();
        drop(writer);
        let mut text = String::new();
        same.read_to_string(&mut text).unwrap();
        assert_eq!(text, "x");
        drop(same);
        assert_eq!(reader.read(&mut [0]).unwrap(), 0);
    }

    #[tokio::test]
    async fn the_longest_message_arrives_whole() {
        let (mut old, mut new) = channels();
        let file = File::open("/dev/null").unwrap();
        let descriptors = vec![file.as_fd(); MAX_DESCRIPTORS];
        let message = passed(MAX_DESCRIPTORS);
        let (sent, received) =
            tokio::join!(old.send(&message, &descriptors, SOON), new.receive::<Step>(SOON));
        sent.unwrap();
        let (step, passed) = received.unwrap();
        assert_eq!((step, passed.len()), (message, MAX_DESCRIPTORS));

        let descriptors = vec![file.as_fd(); MAX_DESCRIPTORS + 1];
        let error = old.send(&Step::Serving, &descriptors, SOON).await.unwrap_err();
        assert!(matches!(error, HandoverError::TooLong), "{error:?}");
        let reason = "x".repeat(MAX_LINE_BYTES);
        let error = old.send(&Step::Refused { reason }, &[], SOON).await.unwrap_err();
        assert!(matches!(error, HandoverError::TooLong), "{error:?}");
    }

    #[tokio::test]
    async fn a_missing_descriptor_is_an_error() {
        let (mut old, mut new) = channels();
        old.stream.write_all(b"{\"count\":1,\"message\":{\"step\":\"serving\"}}\n").await.unwrap();
        let error = new.receive::<Step>(SOON).await.unwrap_err();
        assert!(matches!(error, HandoverError::Truncated), "{error:?}");
    }

    #[tokio::test]
    async fn endless_and_unknown_messages_are_errors() {
        let (mut old, mut new) = channels();
        let endless = async { while old.stream.write_all(&[b'x'; READ_BYTES]).await.is_ok() {} };
        let receive = async {
            let error = new.receive::<Step>(SOON).await.unwrap_err();
            drop(new);
            error
        };
        let ((), error) = tokio::join!(endless, receive);
        assert!(matches!(error, HandoverError::TooLong), "{error:?}");

        let (mut old, mut new) = channels();
        old.stream.write_all(b"{\"count\":0,\"message\":{\"step\":\"fly\"}}\n").await.unwrap();
        let error = new.receive::<Step>(SOON).await.unwrap_err();
        assert!(error.to_string().contains("another version of svcdns"), "{error}");
    }

    #[tokio::test]
    async fn fields_of_later_versions_are_ignored() {
        let (mut old, mut new) = channels();
        let line = b"{\"count\":0,\"message\":{\"step\":\"hello\",\"version\":2,\"process\":7,\
                     \"mood\":1},\"more\":2}\n";
        old.stream.write_all(line).await.unwrap();
        let (step, _) = new.receive::<Step>(SOON).await.unwrap();
        assert_eq!(step, Step::Hello { version: 2, process: 7 });
    }

    #[tokio::test]
    async fn an_end_and_silence_are_errors() {
        let (old, mut new) = channels();
        let error = new.receive::<Step>(Duration::from_millis(5)).await.unwrap_err();
        assert_eq!(error.to_string(), "the other process did not respond within 5ms");
        drop(old);
        let error = new.receive::<Step>(SOON).await.unwrap_err();
        assert!(matches!(error, HandoverError::Closed), "{error:?}");
        let error = new.send(&Step::Serving, &[], SOON).await.unwrap_err();
        assert!(matches!(error, HandoverError::Closed), "{error:?}");
    }

    #[tokio::test]
    async fn the_own_user_is_no_stranger() {
        let (old, _new) = channels();
        assert_eq!(old.stranger().unwrap(), None);
    }
}
