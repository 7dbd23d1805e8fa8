"""engine/data/download.py, against a server that breaks off, has another version, or cannot send parts."""

import errno
import fcntl
import json
import random
import socket

import pytest

from backbones.errors import UserError
from engine.data.download import ask_version, download, megabytes
from tests.engine.data.web_server import serve

BODY = random.Random(0).randbytes(3_000_000)
NONE = ()  # no second try


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture
def server():
    with serve({"/a.zip": BODY}) as state:
        yield state


@pytest.fixture
def fetch(server, tmp_path):
    """A function that downloads a.zip, without waiting between tries; it keeps what was noted and how far it got."""

    def run(*, waits=NONE, url=None):
        run.progress, run.notes = [], []
        target = tmp_path / "folder" / "a.zip"
        download(
            url or f"{server.url}/a.zip",
            target,
            on_progress=run.progress.append,
            on_note=run.notes.append,
            waits=waits,
            timeout=5,
        )
        return target

    return run


def left_in(folder):
    return sorted(path.name for path in folder.iterdir())


def ranges(server):
    return [wanted for method, _, wanted in server.requests if method == "GET"]


def test_a_file_is_fetched_whole_and_nothing_else_is_left(server, fetch):
    path = fetch()
    assert path.read_bytes() == BODY
    assert left_in(path.parent) == ["a.zip"]
    assert fetch.progress[0] == 0
    assert fetch.progress[-1] == len(BODY)
    assert fetch.progress == sorted(fetch.progress)
    assert ask_version(f"{server.url}/a.zip").size == len(BODY)


def test_an_empty_file_is_a_file(server, fetch):
    server.files["/a.zip"] = b""
    assert fetch().read_bytes() == b""


def test_a_broken_connection_is_gone_on_with_from_its_byte(server, fetch):
    server.breaks_after = [1_000_000, 500_000]
    assert fetch(waits=(0.0,)).read_bytes() == BODY
    assert ranges(server) == [None, "bytes=1000000-", "bytes=1500000-"]
    assert fetch.notes == []


def test_a_second_command_goes_on_where_the_first_stopped(server, fetch, tmp_path):
    server.breaks_after = [1_234_567]
    with pytest.raises(UserError, match=r"broke after 1234567 of 3000000 bytes .* 1\.2 MB of a\.zip .* same command"):
        fetch()
    assert left_in(tmp_path / "folder") == ["a.zip.part", "a.zip.part.json"]
    assert fetch().read_bytes() == BODY
    assert ranges(server) == [None, "bytes=1234567-"]
    assert left_in(tmp_path / "folder") == ["a.zip"]


def test_tries_are_counted_anew_after_each_that_brought_something(server, fetch):
    server.breaks_after = [100_000] * 8
    assert fetch(waits=(0.0, 0.0)).read_bytes() == BODY
    assert len(ranges(server)) == 9


def test_tries_that_bring_nothing_come_to_an_end(server, fetch):
    server.breaks_after = [100_000, 0, 0, 0, 0, 0]
    with pytest.raises(UserError, match="broke after 100000 of"):
        fetch(waits=(0.0, 0.0))
    assert len(ranges(server)) == 3


@pytest.mark.parametrize("honours_if_range", [True, False])
def test_another_version_on_the_server_is_fetched_from_the_beginning(server, fetch, honours_if_range):
    server.breaks_after = [1_000_000]
    with pytest.raises(UserError):
        fetch()
    other = bytes(reversed(BODY))
    server.files["/a.zip"] = other
    server.honours_if_range = honours_if_range
    assert fetch(waits=(0.0,)).read_bytes() == other
    assert ["has another version by now" in note for note in fetch.notes] == [True]
    assert len(ranges(server)) == (2 if honours_if_range else 3)  # asked well, the server sends the whole at once


def test_without_an_etag_another_size_is_another_version(server, fetch):
    server.with_etag = False
    server.breaks_after = [1_000_000]
    with pytest.raises(UserError):
        fetch()
    server.files["/a.zip"] = BODY[::-1] + b"more"
    assert fetch(waits=(0.0,)).read_bytes() == BODY[::-1] + b"more"


def test_a_server_that_sends_no_parts_is_asked_for_the_whole(server, fetch):
    server.breaks_after = [1_000_000]
    server.sends_parts = False
    assert fetch(waits=(0.0,)).read_bytes() == BODY
    assert fetch.notes == ["The server does not send parts of a file: a.zip is fetched from the beginning."]


