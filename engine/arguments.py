"""The arguments of the tools that take settings. Imports nothing that takes long: `--help` must not wait for torch."""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

_SETTING = re.compile(r"[A-Za-z_]\w*(\.\w+)*=")  # how `train.epochs=3` begins


def training_parser(description: str | None, *, example: str) -> argparse.ArgumentParser:
    """The parser of the tools that train: a config, settings in place of its own, `--resume`.

    Args:
        description: the tool's docstring.
        example: a config of the tool's job.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", metavar="CONFIG", help=f"a YAML file, such as {example}")
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="settings in place of the file's")
    parser.add_argument(
        "--resume",
        metavar="PATH",
        nargs="?",
        const="",
        help="go on from a checkpoint; without PATH from the run folder's last.pt",
    )
    return parser


def parse_with_settings(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Parse the command line of a tool whose settings are words of their own, among the options or after them.

    A setting that is written as an option is refused with the way to write it. A setting after `--resume` is no PATH.
    """
    args, unknown = parser.parse_known_intermixed_args(_free_settings_from_resume(sys.argv[1:]))
    for word in unknown:
        if _is_setting_as_option(word):
            parser.error(f"Settings are written without dashes: {_without_dashes(word)}")
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    return args


def parse_with_set_option(parser: argparse.ArgumentParser, *, paths: str) -> argparse.Namespace:
    """Parse the command line of a tool that takes paths, and settings by `--set`; a setting without it is refused.

    Args:
        paths: the name of the argument with the paths.
    """
    args, unknown = parser.parse_known_args()
    for word in [*getattr(args, paths), *unknown]:
        if _is_setting_as_option(word) or (_SETTING.match(word) and not Path(word).exists()):
            parser.error(f"{word} is no image or folder. For a setting use --set {_without_dashes(word)}")
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    return args


def _free_settings_from_resume(words: Sequence[str]) -> list[str]:
    """argparse takes the word after `--resume` for its PATH, which a setting is not unless there is a file of that name."""
    freed: list[str] = []
    for place, word in enumerate(words):
        after = words[place + 1] if place + 1 < len(words) else ""
        is_path = not _SETTING.match(after) or Path(after).is_file()
        freed.append("--resume=" if word == "--resume" and not is_path else word)
    return freed


def _is_setting_as_option(word: str) -> bool:
    name = word.removeprefix("--")
    return name != word and bool(_SETTING.match(name) or "." in name)


def _without_dashes(word: str) -> str:
    name = word.lstrip("-")
    return name if "=" in name else f"{name}=VALUE"
