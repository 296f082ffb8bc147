from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import case, children, recipe
from tiny import DATA, DIGITS, TINY

from scalesearch.evaluation import Alike, Evaluation, Evaluator, Outcome
from scalesearch.executor import LocalExecutor
from scalesearch.executor.pool import TRIES
from scalesearch.ledger import Ledger, evaluation_key
from scalesearch.training import Recipe, Result
from scalesearch.workspace import AllAlike

pytestmark = pytest.mark.xdist_group("evaluation")  # they share two workers

RECIPE = recipe()
ENDLESS = dataclasses.replace(RECIPE, epochs=10_000)  # minutes: stopped in every test


def evaluation(seed: int, with_recipe: Recipe = RECIPE) -> Evaluation:
    return Evaluation(TINY, with_recipe, DATA.fingerprint, seed)


@pytest.fixture(scope="module")
def executor() -> Iterator[LocalExecutor]:
    """Two workers for all tests: starting one imports torch."""
    with LocalExecutor(workers=2) as both:
        yield both


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path)


@pytest.fixture
def evaluator(ledger: Ledger, executor: LocalExecutor) -> Evaluator:
    return Evaluator(ledger, executor, DIGITS)


def until(condition: Callable[[], Any], *, seconds: float = 60.0) -> Any:
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)
    return found


def wait_for_claim(ledger: Ledger, key: str) -> None:
    """Only looks: to try for the claim would be in the driver's way."""
    until(ledger.weights_path(key).with_suffix(".lock").exists)


def is_claimed(ledger: Ledger, key: str) -> bool:
    claim = ledger.claim(key)
    if claim is not None:
        claim.release()
    return claim is None


# --- the ledger -----------------------------------------------------------------------------------------------------


def test_what_the_ledger_has_is_not_trained_again(evaluator: Evaluator, ledger: Ledger) -> None:
    wanted = [evaluation(0), evaluation(1)]
    first = {outcome.evaluation.seed: outcome for outcome in evaluator.run(wanted)}
    assert [first[seed].reused for seed in (0, 1)] == [False, False]
    weights = [ledger.weights_path(e.key) for e in wanted]
    written = [path.stat().st_mtime_ns for path in weights]
    with LocalExecutor(workers=1) as idle:  # starts a worker only when there is something to train
        again = list(Evaluator(ledger, idle, DIGITS).run(wanted))
        assert [o.reused for o in again] == [True, True]
        for outcome in again:
            before = first[outcome.evaluation.seed].result
            assert before is not None
            assert outcome.result is not None
            assert outcome.result.to_json() == before.to_json()
    assert [path.stat().st_mtime_ns for path in weights] == written


def test_a_driver_killed_after_its_record_leaves_no_lock_for_ever(evaluator: Evaluator, ledger: Ledger) -> None:
    list(evaluator.run([evaluation(0)]))
    lock = ledger.weights_path(evaluation(0).key).with_suffix(".lock")
    assert not lock.exists()
    lock.touch()  # what a driver leaves that is killed between its record and its release
    assert [outcome.reused for outcome in evaluator.run([evaluation(0)])] == [True]
    assert not lock.exists()


def test_the_lock_of_a_living_driver_is_left_alone(evaluator: Evaluator, ledger: Ledger) -> None:
    list(evaluator.run([evaluation(0)]))
    with ledger.claim(evaluation(0).key) or pytest.fail("nobody has it"):
        assert [outcome.reused for outcome in evaluator.run([evaluation(0)])] == [True]
        assert is_claimed(ledger, evaluation(0).key)


def test_a_record_is_in_the_ledger_when_its_outcome_is_yielded(evaluator: Evaluator, ledger: Ledger) -> None:
    for outcome in evaluator.run([evaluation(0), evaluation(1)]):
        record = ledger.get(outcome.evaluation.key)
        assert record is not None
        assert record["state"] == "finished"
        assert record["specification"] == outcome.evaluation.specification()
        assert record["environment"]["torch"] == torch.__version__
        assert not is_claimed(ledger, outcome.evaluation.key)


def test_one_that_is_asked_for_twice_is_trained_once(evaluator: Evaluator) -> None:
    outcomes = list(evaluator.run([evaluation(0), evaluation(1), evaluation(0)]))
    assert sorted((o.evaluation.seed, o.reused) for o in outcomes) == [(0, False), (0, True), (1, False)]


def test_the_key_knows_neither_the_network_s_name_nor_the_spelling_of_numbers() -> None:
    renamed = dataclasses.replace(TINY, name="other")
    assert Evaluation(renamed, RECIPE, "d", 0).key == Evaluation(TINY, RECIPE, "d", 0).key
    assert evaluation(0).key != evaluation(1).key
    assert json.loads(json.dumps(evaluation(0).specification())) == evaluation(0).specification()


