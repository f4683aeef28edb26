"""Running the command line in tests: in this process, which is quick, or in one of its own."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from fastdiff.cli import main


@dataclass(frozen=True)
class Outcome:
    status: int
    output: str
    errors: str

    def assert_refused(self, *words: str) -> None:
        """Exit status 2 and one line on standard error that holds every one of ``words``."""
        assert self.status == 2, self
        assert self.errors.startswith("fastdiff: error: "), self
        assert self.errors.count("\n") == 1, self
        assert self.errors.endswith("\n"), self
        assert "Traceback" not in self.errors
        assert self.output == ""
        for word in words:
            assert word in self.errors, (word, self.errors)


def run_here(capfd: pytest.CaptureFixture[str], *words: object) -> Outcome:
    """The command in this process; what C++ libraries print counts as well."""
    capfd.readouterr()
    try:
        status = main([str(word) for word in words])
    except SystemExit as exit_:
        status = int(exit_.code or 0)
    captured = capfd.readouterr()
    return Outcome(status, captured.out, captured.err)


def run_process(
    *words: object, cwd: Path | None = None, prepare: Callable[[], None] | None = None
) -> Outcome:
    """The command as users run it. ``prepare`` is called in the new process before the command."""
    run = subprocess.run(
        command(*words),
        capture_output=True,
        text=True,
        cwd=cwd,
        env=environment(),
        preexec_fn=prepare,
        timeout=600,
    )
    return Outcome(run.returncode, run.stdout, run.stderr)


def interrupt_at(pattern: str, *words: object, cwd: Path) -> Outcome:
    """The command with a terminal as standard error; Ctrl-C is pressed when ``pattern`` appears there."""
    screen, terminal = pty.openpty()
    process = subprocess.Popen(
        command(*words),
        stdout=subprocess.PIPE,
        stderr=terminal,
        cwd=cwd,
        env=environment(),
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # shells ignore it in the background
    )
    os.close(terminal)
    shown = ""
    pressed = False
    while part := _read(screen):
        shown += part.replace("\r\n", "\n")
        if not pressed and re.search(pattern, shown):
            process.send_signal(signal.SIGINT)
            pressed = True
    os.close(screen)
    output, _ = process.communicate(timeout=600)
    assert pressed, f"{pattern!r} never appeared: {shown}"
    return Outcome(process.returncode, output, shown)


def _read(screen: int) -> str:
    """What the terminal shows next; nothing when its other end is closed, which Linux reports as an error."""
    try:
        return os.read(screen, 4096).decode("utf-8", "replace")
    except OSError:
        return ""


def command(*words: object) -> Sequence[str]:
    return [sys.executable, "-m", "fastdiff", *map(str, words)]


def environment() -> dict[str, str]:
    """This tree first on the path; one thread, as the machine may be busy."""
    root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


def listing(folder: Path) -> list[tuple[str, int]]:
    """Everything below ``folder`` with its size: what must not change when a command is refused."""
    return sorted((str(path.relative_to(folder)), path.lstat().st_size) for path in folder.rglob("*"))
