"""What every tool does alike: turn a user's error into one message and exit status 2."""

import argparse
import os
import sys
from collections.abc import Callable


def add_import_option(parser: argparse.ArgumentParser) -> None:
    """Add `--import MODULE`, for tools that take a checkpoint and no settings; see `import_modules`."""
    help_text = "a module of yours that makes the checkpoint's model (it says module:name); may be given again"
    parser.add_argument("--import", dest="modules", metavar="MODULE", action="append", default=[], help=help_text)


def import_modules(modules: list[str]) -> None:
    """Import modules that the user trusts: what a checkpoint names is not imported for that alone.

    Raises:
        UserError: there is no such module, or it fails.
    """
    from backbones.errors import UserError
    from backbones.registry import import_module_of_user

    for module in modules:
        try:
            import_module_of_user(module)
        except (Exception, SystemExit) as error:
            raise UserError(f"--import {module}: {type(error).__name__}: {error}") from error


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
        sys.exit(getattr(error, "status", 2))
