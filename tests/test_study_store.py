"""The study's database, its budget, and the recipes that its factors span."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trickbag.errors import StudyError, UsageError
from trickbag.recipe import Recipe
from trickbag.study.design import BASELINE, CANDIDATE
from trickbag.study.jobs import family, free_factors
from trickbag.study.layout import Fixed, lay_out
from trickbag.study.protocol import Point, Question, Round
from trickbag.study.spec import Budget
from trickbag.study.store import FILE, Row, Store
from trickbag.tricks.augmentation import RandomFlip
from trickbag.tricks.averaging import EMA, SWA
from trickbag.tricks.inference import TTAFlip
from trickbag.tricks.losses import LabelSmoothing
from trickbag.tricks.mixing import Mixup
from trickbag.tricks.optimization import SGD


def recipe(*tricks: object, **values: object) -> Recipe:
    plain = {"model": "mini_resnet", "epochs": 2, "batch_size": 8, "image_size": 8} | values
    return Recipe(**plain, tricks=[SGD(lr=0.05), *tricks])


ONE = Round(
    "screen",
    (Point(frozenset({"mixup", "ema"}), 3), Point(frozenset(), 0)),
    (Point(frozenset(), 0),),
    {"text": "because", "effects": {"mixup": 0.5}},
)


def test_what_is_recorded_is_read_back(tmp_path: Path) -> None:
    row = Row("+ mixup", 1, "selection", ("mixup",), "abc", "finished", 81.25, {"nll": 0.5}, 3.5)
    with Store(tmp_path) as store:
        store.decide(ONE)
        store.put([row])
        store.put([Row("+ mixup", 1, "selection", ("mixup",), "abc", "finished", 82.0, {}, 3.5)])
        store.open_split("test", ["baseline"], [0, 1], ["abc"], "why not")
        store.log("failed", "a job", 2, "boom")
    with Store(tmp_path, readonly=True) as store:
        assert store.rounds() == [ONE]
        assert [(r.arm, r.value, r.factors) for r in store.readings()] == [("+ mixup", 82.0, ("mixup",))]
        (opening,) = store.openings()
        assert (opening["arms"], opening["seeds"], opening["runs"]) == (["baseline"], [0, 1], ["abc"])
        (event,) = store.events()
        assert (event["event"], event["job"], event["attempt"], event["detail"]) == (
            "failed",
            "a job",
            2,
            "boom",
        )
    mode = sqlite3.connect(tmp_path / FILE).execute("PRAGMA journal_mode").fetchone()[0]
    assert mode == "wal"


def test_a_missing_store_is_empty_to_those_who_look(tmp_path: Path) -> None:
    with Store(tmp_path, readonly=True) as store:
        assert store.rounds() == []
        assert store.openings() == []
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("harm", ["garbage", "truncated", "a table is missing"])
def test_a_damaged_store_is_set_aside(tmp_path: Path, harm: str) -> None:
    with Store(tmp_path) as store:
        store.decide(ONE)
    path = tmp_path / FILE
    if harm == "garbage":
        path.write_bytes(b"not a database" * 100)
    elif harm == "truncated":
        path.write_bytes(path.read_bytes()[:5000])
        for suffix in ("-wal", "-shm"):
            path.with_name(FILE + suffix).unlink(missing_ok=True)
    else:
        db = sqlite3.connect(path)
        db.execute("DROP TABLE decisions")
        db.execute("CREATE TABLE decisions (other TEXT)")
        db.commit()
        db.close()
    with Store(tmp_path, readonly=True) as store:
        assert store.damaged
        assert store.rounds() == []
    assert not list(tmp_path.glob(f"{FILE}.damaged-*"))
    with Store(tmp_path) as store:
        assert store.damaged
        assert store.rounds() == []
    assert list(tmp_path.glob(f"{FILE}.damaged-*"))


def test_a_store_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    Store(tmp_path).close()
    db = sqlite3.connect(tmp_path / FILE)
    db.execute("PRAGMA user_version=99")
    db.close()
    with pytest.raises(StudyError, match="newer version"):
        Store(tmp_path)


def test_a_reader_does_not_stop_the_writer(tmp_path: Path) -> None:
    """`study status` looks while the coordinator writes."""
    done = threading.Event()
    failures: list[BaseException] = []
    Store(tmp_path).close()

    def look() -> None:
        try:
            while not done.is_set():
                with Store(tmp_path, readonly=True) as store:
                    store.events()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=look)
    thread.start()
    with Store(tmp_path) as store:
        for number in range(100):
            store.log("done", f"job {number}")
    done.set()
    thread.join()
    assert not failures
    with Store(tmp_path, readonly=True) as store:
        assert len(store.events()) == 100


@pytest.mark.parametrize(
    ("text", "amount", "unit"),
    [
        ("96 runs", 96, "runs"),
        ("1 run", 1, "runs"),
        ("400epochs", 400, "epochs"),
        ("2h", 2 * 3600 * 3, "seconds"),
        ("90 min", 90 * 60 * 3, "seconds"),
        ("1.5 hours", 5400 * 3, "seconds"),
        ("30s", 90, "seconds"),
    ],
)
def test_a_budget_is_read(text: str, amount: float, unit: str) -> None:
    assert Budget.parse(text, workers=3) == Budget(amount=amount, unit=unit)  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["", "96", "two hours", "0 runs", "-3 runs", "5 parsecs", "h"])
def test_what_is_no_budget_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="cannot read"):
        Budget.parse(text)


@given(st.integers(2, 6), st.floats(1, 200), st.integers(1, 30))
def test_a_fixed_design_keeps_its_budget(arms: int, budget: float, seeds: int) -> None:
    keys = tuple(f"f{i}" for i in range(arms))
    cells = (frozenset[str](), *(frozenset({key}) for key in keys), frozenset(keys))
    question = Question(keys, cost=lambda cell: 1 + len(cell) / 2, budget=budget, seeds=tuple(range(seeds)))
    try:
        found = Fixed("one-at-a-time", cells).next(question, ())
    except StudyError:
        each = sum(1 + len(cell) / 2 for cell in cells)
        assert budget < min(2, seeds) * each
        return
    assert found is not None
    assert question.spent([found]) <= budget + 1e-6
    assert {point.seed for point in found.points} <= set(range(seeds))


def test_predict_only_factors_cost_no_training() -> None:
    full = recipe(RandomFlip(), Mixup(), EMA(decay=0.9), TTAFlip(), eval_size=12)
    space = lay_out(recipe(), full, "screen").space
    free = free_factors(space)
    assert free == {"ema", "tta_flip", "eval_size"}
    training = family(space, frozenset({"mixup", "tta_flip"}), free)
    assert "ema" in training.recipe.tricks
    assert "random_flip" not in training.recipe.tricks
    same = family(space, frozenset({"mixup"}), free)
    assert training.recipe == same.recipe


def test_two_settings_of_one_average_are_not_both_free() -> None:
    space = lay_out(recipe(EMA(decay=0.9)), recipe(EMA(decay=0.5), TTAFlip()), "screen").space
    assert free_factors(space) == {"tta_flip"}


def test_cells_have_names_that_say_what_they_are() -> None:
    full = recipe(RandomFlip(), Mixup(), LabelSmoothing(), EMA(decay=0.9), TTAFlip())
    space = lay_out(recipe(), full, "auto").space
    keys = set(space.keys)
    assert space.name(frozenset()) == BASELINE
    assert space.name(frozenset(keys)) == CANDIDATE
    assert space.name(frozenset({"mixup"})) == "+ mixup"
    assert space.name(frozenset(keys - {"mixup"})) == "without mixup"
    names = [space.name(frozenset(k for i, k in enumerate(space.keys) if n >> i & 1)) for n in range(2**5)]
    assert len(set(names)) == 32
    assert space.recipe(frozenset(keys)) == full
    assert set(space.recipe(frozenset({"mixup", "ema"})).tricks) == {"sgd", "mixup", "ema"}


def test_an_average_that_is_completed_at_the_evaluation_size_ties_the_size_to_the_run() -> None:
    plain, swa = recipe(), recipe(SWA(after=0.5))
    assert free_factors(lay_out(plain, plain.replace(eval_size=12), "screen").space) == {"eval_size"}
    assert not free_factors(lay_out(swa, swa.replace(eval_size=12), "screen").space)
