"""`python -m pgat_fast`, what torchrun starts: the command line."""

import sys

from pgat_fast.cli import main

sys.exit(main())
