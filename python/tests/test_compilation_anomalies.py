"""The detector on simulated load: what is planted is found in two cycles, and nothing else is.

A day is 1,440 cycles of a minute, with a daily rhythm, noise, pauses and bursts.
"""

from __future__ import annotations

import math
import random
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from kiln_torch.compilation import anomalies
from kiln_torch.compilation.anomalies import Detector, Sample
from kiln_torch.compilation.windows import Window, deviation, spread

if TYPE_CHECKING:
    from collections.abc import Iterator

DAY = 24 * 60
# The seed is in the test's name; `-k seed7` runs one.
SEEDS = range(100)
MIB = 1 << 20


def load(seed: int, cycles: int = DAY) -> Iterator[Sample]:
    """Normal load: more of it by day, compiles of very different length, odd ones among them."""
    chance = random.Random(seed)  # noqa: S311 - the same for the same seed
    typical = chance.uniform(0.5, 20.0)
    variety = chance.uniform(0.2, 0.8)
    rate = chance.uniform(0.6, 0.95)
    memory = chance.uniform(500, 4000) * MIB
    busy = chance.choice([2, 10, 60])
    for minute in range(cycles):
        day = 0.5 - 0.5 * math.cos(2 * math.pi * minute / DAY)
        lookups = chance.randint(0, round(busy * (0.1 + day))) if chance.random() > 0.1 else 0
        hits = sum(chance.random() < rate for _ in range(lookups))
        misses = lookups - hits
        seconds = tuple(
            typical * (1 + 0.3 * day) * math.exp(chance.gauss(0, variety)) for _ in range(misses)
        )
        # Now and then one fails, as graphs do.
        failed = sum(chance.random() < 0.02 for _ in range(misses))
        yield Sample(
            at=60.0 * minute,
            compile_seconds=seconds[failed:],
            load_seconds=tuple(0.02 * math.exp(chance.gauss(0, 0.5)) for _ in range(hits)),
            hits=hits,
            misses=misses,
            succeeded=misses - failed,
            failed={"compile_error": failed} if failed else {},
            memory_bytes=int(memory * (1 + 0.3 * day) * (1 + chance.gauss(0, 0.01))),
            entries=100,
            disk_free=chance.randint(20, 60) * 1024 * MIB,
            disk_total=100 * 1024 * MIB,
            cpu=min(1.0, 0.8 * day),
        )


@pytest.mark.parametrize("seed", SEEDS, ids=lambda seed: f"seed{seed}")
def test_a_day_of_normal_load_is_no_anomaly(seed: int) -> None:
    detector = Detector()
    for sample in load(seed):
        assert detector.detect(sample) == [], f"seed {seed}, minute {sample.at / 60:.0f}"


def slow(sample: Sample, _: int) -> Sample:
    return replace(
        sample,
        misses=20,
        compile_seconds=tuple(8 * each for each in (_TYPICAL,) * 20),
        succeeded=20,
    )


def slow_disk(sample: Sample, _: int) -> Sample:
    return replace(sample, load_seconds=(0.4,) * 20)


def fewer_hits(sample: Sample, _: int) -> Sample:
    return replace(sample, hits=4, misses=36)


def leak(sample: Sample, since: int) -> Sample:
    return replace(sample, memory_bytes=int(sample.memory_bytes * (1 + 0.25 * (since + 1))))


def corrupt(sample: Sample, _: int) -> Sample:
    return replace(sample, corrupted=1)


def unused(sample: Sample, _: int) -> Sample:
    return replace(sample, unusable=3)


def failing(sample: Sample, _: int) -> Sample:
    return replace(sample, succeeded=2, failed={"compile_error": 8})


def down(sample: Sample, _: int) -> Sample:
    return replace(sample, compile_seconds=(), succeeded=0, failed={"crashed": 2})


def cache_down(sample: Sample, _: int) -> Sample:
    return replace(sample, hits=0, load_seconds=(), store_errors=5)


def full(sample: Sample, _: int) -> Sample:
    return replace(sample, disk_free=MIB)


_TYPICAL = 25.0
PLANTED = {
    anomalies.SLOW_COMPILATION: slow,
    anomalies.SLOW_LOADS: slow_disk,
    anomalies.LOW_HIT_RATE: fewer_hits,
    anomalies.MEMORY_GROWTH: leak,
    anomalies.CORRUPTION: corrupt,
    anomalies.UNUSED_ENTRIES: unused,
    anomalies.FAILURES: failing,
    anomalies.COMPILER_DOWN: down,
    anomalies.CACHE_DOWN: cache_down,
    anomalies.LOW_DISK: full,
}


@pytest.mark.parametrize("kind", list(PLANTED))
@pytest.mark.parametrize("seed", range(20), ids=lambda seed: f"seed{seed}")
def test_what_is_planted_is_found_within_two_cycles(kind: str, seed: int) -> None:
    detector = Detector()
    samples = list(load(seed, 600))
    for sample in samples[:-2]:
        assert detector.detect(sample) == []
    found = set()
    for since, sample in enumerate(samples[-2:]):
        found |= {each.kind for each in detector.detect(PLANTED[kind](sample, since))}
    assert kind in found


def test_a_fresh_start_says_nothing() -> None:
    """The first compiles of a process may take any time, hit nothing and fill memory."""
    detector = Detector()
    for at in range(5):
        sample = Sample(
            at=60.0 * at,
            compile_seconds=tuple(10.0 ** (at - 2) for _ in range(10)),
            misses=10,
            succeeded=10,
            memory_bytes=(at + 1) * 500 * MIB,
        )
        assert detector.detect(sample) == []


def test_what_stays_is_how_things_are_and_a_slow_leak_is_seen() -> None:
    detector = Detector(window=60)
    samples = list(load(3, 600))
    for sample in samples[:300]:
        detector.detect(sample)
    slowed = [
        {each.kind for each in detector.detect(slow(sample, 0))} for sample in samples[300:500]
    ]
    assert anomalies.SLOW_COMPILATION in slowed[1]
    assert anomalies.SLOW_COMPILATION not in slowed[-1]
    leaking = Detector(window=60)
    grows = [
        {
            each.kind
            for each in leaking.detect(replace(sample, memory_bytes=int(1000 * MIB * 1.012**at)))
        }
        for at, sample in enumerate(samples[:120])
    ]
    assert any(anomalies.MEMORY_GROWTH in each for each in grows)


def test_a_few_odd_values_move_no_median() -> None:
    window = Window(100, 10)
    window.add([1.0] * 5)
    assert not window.enough
    assert deviation([99.0], window) == 0.0
    window.add([0.9, 1.1] * 20 + [1000.0] * 5)
    assert 1.0 <= window.median <= 1.1
    assert window.spread < 0.25
    assert deviation([1.05, 1.0, 0.95], window) < 1
    assert deviation([3.0, 3.1, 2.9], window) > 8
    assert spread([1.0, 1.0, 1.0]) == 0.0
    window.add([2.0] * 500)
    assert len(window) == 100
    assert deviation([2.1], window) == math.inf
