"""scikit-learn's handwritten digits: 1,797 gray images of 8 x 8, always at hand."""

from __future__ import annotations

import numpy as np

from trickbag.data.base import DataFacts, DataSpec
from trickbag.data.cut import Shares, fingerprint_of, split_sizes, train_counts
from trickbag.data.hashing import combine
from trickbag.data.listing import Listing, Mode

CLASSES = tuple("0123456789")
COUNTS = (178, 182, 177, 183, 181, 182, 181, 179, 174, 180)
CONTENT = "18d911d0f1727aa492749358416442ec"


def list_digits() -> Listing:
    """Read the digits; 0..16 becomes 0..255."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    pixels = np.rint(images.reshape(-1, 8, 8, 1) * (255 / 16)).astype(np.uint8)
    labels = labels.astype(np.int64)
    return Listing(
        name="digits",
        names=tuple(f"{i:04d}" for i in range(len(labels))),
        labels=labels,
        classes=CLASSES,
        given=np.zeros(len(labels), dtype=np.int8),
        content=combine((b"digits", pixels.tobytes(), labels.tobytes())),
        mode="gray",
        pixels=pixels,
    )


def digits_facts(spec: DataSpec) -> DataFacts:
    """Facts of the digits from constants: imports and reads nothing."""
    shares = Shares.of(spec, (sum(COUNTS), 0, 0))
    mode: Mode = spec.mode or "gray"
    return DataFacts(
        name="digits",
        classes=CLASSES,
        channels=1 if mode == "gray" else 3,
        sizes=split_sizes(COUNTS, shares, spec),
        image_size=(8, 8),
        counts=train_counts(COUNTS, shares, spec),
        fingerprint=fingerprint_of(CONTENT, shares, spec, mode, None),
    )
