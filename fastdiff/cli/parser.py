"""Arguments of all commands, with errors in one line and near matches for what was mistyped."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Sequence
from typing import NoReturn

from fastdiff._version import __version__
from fastdiff.cli import bench, build, doctor, generate, img2img, inpaint, inspect, samplers, verify
from fastdiff.errors import InputError

__all__ = ["COMMANDS", "parse"]

COMMANDS = {
    "build": build,
    "generate": generate,
    "img2img": img2img,
    "inpaint": inpaint,
    "samplers": samplers,
    "inspect": inspect,
    "verify": verify,
    "bench": bench,
    "doctor": doctor,
}


def parse(words: Sequence[str]) -> argparse.Namespace:
    """The command line as a namespace whose ``run`` is the command. Raises InputError; exits after help."""
    parser = _Parser(
        prog="fastdiff", description="An inference runtime for diffusion models.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"fastdiff {__version__}")
    _add_debug(parser, default=False)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True, parser_class=_Parser)
    parsers: dict[str, _Parser] = {}
    for name, command in COMMANDS.items():
        parsers[name] = commands.add_parser(
            name, help=command.SUMMARY, description=f"{command.SUMMARY}.", allow_abbrev=False
        )
        command.add_arguments(parsers[name])
        _add_debug(parsers[name], default=argparse.SUPPRESS)
        parsers[name].set_defaults(run=command.run, command=name)
    _check_names(words, parsers)
    arguments, rest = parser.parse_known_args(words)
    if rest:  # a word that may be left out, such as the prompt, behind an option
        own = words[words.index(arguments.command) + 1 :]
        again = argparse.Namespace(debug=arguments.debug)
        arguments, rest = parsers[arguments.command].parse_known_intermixed_args(own, again)
    if rest:
        dash = "; -- goes before what begins with a dash" if rest[0].startswith("-") else ""
        raise InputError(f"unexpected argument {rest[0]!r}{dash}; see fastdiff {arguments.command} --help")
    return arguments


def _check_names(words: Sequence[str], parsers: dict[str, _Parser]) -> None:
    """Refuse what is mistyped with its near matches, before argparse complains of what it made missing."""
    name = next((word for word in words if not word.startswith("-")), None)
    if not words:
        raise InputError(f"no command: give one of {', '.join(parsers)}; fastdiff --help explains them")
    if name is None:
        return
    if name not in parsers:
        raise InputError(f"unknown command {name!r}: {_suggest(name, list(parsers))}")
    known = parsers[name].options
    for word in words[: words.index("--") if "--" in words else None]:
        option = word.partition("=")[0]
        if option.startswith("--") and " " not in word and option not in known:
            way = _instead(option, parsers[name])
            raise InputError(f"unknown option {option!r} of fastdiff {name}: {way}")


def _add_debug(parser: argparse.ArgumentParser, default: object) -> None:
    parser.add_argument(
        "--debug", action="store_true", default=default, help="show the traceback of an error"
    )


def _suggest(word: str, known: list[str]) -> str:
    near = difflib.get_close_matches(word, known, n=3)
    return f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(known)}"


def _instead(option: str, parser: _Parser) -> str:
    """What a mistyped option may have been meant to be: a word that has no option, or options alike."""
    words = parser.words
    if option.removeprefix("--") in (word.lower() for word in words):
        return f"it is given without one, as {parser.prog} {' '.join(words)}"
    bare = [known.removeprefix("--") for known in parser.options]
    near = difflib.get_close_matches(option.removeprefix("--"), bare, n=3, cutoff=0.65)
    if not near:
        return f"{parser.prog} --help lists all"
    return f"did you mean {' or '.join(f'--{word}' for word in near)}?"


class _Parser(argparse.ArgumentParser):
    """Errors become InputError, so that every error of the command line looks alike."""

    @property
    def options(self) -> list[str]:
        return [option for option in self._option_string_actions if option.startswith("--")]

    @property
    def words(self) -> list[str]:
        """What is given by its place, as the help calls it."""
        return [str(action.metavar or action.dest) for action in self._get_positional_actions()]

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see {self.prog} --help")
