"""The failure ladder without torch: its table, kinds of errors, alerts, another try."""

from __future__ import annotations

import http.server
import itertools
import json
import re
import threading
from typing import TYPE_CHECKING, Any

import pytest
from cluster import ROOT, eventually
from kiln_torch import report
from kiln_torch.compilation import again, alerts, classify, errors, ladder
from kiln_torch.compilation.fallback import Fallback, Tried, fallback_of
from kiln_torch.compilation.verdicts import Verdict, Verdicts

if TYPE_CHECKING:
    from collections.abc import Iterator

KINDS = sorted(errors.BY_KIND)


def test_kinds_and_codes_are_the_nodes() -> None:
    source = (ROOT / "proto" / "src" / "failure.rs").read_text()
    names = dict(re.findall(r'Self::(\w+) => "([a-z_]+)",', source))
    codes: dict[str, str] = {}
    for variants, code in re.findall(r'((?:Self::\w+(?:\s*\|\s*)?)+) => "(C\d+)"', source):
        for variant in re.findall(r"Self::(\w+)", variants):
            codes[names[variant]] = code
    assert len(codes) > 8
    assert {kind: each.code for kind, each in errors.BY_KIND.items()} == codes
    assert all(len(each.advice) > 10 for each in errors.BY_KIND.values())


@pytest.mark.parametrize("piece", [False, True])
def test_every_descent_ends_at_eager(piece: bool) -> None:
    """Whatever fails at each rung, and whichever rungs cannot be tried."""
    for start, then in itertools.product(KINDS, KINDS):
        for left_out in ((), (ladder.NATIVE,), (ladder.FEWER, ladder.PIECES, ladder.MIXED)):
            tried = [ladder.AS_ASKED]
            kind = start
            while (rung := ladder.next_rung(kind, tried, left_out, piece=piece)) != ladder.EAGER:
                assert rung not in left_out
                assert not (piece and rung == ladder.PIECES)
                assert rung == ladder.AGAIN or rung not in tried
                tried.append(rung)
                kind = then
                assert len(tried) <= len(ladder.ORDER) + ladder.RETRIES


def test_the_rungs_of_each_kind() -> None:
    def down(kind: str) -> list[str]:
        tried = [ladder.AS_ASKED]
        while tried[-1] != ladder.EAGER:
            tried.append(ladder.next_rung(kind, tried))
        return tried[1:]

    assert down("out_of_memory") == ["saving", "pieces", "other", "eager"]
    assert down("unsupported_op") == ["mixed", "eager"]
    assert down("timeout") == ["pieces", "eager"]
    assert down("compile_error") == ["fewer", "other", "eager"]
    assert down("incompatible") == ["defaults", "eager"]
    assert down("busy") == ["again", "again", "eager"]
    assert down("crashed") == ["again", "saving", "pieces", "other", "eager"]
    assert down("what is new") == down("compile_error")


def raised(name: str, said: str) -> Exception:
    return type(name, (RuntimeError,), {})(said)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (MemoryError(), "out_of_memory"),
        (raised("CppCompileError", "cc1plus: out of memory allocating 65536"), "out_of_memory"),
        (raised("CppCompileError", "virtual memory exhausted: Cannot allocate"), "out_of_memory"),
        (raised("CppCompileError", "g++: fatal error: Killed signal terminated program cc1plus"),
         "out_of_memory"),
        (raised("OutOfMemoryError", "CUDA"), "out_of_memory"),
        (raised("InductorError", "missing lowering\n  target: aten.foo.default"), "unsupported_op"),
        (raised("InvalidCxxCompiler", "none"), "toolchain_missing"),
        (raised("InductorError", "No working C++ compiler found in x"), "toolchain_missing"),
        (errors.CompilationError("native: UNAVAILABLE: no node"), "busy"),
        (errors.CrashedError("the compiling process ended with status -9"), "crashed"),
        (errors.TimeoutError("no result"), "timeout"),
        (errors.CacheCorruptedError("x"), "corrupt"),
        (errors.IncompatibleConfigError("x"), "incompatible"),
        (ValueError("no such kernel"), "compile_error"),
    ],
)  # fmt: skip
def test_errors_are_told_apart(error: Exception, kind: str) -> None:
    assert classify.classify_error_type(error) == kind
    mine = classify.classified(error)
    assert (mine.kind, mine.code) == (kind, errors.BY_KIND[kind].code)
    # What it was caused by counts; what it was raised beside of does not.
    outer = errors.CompilationError("Inductor: failed")
    outer.__cause__ = error
    assert classify.classify_error_type(outer) == kind
    try:
        try:
            raise error
        except type(error):
            raise ValueError("another") from None
    except ValueError as beside:
        assert classify.classify_error_type(beside) == "compile_error"


def test_the_operations_at_fault_are_read_from_what_inductor_says() -> None:
    said = "missing lowering\n  target: aten._fft_r2c.default\n  args[0]: TensorBox(...)"
    outer = errors.UnsupportedOpError("Inductor: x")
    outer.__cause__ = raised("MissingOperatorWithoutDecomp", said)
    assert classify.named_operations(outer) == ("aten._fft_r2c.default",)
    assert classify.named_operations(ValueError("target practice")) == ()


