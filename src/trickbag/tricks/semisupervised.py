"""Tricks that learn from what another model says of images: wrong labels, and images without any."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import Field

from trickbag.errors import Problem
from trickbag.tricks.base import Card
from trickbag.tricks.sources import Source
from trickbag.tricks.stages import TargetTrick

if TYPE_CHECKING:
    from torch import Tensor

    from trickbag.plan import Context
    from trickbag.tricks.sources import Upstream

__all__ = ["LabelPropagation", "SelfTraining", "spread_labels"]

EXAMPLE = Source(
    recipe={
        "model": {"name": "test_resnet", "options": {"stem_type": "", "avg_down": False}},
        "epochs": 1,
        "batch_size": 8,
        "image_size": 24,
        "tricks": {"sgd": {"lr": 0.05}},
    }
)
POOLS = (
    "pool: unlabeled takes the images that data.train_size leaves out, pool: test those of the test split. "
    "Labels of neither are read. Test images make the run transductive, and its result and every report say "
    "so: compare it only with others of its kind. An epoch keeps its number of steps, that of the training "
    "images alone, so each image is seen less often the more images join: raise epochs"
)


class _FromPredictions(TargetTrick):
    """What the tricks below share: a pool of images to join, and labels to be blended.

    Attributes:
        pool: split whose images, without their labels, join the training images; None for none.
        threshold: least confidence, 0 to 1, of a prediction that is used.
        hard: learn the most probable class alone, not the whole distribution.
        relabel: blend predictions into the labels of the training images, too.
        share: of the prediction in such a label.
    """

    null_setting = {"pool": None, "relabel": False}

    pool: Literal["unlabeled", "test"] | None = None
    threshold: float = Field(default=0.0, ge=0, le=1)
    hard: bool = False
    relabel: bool = False
    share: float = Field(default=1.0, gt=0, le=1)

    @property
    def model(self) -> tuple[str, Source | None]:
        """The setting that names the other model, and its value."""
        raise NotImplementedError

    def predictions(
        self, known: np.ndarray, classes: int, pool: int, upstream: Upstream
    ) -> tuple[Tensor, Tensor]:
        """``(n + pool, classes)`` float32 and the confidence of each row, 0 to 1."""
        raise NotImplementedError

    def sources(self) -> Mapping[str, Source]:
        """The other model, if there is something to ask it."""
        name, source = self.model
        return {name: source} if source is not None and (self.relabel or self.pool) else {}

    def targets(self, known: np.ndarray, classes: int, pool: int, upstream: Upstream) -> np.ndarray:
        """Labels, blended with predictions if ``relabel`` says so, then predictions for the pool."""
        import torch

        from trickbag.functional.pseudo_labels import pseudo_labels, relabel

        found, confidence = self.predictions(known, classes, pool, upstream)
        found = pseudo_labels(found, self.threshold, hard=self.hard, confidence=confidence)
        share = self.share if self.relabel else 0.0
        own = relabel(torch.from_numpy(known), found[: len(known)], share)
        targets: np.ndarray = torch.cat([own, found[len(known) :]]).numpy()
        return targets

    def check(self, context: Context) -> Iterable[Problem]:
        """There is a model to ask, and a pool to ask about."""
        name, source = self.model
        if source is None and (self.relabel or self.pool):
            yield self.problem(
                f"it needs a model to ask: {name}", fix=f"--set {self.kind}.{name}.recipe=NAME"
            )
        if self.pool and not context.facts.sizes.get(self.pool):
            fix = "--set data.train_size=NUMBER leaves some out" if self.pool == "unlabeled" else None
            yield self.problem(f"{context.facts.name} has no {self.pool} images", fix=fix)

    def notes(self, context: Context) -> Iterable[str]:
        """Transductive use, and how often images are seen."""
        if self.transductive and self.sources():
            yield "transductive: images of the test split, without their labels, are trained on"
        joining = context.facts.sizes.get(self.pool, 0) if self.pool else 0
        if joining:
            count = context.facts.sizes["train"]
            yield (
                f"up to {joining:,} images join the {count:,} training images; an epoch keeps "
                f"{context.timeline.steps_per_epoch:,} steps, {count / (count + joining):.0%} of all of them"
            )


class SelfTraining(_FromPredictions):
    """Learn the predictions of a teacher: of images without labels, or against wrong labels.

    Attributes:
        pool: split whose images, without their labels, join the training images; None for none.
        threshold: least probability of the teacher's first choice.
        hard: learn the teacher's first choice alone, not its whole distribution.
        relabel: blend the teacher's predictions into the labels of the training images, too.
        share: of the prediction in such a label; 1 replaces it.
        teacher: what predicts.
    """

    kind = "self_training"
    example = {"teacher": EXAMPLE, "relabel": True, "share": 0.5}
    card = Card(
        title="Self-training with pseudo-labels",
        summary="A teacher, trained first, predicts the images as evaluation shows them. Its predictions are "
        "the targets of images that have no label, and may replace or soften the labels of those that do.",
        source="Lee 2013, Pseudo-Label (hard labels); Xie et al. 2020, arXiv:1911.04252, section 2 (soft "
        "labels, threshold, a noised student as large as the teacher); for relabeling Reed et al. 2015, "
        "arXiv:1412.6596, section 3",
        formula="image without label: q if max(q) >= threshold, q = teacher(image) or one_hot(argmax q)\n"
        "relabel: (1 - share) * one_hot(label) + share * q",
        null="pool: null and relabel: false",
        cost="The teacher's training and one pass over the images; n times classes floats in memory.",
        suggested="Many more images than labels: threshold 0.3 with soft labels (Xie et al.) or 0.95 with "
        "hard ones, and strong augmentation of the student, which is what makes it better than its teacher. "
        "Noisy labels: relabel with share 0.5 to 1 and a teacher that did not fit the noise (early "
        "stopping, few epochs, label smoothing). It hurts where the teacher is sure and wrong, or has "
        f"memorized the labels that it is to judge. {POOLS}.",
        snippet="""\
