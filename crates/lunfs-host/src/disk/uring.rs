//! `UringDisk`: the face of the three threads towards the core.

use std::io;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread;

use lunfs_core::env::{Answer, Capabilities, Compared, Disk, Instant, IoError};
use tokio::sync::oneshot;

use super::caw::{self, Exchange};
use super::driver::{Bell, Command, Driver};
use super::source::{Access, Source};
use super::unmap;
use crate::error::{HostError, Result};

/// An image file or block device as the core's disk.
///
/// Its threads end when it and all its answers are dropped; what is in flight then still completes.
pub struct UringDisk {
    source: Arc<Source>,
    lines: Rc<Lines>,
}

struct Lines {
    commands: Option<Sender<Command>>,
    bell: Arc<Bell>,
    exchanges: Sender<caw::Request>,
    unmaps: Sender<unmap::Request>,
}

impl UringDisk {
    /// Opens the image file or block device at `path`.
    pub fn open(path: &Path, access: Access) -> Result<UringDisk> {
        UringDisk::start(Arc::new(Source::open(path, access)?))
    }

    /// Starts the threads on an open source.
    pub fn start(source: Arc<Source>) -> Result<UringDisk> {
        let name = source.path().display().to_string();
        let failed =
            |e: io::Error| HostError::io(format!("cannot start the disk threads of {name}"), e);
        let (commands, bell) = start_driver(&source).map_err(failed)?;
        let (exchanges, queue) = channel();
        let shared = Arc::clone(&source);
        spawn("lunfs-caw", move || caw::serve(&shared, &queue)).map_err(failed)?;
        let (unmaps, queue) = channel();
        let shared = Arc::clone(&source);
        spawn("lunfs-unmap", move || unmap::serve(&shared, &queue)).map_err(failed)?;
        let lines = Lines { commands: Some(commands), bell, exchanges, unmaps };
        Ok(UringDisk { source, lines: Rc::new(lines) })
    }

    /// The source beneath, for the fence: its marks must be on the description that carries the
    /// I/O.
    pub fn source(&self) -> Arc<Source> {
        Arc::clone(&self.source)
    }

    /// Sends a request when the answer is first awaited, then waits for it.
    fn ask<T: 'static>(
        &self,
        at: u64,
        len: u64,
        send: impl FnOnce(&Lines, oneshot::Sender<Result<T, IoError>>) + 'static,
    ) -> Answer<Result<T, IoError>> {
        let Capabilities { logical_block, size } = self.source.capabilities();
        let block = u64::from(logical_block);
        assert!(
            at.is_multiple_of(block) && len.is_multiple_of(block),
            "{at}+{len} is not in blocks"
        );
        if len > size || at > size - len {
            // A corrupt address, perhaps; direct I/O there would make an image grow.
            let why = format!("{len} bytes at {at} end behind the disk of {size} bytes");
            return Box::pin(std::future::ready(Err(IoError::Failed(why))));
        }
        let lines = Rc::clone(&self.lines);
        Box::pin(async move {
            let (answer, answered) = oneshot::channel();
            send(&lines, answer);
            answered.await.unwrap_or_else(|_| Err(IoError::InDoubt("the disk thread ended".into())))
        })
    }
}

fn start_driver(source: &Arc<Source>) -> io::Result<(Sender<Command>, Arc<Bell>)> {
    let bell = Arc::new(Bell::new()?);
    let (commands, queue) = channel();
    let (started, outcome) = channel();
    let (source, shared) = (Arc::clone(source), Arc::clone(&bell));
    spawn("lunfs-disk", move || match Driver::new(source, shared, queue) {
        Ok(driver) => {
            // The opener waits for this.
            drop(started.send(Ok(())));
            driver.run();
        }
        Err(e) => drop(started.send(Err(e))),
    })?;
    outcome.recv().map_err(|_| io::Error::other("the disk thread ended at once"))??;
    Ok((commands, bell))
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> io::Result<()> {
    thread::Builder::new().name(name.to_owned()).spawn(body).map(drop)
}

impl Lines {
    fn command(&self, command: Command) {
        let line = self.commands.as_ref().expect("open until dropped");
        // A driver that is gone drops the answer's other end, which the asker notices.
        drop(line.send(command));
        self.bell.ring();
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        // The driver must find the channel closed when it wakes.
        self.commands = None;
        self.bell.ring();
    }
}

impl Disk for UringDisk {
    fn capabilities(&self) -> Capabilities {
        self.source.capabilities()
    }

    fn read(&self, at: u64, len: usize) -> Answer<Result<Vec<u8>, IoError>> {
        self.ask(at, len as u64, move |lines, answer| {
            lines.command(Command::Read { at, len, answer });
        })
    }

    fn write(
        &self,
        at: u64,
        data: Vec<u8>,
        fua: bool,
        until: Instant,
    ) -> Answer<Result<(), IoError>> {
        self.ask(at, data.len() as u64, move |lines, answer| {
            lines.command(Command::Write { at, data, fua, until, answer });
        })
    }

    fn flush(&self) -> Answer<Result<(), IoError>> {
        self.ask(0, 0, |lines, answer| lines.command(Command::Flush { answer }))
    }

    fn compare_and_write(
        &self,
        at: u64,
        expect: Vec<u8>,
        new: Vec<u8>,
        until: Instant,
    ) -> Answer<Result<Compared, IoError>> {
        let block = self.source.capabilities().logical_block as usize;
        assert!(expect.len() == block && new.len() == block, "compare-and-write takes one block");
        self.ask(at, block as u64, move |lines, answer| {
            let exchange = Exchange { at, expect, new, until };
            // A thread that is gone drops the answer's other end, which the asker notices.
            drop(lines.exchanges.send(caw::Request { exchange, answer }));
        })
    }

    fn unmap(&self, at: u64, len: u64, until: Instant) -> Answer<Result<(), IoError>> {
        self.ask(at, len, move |lines, answer| {
            drop(lines.unmaps.send(unmap::Request { at, len, until, answer }));
        })
    }
}

#[cfg(test)]
#[path = "uring_tests.rs"]
mod tests;
