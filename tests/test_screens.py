"""Screens and factorials against published designs, and what they promise."""

from __future__ import annotations

import subprocess
import sys
from itertools import combinations, product

import numpy as np
import pytest
from scipy.linalg import hadamard

from trickbag.errors import StudyError
from trickbag.study.factorials import Factorial
from trickbag.study.protocol import Point, Question, Reading, Seen
from trickbag.study.screens import (
    Screen,
    aliases,
    aliases_of,
    blocks,
    d_optimal,
    foldover,
    free_settings,
    lay_out_screen,
    plackett_burman,
    trained_rows,
)

PUBLISHED = {
    8: "+++-+--",
    12: "++-+++---+-",
    16: "++++-+-++--+---",
    20: "++--++++-+-+----++-",
    24: "+++++-+-++--++--+-+----",
    36: "-+-+++---+++++-+++--+----+-+-++--+-",
    44: "++--+-+--+++-+++++---+-+++-----+---++-+-++-",
    48: "+++++-++++--+-+-+++--+--++-++---+-+-++----+----",
}
"""First rows of the cyclic designs of Plackett and Burman 1946, table of section 4."""

BLOCKS_OF_28 = """
+-++++---  -+---+--+  ++-+-++-+
++-+++---  --++--+--  -++++-++-
-+++++---  +---+--+-  +-+-++-++
---+-++++  --+-+---+  +-+++-+-+
---++-+++  +----++--  ++--++++-
----+++++  -+-+---+-  -+++-+-++
+++---+-+  --+--+-+-  +-++-+++-
+++---++-  +--+----+  ++-++--++
+++----++  -+--+-+--  -++-+++-+
"""
"""The blocks of the design of 28 runs, ibid."""

MAXIMAL_DETERMINANTS = {3: 4, 4: 16, 5: 48, 6: 160, 7: 576, 8: 4096, 9: 14336, 10: 73728, 11: 327680}
"""Of matrices of −1 and 1 (Hadamard's problem; Orrick and Solomon's table, OEIS A003433)."""


def signs(design):
    return np.where(design, 1.0, -1.0)


def question(count, free=(), **more):
    return Question(tuple(f"f{i}" for i in range(count)), free=frozenset(free), **more)


def needs(*pairs):
    """Recipes in which the first of a pair needs the second."""
    return lambda cell: all(f"f{b}" in cell for a, b in pairs if f"f{a}" in cell)


def information(design):
    x = np.hstack([np.ones((len(design), 1)), signs(design)])
    return x.T @ x


