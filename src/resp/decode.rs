//! Requests as they come in: `*N`, then N times `$LENGTH` and that many bytes,
//! or one line of words, as people type it.
//!
//! Invariant: what was parsed is never parsed again, memory grows with what has
//! arrived and not with what was announced, all of a request beyond its first
//! [`FREE`] bytes was admitted to the node's budget, and no request is more than one
//! list deep.
//!
//! Not `redis_protocol`'s decoder, with which replies are encoded: it aborts the
//! process on nested arrays (100,000 times `*1`, 400 KB, overflow its stack),
//! starts over with each read of an array of many elements, takes a value only
//! from one buffer that holds all of it, and knows no inline commands.

use bytes::{Buf, Bytes, BytesMut};

use crate::cache::{Arriving, Blob, BlobError, BlobWriter, Charge};

/// Arguments from here on become blobs while they arrive.
const BLOB_FROM: usize = 32 << 10;
/// Bytes of a request's short arguments that need no admission.
const FREE: usize = 64 << 10;
/// Bytes of further short arguments that one admission is for.
const STEP: usize = 256 << 10;
const MOST_ARGUMENTS: usize = 1 << 16;
/// Longest line: an inline command.
const LONGEST_LINE: usize = 64 << 10;
/// Longest line of digits.
const LONGEST_LENGTH: usize = 32;
/// What a client may send that has not said who it is: AUTH and HELLO have less. More
/// arguments end the connection, as Redis does it; longer ones are skipped.
const MOST_UNKNOWN: usize = 16;
const LONGEST_UNKNOWN: usize = 16 << 10;
/// Longer values are not even skipped.
const MOST_SKIPPED: usize = 4 << 30;

/// One argument of a request.
#[derive(Debug)]
pub(super) enum Arg {
    /// A short one.
    Bytes(Bytes),
    /// A long one.
    Blob(Blob),
    /// One that was skipped: longer than the limit, or no memory was left for it.
    Skipped(usize),
}

/// Arguments, the command's name among them: one at least.
#[derive(Debug, Default)]
pub(super) struct Request {
    pub(super) args: Vec<Arg>,
    /// What they may take, until the request is done with.
    pub(super) admitted: Admitted,
}

/// Memory that was set aside for a request; a blob holds its own charge.
#[derive(Debug, Default)]
pub(super) struct Admitted {
    places: Vec<Arriving>,
    charges: Vec<Charge>,
}

impl Admitted {
    /// Keeps one admission more.
    pub(super) fn add(&mut self, charge: Charge, place: Arriving) {
        self.places.push(place);
        self.charges.push(charge);
    }

    /// Whether nothing was set aside.
    pub(super) fn is_empty(&self) -> bool {
        self.places.is_empty()
    }
}

/// What the connection does next.
#[derive(Debug)]
pub(super) enum Step {
    /// Answer this.
    Request(Request),
    /// Read more into [`Decoder::space`].
    Read,
    /// Ask for the admission of so many bytes, and tell with [`Decoder::admit`].
    Admit(usize),
}

/// Why a connection cannot go on: told to the client, in Redis's words.
#[derive(Debug, thiserror::Error)]
pub(super) enum DecodeError {
    #[error("Protocol error: {0}")]
    Protocol(String),
    #[error(transparent)]
    Memory(#[from] BlobError),
}

/// The requests of one connection.
pub(super) struct Decoder {
    buffer: BytesMut,
    longest: usize,
    /// Whether it is known whose requests these are.
    known: bool,
    /// The request that is being read, and the number of its missing arguments.
    partial: Request,
    missing: usize,
    /// Bytes of its short arguments so far, and of what was admitted for them.
    short: usize,
    admitted: usize,
    body: Body,
}

/// How the next argument comes in.
enum Body {
    /// Its length is not known yet.
    Unknown,
    /// It waits for its admission.
    Announced(usize),
    Short(usize),
    Long(Box<BlobWriter>),
    Skip {
        size: usize,
        left: usize,
    },
    /// Done but for the line end behind it.
    End(Option<Arg>),
}

impl Decoder {
    /// Takes arguments of at most `longest` bytes.
    pub(super) fn new(longest: usize) -> Self {
        Self {
            buffer: BytesMut::new(),
            longest,
            known: true,
            partial: Request::default(),
            missing: 0,
            short: 0,
            admitted: 0,
            body: Body::Unknown,
        }
    }

