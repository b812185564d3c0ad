"""`python -m simclr` is the command `simclr`."""

import sys

from simclr.cli import main

sys.exit(main())
