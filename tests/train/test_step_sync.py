"""All processes of a training agree on signals and errors: here two, as threads that meet as processes do."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.command import restored_handlers
from tests.tiny_runs import pretrain_tiny
from vmae_data.errors import DataError, StopRequested
from vmae_data.processes import stop_signals
from vmae_train.clips.loader import Batch, ClipLoader, UnreadableSamples
from vmae_train.distributed import Distributed
from vmae_train.training.step_sync import StepStatus, StepSync, WaitInterrupted

Body = Callable[[StepSync], Any]


class _Pair:
    """Adds up the numbers of two threads."""

    def __init__(self) -> None:
        self.barrier, self.values, self.count = threading.Barrier(2, timeout=60), {0: [0], 1: [0]}, 0

    def sums(self, rank: int, values: list[int]) -> list[int]:
        self.values[rank] = values
        self.barrier.wait()
        sums = [a + b for a, b in zip(self.values[0], self.values[1], strict=True)]
        self.barrier.wait()
        self.count += rank == 0
        return sums


class _Threads(Distributed):
    def __init__(self, rank: int, pair: _Pair) -> None:
        super().__init__(rank, 2)
        self.pair = pair

    def all_reduce_sum(self, values: Sequence[int]) -> list[int]:
        return self.pair.sums(self.rank, [int(value) for value in values])


def _both(signalled: Body, other: Body) -> tuple[Any, Any, int]:
    """The results of both processes, or their errors, and how often they met. Only the first one gets signals."""
    pair = _Pair()
    syncs = [StepSync(_Threads(rank, pair), UnreadableSamples(100)) for rank in (0, 1)]

    def result(body: Body, sync: StepSync) -> Any:
        try:
            return body(sync)
        except (WaitInterrupted, DataError) as error:
            return error

    with restored_handlers(), ThreadPoolExecutor(1) as thread, syncs[0]:
        second = thread.submit(result, other, syncs[1])
        first = result(signalled, syncs[0])
        return first, second.result(timeout=60), pair.count


def _step(sync: StepSync, sent: signal.Signals | None = None) -> StepStatus:
    """A step: a wait for a batch, which a signal may interrupt, and the exchange."""
    try:
        with sync.interruptible():
            if sent is not None:
                signal.raise_signal(sent)
    except WaitInterrupted:
        return sync.exchange(0, None, interrupted=True)
    return sync.exchange(4, None)


@pytest.mark.parametrize("number", stop_signals())
def test_a_signal_to_one_process_stops_both_at_the_step_whose_data_they_wait_for(number: signal.Signals) -> None:
    first, second, _ = _both(
        lambda sync: [_step(sync), _step(sync, number)],
        lambda sync: [_step(sync), _step(sync)],
    )
    assert first == second == [StepStatus(8, False, None, False), StepStatus(4, True, 128 + number, True)]


def test_a_signal_to_save_reaches_both_processes_once() -> None:
    first, second, meetings = _both(
        lambda sync: [_step(sync, signal.SIGUSR1), _step(sync)], lambda sync: [_step(sync), _step(sync)]
    )
    assert first == second == [StepStatus(8, True, None, False), StepStatus(8, False, None, False)]
    assert meetings == 2  # one for each step


def _validate(seen: list[int], batches: Iterator[Any], turns: int) -> Body:
    def body(sync: StepSync) -> None:
        seen.extend(sync.validation_batches(batches, turns))

    return body


def _batches(count: int, at: int = -1, act: Callable[[], None] = lambda: None) -> Iterator[int]:
    """Numbers in place of batches; `act` happens while number `at` is loaded."""
    for number in range(count):
        if number == at:
            act()
        yield number


def _fail() -> None:
    raise DataError("unreadable")


@pytest.mark.parametrize("number", stop_signals())
def test_a_signal_to_one_process_ends_the_validation_of_both_before_the_next_batch(number: signal.Signals) -> None:
    seen: tuple[list[int], list[int]] = ([], [])
    batches = _batches(5, 2, lambda: signal.raise_signal(number))
    first, second, _ = _both(_validate(seen[0], batches, 5), _validate(seen[1], _batches(5), 5))
    assert [type(error) for error in (first, second)] == [WaitInterrupted, WaitInterrupted]
    assert first.exit_status == second.exit_status == 128 + number
    assert seen == ([0, 1], [0, 1])


def test_a_signal_to_save_does_not_end_a_validation_and_is_kept_for_the_next_step() -> None:
    def validate(batches: Iterator[Any]) -> Body:
        return lambda sync: (list(sync.validation_batches(batches, 3)), _step(sync).save)

    first, second, meetings = _both(
        validate(_batches(3, 1, lambda: signal.raise_signal(signal.SIGUSR1))), validate(_batches(2))
    )
    assert (first, second, meetings) == (([0, 1, 2], True), ([0, 1], True), 4)


def test_an_error_of_one_process_ends_the_validation_of_the_other() -> None:
    seen: tuple[list[int], list[int]] = ([], [])
    first, second, _ = _both(_validate(seen[0], _batches(5), 5), _validate(seen[1], _batches(5, 3, _fail), 5))
    assert (first, str(second)) == (None, "unreadable")
    assert seen == ([0, 1, 2], [0, 1, 2])


@pytest.mark.processes
def test_a_signal_before_the_first_batch_ends_a_run_that_has_nothing_to_save(
    demo_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = ClipLoader.__iter__

    def signal_first(loader: ClipLoader) -> Iterator[Batch]:
        signal.raise_signal(signal.SIGTERM)
        yield from batches(loader)

    monkeypatch.setattr(ClipLoader, "__iter__", signal_first)
    with pytest.raises(StopRequested) as stopped:
        pretrain_tiny(demo_shards, tmp_path / "run")
    assert stopped.value.exit_status == 143
    monkeypatch.undo()
    assert not list(tmp_path.glob("run/checkpoints/*"))
    assert pretrain_tiny(demo_shards, tmp_path / "run").step == 4
