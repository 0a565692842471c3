"""How the command lines end: with a status, and quietly where nobody reads on (``| head``)."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import NoReturn

# As a shell reports a program that SIGPIPE ended, which is what most programs do.
READER_GONE = 128 + 13


def run(main: Callable[[], int | None]) -> NoReturn:
    """Exit with the status that ``main`` returns, or with READER_GONE."""
    status: int | str | None
    try:
        try:
            status = main()
        except SystemExit as stop:  # argparse's, whose help may be waiting to be written, too
            status = stop.code
        sys.stdout.flush()
    except BrokenPipeError:
        # What is still waiting would be written again, and fail again, as the interpreter ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = READER_GONE
    sys.exit(status)