class Clock:
    """Time as a test wants it."""

    def __init__(self) -> None:
        """Start at zero."""
        self.now = 0.0

    def __call__(self) -> float:
        """Tell it."""
        return self.now


def test_what_failed_is_tried_again_later_and_not_for_ever() -> None:
    clock, told = Clock(), []
    due = again.Due(0.0, 1, "k", 10.0, lambda: False, told.append)
    line = again.Again(clock, seed=1)
    with line._lock:
        line._keys.add("k")
        line._push(due)
    for _ in range(again.TRIES):
        line.try_again(due)
    assert told[-1] is None
    assert len(line) == 0
    # Twice as long each time, a quarter more or less.
    for at, wait in enumerate(told[:-1]):
        assert 0.75 * 10 * 2**at <= wait <= 1.25 * 10 * 2**at, told
    assert len({*told}) == again.TRIES + 1
    assert report.stats()["compilation.compiled_again"] == again.TRIES


def test_what_is_there_at_last_is_tried_no_more() -> None:
    line = again.Again()
    ended: list[Any] = []
    done = threading.Event()

    def told(due: float | None) -> None:
        ended.append(due)
        if due is None:
            done.set()

    assert line.add("k", 0.001, lambda: True, told)
    assert done.wait(60)
    assert len(line) == 0
    # One at a time for a key, and errors count as failures.
    hold = threading.Event()

    def fails() -> bool:
        hold.wait(60)
        raise OSError("away")

    assert line.add("k", 0.001, fails, lambda _: None)
    assert not line.add("k", 0.001, fails, lambda _: None)
    hold.set()


def tried(kind: str = "timeout") -> tuple[Tried, ...]:
    return (Tried(ladder.AS_ASKED, "C004", kind, "no result\nafter 5 s\nmore", 5.0),)


def test_a_verdict_is_taken_for_granted_while_its_fallback_is_valid(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock()
    monkeypatch.setattr("time.monotonic", clock)
    known = Verdicts()
    known.remember("k", Verdict(tried(), ladder.EAGER, errors.TimeoutError("x"), 10.0))
    assert known.of("k") is not None
    clock.now = 10.0
    assert known.of("k") is None
    assert len(known) == 0
    for at in range(1000):
        known.remember(str(at), Verdict(tried(), ladder.EAGER, errors.TimeoutError("x"), 99.0))
    assert len(known) == 256
    assert known.of("999") is not None


def test_a_fallback_says_what_it_is() -> None:
    made = Fallback(lambda x: x + 1, ladder.EAGER, tried(), "ab")
    assert made(1) == 2
    assert fallback_of(made) is made
    assert fallback_of(len) is None
    assert str(made.tried[0]) == "wanted: C004 timeout: no result after 5 s"
    told = made.told()
    assert json.loads(json.dumps(told)) == told
    assert (told["rung"], told["wanted"], told["valid_seconds"]) == ("eager", "ab", None)


class Receiver:
    """A real HTTP server that takes alerts."""

    def __init__(self) -> None:
        """Listen."""
        self.taken: list[dict[str, Any]] = []
        taken, refuse = self.taken, self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if refuse.refusals > 0:
                    refuse.refusals -= 1
                    self.send_error(503)
                    return
                taken.append(json.loads(body))
                self.send_response(204)
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
                """Say nothing."""

        self.refusals = 0
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def address(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self._server.server_port}/alerts"

    def close(self) -> None:
        """Listen no more."""
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    yield made
    made.close()


def test_an_alert_is_sent_once_and_its_end_too(receiver: Receiver) -> None:
    receiver.refusals = 1
    system = alerts.AlertSystem(receiver.address)
    assert system.send_performance_alert("slow_compilation", "4 s, not 1 s")
    assert not system.send_performance_alert("slow_compilation", "5 s, not 1 s")
    assert [each.name for each in system.open] == ["slow_compilation"]
    assert system.resolve("slow_compilation")
    assert not system.resolve("slow_compilation")
    eventually("both", lambda: len(receiver.taken) == 2 or None)
    assert [each["status"] for each in receiver.taken] == ["firing", "resolved"]
    assert receiver.taken[0]["message"] == "4 s, not 1 s"
    assert system.open == ()
    # It may come back.
    assert system.send_critical_alert("slow_compilation")
    eventually("another", lambda: len(receiver.taken) == 3 or None)
    system.close()


def test_a_receiver_that_is_away_holds_nobody_up() -> None:
    gone = Receiver()
    gone.close()
    system = alerts.AlertSystem(gone.address)
    for at in range(200):
        system.send_performance_alert(f"a{at}")
    eventually(
        "dropped alerts", lambda: report.stats().get("compilation.alerts_dropped", 0) >= 100 or None
    )
    assert len(system.open) == 200
    with pytest.raises(ValueError, match="no address"):
        alerts.AlertSystem("file:///etc/passwd")


def test_a_timeout_alert_ends_when_none_comes_for_a_while() -> None:
    clock = Clock()
    system = alerts.AlertSystem(wall=clock)
    assert system.send_timeout_alert("one")
    clock.now = 800
    assert not system.send_timeout_alert("another")
    clock.now = 1600
    system.expire()
    assert len(system.open) == 1
    clock.now = 1800
    assert system.send_timeout_alert("after a while")