    /// Whether the next requests are of a client that said who it is: nobody else has the
    /// node's memory set aside.
    pub(super) fn trust(&mut self, known: bool) {
        self.known = known;
    }

    /// Where the next bytes go.
    pub(super) fn space(&mut self) -> &mut BytesMut {
        const SHORT: usize = 16 << 10;
        const LONG: usize = 256 << 10;
        let wanted = match &self.body {
            Body::Long(_) | Body::Skip { .. } => LONG,
            Body::Short(size) => (size + 2).saturating_sub(self.buffer.len()).max(SHORT),
            _ => SHORT,
        };
        if self.buffer.is_empty() && self.buffer.capacity() > 2 * LONG {
            self.buffer = BytesMut::new();
        }
        self.buffer.reserve(wanted);
        &mut self.buffer
    }

    /// Whether bytes have come that belong to a request not returned yet.
    pub(super) fn has_more(&self) -> bool {
        self.missing > 0 || !self.buffer.is_empty()
    }

    /// The answer to [`Step::Admit`]; an argument that is not admitted is skipped.
    pub(super) fn admit(
        &mut self,
        admitted: Option<(Charge, Arriving)>,
    ) -> Result<(), DecodeError> {
        let Body::Announced(size) = self.body else { return Ok(()) };
        let Some((charge, place)) = admitted else {
            self.body = Body::Skip { size, left: size };
            return Ok(());
        };
        self.partial.admitted.places.push(place);
        self.body = if size < BLOB_FROM {
            self.partial.admitted.charges.push(charge);
            self.admitted += STEP;
            Body::Short(size)
        } else {
            Body::Long(Box::new(BlobWriter::charged(charge, size as u64)?))
        };
        Ok(())
    }

    /// The next thing to do.
    pub(super) fn next(&mut self) -> Result<Step, DecodeError> {
        loop {
            if self.missing == 0 {
                match self.begin()? {
                    Some(step) => return Ok(step),
                    None => continue,
                }
            }
            if let Some(step) = self.argument()? {
                return Ok(step);
            }
            if self.missing == 0 {
                (self.short, self.admitted) = (0, 0);
                return Ok(Step::Request(std::mem::take(&mut self.partial)));
            }
        }
    }

    /// Reads the head of a request; `None`: it has arguments, or was empty.
    fn begin(&mut self) -> Result<Option<Step>, DecodeError> {
        match self.buffer.first() {
            None => Ok(Some(Step::Read)),
            Some(b'*') => {
                let Some(count) = self.length("invalid multibulk length")? else {
                    return Ok(Some(Step::Read));
                };
                // Redis skips an empty list as well.
                let count = count.max(0) as usize;
                if count > MOST_ARGUMENTS {
                    return Err(protocol("invalid multibulk length"));
                }
                if count > MOST_UNKNOWN && !self.known {
                    return Err(protocol("unauthenticated multibulk length"));
                }
                self.missing = count;
                Ok(None)
            }
            Some(_) => {
                let Some(line) = self.line(LONGEST_LINE, "too big inline request")? else {
                    return Ok(Some(Step::Read));
                };
                let words = line.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
                let args: Vec<_> = words.map(|word| Arg::Bytes(line.slice_ref(word))).collect();
                match args.first() {
                    // A browser that was lured here; what follows is its user's.
                    Some(Arg::Bytes(word)) if matches!(&word[..], b"POST" | b"Host:") => {
                        Err(protocol("this is no HTTP server"))
                    }
                    Some(_) => {
                        Ok(Some(Step::Request(Request { args, admitted: Admitted::default() })))
                    }
                    None => Ok(None),
                }
            }
        }
    }

