"""Where what can be made again is kept. Nothing is imported here that takes time."""

import os
from pathlib import Path


def default_cache_dir() -> Path:
    """$VERTEBRA_CACHE, else $XDG_CACHE_HOME/vertebra, else ~/.cache/vertebra."""
    if own := os.environ.get("VERTEBRA_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "vertebra"
