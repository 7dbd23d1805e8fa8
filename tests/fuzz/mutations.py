"""Seeded mutations of plain values and of texts, and the bounds within which each mutated case must end."""

import contextlib
import copy
import random
import resource
import signal
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from backbones.errors import UserError

SECONDS = 10
MEMORY = 4 << 30  # bytes of address space that a case may take more; arenas of threads count, too
LINES = 60  # of a message: a config's mistakes are all named, a line each

NUMBERS: list[Any] = [
    *(0, -1, 1, 2, 3, 10**6, 10**9, 2**31, 2**32, 2**53 + 1, 2**63, 2**64, -(2**63) - 1, 10**12, 10**30, 10**400, -(10**400)),
    *(0.5, -0.5, 1e-300, 1e300, -1e300, float("nan"), float("inf"), float("-inf"), 1e9, 0.1 + 0.2, -0.0),
]
TEXTS: list[Any] = [
    *(
        "",
        " ",
        "\0",
        "a\0b",
        "é",
        "日本語",
        "🦴",
        "\ud800",
        "\u202e",
        "x" * 1000,
        "../../etc/passwd",
        "/etc/passwd",
        "..",
        ".",
        "~",
    ),
    *(
        "<script>alert(1)</script>",
        "'; DROP TABLE",
        "%s%n",
        "{0.__class__}",
        "nan",
        "1e3",
        "null",
        "True",
        "\n\n",
        "a\nb",
        "\t",
    ),
    *("os:system", "subprocess:run", "timm/x", "hf/../..", "resnet50", "albumentations/Lambda", "C:\\x", "a\\..\\b"),
]


def junk(rng: random.Random) -> Any:
    """Any value that YAML or JSON may hold."""
    kind = rng.randrange(6)
    if kind < 2:
        return rng.choice(NUMBERS)
    if kind == 2:
        return rng.choice(TEXTS)
    if kind == 3:
        return rng.choice([None, True, False])
    if kind == 4:
        return rng.choice(
            [[], {}, [[]], [{}], {"": {}}, [None], {"name": None}, [1, "a", None, [2.5]], {"a": {"b": {"c": []}}}]
        )
    return nested(rng.choice([3, 30, 60]), rng.choice(["list", "dict"]))


def nested(depth: int, kind: str) -> Any:
    """A list in a list in a list, or dictionaries likewise."""
    value: Any = 0
    for _ in range(depth):
        value = [value] if kind == "list" else {"a": value}
    return value


def places(value: Any) -> list[tuple[Any, Any]]:
    """Each place within a value, as its container and key."""
    found: list[tuple[Any, Any]] = []
    waiting = [value]
    while waiting:
        one = waiting.pop()
        keys = list(one) if isinstance(one, dict) else range(len(one)) if isinstance(one, list) else ()
        for key in keys:
            found.append((one, key))
            if isinstance(one[key], dict | list):
                waiting.append(one[key])
    return found


def mutate(content: Any, rng: random.Random) -> Any:
    """A copy of a value with something in it deleted, doubled, replaced, renamed, moved or changed."""
    content = copy.deepcopy(content)
    found = places(content)
    if not found:
        return junk(rng)
    container, key = rng.choice(found)
    operation = rng.choice(
        ["delete", "junk", "junk", "number", "text", "double", "rename", "swap", "wrap", "unknown", "retype"]
    )
    if operation == "delete":
        del container[key]
    elif operation == "junk":
        container[key] = junk(rng)
    elif operation == "number":
        numeric = [(c, k) for c, k in found if isinstance(c[k], int | float) and not isinstance(c[k], bool)]
        container, key = rng.choice(numeric or found)
        container[key] = rng.choice(NUMBERS)
    elif operation == "text":
        texts = [(c, k) for c, k in found if isinstance(c[k], str)]
        container, key = rng.choice(texts or found)
        container[key] = rng.choice([*TEXTS, f"{container[key]}x", f"{container[key]}"[:-1]])
    elif operation == "double" and isinstance(container, list):
        container.insert(key, copy.deepcopy(container[key]))
    elif operation in ("rename", "double"):
        value = container.pop(key)
        name = rng.choice([f"{key}s", f"{key}"[:-1], rng.choice(TEXTS)])
        if isinstance(container, dict):
            container[name] = value
        else:
            container.append(value)
    elif operation == "swap":
        other, other_key = rng.choice(found)
        one, another = copy.deepcopy(container[key]), copy.deepcopy(other[other_key])
        container[key], other[other_key] = another, one
    elif operation == "wrap":
        container[key] = rng.choice([[container[key]], {"name": container[key]}, {"x": container[key]}, [container[key]] * 2])
    elif operation == "unknown":
        if isinstance(container, dict):
            container[rng.choice([*TEXTS, "unknown", "nmae"])] = junk(rng)
        else:
            container.append(junk(rng))
    else:
        value = container[key]
        container[key] = str(value) if not isinstance(value, str) else rng.choice([0, 1.5, [value], True])
    return content


