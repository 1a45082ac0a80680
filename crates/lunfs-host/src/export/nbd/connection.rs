//! One connection: its bytes in, its requests, its answers out, and their bounds.
//!
//! ```text
//!  hello -> options -> requests ---------> one task each -----> answers -> socket
//!                         |  waits while                |          |
//!                         |  the window is full         |          |  one writer
//!                         +------ a turn in the window -+----------+  gives the turn back
//! ```
//!
//! Invariants:
//! - A request has a turn and room for its bytes before they are read, and until its answer is
//!   sent: a client that asks and does not listen keeps no more here than the window.
//! - A request that began ends, whatever becomes of the connection; `serve` ends after the last.
//! - What was read is sent as it is, however late: it was on the volume at a moment between the
//!   question and the answer, which is all that a reader may rely on.

use std::io::{self, ErrorKind, IoSlice};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task;

use super::options::{self, Agreed, OPTION_HEADER, Offer, PAYLOAD_MAX, Step};
use super::reply::encode;
use super::request::{REQUEST, Refusal, Request};
use super::run::run;
use crate::export::file::{ExportedFile, pieces};

/// Requests under way.
const REQUESTS_MAX: u32 = 64;
/// Bytes that they may keep: two of the longest, and a program that reads ahead in any other way.
const BYTES_MAX: u32 = 2 * PAYLOAD_MAX;
/// How long a client may take until it sends requests.
const HANDSHAKE_MAX: Duration = Duration::from_secs(60);
/// Options of one handshake.
const OPTIONS_MAX: usize = 256;
/// Answers sent at once.
const ANSWERS_MAX: usize = 16;
/// Read at once: some hundred requests, or one with a small payload.
const BUFFER: usize = 16 << 10;

/// Serves a client until it leaves or `ended`; returns once nothing that it asked for is under way.
pub async fn serve(
    stream: UnixStream,
    file: Rc<ExportedFile>,
    ended: impl Future<Output = ()>,
) -> io::Result<()> {
    let window = Window::new();
    let outcome = tokio::select! {
        biased;
        () = ended => Ok(()),
        outcome = talk(stream, file, &window) => outcome,
    };
    window.drained().await;
    outcome
}

/// What the requests of a connection may use.
struct Window {
    turns: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
}

/// A place in the window; given back when dropped.
struct Turn {
    _turn: OwnedSemaphorePermit,
    _room: OwnedSemaphorePermit,
}

impl Window {
    fn new() -> Window {
        let of = |count| Arc::new(Semaphore::new(count as usize));
        Window { turns: of(REQUESTS_MAX), bytes: of(BYTES_MAX) }
    }

    async fn turn(&self, room: u32) -> Turn {
        let closed = "nobody closes the window";
        let turn = Arc::clone(&self.turns).acquire_owned().await.expect(closed);
        let room = Arc::clone(&self.bytes).acquire_many_owned(room).await.expect(closed);
        Turn { _turn: turn, _room: room }
    }

    async fn drained(&self) {
        drop(self.turns.acquire_many(REQUESTS_MAX).await);
    }
}

/// An answer with the place that it keeps until it is sent.
struct Answer {
    buffers: Vec<Vec<u8>>,
    _turn: Turn,
}

/// What a connection is about, once both sides agreed.
struct Talk {
    file: Rc<ExportedFile>,
    size: u64,
    agreed: Agreed,
}

async fn talk(stream: UnixStream, file: Rc<ExportedFile>, window: &Window) -> io::Result<()> {
    let (reader, mut writer) = stream.into_split();
    let mut reader = BufReader::with_capacity(BUFFER, reader);
    let begin = handshake(&mut reader, &mut writer, file);
    let Some(talk) = tokio::time::timeout(HANDSHAKE_MAX, begin).await?? else { return Ok(()) };
    let (answers, queue) = mpsc::unbounded_channel();
    // The first error ends both: who cannot be answered, or cannot be understood, is left.
    tokio::try_join!(begin_requests(reader, Rc::new(talk), window, answers), send(writer, queue))?;
    Ok(())
}

