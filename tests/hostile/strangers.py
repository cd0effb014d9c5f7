"""Clients that do not behave, on plain sockets, from an address of their own.

Each case is a coroutine that ends by itself and says what became of it; it leaves no connection.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

# Of loopback, and not the address of those who behave.
FROM = "127.0.0.2"
# The system queues few that nobody has accepted: so many at a time.
AT_ONCE = 100
# What a client says first at each door, said a byte a second.
FIRST = {
    "grpc": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(64),
    "http": b"GET /healthz HTTP/1.1\r\nHost: kiln\r\nX-A: " + b"a" * 64,
    "resp": b"*2\r\n$3\r\nGET\r\n$64\r\n" + b"a" * 64,
}
DECLARED = 512 << 20
PAIRS = 32_000
# An MSET ends within this: 60 s after its last byte it begins with no further pair.
MSET_ENDS = 180
# Of all pairs of MSETs, the least share that is to be stored, and of each MSET how many of those
# that were said stored are asked for; a cache may drop so many of all of these.
STORED, ASKED, MAY_BE_GONE = 0.01, 16, 0.1


class WrongError(Exception):
    """The node did not do what it is there for."""


@dataclass(frozen=True)
class Doors:
    """Addresses of a node."""

    grpc: str
    http: str
    resp: str

    def at(self, name: str) -> tuple[str, int]:
        """One of them."""
        host, port = getattr(self, name).rsplit(":", 1)
        return host, int(port)


Streams = list[tuple[asyncio.StreamReader, asyncio.StreamWriter]]


@contextlib.asynccontextmanager
async def connections(doors: Doors, name: str, count: int) -> AsyncIterator[Streams]:
    """As many of `count` as the node takes."""
    made: Streams = []
    try:
        for start in range(0, count, AT_ONCE):
            asked = [
                asyncio.wait_for(asyncio.open_connection(*doors.at(name), local_addr=(FROM, 0)), 10)
                for _ in range(min(AT_ONCE, count - start))
            ]
            answers = await asyncio.gather(*asked, return_exceptions=True)
            made += [pair for pair in answers if not isinstance(pair, BaseException)]
        yield made
    finally:
        for _, writer in made:
            writer.transport.abort()
        await asyncio.sleep(0)


def ended(streams: Streams) -> int:
    """How many the node ended."""
    return sum(reader.at_eof() or reader.exception() is not None for reader, _ in streams)


async def silent(doors: Doors, count: int, seconds: float) -> str:
    """Connect, and say nothing."""
    async with contextlib.AsyncExitStack() as stack:
        all_of: Streams = []
        for name in FIRST:
            share = -(-count // len(FIRST))
            all_of += await stack.enter_async_context(connections(doors, name, share))
        await asyncio.sleep(seconds)
        return f"{len(all_of)} connected, {ended(all_of)} ended by the node"


async def slow(doors: Doors, count: int, seconds: float) -> str:
    """Say a byte a second of what a client says first."""
    async with contextlib.AsyncExitStack() as stack:
        said = [
            (await stack.enter_async_context(connections(doors, name, -(-count // 3))), words)
            for name, words in FIRST.items()
        ]
        for at in range(int(seconds)):
            for streams, words in said:
                for _, writer in streams:
                    if not writer.is_closing():
                        writer.write(words[at % len(words) : at % len(words) + 1])
            await asyncio.sleep(1)
        all_of = [pair for streams, _ in said for pair in streams]
        return f"{len(all_of)} connected, {ended(all_of)} ended by the node"


async def declared(doors: Doors, count: int, seconds: float) -> str:
    """Announce values of 512 MB, and send a few bytes of them."""
    async with connections(doors, "resp", count) as streams:
        for _, writer in streams:
            writer.write(b"*3\r\n$3\r\nSET\r\n$1\r\na\r\n$%d\r\nfew" % DECLARED)
        await asyncio.sleep(seconds)
        return f"{len(streams)} connected, {ended(streams)} ended by the node"


async def deep(doors: Doors, count: int, _seconds: float) -> str:
    """Lists in lists in lists, 100,000 deep."""
    async with connections(doors, "resp", count) as streams:
        answers = await asyncio.gather(*(_said(pair, b"*1\r\n" * 100_000) for pair in streams))
        return f"{len(streams)} connected, answers {_counts(answers)}"


def name(n: int, pair: int) -> bytes:
    """A key of the MSET `n`."""
    return b"load:%d:%d" % (n, pair)


def value(n: int, pair: int) -> bytes:
    """Its value."""
    return b"value %d of %d" % (pair, n)


async def msets(doors: Doors, count: int, _seconds: float) -> str:
    """MSETs of 32,000 pairs, to their end."""
    async with connections(doors, "resp", count) as streams:
        said = []
        for n in range(len(streams)):
            parts = [b"MSET"]
            for pair in range(PAIRS):
                parts += [name(n, pair), value(n, pair)]
            text = b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in parts)
            said.append(b"*%d\r\n" % len(parts) + text)
        pairs = zip(streams, said, strict=True)
        answers = await asyncio.gather(*(_said(pair, text, MSET_ENDS) for pair, text in pairs))
        stored = [so_many for so_many in map(_stored, answers) if so_many is not None]
        if len(stored) < len(answers):
            raise WrongError(f"{len(streams)} connected, answers {_counts(answers)}")
        if sum(stored) < STORED * PAIRS * max(count, 1):
            raise WrongError(f"{sum(stored)} values of {len(streams)} MSETs were stored")
        asked, gone = 0, 0
        for n, (pair, so_many) in enumerate(zip(streams, stored, strict=True)):
            # Each MSET begins with its first pairs.
            some = sorted({at * so_many // ASKED for at in range(ASKED)} - {so_many})
            found = await _values(pair, [name(n, at) for at in some])
            wrong = [f for at, f in zip(some, found, strict=True) if f not in (None, value(n, at))]
            if wrong:
                raise WrongError(f"another value was read: {wrong[0]!r}")
            asked, gone = asked + len(some), gone + found.count(None)
        if gone > MAY_BE_GONE * asked:
            raise WrongError(f"{gone} of {asked} values that were said stored are not there")
        return (
            f"{len(streams)} connected, {sum(stored)} of {len(streams) * PAIRS} values stored, "
            f"the others left out and told; {asked - gone} of {asked} read back"
        )


def _stored(answer: bytes) -> int | None:
    """How many pairs of an MSET were said stored; None: it was not answered."""
    if answer == b"+OK":
        return PAIRS
    words = answer.split()
    told = answer.startswith(b"-ERR ") and b" keys were left out" in answer
    return PAIRS - int(words[1]) if told else None


async def _values(
    pair: tuple[asyncio.StreamReader, asyncio.StreamWriter], names: list[bytes]
) -> list[bytes | None]:
    """What an MGET gives."""
    if not names:
        return []
    parts = [b"MGET", *names]
    text = b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in parts)
    head = await _said(pair, b"*%d\r\n" % len(parts) + text)
    if head != b"*%d" % len(names):
        raise WrongError(f"MGET answered {head!r}")
    found: list[bytes | None] = []
    for _ in names:
        size = int((await asyncio.wait_for(pair[0].readline(), 30)).strip()[1:])
        whole = None if size < 0 else await asyncio.wait_for(pair[0].readexactly(size + 2), 30)
        found.append(whole and whole[:-2])
    return found


async def _said(
    pair: tuple[asyncio.StreamReader, asyncio.StreamWriter], words: bytes, within: float = 30
) -> bytes:
    """The first line of the answer to `words`."""
    reader, writer = pair
    try:
        writer.write(words)
        line = await asyncio.wait_for(reader.readline(), within)
        return line[:60].strip() or b"(ended)"
    except asyncio.TimeoutError:
        return b"(none in time)"
    except OSError:
        return b"(ended)"


def _counts(answers: list[bytes]) -> str:
    """Each answer and how often it came."""
    return ", ".join(f"{answers.count(a)} times {a.decode()!r}" for a in sorted(set(answers)))
