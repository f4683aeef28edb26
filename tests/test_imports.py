"""Who may import whom, read from the sources, and what a process really loads, seen from a fresh one."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "fastdiff"
VENDORS = {
    *(
        "accelerate",
        "cuda",
        "diffusers",
        "onnx",
        "onnxruntime",
        "onnxscript",
        "openvino",
        "tensorrt",
        "torch",
        "transformers",
    ),
    "triton",
}
# files of fastdiff, or folders, that may import vendor libraries, and which
ALLOWED = {
    "bench": {"torch", "diffusers", "transformers", "onnxruntime", "openvino"},
    "build": {"torch", "diffusers", "transformers", "onnx", "onnxscript", "onnxruntime"},
    "compiled": {"torch", "diffusers", "transformers"},
    "kernels/layout.py": {"torch"},
    "kernels/library.py": {"torch"},
    "kernels/library_gpu.py": {"torch"},
    "kernels/cuda": {"torch", "cuda"},
    "kernels/reference.py": {"torch"},
    "kernels/reference_tokens.py": {"torch"},
    "kernels/triton": {"torch", "triton"},
    "likelihood.py": {"torch"},
    "targets/cuda": {"torch", "triton", "cuda"},
    "targets/native/compiler.py": {"torch"},
    "targets/onnxruntime": {"onnxruntime", "onnx", "onnxscript", "torch"},
    "targets/tensorrt": {"tensorrt", "cuda"},
    "targets/tensorrt/adaptable.py": {"onnx"},
    "targets/tensorrt/merge_network.py": {"onnx"},
    "targets/torch.py": {"torch", "diffusers", "transformers"},
    "zoo/training": {"torch", "diffusers", "transformers"},
}
# where imports of vendor libraries may stand at the top: what is itself imported only when it is needed
AT_TOP = (
    "bench/prepare.py",
    "build",
    "compiled/copies.py",
    "compiled/engines.py",
    "compiled/reasons.py",
    "compiled/specs.py",
    "compiled/stand_ins",
    "kernels/cuda",
    "kernels/layout.py",
    "kernels/library.py",
    "kernels/library_gpu.py",
    "kernels/reference.py",
    "kernels/reference_tokens.py",
    "kernels/triton",
    "targets/cuda/adapters.py",
    "targets/cuda/backend.py",
    "targets/cuda/call.py",
    "targets/cuda/calls.py",
    "targets/cuda/captures.py",
    "targets/cuda/choices.py",
    "targets/cuda/compiler.py",
    "targets/cuda/executor.py",
    "targets/cuda/file.py",
    "targets/cuda/finite.py",
    "targets/cuda/graphs.py",
    "targets/cuda/implementations",
    "targets/cuda/loop.py",
    "targets/cuda/plan.py",
    "targets/cuda/ranges.py",
    "targets/cuda/session.py",
    "targets/cuda/stages.py",
    "targets/cuda/tables.py",
    "targets/cuda/threshold.py",
    "targets/cuda/tune.py",
    "targets/cuda/types.py",
    "targets/native/compiler.py",
    "targets/onnxruntime/branches.py",
    "targets/onnxruntime/contrib.py",
    "targets/tensorrt/adaptable.py",
    "targets/tensorrt/api.py",
    "targets/tensorrt/device.py",
    "zoo/training",
)
SAMPLERS_MAY = {"fastdiff.errors", "fastdiff.samplers", "fastdiff.kernels", "fastdiff._C", "numpy"}
# imports that close a circle: the importing file, what it imports, and why
CIRCLES = {
    ("fastdiff.build.modules.spec", "fastdiff.build.modules"): "a spec wraps a part as its kind does, in a "
    "function; the table of the kinds is made of all of them, and each has a spec",
}


def sources() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def name_of(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def imports(path: Path, *, top: bool = False) -> Iterator[str]:
    """Full names of what a file imports at run time; with ``top`` only what importing it imports."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    pending: list[ast.AST] = list(tree.body)
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            pending.extend(node.orelse)
        elif not (top and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)):
            pending.extend(ast.iter_child_nodes(node))


def within(name: str, places: tuple[str, ...] | dict[str, set[str]]) -> list[str]:
    return [place for place in places if name == place or name.startswith(f"{place}/")]


