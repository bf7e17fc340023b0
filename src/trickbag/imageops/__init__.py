"""Programs of image operations and the back ends that execute them."""

from trickbag.imageops.backend import act, execute
from trickbag.imageops.program import ARGS, GEOMETRIC, Op, Program, Step

__all__ = ["ARGS", "GEOMETRIC", "Op", "Program", "Step", "act", "execute"]
