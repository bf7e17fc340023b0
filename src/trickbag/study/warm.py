"""Imported once by the process that forks workers, so that a run starts in milliseconds."""

import sklearn.datasets  # noqa: F401
import timm  # noqa: F401
from lightning_fabric import Fabric  # noqa: F401

import trickbag.engine.train
import trickbag.tasks.classification
from trickbag.engine.run import code_version
from trickbag.imageops.backend import choose
from trickbag.tricks import catalogue

catalogue()
if choose() == "numba":
    import trickbag.imageops.compiled
    import trickbag.imageops.resizing  # noqa: F401
# Workers run the code that is loaded here, also if its files are edited meanwhile: its name must not change.
code_version()
