"""Base losses, weights, hard examples and distillation against torch, torchvision, timm and NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss as torchvision_focal_loss

from trickbag.data.base import DataFacts
from trickbag.functional.distillation import distillation_loss
from trickbag.functional.losses import (
    binary_cross_entropy,
    effective_number_weights,
    focal_loss,
    frequency_weights,
    hardest,
    sigmoid_focal_loss,
    soft_cross_entropy,
)
from trickbag.plan import Context
from trickbag.recipe.model import Recipe
from trickbag.tricks.base import Bag
from trickbag.tricks.base_losses import BCE, Focal, LossSum
from trickbag.tricks.class_weights import ClassBalanced, ClassWeights
from trickbag.tricks.distillation import Distillation
from trickbag.tricks.losses import LabelSmoothing
from trickbag.tricks.ohem import OHEM
from trickbag.tricks.sources import Source

quick = settings(deadline=None, max_examples=30)
seeds = st.integers(0, 2**31)
gammas = st.one_of(st.sampled_from([0.0, 0.3, 1.0, 2.0]), st.floats(0, 5))


def problem(seed: int, count: int = 6, classes: int = 5, scale: float = 3.0):
    """Float64 logits that want gradients, labels, and dense targets."""
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn((count, classes), generator=generator, dtype=torch.float64)
    labels = torch.randint(classes, (count,), generator=generator)
    mixed = torch.rand((count, classes), generator=generator, dtype=torch.float64).softmax(1)
    return logits.requires_grad_(), labels, mixed


def one_hot(labels: torch.Tensor, classes: int = 5) -> torch.Tensor:
    return F.one_hot(labels, classes).double()


def assert_same(ours: torch.Tensor, theirs: torch.Tensor, logits: torch.Tensor) -> None:
    """Equal losses, and equal gradients."""
    torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=1e-10)
    one, other = (torch.autograd.grad(x.sum(), logits, retain_graph=True)[0] for x in (ours, theirs))
    torch.testing.assert_close(one, other, atol=1e-10, rtol=1e-9)


def context(
    *tricks: object, counts: tuple[int, ...] = (), classes: tuple[str, ...] = ("a", "b", "c"), batch: int = 8
) -> Context:
    facts = DataFacts("x", classes, 3, {"train": 64}, (32, 32), "f", counts=counts)
    return Context(Recipe(model="m", epochs=1, batch_size=batch, image_size=32, tricks=Bag(tricks)), facts)  # type: ignore[arg-type]


# ---------------------------------------------------------------- binary cross entropy


@quick
@given(seeds, st.sampled_from([None, 0.0, 0.2, 0.5]), st.sampled_from(["mean", "sum"]))
def test_bce_of_soft_targets_equals_timm_s(seed, threshold, reduction):
    from timm.loss import BinaryCrossEntropy

    logits, _, targets = problem(seed)
    ours = BCE(target_threshold=threshold, reduction=reduction).wrap(soft_cross_entropy)(logits, targets)
    whole = BinaryCrossEntropy(smoothing=0, target_threshold=threshold, sum_classes=reduction == "sum")
    torch.testing.assert_close(ours.mean(), whole(logits, targets))
    each = BinaryCrossEntropy(smoothing=0, target_threshold=threshold, reduction="none")(logits, targets)
    assert_same(ours, each.mean(1) if reduction == "mean" else each.sum(1), logits)


@quick
@given(seeds, st.floats(0.01, 0.9), st.sampled_from([None, 0.2]))
def test_bce_with_label_smoothing_outside_equals_timm_s_of_labels(seed, epsilon, threshold):
    from timm.loss import BinaryCrossEntropy

    logits, labels, _ = problem(seed)
    bag = LabelSmoothing(epsilon=epsilon), BCE(target_threshold=threshold)
    loss = soft_cross_entropy
    for trick in sorted(bag, key=lambda trick: trick.order):
        loss = trick.wrap(loss)
    theirs = BinaryCrossEntropy(smoothing=epsilon, target_threshold=threshold, reduction="none")
    assert_same(loss(logits, one_hot(labels)), theirs(logits, labels).mean(1), logits)


def test_timm_s_bce_leaves_mixed_targets_unsmoothed():
    from timm.loss import BinaryCrossEntropy

    logits, _, mixed = problem(0)
    theirs = BinaryCrossEntropy(smoothing=0.3, reduction="none")(logits, mixed).mean(1)
    torch.testing.assert_close(theirs, binary_cross_entropy(logits, mixed))
    smoothed = LabelSmoothing(epsilon=0.3).wrap(binary_cross_entropy)(logits, mixed)
    assert not torch.allclose(theirs, smoothed)


# ---------------------------------------------------------------- focal loss


@quick
@given(seeds, gammas, st.sampled_from([0.5, 3.0, 40.0]))
def test_softmax_focal_loss_equals_float64_numpy(seed, gamma, scale):
    logits, _, targets = problem(seed, scale=scale)
    z = logits.detach().numpy()
    shifted = z - z.max(1, keepdims=True)
    logs = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    expected = -(targets.numpy() * (-np.expm1(logs)) ** gamma * logs).sum(1)
    trick = Focal(gamma=gamma, share=1)
    result = trick.wrap(soft_cross_entropy)(logits, targets)
    np.testing.assert_allclose(result.detach().numpy(), expected, rtol=1e-10, atol=1e-12)
    assert torch.isfinite(torch.autograd.grad(result.sum(), logits)[0]).all()


@quick
@given(seeds, gammas, st.sampled_from([None, 0.0, 0.25, 1.0]))
def test_sigmoid_focal_loss_of_labels_equals_torchvision_s(seed, gamma, alpha):
    logits, labels, _ = problem(seed)
    ours = Focal(form="sigmoid", gamma=gamma, alpha=alpha).wrap(soft_cross_entropy)(logits, one_hot(labels))
    theirs = torchvision_focal_loss(logits, one_hot(labels), -1 if alpha is None else alpha, gamma)
    assert_same(ours, theirs.sum(1), logits)


@quick
@given(seeds, gammas)
def test_sigmoid_focal_loss_of_mixed_targets_is_the_mixture(seed, gamma):
    logits, _, targets = problem(seed)
    pure = [
        torchvision_focal_loss(logits, torch.eye(5)[k].expand(6, 5).double(), 0.25, gamma).sum(1)
        for k in range(5)
    ]
    expected = (torch.stack(pure, dim=1) * targets).sum(1)
    assert_same(sigmoid_focal_loss(logits, targets, gamma, 0.25), expected, logits)


@pytest.mark.parametrize("loss", [focal_loss, sigmoid_focal_loss])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_focal_gradients_are_finite_where_predictions_are_certain(loss, gamma, dtype):
    logits = torch.tensor([[200.0, -200.0, 0.0], [-200.0, 200.0, 0.0]], dtype=dtype, requires_grad=True)
    losses = loss(logits, torch.eye(3)[[0, 0]], gamma)
    assert losses.dtype == (dtype if dtype == torch.float64 else torch.float32)
    assert losses[0] < 1
    assert losses[1] > 300
    losses.sum().backward()
    assert torch.isfinite(logits.grad).all()


def test_focal_loss_at_gamma_0_is_cross_entropy():
    logits, _, targets = problem(3)
    torch.testing.assert_close(focal_loss(logits, targets, 0), soft_cross_entropy(logits, targets))
    torch.testing.assert_close(
        sigmoid_focal_loss(logits, targets, 0), binary_cross_entropy(logits, targets, reduction="sum")
    )


def test_alpha_without_the_sigmoid_form_is_refused():
    assert [p.what for p in Focal(alpha=0.25).check(context())] == ["alpha is for the sigmoid form"]
    assert [p.what for p in LossSum(focal=1, alpha=0.25).check(context())] == [
        "alpha is for the sigmoid form"
    ]
    assert not [*Focal(alpha=0.25, form="sigmoid").check(context())]


# ---------------------------------------------------------------- sums and blends


@quick
@given(seeds, st.floats(0.1, 3), st.floats(0.1, 3), st.floats(0.1, 3))
def test_loss_sum_is_the_weighted_sum(seed, first, second, third):
    logits, labels, _ = problem(seed)
    targets = one_hot(labels)
    trick = LossSum(cross_entropy=first, bce=second, focal=third, gamma=1.5, form="sigmoid", reduction="sum")
    expected = (
        first * F.cross_entropy(logits, labels, reduction="none")
        + second * F.binary_cross_entropy_with_logits(logits, targets, reduction="none").sum(1)
        + third * torchvision_focal_loss(logits, targets, -1, 1.5).sum(1)
    )
    assert_same(trick.wrap(soft_cross_entropy)(logits, targets), expected, logits)


@pytest.mark.parametrize("trick", [BCE(share=0.3), Focal(share=0.3)], ids=repr)
def test_a_share_blends_with_cross_entropy(trick):
    logits, _, targets = problem(1)
    alone = type(trick)().wrap(soft_cross_entropy)
    expected = 0.3 * alone(logits, targets) + 0.7 * soft_cross_entropy(logits, targets)
    assert_same(trick.wrap(soft_cross_entropy)(logits, targets), expected, logits)


def test_a_sum_of_nothing_is_refused():
    assert [p.what for p in LossSum().check(context())] == ["every weight is 0"]
    assert not [*LossSum(bce=1).check(context())]


NULLS = [
    *(trick.null() for trick in (BCE, Focal, LossSum, OHEM, ClassWeights, ClassBalanced)),
    Focal(share=0),
    Focal(form="sigmoid", gamma=0, share=0),
    ClassWeights(weights=(2.0, 3.0), power=0),
    ClassWeights(weights=(1.0, 1.0, 1.0)),
    ClassBalanced(counts=(2, 3), beta=0),
    LossSum(cross_entropy=0, focal=1, gamma=0),
]


@pytest.mark.parametrize("trick", NULLS, ids=repr)
def test_a_null_setting_is_the_loss_itself(trick):
    assert trick.resolve(context(counts=(30, 20, 10))).wrap(soft_cross_entropy) is soft_cross_entropy
    assert not [*trick.check(context())]


# ---------------------------------------------------------------- weights of classes


@quick
@given(seeds, st.floats(0, 0.9), st.lists(st.floats(0, 10), min_size=5, max_size=5))
def test_class_weights_equal_torch_s_with_label_smoothing(seed, epsilon, weights):
    logits, labels, _ = problem(seed)
    loss = ClassWeights(weights=tuple(weights)).wrap(soft_cross_entropy)
    loss = LabelSmoothing(epsilon=epsilon).wrap(loss)
    expected = F.cross_entropy(
        logits,
        labels,
        weight=torch.tensor(weights, dtype=torch.float64),
        label_smoothing=epsilon,
        reduction="none",
    )
    assert_same(loss(logits, one_hot(labels)), expected, logits)
    assert LabelSmoothing.rank > ClassWeights.rank > BCE.rank


def test_weights_follow_the_type_of_the_targets():
    loss = ClassWeights(weights=(1.0, 2.0, 3.0)).wrap(lambda logits, targets: targets)
    for dtype in (torch.float32, torch.float64, torch.float32):
        assert loss(torch.ones(2, 3), torch.ones(2, 3, dtype=dtype)).dtype == dtype


COUNTS = st.lists(st.integers(1, 10_000), min_size=2, max_size=12)


@quick
@given(COUNTS)
def test_class_weights_of_power_1_are_scikit_learn_s_balanced(counts):
    from sklearn.utils.class_weight import compute_class_weight

    labels = np.repeat(np.arange(len(counts)), counts)
    expected = compute_class_weight("balanced", classes=np.arange(len(counts)), y=labels)
    names = tuple(map(str, range(len(counts))))
    trick = ClassWeights().resolve(context(counts=tuple(counts), classes=names))
    np.testing.assert_allclose(trick.weights, expected, rtol=1e-12)
    assert trick.resolve(context(counts=(5,), classes=("other",))) == trick


@quick
@given(COUNTS, st.floats(0, 2))
def test_frequency_weights_have_mean_1_over_images(counts, power):
    weights = frequency_weights(counts, power)
    assert np.average(weights, weights=counts) == pytest.approx(1)
    scaled = np.array(weights) * np.array(counts, dtype=float) ** power
    np.testing.assert_allclose(scaled, scaled[0], rtol=1e-9)


@quick
@given(COUNTS, st.sampled_from([0.0, 0.5, 0.9, 0.999, 0.9999]))
def test_class_balanced_weights_follow_the_paper(counts, beta):
    """The authors' code: effective_num = 1 - beta^n, weights = (1 - beta) / effective_num, summing to C."""
    effective = 1.0 - np.power(beta, counts)
    weights = (1.0 - beta) / effective
    expected = weights / weights.sum() * len(counts)
    np.testing.assert_allclose(effective_number_weights(counts, beta), expected, rtol=1e-9)