import torch
from torch.nn import functional as F
from trickbag.functional.pseudo_labels import pseudo_labels, relabel

teacher, student = torch.nn.Linear(16, 10), torch.nn.Linear(16, 10)
labeled, labels, unlabeled = torch.rand(8, 16), torch.randint(10, (8,)), torch.rand(32, 16)
with torch.no_grad():
    found = pseudo_labels(teacher(torch.cat([labeled, unlabeled])).softmax(1), threshold=0.1)
targets = torch.cat([relabel(labels, found[:8], share=0.5), found[8:]])
kept = ~targets.isnan().any(1)
loss = F.cross_entropy(student(torch.cat([labeled, unlabeled])[kept]), targets[kept])
loss.backward()
assert torch.allclose(targets[kept].sum(1), torch.ones(int(kept.sum())))
""",
        aliases=(
            "pseudo-labels",
            "pseudo labeling",
            "pseudo-labelling",
            "Noisy Student",
            "semi-supervised learning",
            "bootstrapping",
            "relabeling",
            "label refinement",
            "transductive learning",
        ),
    )

    teacher: Source | None = None

    @property
    def model(self) -> tuple[str, Source | None]:
        """The teacher."""
        return "teacher", self.teacher

    def predictions(
        self, known: np.ndarray, classes: int, pool: int, upstream: Upstream
    ) -> tuple[Tensor, Tensor]:
        """The teacher's probabilities; their largest is the confidence."""
        import torch

        found = torch.from_numpy(upstream.probabilities())
        return found, found.amax(dim=1)


