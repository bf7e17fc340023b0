"""Which effects are equivalent to zero, as one family, by one rule for all designs."""

from __future__ import annotations

from collections.abc import Sequence


def corrected(p_equivalence: Sequence[float | None]) -> list[float | None]:
    """p-values of two one-sided tests after Holm's correction over the factors.

    Args:
        p_equivalence: one for each factor; one that is None still counts in the family.
    """
    from trickbag.study.statistics import holm

    return holm(p_equivalence)


def within_margin(
    p_equivalence: Sequence[float | None],
    lows: Sequence[float | None],
    highs: Sequence[float | None],
    delta: float,
    alpha: float,
) -> list[bool]:
    """Whether each effect is called equivalent: by the corrected tests, and by the interval that is shown.

    Args:
        p_equivalence: of two one-sided tests, one for each factor; None where nothing could be tested.
        lows, highs: ends of the intervals that are shown, in the unit of ``delta``; None without one.
        delta: margin; 0 calls nothing equivalent.
        alpha: family-wise level.

    Source:
        Schuirmann 1987, Journal of Pharmacokinetics and Biopharmaceutics 15(6), for the two tests;
        Lauzon and Caffo 2009, The American Statistician 63(2), for several of them.
    """
    return [
        p is not None
        and p < alpha
        and low is not None
        and high is not None
        and -delta <= low <= high <= delta
        for p, low, high in zip(corrected(p_equivalence), lows, highs, strict=True)
    ]