/// `None`: the client left, or asked for what is not here.
async fn handshake(
    reader: &mut BufReader<OwnedReadHalf>,
    writer: &mut OwnedWriteHalf,
    file: Rc<ExportedFile>,
) -> io::Result<Option<Talk>> {
    writer.write_all(&options::hello()).await?;
    let mut flags = [0; 4];
    reader.read_exact(&mut flags).await?;
    let mut agreed = options::client_flags(flags).ok_or_else(|| senseless("client flags"))?;
    for _ in 0..OPTIONS_MAX {
        let mut header = [0; OPTION_HEADER];
        reader.read_exact(&mut header).await?;
        let header = options::option_header(header).ok_or_else(|| senseless("an option"))?;
        let (option, len) = header;
        let mut data = Vec::new();
        (&mut *reader).take(len.into()).read_to_end(&mut data).await?;
        // Of this moment: a file that has grown is larger for whoever comes next.
        let size = file.size().await.map_err(io::Error::other)?;
        let offer = Offer { name: &file.name, size, read_only: file.read_only };
        match options::answer(option, &data, &offer, &mut agreed) {
            Step::Say(bytes) => writer.write_all(&bytes).await?,
            Step::Begin(bytes) => {
                writer.write_all(&bytes).await?;
                return Ok(Some(Talk { file, size, agreed }));
            }
            Step::End(bytes) => {
                writer.write_all(&bytes).await?;
                return Ok(None);
            }
        }
    }
    Err(senseless("a handshake without an end"))
}

fn senseless(what: &str) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, format!("{what} that makes no sense"))
}

/// Begins requests until the client leaves.
async fn begin_requests(
    mut reader: BufReader<OwnedReadHalf>,
    talk: Rc<Talk>,
    window: &Window,
    answers: mpsc::UnboundedSender<Answer>,
) -> io::Result<()> {
    loop {
        let mut bytes = [0; REQUEST];
        reader.read_exact(&mut bytes).await?;
        let request = Request::decode(bytes).ok_or_else(|| senseless("a request"))?;
        if request.is_disconnect() {
            return Ok(());
        }
        let len = request.payload().ok_or_else(|| senseless("a payload"))?;
        let turn = window.turn(request.room()).await;
        let payload = payload(&mut reader, request.at, len).await?;
        let (talk, answers) = (Rc::clone(&talk), answers.clone());
        task::spawn_local(async move {
            let outcome = talk.outcome(&request, payload).await;
            let buffers = encode(request.cookie, talk.agreed.structured, outcome);
            // Nobody may be there any more to hear it.
            drop(answers.send(Answer { buffers, _turn: turn }));
        });
    }
}

impl Talk {
    async fn outcome(
        &self,
        request: &Request,
        payload: Vec<Vec<u8>>,
    ) -> Result<super::reply::Outcome, Refusal> {
        let action = request.judge(&self.agreed, self.size, self.file.read_only)?;
        run(&self.file, action, payload).await
    }
}

/// The payload in the pieces in which it is written, so that it is copied no more.
async fn payload(
    reader: &mut BufReader<OwnedReadHalf>,
    at: u64,
    len: u32,
) -> io::Result<Vec<Vec<u8>>> {
    let mut payload = Vec::new();
    for (_, len) in pieces(at, len) {
        let mut piece = Vec::with_capacity(len);
        let mut part = (&mut *reader).take(len as u64);
        while piece.len() < len {
            if part.read_buf(&mut piece).await? == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
        }
        payload.push(piece);
    }
    Ok(payload)
}

/// Sends answers one behind the other, as they come, those that wait together; ends with the last
/// request.
async fn send(
    mut writer: OwnedWriteHalf,
    mut queue: mpsc::UnboundedReceiver<Answer>,
) -> io::Result<()> {
    let mut ready = Vec::new();
    while queue.recv_many(&mut ready, ANSWERS_MAX).await > 0 {
        write_all(&mut writer, ready.iter().flat_map(|answer| &answer.buffers)).await?;
        ready.clear();
    }
    writer.shutdown().await
}

async fn write_all(
    writer: &mut (impl AsyncWrite + Unpin),
    buffers: impl Iterator<Item = &Vec<u8>>,
) -> io::Result<()> {
    let mut slices: Vec<IoSlice<'_>> = buffers.map(|buffer| IoSlice::new(buffer)).collect();
    let mut rest = &mut slices[..];
    while !rest.is_empty() {
        match writer.write_vectored(rest).await? {
            0 => return Err(ErrorKind::WriteZero.into()),
            written => IoSlice::advance_slices(&mut rest, written),
        }
    }
    Ok(())
}