def test_a_part_that_was_whole_but_not_yet_moved_is_not_fetched_again(server, fetch, tmp_path):
    server.breaks_after = [2_999_999]
    with pytest.raises(UserError):
        fetch()
    with (tmp_path / "folder" / "a.zip.part").open("ab") as part:
        part.write(BODY[-1:])
    assert fetch().read_bytes() == BODY
    assert len(ranges(server)) == 2


def test_a_part_longer_than_the_file_is_not_its_beginning(server, fetch, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.zip.part").write_bytes(BODY + b"more")
    assert fetch().read_bytes() == BODY
    assert "not the beginning" in fetch.notes[0]


def test_the_part_of_another_program_is_gone_on_with(server, fetch, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.zip.part").write_bytes(BODY[:700_000])
    assert fetch().read_bytes() == BODY
    assert ranges(server) == ["bytes=700000-"]


def test_notes_that_are_garbled_are_as_none(server, fetch, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.zip.part").write_bytes(BODY[:7])
    (tmp_path / "folder" / "a.zip.part.json").write_text("[]")
    assert fetch().read_bytes() == BODY


def test_a_busy_server_is_asked_again(server, fetch):
    server.answers = [503, 429]
    assert fetch(waits=(0.0, 0.0)).read_bytes() == BODY
    server.answers = [503, 503]
    with pytest.raises(UserError, match=r"answers 503 \(Service Unavailable\)"):
        fetch(waits=(0.0,))
    server.answers = [503]
    assert ask_version(f"{server.url}/a.zip", waits=(0.0,)).size == len(BODY)


def test_a_file_that_is_not_there_is_not_asked_for_again(server, fetch):
    with pytest.raises(UserError, match=r"There is no file at http://127.*nothing\.zip \(404\)"):
        fetch(url=f"{server.url}/nothing.zip", waits=(0.0, 0.0))
    assert len(server.requests) == 1
    server.answers = [403]
    with pytest.raises(UserError, match="answers 403"):
        fetch(waits=(0.0,))
    with pytest.raises(UserError, match=r"no file at .* \(404\)"):
        ask_version(f"{server.url}/nothing.zip")


def test_a_server_that_is_not_there_is_named():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(UserError, match=rf"{address} cannot be reached .*refused.* same command"):
            ask_version(f"http://{address}/a.zip", waits=NONE)


@pytest.mark.parametrize("url", ["images.cocodataset.org/a.zip", ""])
def test_what_is_no_address_is_said(url, tmp_path):
    with pytest.raises(UserError, match="is no address"):
        download(url, tmp_path / "a.zip", waits=NONE)


def test_a_silent_server_is_given_up(tmp_path):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with pytest.raises(UserError, match=r"timed out|does not answer"):
            download(f"http://127.0.0.1:{silent.getsockname()[1]}/a", tmp_path / "a", waits=NONE, timeout=0.1)


def test_a_full_disk_is_said_and_what_has_come_stays(server, fetch, tmp_path, monkeypatch):
    server.breaks_after = [1_000_000]
    with pytest.raises(UserError):
        fetch()

    def full(done):
        if done > 2_000_000:  # as if the write had failed
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(UserError, match=r"The disk is full: .*a\.zip\.part .*Make room.* same command"):
        download(f"{server.url}/a.zip", tmp_path / "folder" / "a.zip", on_progress=full, waits=NONE)
    assert fetch().read_bytes() == BODY


def test_two_processes_do_not_write_one_file(server, fetch, tmp_path):
    (tmp_path / "folder").mkdir()
    with (tmp_path / "folder" / "a.zip.part").open("wb") as part:
        fcntl.flock(part, fcntl.LOCK_EX)
        with pytest.raises(UserError, match=r"Another process is fetching .*a\.zip\.part"):
            fetch()


def test_the_notes_hold_the_version(server, fetch, tmp_path):
    server.breaks_after = [10]
    with pytest.raises(UserError):
        fetch()
    notes = json.loads((tmp_path / "folder" / "a.zip.part.json").read_text())
    assert notes["size"] == len(BODY)
    assert notes["etag"].startswith('"')


def test_megabytes():
    assert (megabytes(19_336_861_798), megabytes(252_907_541), megabytes(0)) == ("19.3 GB", "252.9 MB", "0.0 MB")
