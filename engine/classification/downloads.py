"""Sets of images that torchvision knows where to fetch: downloaded by the main process, whole or not at all, never for ever."""

import http.client
import os
import shutil
import socket
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from backbones.errors import UserError
from engine.files import make_folder

SECONDS = 10.0  # a server that says nothing for so long is given up


def download(published: Any, folder: Path, *, within: str, address: str, files: Sequence[str], split: str, home: str) -> None:
    """Fetch a set of torchvision's, which checks it, and put its files into place.

    Args:
        published: the class of the set in torchvision.datasets.
        folder: where the files go.
        within: the folder below a root in which torchvision puts them.
        address: where it fetches them, for the message.
        files: names of the files that are wanted, for the message.
        home: the page where they are to be had, for the message.

    Raises:
        UserError: they cannot be downloaded; the message says which files are wanted where, and their home.
    """
    try:
        if os.environ.get("RANK", "0") != "0":
            raise RuntimeError("only the main process downloads; each machine needs the files")
        print(f"{published.__name__} is not in {folder} yet: downloading it from {address}", flush=True)
        with tempfile.TemporaryDirectory() as partial, _impatient():
            published(partial, download=True)
            make_folder(folder)
            for file in sorted((Path(partial) / within).iterdir()):
                if not file.name.endswith(".gz"):
                    shutil.copyfile(file, folder / f".{file.name}.part")
                    (folder / f".{file.name}.part").replace(folder / file.name)
    # A refused connection, a server that says nothing, an answer cut short, a page in a file's place.
    except (OSError, RuntimeError, EOFError, http.client.HTTPException, zlib.error) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        wanted = "\n".join(f"  {folder / name}" for name in files)
        raise UserError(
            f"data.{split}: the files of {published.__name__} are not there, and cannot be downloaded ({reason}). Wanted:\n"
            f"{wanted}\nFetch them from {home} elsewhere, and put them there; or into a folder of yours: "
            "data.train.root=FOLDER data.val.root=FOLDER. configs/cls_digits.yaml needs no download."
        ) from None


@contextmanager
def _impatient() -> Iterator[None]:
    """Connections that are opened meanwhile fail when the other side says nothing for long; by default they wait for ever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(SECONDS)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
