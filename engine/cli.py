"""What every tool does alike: turn a user's error into one message and exit status 2."""

import os
import sys
from collections.abc import Callable


def run_tool(main: Callable[[], None]) -> None:
    """Run a tool. A UserError is printed to stderr, without a traceback, and ends it with status 2; Ctrl-C ends it with 130."""
    try:
        main()
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # the reader, `head` say, has what it wants
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except ValueError as error:
        from backbones.errors import UserError  # after the arguments: it loads torch

        if not isinstance(error, UserError):
            raise
        rank = os.environ.get("RANK", "0")
        prefix = "" if rank == "0" else f"[process {rank}] "
        if not getattr(error, "is_said", False):  # by another process, which fails for the same
            print(f"{prefix}{error}", file=sys.stderr)
        sys.exit(2)