def test_two_drivers_in_two_threads_train_each_evaluation_once(ledger: Ledger, executor: LocalExecutor) -> None:
    wanted = [evaluation(seed) for seed in range(6)]
    answers: dict[str, list[Outcome]] = {}

    def drive(name: str) -> None:
        answers[name] = list(Evaluator(ledger, executor, DIGITS).run(iter(wanted)))

    threads = [threading.Thread(target=drive, args=(name,)) for name in ("a", "b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert_once(*([(o.evaluation.key, o.reused) for o in answers[name]] for name in ("a", "b")), wanted=wanted)


DRIVER = """
import json, sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_evaluation import *
with ThreadPoolExecutor(1) as executor:
    executor.slots = 1
    print("ready", flush=True)
    outcomes = Evaluator(Ledger(Path(sys.argv[1])), executor, DIGITS).run([evaluation(seed) for seed in range(4)])
    print(json.dumps([(outcome.evaluation.key, outcome.reused) for outcome in outcomes]))
"""


def test_two_drivers_in_two_processes_train_each_evaluation_once(
    evaluator: Evaluator, ledger: Ledger, tmp_path: Path
) -> None:
    script = DRIVER.format(tests=str(Path(__file__).parent))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", script, str(tmp_path)]
    assert len(list(evaluator.run([evaluation(9)]))) == 1  # a worker is there before the other driver begins
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as driver:
        assert driver.stdout is not None
        assert driver.stdout.readline() == "ready\n"
        mine = [(o.evaluation.key, o.reused) for o in evaluator.run([evaluation(seed) for seed in range(4)])]
        other = json.loads(driver.communicate(timeout=120)[0])
    assert_once(mine, other, wanted=[evaluation(seed) for seed in range(4)])


def assert_once(*answers: list[Any], wanted: list[Evaluation]) -> None:
    """Each driver has all outcomes, and of each evaluation one of them is new in one driver."""
    keys = sorted(e.key for e in wanted)
    for answer in answers:
        assert sorted(key for key, _ in answer) == keys
    assert sorted(key for answer in answers for key, reused in answer if not reused) == keys


# --- failures and stops ---------------------------------------------------------------------------------------------


def test_what_kills_its_worker_again_and_again_fails_and_no_other(ledger: Ledger) -> None:
    wanted = [evaluation(0, ENDLESS), evaluation(1), evaluation(2)]
    before = children()
    with LocalExecutor(workers=1) as one:
        outcomes: list[Outcome] = []

        def drive() -> None:
            outcomes.extend(Evaluator(ledger, one, DIGITS).run(wanted))

        driver = threading.Thread(target=drive)
        driver.start()
        wait_for_claim(ledger, wanted[0].key)
        killed = set(before)
        for _ in range(TRIES):
            pid = until(lambda: children() - killed).pop()
            killed.add(pid)
            os.kill(pid, signal.SIGKILL)
        driver.join(60)
        assert not driver.is_alive()
    assert [(o.evaluation.seed, o.result is None) for o in outcomes] == [(0, True), (1, False), (2, False)]
    assert "SIGKILL" in outcomes[0].reason
    record = ledger.get(wanted[0].key)
    assert record is not None
    assert (record["state"], record["result"], record["reason"]) == ("failed", None, outcomes[0].reason)


def test_a_failed_one_is_not_tried_again_until_its_record_is_removed(evaluator: Evaluator, ledger: Ledger) -> None:
    diverging = evaluation(0, dataclasses.replace(RECIPE, learning_rate=100.0, epochs=20, warmup=0.0, weight_decay=1.0))
    (outcome,) = evaluator.run([diverging])
    assert outcome.result is None
    assert "diverged" in outcome.reason
    (again,) = evaluator.run([diverging])
    assert again == (diverging, None, outcome.reason, True, "", "")
    record = ledger.get(diverging.key)
    assert record is not None
    assert record["result"] is None  # no score
    ledger.remove(diverging.key)
    (retried,) = evaluator.run([diverging])
    assert not retried.reused


def test_an_executor_that_is_shut_down_has_failed_nothing(ledger: Ledger) -> None:
    endless, waiting = evaluation(0, ENDLESS), evaluation(1, ENDLESS)
    one = LocalExecutor(workers=1)
    caught: list[BaseException] = []

    def drive() -> None:
        try:
            list(Evaluator(ledger, one, DIGITS).run([endless, waiting]))
        except BaseException as error:
            caught.append(error)

    driver = threading.Thread(target=drive)
    driver.start()
    wait_for_claim(ledger, endless.key)
    until(lambda: one._seats[0]._process)  # type: ignore[attr-defined]
    one.shutdown(wait=False, cancel_futures=True)
    driver.join(30)
    assert [type(error) for error in caught] == [CancelledError]
    for stopped in (endless, waiting):
        assert ledger.get(stopped.key) is None
        assert not is_claimed(ledger, stopped.key)


def test_an_executor_that_takes_no_more_work_keeps_no_claim(ledger: Ledger) -> None:
    one = LocalExecutor(workers=1)
    one.shutdown()
    with pytest.raises(RuntimeError, match="shut down"):
        list(Evaluator(ledger, one, DIGITS).run([evaluation(0)]))
    assert not is_claimed(ledger, evaluation(0).key)


def test_ctrl_c_in_the_consumer_gives_all_claims_back_and_records_no_failure(ledger: Ledger) -> None:
    wanted = [evaluation(0), evaluation(1, ENDLESS), evaluation(2, ENDLESS)]

    def consume() -> None:
        with LocalExecutor(workers=2) as two:
            for outcome in Evaluator(ledger, two, DIGITS).run(wanted):
                assert outcome.evaluation.seed == 0
                assert is_claimed(ledger, wanted[1].key)
                signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        consume()
    assert [ledger.get(e.key) is None for e in wanted] == [False, True, True]
    assert not any(is_claimed(ledger, e.key) for e in wanted)


def test_what_has_finished_is_kept_when_the_consumer_does_not_come_back(evaluator: Evaluator, ledger: Ledger) -> None:
    wanted = [evaluation(0), evaluation(1)]
    outcomes = evaluator.run(wanted)
    next(outcomes)
    until(lambda: all(ledger.weights_path(e.key).exists() for e in wanted))
    time.sleep(0.3)  # from the weights to the answer
    outcomes.close()
    assert [ledger.get(e.key) is not None for e in wanted] == [True, True]
    assert not any(is_claimed(ledger, e.key) for e in wanted)


def test_a_number_that_is_not_finite_cannot_be_recorded_as_a_score(evaluator: Evaluator, ledger: Ledger) -> None:
    (outcome,) = evaluator.run([evaluation(0)])
    assert outcome.result is not None
    record = ledger.get(outcome.evaluation.key)
    assert record is not None
    bad = record | {"result": record["result"] | {"val_accuracy": float("nan")}}
    with pytest.raises(ValueError, match=r"result\.val_accuracy is nan"):
        ledger.put(outcome.evaluation.key, bad)
    assert ledger.get(outcome.evaluation.key) == record


# --- strategies -----------------------------------------------------------------------------------------------------


def test_a_strategy_that_waits_sees_the_outcomes_before_it_goes_on(evaluator: Evaluator) -> None:
    seen: list[int] = []
    at_second_rung: list[list[int]] = []

    def strategy() -> Iterator[Evaluation | None]:
        yield evaluation(0)
        yield evaluation(1)
        yield evaluation(2)
        while len(seen) < 3:
            yield None
        at_second_rung.append(list(seen))
        yield evaluation(10 + seen[0])

    seen.extend(outcome.evaluation.seed for outcome in evaluator.run(strategy()))  # one by one, as they come
    assert sorted(at_second_rung[0]) == [0, 1, 2]
    assert seen[3] == 10 + seen[0]


def test_a_strategy_that_waits_is_not_asked_again_and_again(ledger: Ledger, executor: LocalExecutor) -> None:
    long = evaluation(0, dataclasses.replace(RECIPE, epochs=20))
    requested, done = 0, False

    def strategy() -> Iterator[Evaluation | None]:
        nonlocal requested
        yield long
        while not done:
            requested += 1
            yield None

    for outcome in Evaluator(ledger, executor, DIGITS).run(strategy()):
        done = outcome.result is not None
    assert requested <= 3


def test_what_another_driver_gives_up_is_trained(evaluator: Evaluator, ledger: Ledger) -> None:
    other = ledger.claim(evaluation(0).key)
    assert other is not None
    threading.Timer(0.3, other.release).start()  # the other driver gives up
    (outcome,) = evaluator.run([evaluation(0)])
    assert not outcome.reused


def test_a_strategy_may_wait_for_what_another_driver_trains(evaluator: Evaluator, ledger: Ledger) -> None:
    list(evaluator.run([evaluation(0)]))
    path = ledger.weights_path(evaluation(0).key).with_suffix(".json")
    path.rename(tmp := path.with_suffix(".away"))
    other = ledger.claim(evaluation(0).key)
    assert other is not None
    threading.Timer(0.3, lambda: (tmp.rename(path), other.release())).start()
    seen: list[int] = []

    def strategy() -> Iterator[Evaluation | None]:
        yield evaluation(0)
        while not seen:
            yield None
        yield evaluation(1)

    seen.extend(outcome.evaluation.seed for outcome in evaluator.run(strategy()))
    assert seen == [0, 1]


def test_a_strategy_that_waits_for_nothing_is_an_error_and_no_hang(evaluator: Evaluator) -> None:
    def strategy() -> Iterator[Evaluation | None]:
        yield evaluation(0)
        while True:
            yield None

    with pytest.raises(RuntimeError, match="no evaluation is under way"):
        list(evaluator.run(strategy()))


def test_evaluations_are_drawn_only_when_a_worker_is_free(evaluator: Evaluator) -> None:
    drawn, came = 0, 0

    def strategy() -> Iterator[Evaluation]:
        nonlocal drawn
        for seed in range(6):
            drawn += 1
            yield evaluation(seed)

    for _ in evaluator.run(strategy()):
        came += 1
        assert drawn - came <= evaluator.slots
    assert came == 6


# --- the test split -------------------------------------------------------------------------------------------------


def test_the_test_split_is_scored_once(evaluator: Evaluator, ledger: Ledger) -> None:
    wanted = [evaluation(0), evaluation(1)]
    assert len(list(evaluator.run(wanted))) == 2
    first = evaluator.test([*wanted, wanted[0]])
    assert first[0] == first[2]
    assert {score["num_test"] for score in first} == {359}
    assert all(0 <= score["test_accuracy"] <= 1 for score in first)
    for e in wanted:
        ledger.weights_path(e.key).unlink()  # what is read now comes from the ledger
    assert evaluator.test(wanted) == first[:2]


def test_weights_that_are_missing_or_damaged_are_trained_again(
    evaluator: Evaluator, ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    assert len(list(evaluator.run([evaluation(0)]))) == 1
    path = ledger.weights_path(evaluation(0).key)
    content, record = path.read_bytes(), ledger.get(evaluation(0).key)
    assert record is not None
    scores = evaluator.test([evaluation(0)])
    flipped = bytearray(content)
    flipped[-1] ^= 1
    for damaged, scored in ((None, False), (bytes(flipped), False), (bytes(flipped), True), (b"", True)):
        with case(damaged and damaged[-5:], scored):
            caplog.clear()
            if damaged is None:
                path.unlink()
            else:
                path.write_bytes(damaged)
            if not scored:
                ledger.forget(evaluation_key({"test_of": evaluation(0).key}))
            assert evaluator.test([evaluation(0)]) == scores
            assert path.read_bytes() == content
            (message,) = caplog.messages
            assert str(path) in message
    path.write_bytes(bytes(8) + content[8:])
    older = {name: value for name, value in record.items() if name != "weights_sha256"}
    ledger.put(evaluation(0).key, older)
    assert ledger.why_no_weights(evaluation(0).key) is None, "of an older record nothing is known"


def test_a_record_with_which_nothing_can_be_done_is_done_again(
    evaluator: Evaluator, ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    (first,) = evaluator.run([evaluation(0)])
    assert first.result is not None
    record = ledger.get(evaluation(0).key) or {}
    for wrong in ({}, {"val_accuracy": 1.0}, record["result"] | {"correct": 5}, record["result"] | {"more": 1}):
        with case(wrong):
            ledger.put(evaluation(0).key, record | {"result": wrong})
            ledger._doubted.clear()
            caplog.clear()
            (outcome,) = evaluator.run([evaluation(0)])
            assert not outcome.reused
            assert outcome.result is not None
            assert outcome.result.val_accuracy == first.result.val_accuracy
            assert evaluation(0).key in caplog.messages[0]


# --- failures ---------------------------------------------------------------------------------------------------------


def test_failures_of_one_kind_in_a_row_end_a_search_and_others_do_not() -> None:
    def outcome(seed: int, word: str, *, reused: bool = False) -> Outcome:
        reason = "" if word == "finished" else f"{word} at {seed}.5"
        return Outcome(evaluation(seed), None if reason else RESULT, reason, reused)

    cases = (
        (["nan"] * 12, 5),
        (["nan"] * 3 + ["finished"] + ["nan"] * 8, 9),
        (["nan", "memory"] * 6, 12),
        (["nan"] * 4 + ["memory"] * 4 + ["finished"] * 4, 12),
    )
    for words, ran in cases:
        with case(words):
            alike, taken = Alike(), 0
            with contextlib.suppress(AllAlike):
                for taken, word in enumerate(words, 1):
                    alike.refuse(outcome(taken, word))
            assert taken == ran
    alike = Alike()
    for seed in range(12):
        alike.refuse(outcome(seed, "nan", reused=True))  # they were told by the command before
    for seed in range(4):
        alike.refuse(outcome(seed, "nan"))
    with pytest.raises(AllAlike, match=r"5 trainings in a row failed in one way, .*; the last: nan at 9\.5"):
        alike.refuse(outcome(9, "nan"))


RESULT = Result(
    val_accuracy=0.5,
    val_loss=1.0,
    correct=np.array([True, False]),
    curve=(),
    train_seconds=1.0,
    images_per_second=1.0,
)
