"""`python -m pgat_fast.cli`: the command line without its script."""

import sys

from pgat_fast.cli import main

sys.exit(main())
