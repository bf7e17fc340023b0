"""Imported once by the process that forks workers, so that a run starts in milliseconds."""

import sklearn.datasets  # noqa: F401
import timm  # noqa: F401
import torchmetrics.functional  # noqa: F401
from lightning_fabric import Fabric  # noqa: F401

from trickbag.tricks import catalogue

catalogue()
