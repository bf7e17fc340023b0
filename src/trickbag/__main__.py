"""``python -m trickbag``: the command line, for ``torchrun -m``."""

from trickbag.cli.main import main

main()
