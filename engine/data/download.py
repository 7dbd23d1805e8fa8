"""Files from a web server: resumed where they stopped, never half a file under its own name."""

import contextlib
import errno
import fcntl
import http.client
import json
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from backbones.errors import UserError
from engine.files import make_folder

TIMEOUT = 30.0  # seconds a server may say nothing
WAITS = (1.0, 2.0, 4.0, 8.0, 16.0)  # seconds before each new try; counted anew after each try that brought something
GO_ON = "The same command again goes on where it stopped."
_CHUNK = 1 << 20
_BUSY = {429, 500, 502, 503, 504}  # what a server answers that may serve the next time

# Raised while bytes are on their way: the connection broke, or the server said nothing for too long.
_BROKEN = (ConnectionError, TimeoutError, http.client.HTTPException)


@dataclass(frozen=True, slots=True)
class Version:
    """What tells one version of a server's file from another."""

    size: int | None  # bytes
    etag: str | None
    modified: str | None

    def is_other_than(self, other: "Version") -> bool:
        """Whether the two differ in what both state."""
        pairs = ((self.size, other.size), (self.etag, other.etag), (self.modified, other.modified))
        return any(ours is not None and theirs is not None and ours != theirs for ours, theirs in pairs)

    @property
    def condition(self) -> str | None:
        """The `If-Range` of a request for the rest of this version; HTTP allows no weak ETag in it."""
        return self.etag if self.etag and not self.etag.startswith("W/") else self.modified


def ask_version(url: str, *, waits: tuple[float, ...] = WAITS, timeout: float = TIMEOUT) -> Version:
    """Size and version of a file on a server.

    Raises:
        UserError: the server cannot be reached, or has no such file.
    """
    for wait in (*waits, None):
        try:
            with _open(url, {}, timeout, method="HEAD") as response:
                return _version(response)
        except _Refusal as refusal:
            if wait is None or not refusal.passes:
                raise UserError(f"{refusal} {GO_ON}") from None
            time.sleep(wait)
    raise AssertionError("the last try has no wait")


def download(
    url: str,
    path: Path,
    *,
    on_progress: Callable[[int], None] = lambda done: None,
    on_note: Callable[[str], None] = lambda note: None,
    waits: tuple[float, ...] = WAITS,
    timeout: float = TIMEOUT,
) -> None:
    """Fetch a file. What has come so far lies in `NAME.part`, its version in `NAME.part.json`; whole, it is moved to `path`.

    A broken connection is tried again, from the byte where it broke. Where the server has another version by then, or cannot
    send a part of a file, the download begins again; `on_note` is told.

    Args:
        path: where it is to be; a file there is replaced.
        on_progress: called with the bytes there are so far.
        on_note: called with what a user should know, a sentence.
        waits: seconds before each new try; as many tries in a row that bring nothing, and it is given up.

    Raises:
        UserError: the server cannot be reached or has no such file, the disk is full, or another process fetches the same.
    """
    make_folder(path.parent)
    part = path.with_name(f"{path.name}.part")
    tries = 0
    with _locked(part) as file:
        while True:
            before = file.seek(0, 2)
            try:
                _fetch_rest(url, part, file, on_progress=on_progress, on_note=on_note, timeout=timeout)
                break
            except _Refusal as refusal:
                got = file.seek(0, 2)
                tries = 0 if got > before else tries
                if not refusal.passes or tries == len(waits):
                    raise UserError(f"{refusal} {megabytes(got)} of {path.name} are in {part}. {GO_ON}") from None
                time.sleep(waits[tries])
                tries += 1
            except OSError as error:
                raise _disk_error(error, part) from None
        part.replace(path)
        _notes_of(part).unlink(missing_ok=True)


