"""Plant one bug at a time, and see what catches it. Run by `make faults-planted`.

Each bug is one changed place of the code, in a worktree of the last commit; what must
notice it is the simulation (its first seed that fails is named) or a test.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# A build of the tests, on two cores with nothing compiled before.
BUILD = 1800.0
# A test or a seed that takes longer than this hangs.
RUN = 300.0
SEEDS = 20


@dataclass(frozen=True)
class Bug:
    """``found`` in ``file`` becomes ``planted``; ``test``: nextest's filter, else seeds.

    ``target``: which tests of the package are built for it.
    """

    name: str
    file: str
    found: str
    planted: str
    test: str = ""
    package: str = "kiln-cluster"
    target: str = "--lib"

    def text(self, tree: Path) -> str:
        """Return the file's text, in which the place to change occurs once."""
        text = (tree / self.file).read_text()
        assert text.count(self.found) == 1, f"{self.name}: {self.file} has changed"
        return text


CLUSTER = "cluster/src/"
BUGS = [
    Bug(
        "no fence: a later token publishes",
        CLUSTER + "state/leases.rs",
        "filter(|lease| lease.token == token))",
        "filter(|lease| lease.token >= token))",
    ),
    Bug(
        "acknowledged before the fsync",
        CLUSTER + "store/log.rs",
        "self.store.syncer.after_sync(Box::new(|result| {\n"
        '            fail_point!("log.synced");\n'
        "            callback.io_completed(result);\n        }));",
        "callback.io_completed(Ok(()));",
    ),
    Bug(
        "a vote without an fsync",
        CLUSTER + "store/log.rs",
        "synced.await.map_err(io_error)?",
        "drop(synced);\n        Ok(())",
        test="test(store::tests::a_vote)",
    ),
    Bug(
        "a stale read as the latest",
        CLUSTER + "index.rs",
        "self.wait_applied(self.router.ask(ReadIndex).await?).await",
        "Ok(())",
    ),
    Bug(
        "a leader reads without a quorum",
        CLUSTER + "leader.rs",
        "let reading = async move { raft.ensure_linearizable(ReadPolicy::ReadIndex).await };",
        "if self.member.leads() {\n            return Ok(self.replica.applied());\n        }\n"
        "        let reading = async move "
        "{ raft.ensure_linearizable(ReadPolicy::ReadIndex).await };",
        test="test(failover::)",
        target="--test=cluster",
    ),
    Bug(
        "a superseded write is applied",
        CLUSTER + "state/writes.rs",
        "if let Ok(at) = over(&record, sequence) {",
        "if let Ok(at) = over(&record, sequence)\n        && sequence == 0\n    {",
    ),
    Bug(
        "an expired lease stays",
        CLUSTER + "housekeeping.rs",
        "        expire(leader, tasks);\n",
        "        if false {\n            expire(leader, tasks);\n        }\n",
    ),
    Bug(
        "an acquire without its deadline",
        CLUSTER + "index/acquire.rs",
        "() = tokio::time::sleep_until(deadline) => return Err(ClusterError::Deadline),",
        "() = std::future::pending() => return Err(ClusterError::Deadline),",
    ),
    Bug(
        "the applied index before its changes",
        CLUSTER + "store/machine.rs",
        "view.put_changes(&mut batch, &txn.into_changes());",
        "if applied.last.is_none_or(|id| id.index % 97 != 0) {\n"
        "            view.put_changes(&mut batch, &txn.into_changes());\n        }",
    ),
    Bug(
        "readers hear of a command before it is applied",
        CLUSTER + "watch.rs",
        "        self.applied.send_replace(index);\n        Ok(())\n    }\n\n    /// Tells that",
        "        self.applied.send_replace(index + 3);\n        Ok(())\n    }\n\n"
        "    /// Tells that",
    ),
    Bug(
        "failures are never lifted",
        CLUSTER + "deadlines.rs",
        "failures: failures.map(",
        "failures: failures.take(0).map(",
    ),
    Bug(
        "a withdrawal takes what another node put",
        CLUSTER + "state/writes.rs",
        "let ours = |entry: EntryRecord| entry.manifest.signer == node;",
        "let ours = |entry: EntryRecord| entry.manifest.signer > 0;",
        test="test(state::tests)",
    ),
    Bug(
        "an epoch's number comes again",
        CLUSTER + "state/epochs.rs",
        "epoch: last.as_ref().map_or(1, |e| e.epoch + 1),",
        "epoch: last.as_ref().map_or(1, |e| e.epoch.max(1)),",
    ),
    Bug(
        "the marker before the snapshot",
        CLUSTER + "store/install.rs",
        "    let applied = fill(store, set, staged)?;\n    swap(store, set, &applied)?;\n",
        "    swap(store, set, &Applied::default())?;\n"
        "    let applied = fill(store, set, staged)?;\n    swap(store, set, &applied)?;\n",
        test="test(store::tests::install)",
    ),
    Bug(
        "what cannot be reached counts as absent",
        "src/manager/fetch/source.rs",
        "matches!(self, Self::Absent | Self::Corrupt)",
        "!matches!(self, Self::Paused)",
        test="test(bytes::a_value_whose_holder_is_away)",
        package="kiln",
        target="--test=cluster",
    ),
    Bug(
        "bytes are given away unverified",
        "src/cache/blob.rs",
        "found if found == wanted => Ok(blob),",
        "_ if wanted.as_bytes().len() == 32 => Ok(blob),",
        test="test(corruption::)",
        package="kiln",
        target="--test=cluster",
    ),
    Bug(
        "a guarded pack is removed",
        "src/cache/disk/store.rs",
        "if catalog.is_guarded(digest) {",
        "if catalog.is_guarded(digest) && digest.as_bytes().is_empty() {",
        test="test(cache::tiered)",
        package="kiln",
    ),
    Bug(
        "collected without its grace",
        "src/cache/collect.rs",
        "self.now.duration_since(since) >= self.collector.settings.grace",
        "self.now >= since",
        test="test(cache::collect)",
        package="kiln",
    ),
    Bug(
        "an object is deleted before it is condemned",
        "src/cache/collect/step.rs",
        "                taken.condemned = index.condemn(",
        "                object.delete(&name).await?;\n"
        "                taken.condemned = index.condemn(",
        test="test(cache::collect)",
        package="kiln",
    ),
    Bug(
        "a token without its grant",
        "src/service/leases.rs",
        "held.grant == blake3::hash(grant)",
        "held.grant == blake3::hash(grant) || held.grant != blake3::hash(grant)",
        test="test(publish::)",
        package="kiln",
        target="--test=cluster",
    ),
    Bug(
        "nowhere is somewhere",
        "src/manager/publish.rs",
        "Kept::Memory(why) | Kept::Nowhere(why) => Some(why),\n        };\n        let disks",
        "Kept::Memory(_) | Kept::Nowhere(_) => None,\n        };\n        let disks",
        test="test(what_no_disk_takes_is_not_acknowledged)",
        package="kiln",
        target="--test=cluster",
    ),
]