class LabelPropagation(_FromPredictions):
    """Let labels spread over a graph of images whose features are alike.

    Attributes:
        pool: split whose images, without their labels, join the training images; None for none.
        threshold: least certainty, 1 - entropy / log(classes), of a label that arrived.
        hard: learn the class that arrived first alone, not the whole distribution.
        relabel: blend what arrives at the training images into their labels, too.
        share: of what arrived in such a label; 1 replaces it.
        features: whose features: what the last layer of that model sees.
        neighbors: nearest images, by cosine, from which an image takes labels.
        alpha: what an image takes from its neighbors, as against its own label; 0 to 1, both excluded.
    """

    kind = "label_propagation"
    same_classes = False
    example = {"features": EXAMPLE, "pool": "test", "neighbors": 3, "relabel": True, "share": 0.5}
    card = Card(
        title="Label propagation",
        summary="Images are nodes of a graph of nearest neighbors, in the features of a model that is "
        "trained first. Labels spread along its edges until nothing changes, to images that have none, and "
        "may correct those that disagree with their neighbors.",
        source="Zhou et al. 2004, Learning with Local and Global Consistency; with features of a deep net "
        "Iscen et al. 2019, arXiv:1904.04717 (certainty: equation 11; it weights its loss by it, here it "
        "is the threshold)",
        formula="F = (I - alpha S)^-1 Y, S = D^-1/2 W D^-1/2; the rows of F divided by their sums\n"
        "W[i, j] = 1 if j is a neighbor of i, D its column sums, Y the known labels, one-hot",
        null="pool: null and relabel: false",
        cost="The other model's training, one pass over the images, distances between all pairs of images "
        "(minutes for 50,000), and an iteration over n times neighbors edges.",
        suggested="Few labels and features in which classes form clusters, for example pretrained ones: "
        "neighbors 10 to 50, alpha 0.99 (Zhou et al.). For noisy labels: relabel, with a smaller alpha to "
        "trust the own label more, and features that did not fit the noise. It hurts where classes "
        f"overlap in the features, and where they are very unequal: large ones flood small ones. {POOLS}.",
        snippet="""\
import numpy as np
from trickbag.tricks.semisupervised import spread_labels

rng = np.random.default_rng(0)
centers = np.eye(3)[np.repeat([0, 1, 2], 20)]
features = centers + 0.1 * rng.normal(size=(60, 3))
labels = np.full(60, -1)
labels[[0, 20, 40]] = [0, 1, 2]  # one label a cluster
found = spread_labels(features, labels, classes=3, neighbors=5)
assert (found.argmax(1) == np.repeat([0, 1, 2], 20)).all()
""",
        aliases=(
            "label spreading",
            "LabelSpreading",
            "local and global consistency",
            "deep label propagation",
            "diffusion on a graph",
            "manifold ranking",
        ),
        library="scikit-learn's LabelSpreading with its knn kernel, on normalized features.",
    )

    hard: bool = True
    features: Source | None = None
    neighbors: int = Field(default=10, ge=1)
    alpha: float = Field(default=0.99, gt=0, lt=1)

    @property
    def model(self) -> tuple[str, Source | None]:
        """Whose features."""
        return "features", self.features

    def predictions(
        self, known: np.ndarray, classes: int, pool: int, upstream: Upstream
    ) -> tuple[Tensor, Tensor]:
        """What arrives at each image, and its certainty; NaN where nothing arrives."""
        import torch

        from trickbag.functional.pseudo_labels import certainty

        labels = np.concatenate([known, np.full(pool, -1, dtype=np.int64)])
        found = spread_labels(
            upstream.features(), labels, classes, neighbors=self.neighbors, alpha=self.alpha
        )
        spread = torch.from_numpy(found).float()
        # Confidence is NaN, and so below any threshold, where nothing arrives.
        return spread, certainty(spread)

    def check(self, context: Context) -> Iterable[Problem]:
        """There are that many neighbors."""
        yield from super().check(context)
        sizes = context.facts.sizes
        count = sizes["train"] + (sizes.get(self.pool, 0) if self.pool else 0)
        if self.sources() and self.neighbors >= count:
            yield self.problem(
                f"{self.neighbors} neighbors, of {count} images",
                fix=f"--set {self.kind}.neighbors={count // 4}",
            )


def spread_labels(
    features: np.ndarray, labels: np.ndarray, classes: int, *, neighbors: int = 10, alpha: float = 0.99
) -> np.ndarray:
    """Spread labels over the graph of nearest neighbors: the rows of ``(I - alpha S)^-1 Y``, normalized.

    ``Y`` holds the known labels, one-hot. ``S`` is ``D^-1/2 W D^-1/2``; ``W[i, j]`` is 1 if image j is among
    the nearest ``neighbors`` of image i, and ``D`` its column sums.

    Args:
        features: ``(n, width)``; only their direction counts.
        labels: ``(n,)`` int64, -1 for unknown.
        classes: number of classes.
        neighbors: nearest images, besides itself, by cosine.
        alpha: share of what comes from neighbors, 0 to 1, both excluded.

    Returns:
        ``(n, classes)`` float64; rows sum to 1, but are NaN where no label arrives.

    Source:
        Zhou et al. 2004, section 2; computed by scikit-learn's ``LabelSpreading``.
    """
    from sklearn.semi_supervised import LabelSpreading

    features = np.asarray(features, dtype=np.float64)
    length = np.linalg.norm(features, axis=1, keepdims=True)
    unit = features / np.where(length > 0, length, 1)
    # An iteration brings the error down by alpha. Images many steps from a label get very little of it, of
    # which the shares must be right all the same.
    spreading = LabelSpreading(
        kernel="knn",
        n_neighbors=neighbors + 1,  # it counts the image itself
        alpha=alpha,
        tol=1e-13 * len(features),
        max_iter=10 + int(np.ceil(np.log(1e-17) / np.log(alpha))),
    ).fit(unit, labels)
    arrived = spreading.label_distributions_
    found = np.full((len(features), classes), np.nan)
    reached = arrived.sum(axis=1) > 0
    found[reached] = 0
    found[np.ix_(reached, spreading.classes_)] = arrived[reached]
    return found
