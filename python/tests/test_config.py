"""What the environment says, and what of it cannot be read."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from cluster import eventually
from kiln_torch import breaker as breaker_module
from kiln_torch import report
from kiln_torch.breaker import Breaker
from kiln_torch.config import Settings, from_env, insecure_token, merge_ranks
from kiln_torch.known_dead import KnownDead
from kiln_torch.trust import Trust

if TYPE_CHECKING:
    from collections.abc import Callable

HEX = "ab" * 32
HERE = Path(__file__).parent


def test_off_unless_told() -> None:
    """Nothing happens without an endpoint."""
    assert from_env({}) is None
    assert from_env({"KILN_ENDPOINT": ""}) is None
    assert from_env({"KILN_ENDPOINT": "nonsense"}) is None
    assert from_env({"KILN_ENDPOINT": "http://a:1", "KILN_DISABLE": "1"}) is None
    assert from_env({"KILN_ENDPOINT": "http://a:1", "KILN_DISABLE": "0"}) is not None


def test_endpoints_in_order() -> None:
    """With and without scheme; one that cannot be read is left out."""
    env = {"KILN_ENDPOINT": "http://a:1, b:2/,,https:,[::1]:3,c:x", "KILN_SOCKET": "/s"}
    assert from_env(env) == Settings(endpoints=("a:1", "b:2", "[::1]:3"), socket="/s")


def test_https_endpoints_are_encrypted() -> None:
    """Each by its own scheme; the files are the command line's."""
    env = {"KILN_ENDPOINT": "http://a:1,https://b:2", "KILN_CA": "/ca.pem", "KILN_CERT_KEY": ""}
    settings = from_env(env)
    assert settings is not None
    assert (settings.endpoints, settings.encrypted) == (("a:1", "b:2"), frozenset({"b:2"}))
    assert (settings.ca, settings.cert, settings.cert_key) == ("/ca.pem", None, None)


TOKEN = "kiln_" + "0" * 16 + "_" + "a" * 64


def test_a_token_goes_in_plain_text_to_this_machine_alone(tmp_path: Path) -> None:
    """And one that cannot be read is never no token."""
    named = {"KILN_ENDPOINT": "http://127.0.0.1:1,http://10.0.0.1:2,https://a:3"}
    settings = from_env({**named, "KILN_TOKEN": f" {TOKEN}\n"})
    assert settings is not None
    assert (settings.token, settings.endpoints) == (TOKEN, ("127.0.0.1:1", "a:3"))
    assert "aaaa" not in repr(settings)
    everywhere = from_env({**named, "KILN_TOKEN": TOKEN, "KILN_INSECURE_TOKEN": "1"})
    assert everywhere is not None
    assert len(everywhere.endpoints) == 3
    assert from_env({"KILN_ENDPOINT": "http://10.0.0.1:2", "KILN_TOKEN": TOKEN}) is None
    file = tmp_path / "token"
    assert from_env({**named, "KILN_TOKEN_FILE": str(file)}) is None
    file.write_text("a password", encoding="utf-8")
    assert from_env({**named, "KILN_TOKEN_FILE": str(file)}) is None
    file.write_text(TOKEN + "\n", encoding="utf-8")
    read = from_env({**named, "KILN_TOKEN_FILE": str(file)})
    assert read is not None
    assert read.token == TOKEN


def test_a_token_file_that_changes_is_read_again(tmp_path: Path) -> None:
    """As that of a service account, which is a JWT and is written anew; a bad one is not shown."""
    file = tmp_path / "token"
    web = ["eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJhIn0.c2lnbmF0dXJl" + end for end in ("Q", "R")]
    file.write_text(web[0] + "\n", encoding="utf-8")
    read = from_env({"KILN_ENDPOINT": "http://127.0.0.1:1", "KILN_TOKEN_FILE": str(file)})
    assert read is not None
    assert read.current_token() == web[0]
    for at, (written, shown) in enumerate(
        [(web[1], web[1]), (TOKEN, TOKEN), ("another secret", web[0]), (web[1], web[1])]
    ):
        file.write_text(written, encoding="utf-8")
        os.utime(file, (at, at))
        assert read.current_token() == shown
    file.unlink()
    assert read.current_token() == web[0]
    assert "eyJ" not in repr(read)


def test_only_a_yes_sends_a_token_in_plain_text() -> None:
    """The words are those of the command line: src/cli/credential.rs has the same table."""
    for word in ("1", "true", "TRUE", "yes", "Yes", "on", "y", "t"):
        assert insecure_token({"KILN_INSECURE_TOKEN": word}), word
    for word in ("0", "false", "False", "FALSE", "no", "off", "OFF", "n", "f", ""):
        assert not insecure_token({"KILN_INSECURE_TOKEN": word}), word


def test_pinned_signers_or_nothing() -> None:
    """Pinning that cannot be read never means trusting anybody."""
    endpoint = {"KILN_ENDPOINT": "a:1"}
    pinned = from_env({**endpoint, "KILN_SIGNERS": f"{HEX},zz"})
    assert pinned is not None
    assert pinned.signers == (bytes.fromhex(HEX),)
    for none in ("zz", ",", " , ", " "):
        assert from_env({**endpoint, "KILN_SIGNERS": none}) is None, none
    unset = from_env({**endpoint, "KILN_SIGNERS": ""})
    assert unset is not None
    assert unset.signers == ()


def test_seconds() -> None:
    """What is no number of seconds is the default."""
    read = from_env({"KILN_ENDPOINT": "a:1", "KILN_WAIT": "7.5", "KILN_TIMEOUT": "-1"})
    assert read is not None
    assert (read.wait, read.answer) == (7.5, Settings.answer)