def megabytes(size: int) -> str:
    """Bytes in words, in units of 1000."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


class _Refusal(Exception):
    """A try that brought no file; `passes` says whether another may."""

    def __init__(self, message: str, *, passes: bool) -> None:
        super().__init__(message)
        self.passes = passes


def _fetch_rest(
    url: str,
    part: Path,
    file: BinaryIO,
    *,
    on_progress: Callable[[int], None],
    on_note: Callable[[str], None],
    timeout: float,
) -> None:
    """Append what is missing to `file`, or write it anew where the server sends it whole."""
    done = file.seek(0, 2)
    known = _read_notes(part)
    headers = {"Range": f"bytes={done}-"} if done else {}
    if done and known.condition:
        headers["If-Range"] = known.condition
    try:
        response = _open(url, headers, timeout)
    except _Unsatisfiable as answer:  # there is no byte after those we have
        if answer.version.size == done and not answer.version.is_other_than(known):
            return
        on_note(f"{part.name} is not the beginning of the server's file; it is fetched from the beginning.")
        file.truncate(0)
        _notes_of(part).unlink(missing_ok=True)
        response = _open(url, {}, timeout)
        done = 0
    with response:
        version = _version(response)
        if done:
            starts_here = response.status == 206 and _range_start(response) == done
            if version.is_other_than(known) or not starts_here:
                reason = "has another version by now" if version.is_other_than(known) else "does not send parts of a file"
                on_note(f"The server {reason}: {part.name.removesuffix('.part')} is fetched from the beginning.")
                done = 0
                file.truncate(0)
                if response.status == 206:  # the rest of another version: of no use
                    _notes_of(part).unlink(missing_ok=True)
                    raise _Refusal(f"{url} changed while it was fetched.", passes=True)
        file.seek(done)
        _notes_of(part).write_text(json.dumps(asdict(version)))
        on_progress(done)
        while chunk := _read(response, url):
            file.write(chunk)
            done += len(chunk)
            on_progress(done)
        file.flush()
    if version.size is not None and done != version.size:
        raise _Refusal(f"The connection to {_host(url)} broke after {done} of {version.size} bytes of {url}.", passes=True)


def _read(response: Any, url: str) -> bytes:
    try:
        return response.read1(_CHUNK)  # what has come so far: on a slow line, a whole chunk takes long
    except _BROKEN as error:
        raise _Refusal(
            f"The connection to {_host(url)} broke ({_words(error)}) while {url} was fetched.", passes=True
        ) from None


class _Unsatisfiable(Exception):
    """The server has nothing after the first byte that was asked for."""

    def __init__(self, version: Version) -> None:
        super().__init__()
        self.version = version


def _open(url: str, headers: dict[str, str], timeout: float, *, method: str = "GET") -> Any:
    if not url.startswith(("http://", "https://")):
        raise _Refusal(f"{url!r} is no address: it must begin with http:// or https://.", passes=False)
    try:
        request = urllib.request.Request(url, headers={"Accept-Encoding": "identity", **headers}, method=method)
        return urllib.request.urlopen(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416:
            raise _Unsatisfiable(_version(error)) from None
        if error.code == 404:
            raise _Refusal(f"There is no file at {url} (404). Check the address, or name a mirror's.", passes=False) from None
        text = f"The server answers {error.code} ({error.reason}) for {url}."
        raise _Refusal(text, passes=error.code in _BUSY) from None
    except urllib.error.URLError as error:
        reason = error.reason if isinstance(error.reason, Exception) else error
        text = f"{_host(url)} cannot be reached ({_words(reason)}). Check the network, and http_proxy if there is a proxy."
        # A name that is not found stays so; a server that refuses or is slow may be restarting.
        raise _Refusal(text, passes=isinstance(reason, _BROKEN)) from None
    except _BROKEN as error:
        raise _Refusal(f"{_host(url)} does not answer ({_words(error)}).", passes=True) from None
    except ValueError as error:  # a port that is none, say
        raise _Refusal(f"{url!r} is no address ({error}).", passes=False) from None


def _version(response: Any) -> Version:
    """The version in an answer's headers; the size is the whole file's, in the answer to a request for a part too."""
    headers = response.headers
    whole = headers.get("Content-Range", "").rpartition("/")[2] or headers.get("Content-Length", "")
    return Version(int(whole) if whole.isdecimal() else None, headers.get("ETag"), headers.get("Last-Modified"))


def _range_start(response: Any) -> int | None:
    start = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("-")[0]
    return int(start) if start.isdecimal() else None


@contextlib.contextmanager
def _locked(part: Path) -> Iterator[BinaryIO]:
    """The part file, open and this process's alone: two that append to it would spoil it."""
    try:
        with part.open("ab") as made:  # there from now on, whatever was there kept
            made.flush()
        with part.open("r+b") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(f"Another process is fetching {part} at this moment. Wait for it.") from None
            yield file
    except OSError as error:
        raise _disk_error(error, part) from None


def _disk_error(error: OSError, path: Path) -> UserError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return UserError(f"The disk is full: {path} cannot be written. Make room, or name another folder. {GO_ON}")
    return UserError(f"{path} cannot be written ({error.strerror or error}). {GO_ON}")


def _notes_of(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _read_notes(part: Path) -> Version:
    """The version that a part is of; nothing is known of one that another program began."""
    try:
        notes = json.loads(_notes_of(part).read_text())
        return Version(notes["size"], notes["etag"], notes["modified"])
    except (OSError, ValueError, KeyError, TypeError):
        return Version(None, None, None)


def _host(url: str) -> str:
    return urllib.parse.urlsplit(url).netloc or url


def _words(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
