"""`python -m simclr` is the command `simclr`."""

import sys

from simclr.cli import program

sys.exit(program())