def test_class_balanced_weighs_the_loss_of_each_class():
    logits, labels, _ = problem(2)
    counts = (100, 50, 10, 5, 1)
    trick = ClassBalanced(beta=0.99).resolve(context(counts=counts, classes=tuple("abcde")))
    assert trick.counts == counts
    weight = torch.tensor(effective_number_weights(counts, 0.99), dtype=torch.float64)
    expected = F.cross_entropy(logits, labels, weight=weight, reduction="none")
    assert_same(trick.wrap(soft_cross_entropy)(logits, one_hot(labels)), expected, logits)


@pytest.mark.parametrize(
    ("trick", "counts", "said"),
    [
        (ClassWeights(), (), "do not tell how many images"),
        (ClassBalanced(), (), "do not tell how many images"),
        (ClassWeights(weights=(1.0, 2.0)), (5, 5, 5), "2 weights for 3 classes"),
        (ClassBalanced(counts=(1, 2)), (5, 5, 5), "2 counts for 3 classes"),
        (ClassWeights(), (5, 0, 5), "no training image is of class b"),
        (ClassBalanced(), (5, 0, 5), "no training image is of class b"),
        (ClassWeights(weights=(0.0, 0.0, 0.0)), (5, 5, 5), "every weight is 0"),
        (ClassWeights(weights=(1.0, 2.0, 3.0)), (5, 0, 5), None),
        (ClassWeights(), (5, 4, 3), None),
    ],
    ids=str,
)
def test_counts_that_do_not_fit_are_refused(trick, counts, said):
    here = context(counts=counts)
    found = [p.what for p in trick.resolve(here).check(here)]
    assert (len(found) == 1 and said in found[0]) if said else not found


