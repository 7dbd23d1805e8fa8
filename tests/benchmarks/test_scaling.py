"""benchmarks/scaling.py: its arithmetic, against a ring that is walked through."""

import pytest

from benchmarks.scaling import NETWORKS, STEP_SECONDS, exchange_seconds, on_paper


@pytest.mark.parametrize("processes", [1, 2, 3, 8])
def test_a_ring_takes_as_long_as_its_rounds(processes):
    """Each process holds as many chunks as there are; in each round it sends one on, until all have all sums."""
    chunks = [{chunk: {rank} for chunk in range(processes)} for rank in range(processes)]
    rounds = 0
    while any(len(parts) < processes for own in chunks for parts in own.values()):
        sent = [(rank, (rank - rounds) % processes) for rank in range(processes)]
        for rank, chunk, parts in [(rank, chunk, set(chunks[rank][chunk])) for rank, chunk in sent]:
            chunks[(rank + 1) % processes][chunk] |= parts
        rounds += 1
    size, bandwidth = 1000.0, 10.0
    assert exchange_seconds(size, processes, bandwidth) == pytest.approx(rounds * size / processes / bandwidth)


def test_half_the_bytes_take_half_the_time_and_no_network_makes_a_step_shorter():
    rows = on_paper(165e6)
    assert len(rows) == 2 * len(NETWORKS)
    for full, half in zip(rows[::2], rows[1::2], strict=True):
        assert half["exchange_ms"] == pytest.approx(full["exchange_ms"] / 2, abs=0.06)
        assert full["efficiency"] == pytest.approx(STEP_SECONDS / (STEP_SECONDS + full["waited_ms"] / 1000), abs=2e-3)
        assert full["efficiency"] <= half["efficiency"] <= 1