@pytest.mark.parametrize("path", sources(), ids=name_of)
@pytest.mark.smoke
def test_imports_stay_where_they_belong(path: Path) -> None:
    name = name_of(path)
    allowed = set[str]().union(*(ALLOWED[place] for place in within(name, ALLOWED)))
    for module in imports(path):
        package = module.partition(".")[0]
        assert package not in ("export", "benchmarks", "tests"), (
            f"{name} imports {module}, which is above the package"
        )
        assert package not in VENDORS or package in allowed, f"{name} imports {module}"
        if within(name, ("samplers",)):
            known = any(module == may or module.startswith(f"{may}.") for may in SAMPLERS_MAY)
            assert known or package in sys.stdlib_module_names, (
                f"{name} imports {module}: samplers know NumPy only"
            )
    if not within(name, AT_TOP):
        for module in imports(path, top=True):
            assert module.partition(".")[0] not in VENDORS, (
                f"{name} imports {module} as soon as it is imported"
            )
            assert not module.startswith("fastdiff.build"), (
                f"{name} imports {module} as soon as it is imported"
            )


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def import_graph() -> dict[str, set[str]]:
    """What each module of the package imports of it, inside functions as well.

    Importing a module runs the packages around it first; those that the importing one lies in run already.
    """
    modules = {module_of(path): path for path in sources()}
    graph: dict[str, set[str]] = {name: set() for name in modules}
    for name, path in modules.items():
        for found in imports(path):
            target = found if found in modules else found.rpartition(".")[0]
            if target in modules and target != name:
                graph[name].add(target)
            package = target.rpartition(".")[0]
            while package in modules and not f"{name}.".startswith(f"{package}."):
                graph[name].add(package)
                package = package.rpartition(".")[0]
    return graph


def circle(graph: dict[str, set[str]]) -> list[str]:
    """The modules of a circle, or none."""
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


@pytest.mark.smoke
def test_no_module_imports_itself_in_the_end() -> None:
    """Imports for types alone do not count."""
    graph = import_graph()
    for name, target in CIRCLES:
        graph[name].remove(target)  # a KeyError is a rule that nobody needs any more
    assert not (found := circle(graph)), " -> ".join(reversed(found))
    for name, target in CIRCLES:
        assert circle({**graph, name: graph[name] | {target}}), f"{name} may import {target}: drop the rule"


@pytest.mark.smoke
def test_rules_name_files_that_exist() -> None:
    for place in ALLOWED:
        assert (PACKAGE / place).exists(), place


@pytest.mark.smoke
def test_csrc_knows_python_only_in_its_bindings() -> None:
    for path in sorted((ROOT / "csrc").rglob("*")):
        if path.suffix not in (".h", ".cpp", ".cu") or "bindings" in path.parts:
            continue
        text = path.read_text(encoding="utf-8")
        for word in ("Python.h", "pybind11", "torch/"):
            assert f"include <{word}" not in text, f"{path} includes {word}"
            assert f'include "{word}' not in text, f"{path} includes {word}"


def loaded_by(code: str, *arguments: str) -> set[str]:
    """Top-level packages that a fresh interpreter has loaded after ``code``, beyond those of an empty one."""
    report = "\nimport sys; print('\\nLOADED', *{name.partition('.')[0] for name in sys.modules})"
    run = subprocess.run(
        [sys.executable, "-c", code + report, *arguments],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    assert run.stderr == ""
    return set(run.stdout.rpartition("LOADED ")[2].split()) - set(sys.stdlib_module_names)


@pytest.mark.smoke
def test_import_fastdiff_loads_nothing_heavy() -> None:
    names = (
        "import sys; before = set(sys.modules); import fastdiff; print(*sorted(set(sys.modules) - before))"
    )
    run = subprocess.run([sys.executable, "-c", names], capture_output=True, text=True, check=True, cwd=ROOT)
    ours = {name for name in run.stdout.split() if name.partition(".")[0] == "fastdiff"}
    assert ours == {"fastdiff", "fastdiff._version", "fastdiff.errors"}
    others = (
        {name.partition(".")[0] for name in run.stdout.split()} - set(sys.stdlib_module_names) - {"fastdiff"}
    )
    assert others == set()


@pytest.mark.parametrize(
    "words", [["--version"], ["--help"], ["generate", "--help"], ["build", "--help"], ["bench", "--help"]]
)
@pytest.mark.smoke
def test_help_loads_no_library(words: list[str]) -> None:
    code = "import sys, fastdiff.cli\ntry: fastdiff.cli.main(sys.argv[1:])\nexcept SystemExit: pass"
    assert loaded_by(code, *words) & {"numpy", "PIL", "tokenizers", "tqdm", *VENDORS} == set()


@pytest.mark.smoke
def test_importing_the_pipeline_loads_no_vendor_library() -> None:
    assert loaded_by("import fastdiff; fastdiff.load") & VENDORS == set()