def test_equal_classes_are_noted():
    here = context(counts=(7, 7, 7))
    for trick in (ClassWeights(), ClassBalanced()):
        assert len([*trick.resolve(here).notes(here)]) == 1
        assert not [*trick.null().resolve(here).notes(here)]


# ---------------------------------------------------------------- hard examples


@quick
@given(seeds, st.integers(1, 12), st.floats(0.01, 0.99))
def test_ohem_s_mean_is_the_mean_of_the_largest(seed, count, keep):
    logits, labels, _ = problem(seed, count)
    losses = F.cross_entropy(logits, labels, reduction="none")
    ours = OHEM(keep=keep).wrap(soft_cross_entropy)(logits, one_hot(labels))
    kept = max(1, round(keep * count + 1e-9))
    largest = np.sort(losses.detach().numpy())[::-1][:kept]
    assert ours.mean().item() == pytest.approx(largest.mean(), rel=1e-9)
    assert int((ours != 0).sum()) <= kept
    gradient = torch.autograd.grad(ours.mean(), logits)[0]
    chosen = losses.detach().numpy() >= largest[-1]
    expected = torch.autograd.grad(losses[torch.from_numpy(chosen)].mean(), logits)[0]
    torch.testing.assert_close(gradient, expected)


def test_ohem_takes_the_first_of_equal_losses():
    losses = torch.tensor([1.0, 2.0, 1.0, 1.0, 0.5])
    torch.testing.assert_close(hardest(losses, 0.6), torch.tensor([5 / 3, 10 / 3, 5 / 3, 0, 0]))
    assert hardest(losses, 1) is losses


