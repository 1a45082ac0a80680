//! NBD: an exported file as a network block device, over a socket of this machine.
//!
//! ```text
//!  options    bytes of the handshake -> what to answer        pure
//!  request    bytes of a request -> what to do, or a refusal   pure
//!  reply      what came of it -> bytes                         pure
//!  run        what to do -> the file
//!  connection reads, begins requests, writes answers; the bounds
//! ```
//!
//! Fixed newstyle, one export for each socket, structured replies and `base:allocation` for who
//! asks. No TLS: the socket's mode says who may connect.
//!
//! - Several connections may be used as one (`CAN_MULTI_CONN`): what was answered on one is in the
//!   volume's state, which all of them share, and a flush is an `fsync` of the file, whoever wrote.
//! - Answers come in the order in which requests end.
//! - No bytes make it panic, and none make it keep more than the window of their connection. Who
//!   sends what makes no sense loses the connection, and nobody else notices.
//!
//! The protocol: <https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md>

mod connection;
mod options;
mod reply;
mod request;
mod run;
mod words;

pub use connection::serve;