def call(command: list[str], folder: Path, limit: float, **variables: str) -> tuple[int, str]:
    """Exit code and output; a command that takes longer than ``limit`` failed."""
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env={**os.environ, **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=limit,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return 124, "it hangs"
    return done.returncode, done.stdout


def reason(output: str) -> str:
    """Return the line that says what was noticed."""
    marks = ("VIOLATION", "panicked at", "FAIL [", "TIMEOUT [")
    lines = [line.strip() for line in output.splitlines()]
    told = [line for mark in marks for line in lines if mark in line]
    return (told or lines or [""])[0][:160]


def by_seeds(tree: Path, seeds: int) -> str | None:
    """Return the first seed that fails, and why; None: all pass."""
    test = ["cargo", "test", "--locked", "--package", "kiln-cluster", "--lib"]
    code, output = call([*test, "--no-run", "--message-format", "json"], tree, BUILD)
    assert code == 0, f"no build: {output[-2000:]}"
    messages = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    program = next(path for m in messages if (path := m.get("executable")))
    for seed in range(seeds):
        one = [program, "--exact", "sim::seeds::one", "--ignored", "--nocapture"]
        code, output = call(one, tree, RUN, KILN_SIM_SEED=str(seed))
        if code != 0:
            return f"seed {seed}: {reason(output)}"
    return None


def by_test(tree: Path, bug: Bug) -> str | None:
    """Return what the tests say; None: they pass."""
    nextest = ["cargo", "nextest", "run", "--locked", "--package", bug.package, bug.target]
    code, output = call([*nextest, "--no-run"], tree, BUILD)
    assert code == 0, f"no build: {output[-2000:]}"
    code, output = call([*nextest, "--no-fail-fast", "-E", bug.test], tree, RUN)
    assert "0 tests run" not in output, f"no test matches {bug.test}"
    return reason(output) if code != 0 else None


def plant(tree: Path, bug: Bug, seeds: int) -> bool:
    """Plant ``bug``, say what became of it, and take it out again."""
    file = tree / bug.file
    source = bug.text(tree)
    file.write_text(source.replace(bug.found, bug.planted))
    began = time.monotonic()
    try:
        caught = by_test(tree, bug) if bug.test else by_seeds(tree, seeds)
    finally:
        file.write_text(source)
    seconds = time.monotonic() - began
    print(f"{'caught' if caught else 'MISSED'} {seconds:6.0f} s  {bug.name}: {caught}", flush=True)
    return caught is not None


def main() -> int:
    """Plant all bugs, or those whose name has a word."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="bugs whose name has this")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="seeds of the simulation")
    parser.add_argument("--list", action="store_true", help="names alone")
    parser.add_argument("--check", action="store_true", help="only see that each can be planted")
    chosen = parser.parse_args()
    bugs = [bug for bug in BUGS if chosen.only in bug.name]
    if chosen.list:
        print("\n".join(bug.name for bug in bugs))
        return 0
    if chosen.check:
        for bug in bugs:
            bug.text(ROOT)
        return 0
    with tempfile.TemporaryDirectory(prefix="kiln-planted-") as folder:
        tree = Path(folder) / "tree"
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "--quiet", "--detach", str(tree)], check=True)
        try:
            caught = sum(plant(tree, bug, chosen.seeds) for bug in bugs)
        finally:
            subprocess.run([*git, "remove", "--force", str(tree)], check=True)
    print(f"{caught} of {len(bugs)} planted bugs are caught")
    return 0 if caught == len(bugs) else 1


if __name__ == "__main__":
    sys.exit(main())