def test_ohem_notes_when_rounding_keeps_everything():
    assert [*OHEM(keep=0.95).notes(context(batch=8))] == ["0.95 of a batch of 8 is all of it"]
    assert not [*OHEM(keep=0.95).notes(context(batch=64))]
    assert not [*OHEM.null().notes(context())]


# ---------------------------------------------------------------- distillation


class Teacher:
    """Says the same of every image."""

    def __init__(self, logits: torch.Tensor) -> None:
        self._logits = logits

    def logits(self, images: torch.Tensor) -> torch.Tensor:
        assert images.shape == (len(self._logits), 3, 4, 4)
        return self._logits


IMAGES = torch.zeros(6, 3, 4, 4)


@quick
@given(seeds, st.floats(0.5, 20), st.floats(0.01, 1))
def test_distillation_equals_hinton_s_formula(seed, temperature, alpha):
    logits, _, targets = problem(seed)
    teacher = problem(seed + 1)[0].detach()
    trick = Distillation(teacher=Source(model="resnet18"), temperature=temperature, alpha=alpha)
    ours = trick.objective(soft_cross_entropy, {"teacher": Teacher(teacher)})(logits, targets, IMAGES)  # type: ignore[dict-item]
    p, q = (teacher / temperature).softmax(1), (logits / temperature).softmax(1)
    kl = (p * (p.log() - q.log())).sum(1)
    expected = (1 - alpha) * F.cross_entropy(logits, targets, reduction="none") + alpha * temperature**2 * kl
    torch.testing.assert_close(ours, expected, atol=1e-8, rtol=1e-7)
    one, other = (torch.autograd.grad(x.sum(), logits, retain_graph=True)[0] for x in (ours, expected))
    torch.testing.assert_close(one, other, atol=1e-8, rtol=1e-7)