@pytest.mark.parametrize("factors", range(1, 48))
def test_plackett_burman_is_balanced_orthogonal_and_as_small_as_can_be(factors):
    design = plackett_burman(factors)
    runs = 4 * (factors // 4 + 1)
    assert design.shape == (runs, factors)
    assert np.array_equal(information(design), runs * np.eye(factors + 1))
    assert not design[-1].any()
    if factors > 2:
        assert len(np.unique(foldover(design), axis=0)) == 2 * runs


@pytest.mark.parametrize("runs", PUBLISHED)
def test_plackett_burman_has_the_published_rows(runs):
    first = np.array([sign == "+" for sign in PUBLISHED[runs]])
    published = [np.roll(first, i) for i in range(runs - 1)]
    assert {row.tobytes() for row in plackett_burman(runs - 1)} == {
        row.tobytes() for row in [*published, np.zeros(runs - 1, bool)]
    }


def test_the_design_of_28_runs_is_the_published_one():
    a, b, c = (
        np.array([[sign == "+" for sign in line.split()[i]] for line in BLOCKS_OF_28.split("\n") if line])
        for i in range(3)
    )
    published = np.vstack([np.block([[a, b, c], [c, a, b], [b, c, a]]), np.zeros((1, 27), bool)])
    assert {row.tobytes() for row in plackett_burman(27)} == {row.tobytes() for row in published}


@pytest.mark.parametrize("runs", [8, 16])
def test_regular_designs_have_the_interactions_of_sylvesters(runs):
    def triples(h):
        return sorted(abs(h[:, list(t)].prod(1).sum()) for t in combinations(range(runs - 1), 3))

    assert triples(signs(plackett_burman(runs - 1))) == triples(hadamard(runs)[:, 1:])


def test_more_factors_than_in_the_paper():
    for factors in (51, 60, 99):
        design = plackett_burman(factors)
        assert np.array_equal(information(design), len(design) * np.eye(factors + 1))
    with pytest.raises(StudyError):
        plackett_burman(0)


@pytest.mark.parametrize("factors", [3, 4, 7, 11, 20, 27])
def test_foldover_clears_main_effects_of_two_factor_interactions(factors):
    design = foldover(plackett_burman(factors))
    half = len(design) // 2
    assert (design[:half] != design[half:]).all()
    x = signs(design)
    for i, j in combinations(range(factors), 2):
        assert not (x.T @ (x[:, i] * x[:, j])).any()
    keys = [f"f{i}" for i in range(factors)]
    assert not any(aliases(design, keys).mixed.values())


@pytest.mark.parametrize("runs", MAXIMAL_DETERMINANTS)
def test_d_optimal_reaches_the_known_maximal_determinants(runs):
    design = d_optimal(runs, runs - 1, lambda row: True, mirrored=False)
    found = np.sqrt(np.linalg.det(information(design)))
    assert found <= MAXIMAL_DETERMINANTS[runs] * (1 + 1e-9)
    assert found >= MAXIMAL_DETERMINANTS[runs] * 0.97 ** (runs / 2)


@pytest.mark.parametrize("factors", [3, 5, 8, 11, 15])
def test_d_optimal_is_close_to_plackett_burman_where_all_is_allowed(factors):
    runs = 8 * (factors // 4 + 1)
    design = d_optimal(runs, factors, lambda row: True)
    assert (design[: runs // 2] != design[runs // 2 :]).all()
    assert np.linalg.det(information(design) / runs) ** (1 / (factors + 1)) > 0.93


def test_d_optimal_against_brute_force():
    rows = [row for row in product([False, True], repeat=3) if row[0] <= row[1]]
    best = max(np.linalg.det(information(np.array(chosen))) for chosen in combinations(rows, 5))
    found = d_optimal(5, 3, lambda row: row[0] <= row[1], mirrored=False)
    assert np.linalg.det(information(found)) == pytest.approx(best)
    pairs = [row for row in product([False, True], repeat=4) if not (row[0] and row[1] and row[2])]
    best = max(np.linalg.det(information(np.array(chosen))) for chosen in combinations(pairs, 6))
    found = d_optimal(6, 4, lambda row: not (row[0] and row[1] and row[2]), mirrored=False)
    assert np.linalg.det(information(found)) >= 0.9 * best


@pytest.mark.parametrize(
    ("factors", "pairs"),
    [(4, [(0, 1)]), (8, [(0, 1), (1, 2)]), (12, [(0, 1), (2, 3)]), (20, [(0, 1), (2, 1), (5, 6)])],
)
def test_screen_avoids_forbidden_recipes(factors, pairs):
    asked = []

    def allowed(cell):
        asked.append(cell)
        return needs(*pairs)(cell)

    asking = question(factors, allowed=allowed)
    rows = trained_rows(asking)
    assert len(asked) < 1500
    assert len(rows) == 8 * (factors // 4 + 1)
    assert np.array_equal(rows, trained_rows(asking))
    cells = [frozenset(f"f{i}" for i in np.flatnonzero(row)) for row in rows]
    assert all(map(needs(*pairs), cells))
    assert not rows[0].any()
    assert rows[len(rows) // 2].all()
    scaled = information(rows) / len(rows)
    assert np.linalg.det(scaled) ** (1 / (factors + 1)) > 0.75
    # Factors that no rule binds stay clear of each other's interactions in most of the design.
    unbound = [i for i in range(factors) if not any(i in pair for pair in pairs)]
    half = len(rows) // 2
    assert (rows[:half] != rows[half:])[:, unbound].mean() > (0.9 if factors > 4 else 0.7)


def test_factors_that_cannot_be_told_apart_are_named():
    with pytest.raises(StudyError, match=r"f1 and f3 can only be switched together(.|\n)*tie them"):
        trained_rows(question(5, allowed=lambda cell: ("f1" in cell) == ("f3" in cell)))
    with pytest.raises(StudyError, match="f0 and f1 can only be switched together"):
        trained_rows(question(2, allowed=lambda cell: ("f0" in cell) == ("f1" in cell)))
    with pytest.raises(StudyError, match="f2 is always on"):
        d_optimal(16, 5, lambda row: row[2], keys=[f"f{i}" for i in range(5)])
    with pytest.raises(StudyError, match="no recipe"):
        d_optimal(16, 5, lambda row: False)
    with pytest.raises(StudyError, match="expected: 10"):
        d_optimal(8, 5, lambda row: True)


def test_an_odd_rule_of_three_factors_is_found():
    design = d_optimal(24, 6, lambda row: row[0] == row[1] or row[2], seed=1)
    assert (design[:, 0] != design[:, 1]).any()
    assert all(row[0] == row[1] or row[2] for row in design)


def test_blocks_keep_pairs_together_and_main_effects_out():
    design = foldover(plackett_burman(11))
    own = blocks(design, 5)
    assert np.array_equal(own[:12], own[12:])
    sizes = np.bincount(own)
    assert sizes.max() - sizes.min() <= 2
    for block in range(5):
        assert not signs(design)[own == block].sum(0).any()
    rows = trained_rows(question(12, allowed=needs((0, 1), (2, 3))))
    own = blocks(rows, 4)
    x = signs(rows)
    within = sum(np.linalg.norm(x[own == b].sum(0)) ** 2 for b in range(4))
    rng = np.random.default_rng(0)
    half = len(rows) // 2
    shuffled = [np.tile(rng.permutation(half) % 4, 2) for _ in range(50)]
    by_chance = [sum(np.linalg.norm(x[o == b].sum(0)) ** 2 for b in range(4)) for o in shuffled]
    assert within <= min(by_chance)
    with pytest.raises(StudyError, match="use fewer seeds"):
        blocks(design, 13)


def test_copies_of_a_recipe_go_to_different_seeds():
    design = np.vstack([foldover(plackett_burman(3))] * 2)[[0, 1, 2, 3, 0, 1, 2, 3, 4, 5, 6, 7, 4, 5, 6, 7]]
    own = blocks(design, 4)
    for block in range(4):
        rows = design[own == block]
        assert len(np.unique(rows, axis=0)) == len(rows)


def test_alias_matrix_against_its_definition():
    design = plackett_burman(5)
    x = signs(design)
    pairs = list(combinations(range(5), 2))
    x1 = np.hstack([np.ones((8, 1)), x])
    expected = np.linalg.inv(x1.T @ x1) @ x1.T @ np.stack([x[:, i] * x[:, j] for i, j in pairs], 1)
    keys = list("abcde")
    found = aliases(design, keys)
    for k, key in enumerate(keys):
        strong = {(keys[i], keys[j]): expected[1 + k, p] for p, (i, j) in enumerate(pairs)}
        strong = {pair: value for pair, value in strong.items() if abs(value) >= 0.2}
        assert {(a, b): value for a, b, value in found.mixed[key]} == pytest.approx(strong)
    assert any("is mixed with" in line for line in found.sentences)


def test_aliases_in_words():
    full = np.array(list(product([False, True], repeat=3)))
    assert aliases(full, list("abc")).sentences == (
        "Main effects are clear of two-factor interactions.",
        "All two-factor interactions can be estimated together.",
    )
    half = full[full.sum(1) % 2 == 1]
    assert aliases(half, list("abc")).sentences[0] == "a is mixed with b × c (+1.00)."
    found = aliases(foldover(plackett_burman(7)), list("abcdefg"))
    assert sorted(len(group) for group in found.groups) == [3] * 7
    assert any(line.endswith("cannot be told apart.") for line in found.sentences)
    many = aliases(foldover(plackett_burman(20)), [f"f{i}" for i in range(20)])
    assert len(many.sentences) < 16
    assert "share 23 independent contrasts" in many.sentences[-1]
    points = [Point(frozenset(k for k, on in zip("abc", row, strict=True) if on), 0) for row in full]
    assert aliases_of(points * 2, list("abc")) == aliases(full, list("abc")).sentences


@pytest.mark.parametrize("count", [1, 2, 3, 6, 11])
@pytest.mark.parametrize("free", [0, 1, 2, 3])
def test_screen_reads_every_run_at_the_same_free_settings(count, free):
    loose = [f"f{count + i}" for i in range(free)]
    asking = question(count + free, loose, seeds=(3, 4))
    points = lay_out_screen(asking)
    assert len(set(points)) == len(points)
    settings = {frozenset(s) for s in free_settings(asking)}
    assert frozenset() in settings
    assert frozenset(loose) in settings
    assert len(settings) == [1, 2, 4, 8][free]
    read = {}
    for point in points:
        read.setdefault(asking.training(point), set()).add(point.cell & asking.free)
    assert all(found == settings for found in read.values())
    for seed in (3, 4):
        assert Point(frozenset(), seed) in points
        assert Point(asking.all_on, seed) in points
        trained = [cell for cell, own in read if own == seed]
        assert not sum(signs(np.array([k in c for k in asking.factors[:count]])) for c in trained).any()
    if count > 2:
        assert len(read) == 8 * (count // 4 + 1) + 2


def test_screen_of_free_factors_alone_trains_one_run_a_seed():
    asking = question(2, ["f0", "f1"])
    points = lay_out_screen(asking)
    assert len(points) == 12
    assert len({asking.training(p) for p in points}) == 3


def test_budget_is_kept_and_used():
    def price(cell):
        return 1 + 0.5 * ("f0" in cell)

    with pytest.raises(StudyError, match="expected: a budget of 20 or more"):
        Screen().next(question(6, cost=price, budget=19), ())
    for budget in (20, 25, 50, 100):
        asking = question(6, cost=price, budget=budget)
        found = Screen().next(asking, ())
        spent = asking.spent([found])
        assert budget - 20 < spent <= budget
        for seed in {p.seed for p in found.points}:
            assert Point(frozenset(), seed) in found.points
            assert Point(asking.all_on, seed) in found.points
    generous = lay_out_screen(question(6), runs_budget=46, seeds=(5, 9))
    assert sorted({p.seed for p in generous}) == [5, 9, 10, 11, 12]
    assert len(generous) == 44
    assert len(lay_out_screen(question(6), anchors=False)) == 16


def test_more_seeds_than_pairs_train_everything_with_each():
    points = lay_out_screen(question(3, seeds=tuple(range(6))))
    assert len(points) == 6 * 8


def test_screen_is_one_round_that_says_what_it_did():
    asking = question(7, ["f6"])
    found = Screen().next(asking, ())
    assert found.stage == "screen"
    assert found.why["folded"] is True
    assert found.why["runs"] == 20
    assert {p.cell for p in found.sealed} == {frozenset(), asking.all_on}
    assert set(found.sealed) <= set(found.points)
    readings = tuple(Reading(p, 1.0) for p in found.points)
    assert Screen().next(asking, [Seen(found, readings)]) is None
    assert found == Screen().next(asking, ())


def test_factorial_crosses_what_it_is_told_to():
    asking = question(5, ["f4"], seeds=(0, 1))
    found = Factorial(("f0", "f4")).next(asking, ())
    cells = {p.cell for p in found.points}
    rest = {"f1", "f2", "f3"}
    assert cells == {frozenset(), *(frozenset(rest | set(c)) for c in ((), ("f0",), ("f4",), ("f0", "f4")))}
    assert len(found.points) == 10
    assert asking.spent([found]) == 6
    off = Factorial(("f0", "f4"), others_on=False).cells(asking)
    assert set(off) == {frozenset(c) for c in ((), ("f0",), ("f4",), ("f0", "f4"))} | {asking.all_on}
    assert len(Factorial().cells(question(4))) == 16
    assert Factorial().next(asking, [Seen(found, ())]) is None
    assert len(Factorial().next(question(3, budget=17), ()).points) == 16
    forbidden = Factorial().cells(question(3, allowed=needs((0, 1))))
    assert len(forbidden) == 6


def test_factorial_says_no():
    with pytest.raises(StudyError, match=r"2,048 recipes(.|\n)*screen"):
        Factorial().cells(question(11))
    with pytest.raises(StudyError, match="did you mean 'f1'"):
        Factorial(("f1x",)).cells(question(3))
    with pytest.raises(StudyError, match="expected: 8 or more"):
        Factorial().next(question(3, budget=5), ())
    with pytest.raises(StudyError, match="only be switched together"):
        Factorial().cells(question(2, allowed=lambda cell: len(cell) != 1))


def test_planning_a_screen_needs_no_heavy_library():
    code = (
        "import sys\n"
        "from trickbag.study.screens import Screen\n"
        "from trickbag.study.factorials import Factorial\n"
        "from trickbag.study.protocol import Question\n"
        "q = Question(tuple('abcdefgh'), allowed=lambda c: 'a' not in c or 'b' in c)\n"
        "Screen().next(q, ()), Factorial().next(q, ())\n"
        "heavy = {'torch', 'scipy', 'statsmodels', 'pandas'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