def test_nodes_add_nothing_to_pinned_keys() -> None:
    """And without pinning, a signer may have had several."""
    pinned = Trust((b"p",))
    pinned.learn([(1, b"x")])
    assert pinned.keys(1) == (b"p",)
    learning = Trust()
    assert learning.keys(1) == ()
    learning.learn([(1, b"x")])
    learning.learn([(1, b"x"), (1, b"y"), (2, b"z")])
    for trust in (learning, learning.copy()):
        assert (trust.keys(1), trust.keys(2)) == ((b"x", b"y"), (b"z",))


def test_of_pinned_keys_those_count_that_the_root_certified() -> None:
    """Neither of the two settings takes the other's place."""
    both = Trust((b"p", b"q"), rooted=True)
    assert both.keys(1) == ()
    both.learn([(1, b"p"), (2, b"x")])
    for trust in (both, both.copy()):
        assert (trust.keys(1), trust.keys(2), trust.keys(3)) == ((b"p",), (), ())


class Clock:
    """Time that a test moves."""

    now = 0.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now


def wait_until(what: object) -> None:
    """Ask until it holds."""
    assert callable(what)
    eventually("state of the breaker", lambda: True if what() else None)


def test_a_breaker_asks_again_in_the_background() -> None:
    """With growing pauses; nobody waits but the first."""
    clock, answers, asked = Clock(), [True, False, False, True], []

    def probe(*_: object) -> bool:
        asked.append(clock.now)
        return answers[len(asked) - 1]

    breaker = Breaker(probe, 5.0, 5.0, clock)
    assert breaker.closed
    assert asked == [0.0]
    breaker.trip()
    assert not breaker.closed
    assert len(asked) == 1, "not before the pause is over"
    for pause, calls in ((0.6, 2), (1.1, 3), (2.1, 4)):
        clock.now += pause
        assert not breaker.closed
        wait_until(lambda calls=calls: len(asked) == calls)
        if calls < 4:
            wait_until(lambda: not breaker._probing)
            assert not breaker.closed
            assert len(asked) == calls, "the pause doubled"
    wait_until(lambda: breaker.closed)


def test_a_breaker_bounds_what_has_no_bound() -> None:
    """One that hangs, wherever it does, costs the first use its time, and is used when it ends."""
    for calls in range(3):
        go = threading.Event()

        def probe(*steps: Callable[[], None], calls: int = calls, go: threading.Event = go) -> bool:
            for step in steps[:calls]:
                step()
            return go.wait(60)

        breaker = Breaker(probe, 0.05, 0.05)
        began = time.monotonic()
        assert not breaker.closed
        assert not breaker.closed
        assert time.monotonic() - began < 30.0
        go.set()
        wait_until(lambda breaker=breaker: breaker.closed)


def test_a_breaker_waits_for_what_is_no_fault_of_the_endpoint() -> None:
    """Loading has time of its own, however little the endpoint has."""
    loading, clock = threading.Event(), Clock()

    def probe(reached: Callable[[], None], loaded: Callable[[], None]) -> bool:
        reached()
        loading.wait(60)
        loaded()
        return True

    breaker = Breaker(probe, 60.0, 60.0, clock)
    waiting = ThreadPoolExecutor(1)
    first = waiting.submit(lambda: breaker.closed)
    eventually("it loads", lambda: breaker._reached.is_set() or None)
    clock.now += 100.0
    loading.set()
    assert first.result(60)
    waiting.shutdown()


def test_what_another_process_found_dead_is_not_waited_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But it is asked all the same, and used as soon as it answers."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    go = threading.Event()
    others = KnownDead("node:1")
    first = Breaker(lambda *_: go.wait(60), 0.05, 0.05, known=others)
    assert not first.closed
    assert others
    assert not KnownDead("node:2")
    # As far as it knows it might wait for four minutes.
    second = Breaker(lambda *_: go.wait(60), 240.0, 240.0, known=KnownDead("node:1"))
    monkeypatch.setattr(breaker_module, "_BACK", 0.0001)
    assert not second.closed
    go.set()
    wait_until(lambda: second.closed)
    wait_until(lambda: not others)
    first.trip()
    assert others
    # Long ago, or by a clock that was set back: neither counts.
    (file,) = (tmp_path / f"kiln-dead-{os.getuid()}").iterdir()
    for at in (time.time() - 3600, time.time() + 3600):
        os.utime(file, (at, at))
        assert not others
    KnownDead("node:3").tell(dead=True)
    assert not file.exists()


SILENT = """
import socket, sys
from kiln_torch.config import Settings
from kiln_torch.endpoint import Endpoint
from kiln_torch.trust import Trust
with socket.socket() as silent:
    silent.bind(("127.0.0.1", 0))
    silent.listen()
    address = "127.0.0.1:%d" % silent.getsockname()[1]
    settings = Settings(endpoints=(address,), connect=0.05)
    assert not Endpoint(address, settings, Trust(())).usable
assert "grpc" not in sys.modules
"""


def test_an_endpoint_that_says_nothing_costs_no_import_of_grpc(tmp_path: Path) -> None:
    """It connects, for the kernel answers; a node has a first word of its own."""
    path = os.pathsep.join(filter(None, [str(HERE.parent), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": path}
    subprocess.run([sys.executable, "-c", SILENT], check=True, env=environment, timeout=120)


def test_ranks_share_unless_told_not_to() -> None:
    """What is neither of the two words is the default, and is said once."""
    assert [merge_ranks({"KILN_RANKS": word}) for word in ("", "merge", "keep")] == [
        True,
        True,
        False,
    ]
    assert merge_ranks({})
    assert merge_ranks({"KILN_RANKS": "kept"})
    assert "KILN_RANKS" in report._said