def test_distillation_as_in_he_2019_has_the_gradients_of_its_cross_entropies():
    logits, labels, _ = problem(5)
    teacher = problem(6)[0].detach()
    trick = Distillation(teacher=Source(model="resnet18"), temperature=20, alpha=1, hard=1)
    ours = trick.objective(soft_cross_entropy, {"teacher": Teacher(teacher)})  # type: ignore[dict-item]
    theirs = F.cross_entropy(logits, labels) + 20**2 * F.cross_entropy(logits / 20, (teacher / 20).softmax(1))
    one = torch.autograd.grad(ours(logits, one_hot(labels), IMAGES).mean(), logits)[0]
    torch.testing.assert_close(one, torch.autograd.grad(theirs, logits)[0], atol=1e-8, rtol=1e-7)


def test_a_student_that_agrees_with_its_teacher_has_nothing_to_learn():
    logits, _, _ = problem(7)
    same = distillation_loss(logits.float(), logits.detach().float() + 3, 2.0)
    torch.testing.assert_close(same, torch.zeros(6), atol=1e-5, rtol=0)
    assert distillation_loss(logits.bfloat16(), logits.bfloat16(), 2.0).dtype == torch.float32


def test_distillation_without_hard_part_does_not_ask_for_labels():
    logits, _, targets = problem(8)

    def never(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        raise AssertionError

    trick = Distillation(teacher=Source(model="resnet18"), alpha=1)
    teacher = {"teacher": Teacher(logits.detach())}
    assert trick.objective(never, teacher)(logits, targets, IMAGES).shape == (6,)  # type: ignore[arg-type]


def test_distillation_null_has_no_teacher():
    for trick in (Distillation.null(), Distillation(teacher=Source(run="x"), alpha=0)):
        assert trick.sources() == {}
        logits, _, targets = problem(9)
        found = trick.objective(soft_cross_entropy, {})(logits, targets, IMAGES)
        assert torch.equal(found, soft_cross_entropy(logits, targets))
    assert Distillation(teacher=Source(run="x")).sources() == {"teacher": Source(run="x")}


def test_distillation_wants_a_teacher_of_the_same_classes():
    def said(trick: Distillation) -> str:
        return " ".join(p.what for p in trick.check(context()))

    assert said(Distillation()) == "there is no teacher"
    assert said(Distillation(alpha=0, hard=0)) == "alpha and hard are both 0: nothing is learned"
    assert "are for 1000 classes, not for these 3" in said(Distillation(teacher=Source(model="resnet18")))
    assert not said(Distillation(teacher=Source(model="resnet18", weights="x.pth")))
    assert not said(Distillation(teacher=Source(model="no_such_model")))
    assert not said(Distillation.null())


@pytest.mark.parametrize(
    ("trick", "values"),
    [
        (BCE, {"target_threshold": 1}),
        (BCE, {"share": 1.5}),
        (Focal, {"gamma": -1}),
        (Focal, {"alpha": 2}),
        (LossSum, {"bce": -1}),
        (OHEM, {"keep": 0}),
        (ClassWeights, {"weights": (-1.0, 1.0)}),
        (ClassBalanced, {"beta": 1}),
        (Distillation, {"temperature": 0}),
        (Distillation, {"teacher": {"run": "x", "model": "y"}}),
    ],
    ids=str,
)
def test_impossible_settings_are_refused(trick, values):
    with pytest.raises(ValidationError):
        trick(**values)
