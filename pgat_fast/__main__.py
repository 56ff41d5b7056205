"""`python -m pgat_fast`, what torchrun starts: the command line."""

from pgat_fast.cli import main
from pgat_fast.distributed.environment import exit_process

exit_process(main())
