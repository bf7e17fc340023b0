"""What the rest of the house knows of data: facts, splits, and batches of uint8 images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from trickbag.imageops.program import Program

SPLITS = ("train", "selection", "test")
QUALITY = 90
Keep = Literal["auto", "raw", "jpeg", "encoded"]


class DataSpec(BaseModel):
    """Which images, how they are read, and how they are split. All of it is part of a run's identity.

    Attributes:
        source: ``digits``, a folder, a Parquet file or folder, or ``torchvision:NAME``.
        image_column, label_column: Parquet columns; None finds them.
        pattern: glob, relative to a class folder, of the files that count as images.
        mode: color mode that images are converted to; None means the source's natural one (``rgb``
            unless every image is gray by construction, as in ``digits``).
        groups: a Parquet column, or a CSV file with columns ``path,group``: images of one group
            never straddle two splits.
        split_seed: seed of the split; runs of one study share it.
        selection, test: share of images for each split that the source does not bring itself.
        train_size: use only so many training images (stratified), the rest is the split ``unlabeled``; None
            uses all.
        max_bad: share of unreadable images past which loading stops.
        cache: True to keep decoded images on disk, shared by later runs.
        memory_share: decoded images are kept resident if they fit this share of memory.
        short_side: images whose shorter side is larger are resized to this once (bicubic, antialiased,
            aspect kept), before anything else sees them; smaller ones stay as they are.
        keep: how images are kept between epochs. ``auto`` decoded if they fit ``memory_share``, else as
            they came; ``raw`` decoded in any case, in a file that is mapped into memory; ``jpeg``
            encoded anew as JPEG (4:2:0); ``encoded`` as they came. All but ``jpeg`` give the same pixels.
        quality: JPEG quality, where ``keep`` is ``jpeg``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str
    image_column: str | None = None
    label_column: str | None = None
    pattern: str | None = Field(default=None, min_length=1)
    mode: Literal["rgb", "gray"] | None = None
    groups: str | None = None
    split_seed: int = Field(default=0, ge=0)
    selection: float = Field(default=0.15, gt=0, lt=1)
    test: float = Field(default=0.2, gt=0, lt=1)
    train_size: int | None = Field(default=None, ge=1)
    max_bad: float = Field(default=0.01, ge=0, le=1)
    cache: bool = True
    memory_share: float = Field(default=0.25, gt=0, le=1)
    short_side: int | None = Field(default=None, ge=1)
    keep: Keep = "auto"
    quality: int = Field(default=QUALITY, ge=1, le=100)

    @field_validator("keep")
    @classmethod
    def _keep(cls, keep: Keep, info: ValidationInfo) -> Keep:
        if keep in ("raw", "jpeg") and info.data.get("cache") is False:
            raise ValueError(f"auto or encoded where cache is false: keep={keep} is a file in the cache")
        return keep

    @field_validator("quality")
    @classmethod
    def _quality(cls, quality: int, info: ValidationInfo) -> int:
        if quality != QUALITY and info.data.get("keep", "jpeg") != "jpeg":
            raise ValueError(f"{QUALITY} unless keep is jpeg: nothing else has a quality")
        return quality

    @property
    def as_found(self) -> bool:
        """Whether pixels are those of the source, neither resized nor encoded anew."""
        return self.short_side is None and self.keep != "jpeg"


@dataclass(frozen=True)
class DataFacts:
    """What a plan needs to know about data.

    Attributes:
        name: for people.
        classes: class names; their order is the label order.
        channels: 1 or 3.
        sizes: number of images by split.
        image_size: typical (median) height and width, in pixels.
        fingerprint: hash of content (file names, sizes, bytes) and split; part of a run's identity.
        mean, std: per channel, 0 to 1, over (a sample of) the training split; empty if not computed.
        counts: number of training images of each class; empty if not counted.
        bad: names of unreadable images that were left out.
    """

    name: str
    classes: tuple[str, ...]
    channels: int
    sizes: Mapping[str, int]
    image_size: tuple[int, int]
    fingerprint: str
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    counts: tuple[int, ...] = ()
    bad: tuple[str, ...] = field(default=(), repr=False)

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> DataFacts:
        """Facts from plain data, as a run's file holds them.

        Raises:
            TypeError: fields are missing or unknown.
        """
        plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**plain)

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.classes)


@dataclass(frozen=True)
class Request:
    """One batch to read.

    Attributes:
        indices: ``(batch,)`` int64 positions in the split.
        boxes: ``(batch, 4)`` float64 (top, left, height, width) in source pixels, or None for the
            largest centered square.
        size: height and width of the result, in pixels.
        interpolation: ``nearest``, ``bilinear`` or ``bicubic``; antialiased as PIL does it.
        program: what then happens to the images, on the CPU; None for nothing.
    """

    indices: np.ndarray
    boxes: np.ndarray | None
    size: int
    interpolation: str = "bilinear"
    program: Program | None = None


class Split(Protocol):
    """The images of one split, in a fixed order."""

    labels: np.ndarray
    """``(n,)`` int64."""
    names: tuple[str, ...]
    """One name an image: path, or row of the table."""
    sizes: np.ndarray
    """``(n, 2)`` int64 (height, width) of the source images as they are read, after EXIF rotation."""

    def __len__(self) -> int: ...

    def batches(self, requests: Iterable[Request], workers: int | None = None) -> Iterator[Tensor]:
        """Yield, for each request in order, ``(batch, channels, size, size)``; reads ahead.

        uint8, or what a request's program makes of it (float32); in ``channels_last`` memory. ``workers`` is
        the number of threads; None takes as many as torch computes with.
        """
        ...


@dataclass(frozen=True)
class DataSet:
    """Facts and splits. ``splits`` has ``train``, ``selection`` and ``test``."""

    spec: DataSpec
    facts: DataFacts
    splits: Mapping[str, Split]