    /// Goes on with the current argument; `None`: it is complete.
    fn argument(&mut self) -> Result<Option<Step>, DecodeError> {
        loop {
            match &mut self.body {
                Body::Unknown => {
                    match self.buffer.first() {
                        None => return Ok(Some(Step::Read)),
                        Some(b'$') => {}
                        Some(other) => {
                            let other = char::from(*other).escape_default();
                            return Err(protocol(format!("expected '$', got '{other}'")));
                        }
                    }
                    let Some(size) = self.length("invalid bulk length")? else {
                        return Ok(Some(Step::Read));
                    };
                    let size = usize::try_from(size).ok().filter(|size| *size <= MOST_SKIPPED);
                    let size = size.ok_or_else(|| protocol("invalid bulk length"))?;
                    let longest = match self.known {
                        true => self.longest,
                        false => self.longest.min(LONGEST_UNKNOWN),
                    };
                    self.body = if size > longest {
                        Body::Skip { size, left: size }
                    } else if size >= BLOB_FROM {
                        Body::Announced(size)
                    } else {
                        self.short += size;
                        match self.short > FREE + self.admitted {
                            true if !self.known => Body::Skip { size, left: size },
                            true => Body::Announced(size),
                            false => Body::Short(size),
                        }
                    };
                }
                Body::Announced(size) => {
                    let wanted = if *size < BLOB_FROM { STEP } else { *size };
                    return Ok(Some(Step::Admit(wanted)));
                }
                Body::Short(size) => {
                    if self.buffer.len() < *size {
                        return Ok(Some(Step::Read));
                    }
                    let bytes = self.buffer.split_to(*size).freeze();
                    self.body = Body::End(Some(Arg::Bytes(bytes)));
                }
                Body::Long(writer) => {
                    let left = (writer.size() - writer.filled()) as usize;
                    let now = left.min(self.buffer.len());
                    writer.write(&self.buffer[..now])?;
                    self.buffer.advance(now);
                    if now < left {
                        return Ok(Some(Step::Read));
                    }
                    if let Body::Long(writer) = std::mem::replace(&mut self.body, Body::Unknown) {
                        self.body = Body::End(Some(Arg::Blob(writer.finish()?)));
                    }
                }
                Body::Skip { size, left } => {
                    let now = (*left).min(self.buffer.len());
                    self.buffer.advance(now);
                    *left -= now;
                    if *left > 0 {
                        return Ok(Some(Step::Read));
                    }
                    self.body = Body::End(Some(Arg::Skipped(*size)));
                }
                Body::End(arg) => {
                    if self.buffer.len() < 2 {
                        return Ok(Some(Step::Read));
                    }
                    if self.buffer[..2] != *b"\r\n" {
                        return Err(protocol("expected a line end behind an argument"));
                    }
                    self.partial.args.extend(arg.take());
                    self.buffer.advance(2);
                    self.body = Body::Unknown;
                    self.missing -= 1;
                    return Ok(None);
                }
            }
        }
    }

    /// The number in a line whose first byte is its kind.
    fn length(&mut self, wrong: &'static str) -> Result<Option<i64>, DecodeError> {
        let Some(line) = self.line(LONGEST_LENGTH, wrong)? else { return Ok(None) };
        let number = std::str::from_utf8(&line[1..]).ok().and_then(|text| text.parse().ok());
        number.map(Some).ok_or_else(|| protocol(wrong))
    }

    /// Takes a line, without its end, off the buffer.
    fn line(&mut self, longest: usize, wrong: &'static str) -> Result<Option<Bytes>, DecodeError> {
        let within = &self.buffer[..self.buffer.len().min(longest)];
        match within.iter().position(|byte| *byte == b'\n') {
            Some(end) => {
                let mut line = self.buffer.split_to(end + 1).freeze();
                line.truncate(end);
                if line.last() == Some(&b'\r') {
                    line.truncate(end - 1);
                }
                Ok(Some(line))
            }
            None if within.len() == longest => Err(protocol(wrong)),
            None => Ok(None),
        }
    }
}

fn protocol(why: impl Into<String>) -> DecodeError {
    DecodeError::Protocol(why.into())
}

#[cfg(test)]
#[path = "decode_tests.rs"]
mod tests;
