"""The recipes on small data of this disk, and what is done with a config made of a mutated one."""

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from engine.config import RunConfig
from engine.config_file import load_config
from tests.fuzz.mutations import NUMBERS, TEXTS, junk, mutate, mutate_bytes

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
_BOMBS = [
    "a: &a [x, x, x, x, x, x, x, x, x]\n"
    + "".join(f"{c}: &{c} [{', '.join(['*' + p] * 9)}]\n" for p, c in zip("abcdefgh", "bcdefghi", strict=True)),
    "a: &a {b: *a}\n",
    "<<: &x {<<: *x}\n",
    "data: !!python/object/apply:os.system ['true']\n",
    "data: !!python/name:os.system\n",
    "seed: !!binary 'AAAA'\nx: !!set {a}\n",
    "? [a, b]\n: 1\n",
    "? {a: b}\n: 1\n",
    "seed: 2026-13-45\n",
    "seed: 2026-02-30\n",
    "seed: " + "1" * 5000 + "\n",
    "seed: 1:" + ":".join(["59"] * 2000) + "\n",
    "a: " + "[" * 5000 + "\n",
    "a: " + "[" * 3000 + "]" * 3000 + "\n",
    "a: " + "{a: " * 3000 + "}" * 3000 + "\n",
    "a:\n" + "".join(" " * i + "a:\n" for i in range(1, 900)),
    "--- 1\n--- 2\n",
    "%YAML 9.9\n---\na: 1\n",
    "\tdata: 1\n",
    "data: {train: shapes\n",
    "'': ''\n",
    "null: null\n",
    ".nan: .inf\n",
    "x: &x 1\nx: *y\n",
]


def recipes(data: dict[str, Any]) -> list[dict[str, Any]]:
    """The content of each config, its data replaced by small ones.

    Args:
        data: by job, what `data.train` and `data.val` are.
    """
    found = []
    for path in CONFIGS:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        job = content.get("job", "detection")
        if job in data and not isinstance(content["data"].get("train"), str):
            content["data"] |= {"train": data[job], "val": data[job]}
        found.append(content)
    return found


def mutated(seed: int, contents: Sequence[dict[str, Any]]) -> tuple[bytes, list[str]]:
    """The text of the mutated config number `seed`, and overrides."""
    rng = random.Random(seed)
    value: Any = rng.choice(contents)
    for _ in range(rng.choice([0, 1, 1, 2, 4])):
        value = mutate(value, rng)
    try:
        text = yaml.safe_dump(value, allow_unicode=True, default_flow_style=rng.choice([None, True, False])).encode()
    except (UnicodeEncodeError, yaml.YAMLError, ValueError):
        text = json.dumps(value).encode()
    kind = rng.randrange(12)
    if kind == 0:
        text = mutate_bytes(text, rng)
    elif kind == 1:
        text = rng.choice(_BOMBS).encode() + rng.choice([b"", text])
    elif kind == 2:
        lines = text.split(b"\n")
        line = rng.randrange(len(lines))
        lines[line] = rng.choice(
            [b"\t" + lines[line], lines[line] + b"\n" + lines[line], b" " + lines[line], b"- " + lines[line]]
        )
        text = b"\n".join(lines)
    overrides = [_override(rng, value) for _ in range(rng.choice([0, 0, 0, 1, 2]))]
    return text, overrides


def _override(rng: random.Random, content: Any) -> str:
    keys: list[str] = []
    while isinstance(content, dict) and content and rng.random() < 0.9:
        key = rng.choice(list(content))
        keys.append(str(key))
        content = content[key]
    if rng.random() < 0.3:
        keys.insert(rng.randrange(len(keys) + 1), rng.choice(["", "0", "-1", "99999999999999999999", "x", "name", *TEXTS[:6]]))
    value = rng.choice(
        [json.dumps(junk(rng)), str(rng.choice(NUMBERS)), str(rng.choice(TEXTS)), rng.choice(_BOMBS), "[", "{", "*a", "&a"]
    )
    return rng.choice(["{}={}", "{}={}", "{}={}", "{}:{}", "{}{}", "={}{}", "{}=={}"]).format(".".join(keys), value)


def read(path: Path, overrides: Sequence[str]) -> RunConfig:
    """What every tool does first."""
    return load_config(path, list(overrides))
