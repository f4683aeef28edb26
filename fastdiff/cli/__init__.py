"""The command line: ``fastdiff build | generate | img2img | inpaint`` and those that tell and measure.

One file per command, each with ``SUMMARY``, ``add_arguments(parser)`` and ``run(arguments)``. Exit status: 0;
2 for an error of the caller's or of the machine's, told in one line; 130 after Ctrl-C; 1 for a defect of
fastdiff. Results go to standard output, progress and warnings to standard error, progress only when that is a
terminal.
"""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import TextIO

from fastdiff.cli.parser import parse
from fastdiff.cli.prompts import OPTIONS
from fastdiff.cli.values import named_as_typed
from fastdiff.errors import FastdiffError, FastdiffWarning

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status. Raises nothing without ``--debug`` but ``SystemExit``."""
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    try:
        arguments = parse(words)
        debug = arguments.debug
        with _warnings_on_one_line(debug), named_as_typed(**OPTIONS):
            arguments.run(arguments)
        sys.stdout.flush()
    except KeyboardInterrupt:
        _say("fastdiff: interrupted")
        return 130
    except BrokenPipeError:  # the reader of our output, such as `head`, has seen enough
        _discard(sys.stdout)
        return 0
    except FastdiffError as error:
        if debug:
            raise
        _say(f"fastdiff: error: {_one_line(error)}")
        return 2
    except MemoryError:
        if debug:
            raise
        _say("fastdiff: error: out of memory: ask for smaller or fewer pictures, or use a larger machine")
        return 2
    except OSError as error:
        if debug:
            raise
        _discard(sys.stdout)
        where = f"{error.filename}: " if error.filename else ""
        _say(f"fastdiff: error: {where}{error.strerror or _one_line(error)}")
        return 2
    except Exception as error:
        if debug:
            raise
        kind = type(error).__name__
        _say(f"fastdiff: internal error: {kind}: {_one_line(error)}; --debug shows where, please report it")
        return 1
    return 0


@contextlib.contextmanager
def _warnings_on_one_line(debug: bool) -> Iterator[None]:
    """Show our own warnings as one line each; those of libraries only with ``--debug``."""

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        where = "" if issubclass(category, FastdiffWarning) else f"{filename}:{lineno}: {category.__name__}: "
        _say(f"fastdiff: warning: {where}{_one_line(message)}")

    with warnings.catch_warnings():
        if not debug:
            warnings.simplefilter("ignore")
        warnings.simplefilter("always", FastdiffWarning)
        warnings.showwarning = show
        yield


def _one_line(message: object) -> str:
    return " ".join(str(message).split())


def _say(line: str) -> None:
    with contextlib.suppress(OSError):  # standard error may be closed or full as well
        print(line, file=sys.stderr, flush=True)


def _discard(stream: TextIO) -> None:
    """Point a stream that cannot be written at nothing, so that closing it at exit does not fail again."""
    with contextlib.suppress(OSError, ValueError):
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, stream.fileno())
        os.close(nothing)
