from __future__ import annotations

import pytest

from tokcore.testing.timing import Contestant, interleave, paired_ratio, summarize


class Clock:
    """Time that passes only when a contestant works."""

    def __init__(self) -> None:
        self.now = 0.0
        self.order: list[str] = []

    def __call__(self) -> float:
        return self.now

    def worker(self, name: str, *durations: float) -> Contestant:
        """Takes ``durations`` one after another, the last one for ever."""
        remaining = list(durations)

        def call() -> None:
            self.order.append(name)
            self.now += remaining.pop(0) if len(remaining) > 1 else remaining[0]

        return Contestant(name, [call])


def test_rounds_are_strictly_interleaved_and_start_one_later_each_time() -> None:
    clock = Clock()
    workers = [clock.worker(name, 1.0) for name in "abc"]
    interleave(workers, 0.0, min_rounds=3, clock=clock)
    assert "".join(clock.order) == "aabbccbbccaaccaabb"  # an untimed call before each timed one


def test_runs_until_the_time_is_over() -> None:
    clock = Clock()
    samples = interleave([clock.worker("a", 1.0), clock.worker("b", 3.0)], 30.0, clock=clock)
    # A round takes 8 seconds with its untimed calls; the fifth is the least number.
    assert len(samples["a"]) == len(samples["b"]) == 5


def test_slow_contestants_run_in_every_other_round_until_they_have_enough() -> None:
    clock = Clock()
    slow = Contestant("slow", clock.worker("slow", 10.0).calls, slow=True)
    samples = interleave([clock.worker("a", 1.0), slow], 30.0, min_rounds=9, slow_rounds=3, clock=clock)
    assert sorted(samples["slow"]) == [0, 2, 4]
    assert sorted(samples["a"]) == list(range(9))


def test_a_slow_contestant_stops_when_it_alone_has_used_up_the_time() -> None:
    clock = Clock()
    slow = Contestant("slow", clock.worker("slow", 10.0).calls, slow=True)
    samples = interleave([clock.worker("a", 1.0), slow], 15.0, min_rounds=9, slow_rounds=9, clock=clock)
    assert sorted(samples["slow"]) == [0, 2]
    samples = interleave([clock.worker("a", 1.0), slow], 0.0, min_rounds=9, clock=clock)
    assert sorted(samples["slow"]) == [0]


def test_after_the_limit_no_round_begins_however_few_there_were() -> None:
    clock = Clock()
    samples = interleave([clock.worker("a", 1.0)], 100.0, min_rounds=50, limit=7.0, clock=clock)
    assert len(samples["a"]) == 4  # two seconds each, with the untimed calls
    assert len(interleave([clock.worker("a", 9.0)], 0.0, min_rounds=50, limit=1.0, clock=clock)["a"]) == 1


def test_a_contestant_that_is_not_paced_has_no_untimed_calls() -> None:
    clock = Clock()
    unpaced = Contestant("a", clock.worker("a", 1.0).calls, paced=False)
    interleave([unpaced, clock.worker("b", 1.0)], 0.0, min_rounds=2, clock=clock)
    assert "".join(clock.order) == "abb" + "bba"


def test_a_stopwatch_replaces_the_clock() -> None:
    clock = Clock()
    samples = interleave(
        [clock.worker("a", 1.0)], 0.0, min_rounds=2, clock=clock, seconds_of=lambda call: call() or 0.25
    )
    assert samples["a"] == {0: 0.25, 1: 0.25}
    assert clock.now == 4.0


def test_copies_are_taken_in_turn() -> None:
    used: list[int] = []
    copies = [lambda number=number: used.append(number) for number in range(3)]
    interleave([Contestant("a", copies)], 0.0, min_rounds=5)
    assert used[1::2] == [0, 1, 2, 0, 1]  # timed
    assert used[0::2] == [1, 2, 0, 1, 2]  # before each, on other buffers


def test_the_fraction_done_grows_to_one() -> None:
    clock = Clock()
    fractions: list[float] = []
    interleave([clock.worker("a", 1.0)], 8.0, clock=clock, on_call=fractions.append)
    assert fractions == sorted(fractions)
    assert fractions[0] <= 0.25
    assert fractions[-1] == 1.0


def test_a_ratio_pairs_rounds() -> None:
    # The machine is ten times slower in the last two of five rounds; each round says 2.
    slower = {0: 2.0, 1: 2.0, 2: 2.0, 3: 20.0, 4: 20.0}
    faster = {0: 1.0, 1: 1.0, 2: 1.0, 3: 10.0, 4: 10.0}
    assert paired_ratio(slower, faster) == 2.0
    assert paired_ratio({3: 20.0}, faster) == 2.0
    assert paired_ratio({7: 1.0}, faster) is None


def test_summary_is_the_median_and_the_quartiles() -> None:
    summary = summarize(dict(enumerate([5.0, 1.0, 4.0, 2.0, 3.0])))
    assert (summary.lower_quartile, summary.median, summary.upper_quartile) == (2.0, 3.0, 4.0)
    assert summary.iqr == 2.0
    assert summarize({4: 7.0}).median == 7.0
    with pytest.raises(ValueError, match="no samples"):
        summarize({})
