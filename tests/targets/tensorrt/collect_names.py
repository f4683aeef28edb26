"""Reads the names and signatures of TensorRT's Python bindings into the stub files beside this script.

    pip download --no-deps tensorrt-cu12-bindings==10.1.0        # any version, for this Python
    python tests/targets/tensorrt/collect_names.py tensorrt_cu12_bindings-10.1.0-*.whl

The bindings' wheel holds a pybind11 module whose docstrings carry every signature. It links against libraries
of several gigabytes that need a GPU's driver; to read docstrings, libraries of the same names do whose
functions return nothing, so this compiles such ones and imports the module in a process of its own. Needs a C
compiler. Classes for building networks layer by layer and for plugins are left out: fastdiff uses neither.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

STUBS = Path(__file__).parent / "stubs"
LEFT_OUT = re.compile(
    "Plugin|Layer|Calibrator|Algorithm|Loop|Conditional|Attention|Expr|Operation$|Mode$|^Dims.|^I?MoE|Dynamic"
)
KEPT = {"TensorIOMode", "IAttention"}
PLAIN = {
    "None": "None",
    **{name: f"builtins.{name}" for name in ("bool", "bytes", "float", "int", "object", "str")},
    "typing.SupportsInt": "builtins.int",
    "typing.SupportsFloat": "builtins.float",
    "buffer": "Buffer",
    "typing_extensions.Buffer": "Buffer",
    "list": "builtins.list[Any]",
    "tuple": "builtins.tuple[Any, ...]",
    "nvonnxparser::IParserError": "ParserError",
    "nvonnxparser::OnnxParserFlag": "OnnxParserFlag",
}
HEADER = """\
# Names and signatures of {wheel}, read by collect_names.py. Layers and plugins are left out.
# Sizes and shapes are written as int and lists, what has no type of Python's as Any.
import builtins
from typing import Any, ClassVar, overload

from typing_extensions import Buffer

__version__: builtins.str
"""


def main() -> None:
    """Write the stub file of each wheel named on the command line."""
    if sys.argv[1] == "--read":
        sys.stdout.write(stub(sys.argv[2]))
        return
    for wheel in map(Path, sys.argv[1:]):
        version = wheel.name.split("-")[1]
        with tempfile.TemporaryDirectory() as folder:
            zipfile.ZipFile(wheel).extractall(folder)
            empty_libraries(Path(folder))
            command = [sys.executable, __file__, "--read", wheel.name]
            environment = {"LD_LIBRARY_PATH": folder, "PYTHONPATH": folder, "PATH": "/usr/bin:/bin"}
            text = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
        target = STUBS / ".".join(version.split(".")[:2])
        target.mkdir(parents=True, exist_ok=True)
        (target / "tensorrt.pyi").write_text(text, encoding="utf-8")


def empty_libraries(folder: Path) -> None:
    """Libraries that define what the bindings want, each function returning 0."""
    module = next(folder.glob("*/tensorrt.so"))
    undefined = subprocess.run(
        ["nm", "-D", "--undefined-only", module], check=True, capture_output=True, text=True
    ).stdout
    names = re.findall(r" U ((?:create|get|init)\w+)$", undefined, re.MULTILINE)
    (folder / "empty.c").write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in names))
    dynamic = subprocess.run(["readelf", "-d", module], check=True, capture_output=True, text=True).stdout
    for library in re.findall(r"\[(libnv\w+\.so\.\d+)\]", dynamic):
        options = ["-shared", "-fPIC", f"-Wl,-soname,{library}", "-o", folder / library]
        subprocess.run(["cc", *options, folder / "empty.c"], check=True)


def stub(wheel: str) -> str:
    """The stub file of the bindings that can be imported here."""
    import tensorrt_bindings  # type: ignore[import-not-found, unused-ignore]

    classes = {
        name: value
        for name, value in sorted(vars(tensorrt_bindings).items())
        if isinstance(value, type) and (name in KEPT or not LEFT_OUT.search(name))
    }
    known = {f"tensorrt_bindings.tensorrt.{value.__qualname__}" for value in classes.values()}
    known |= {f"tensorrt_bindings.tensorrt.{outer}.Severity" for outer in ("ILogger",)}
    lines = [HEADER.format(wheel=wheel)]
    for name, value in classes.items():
        lines += ["", *describe(name, value, known)]
    return "\n".join(lines)


def describe(name: str, value: type, known: set[str]) -> Iterator[str]:
    """The lines of one class."""
    bases = [
        base.__name__ for base in value.__bases__ if f"tensorrt_bindings.tensorrt.{base.__name__}" in known
    ]
    yield f"class {name}({', '.join(bases)}):" if bases else f"class {name}:"
    members: dict[str, Any] = getattr(value, "__members__", {})
    yield from (f"    {member}: ClassVar[{value.__qualname__}]" for member in members)
    body = []
    for key, item in sorted(vars(value).items()):
        if name == "INetworkDefinition" and key.startswith("add_"):
            continue  # layers
        if isinstance(item, type) and hasattr(item, "__members__"):
            body += [f"    {line}" for line in describe(key, item, known)]
        elif key in members or (key.startswith("_") and key != "__init__"):
            continue
        elif isinstance(item, property):
            kind = annotation((item.fget.__doc__ or "").rpartition("-> ")[2].strip(), known)
            body += ["    @property", f"    def {key}(self) -> {kind}: ..."]
            if item.fset is not None:
                body += [f"    @{key}.setter", f"    def {key}(self, value: {kind}) -> None: ..."]
        elif callable(item):
            found = list(signatures(key, item.__doc__ or "", known))
            for arguments in found if not members else []:
                body += ["    @overload"] * (len(found) > 1)
                body += [f"    def {key}{arguments}: ..."]
    if "buffer interface" in (value.__doc__ or ""):
        body.append("    def __buffer__(self, flags: builtins.int, /) -> memoryview: ...")
    yield from body
    if not members and not body:
        yield "    ..."


def signatures(name: str, text: str, known: set[str]) -> Iterator[str]:
    """``(self, network: INetworkDefinition) -> bool`` for each overload in a docstring."""
    for arguments, result in re.findall(rf"^(?:\d+\. )?{name}\((.*)\) -> (.+)$", text, re.MULTILINE):
        parts = []
        for part in split(arguments):
            argument, _, kind = part.partition(": ")
            kind, has_default, _ = kind.partition(" = ")
            argument = argument.removeprefix("*") if argument.startswith("*args") else argument
            parts.append(
                "self"
                if argument == "self"
                else f"{argument}: {annotation(kind, known)}{' = ...' if has_default else ''}"
            )
        yield f"({', '.join(parts)}) -> {annotation(result, known)}"


def split(arguments: str) -> list[str]:
    """A list of arguments at its commas, but for those inside brackets."""
    parts, depth = [""], 0
    for letter in arguments:
        depth += (letter in "[(<") - (letter in "])>")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts if part.strip()]


def annotation(kind: str, known: set[str]) -> str:
    """pybind11's name of a type as one that a type checker knows; Any where there is none."""
    if kind in PLAIN:
        return PLAIN[kind]
    if kind in known:
        return kind.removeprefix("tensorrt_bindings.tensorrt.")
    if match := re.fullmatch(r"(?:[Ll]ist|collections\.abc\.Sequence)\[(.*)\]", kind):
        return f"builtins.list[{annotation(match[1], known)}]"
    return "Any"


if __name__ == "__main__":
    main()