def mutate_bytes(text: bytes, rng: random.Random) -> bytes:
    """A text cut off, with bytes flipped, deleted, doubled or put in, or in another encoding."""
    operation = rng.randrange(8)
    at = rng.randrange(len(text) + 1)
    if operation == 0:
        return text[:at]
    if operation == 1:
        return text[:at] + bytes([rng.randrange(256)]) + text[at + 1 :]
    if operation == 2:
        return text[:at] + text[at + rng.randrange(1, 40) :]
    if operation == 3:
        return text[:at] + text[max(0, at - rng.randrange(1, 200)) : at] + text[at:]
    if operation == 4:
        return (
            text[:at]
            + rng.choice([b"\xff\xfe", b"\0", b"\t", b"\x1b[31m", b"[" * 100_000, b"{", b"}", b'"', b",", b":"])
            + text[at:]
        )
    if operation == 5:
        return rng.choice(
            [b"\xef\xbb\xbf" + text, text.decode("utf-8", "replace").encode("utf-16"), text + text, b"\x1f\x8b" + text]
        )
    if operation == 6:
        return rng.choice([b"", b"\n", b"null", b"[]", b"{}", b"3", b'"text"', b"\x89PNG\r\n\x1a\n", b"PK\x03\x04"])
    flipped = bytearray(text)
    for _ in range(rng.randrange(1, 6)):
        flipped[rng.randrange(len(flipped))] ^= 1 << rng.randrange(8)
    return bytes(flipped)


@contextlib.contextmanager
def bounds(seconds: int = SECONDS, memory: int = MEMORY) -> Iterator[None]:
    """What takes more than `seconds` of processor time within, six times that by the clock, or so much more memory, raises."""

    def ring(_: int, __: FrameType | None) -> None:
        raise TimeoutError(f"more than {seconds} seconds")

    before = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as file:  # noqa: PTH123
        taken = int(file.read().split()[0]) * resource.getpagesize()
    handlers = {kind: signal.signal(kind, ring) for kind in (signal.SIGALRM, signal.SIGPROF)}
    signal.alarm(6 * seconds)  # on a busy machine, a process waits
    signal.setitimer(signal.ITIMER_PROF, seconds)
    resource.setrlimit(resource.RLIMIT_AS, (taken + memory, before[1]))
    try:
        yield
    finally:
        signal.alarm(0)
        signal.setitimer(signal.ITIMER_PROF, 0)
        for kind, handler in handlers.items():
            signal.signal(kind, handler)
        resource.setrlimit(resource.RLIMIT_AS, before)


def refusal(use: Callable[[], None], *, names: str, seconds: int = SECONDS) -> str | None:
    """The message of the UserError that `use` ends in, None where it runs; anything else is raised.

    Args:
        names: what the message must name: the file.
    """
    with bounds(seconds):
        try:
            use()
        except UserError as error:
            message = str(error)
            assert message.strip(), "an empty message"
            assert "Traceback" not in message, message
            assert message.count("\n") < LINES, message
            assert len(message) < 20_000, message[:4000]
            assert names in message, f"{message}\nThis does not name {names}"
            return message
    return None
