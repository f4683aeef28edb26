"""Opening an engine: what is damaged, of another version or for another machine is refused, saying why."""

from __future__ import annotations

import json
import os
import platform
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastdiff.engine_dir import MANIFEST_NAME, open_engine
from fastdiff.errors import (
    EngineDamagedError,
    EngineError,
    EngineMismatchError,
    EngineVersionError,
    InputError,
)
from fastdiff.manifest import FORMAT_VERSION, ModuleEntry, dump_manifest, parse_manifest
from fastdiff.targets import Availability
from fastdiff.targets import onnxruntime as onnxruntime_target
from tests.engines import MANIFEST, write_engine

FILES = (MANIFEST_NAME, "text_encoder.onnx", "tokenizer/vocab.json")


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    return write_engine(tmp_path / "tiny.fd")


@pytest.fixture(scope="session")
def shared_engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For tests that only read, or that write the manifest and put it back."""
    return write_engine(tmp_path_factory.mktemp("shared") / "tiny.fd")


def rewrite(path: Path, change: Any) -> None:
    """Change the manifest and make it consistent again, as another program might write it."""
    document = json.loads((path / MANIFEST_NAME).read_text(encoding="utf-8"))
    change(document)
    (path / MANIFEST_NAME).write_bytes(sealed(document))


def sealed(document: dict[str, Any]) -> bytes:
    """A manifest of any content with the digest that belongs to it."""
    from fastdiff import manifest

    document.pop("manifest_sha256", None)
    return manifest._text({**document, "manifest_sha256": manifest._digest(document)}).encode()


def test_opens_what_was_written(engine: Path) -> None:
    opened = open_engine(engine)
    entry = opened.entry("text_encoder")
    assert entry.target == "onnxruntime"
    assert entry.shapes["tokens"].maximum == 77
    assert opened.manifest.model.scaling_factor == 0.18215
    assert opened.manifest.scheduler["trained_betas"] is None
    assert opened.tokenizer_folder.joinpath("vocab.json").is_file()
    assert len(opened.engine_hash) == 64
    assert opened.engine_hash == open_engine(engine, verify_hashes=False).engine_hash


def test_manifest_survives_a_round_trip() -> None:
    assert parse_manifest(dump_manifest(MANIFEST).encode()) == MANIFEST


def test_fields_that_came_later_are_left_out_where_they_have_their_default() -> None:
    """Engines of Stable Diffusion keep the text, and so the hash, that they had before SDXL."""
    plain = dump_manifest(MANIFEST)
    assert not {"pooled_size", "time_ids"} & json.loads(plain)["model"].keys()
    large = replace(MANIFEST, model=replace(MANIFEST.model, pooled_size=1280, time_ids=6))
    assert parse_manifest(dump_manifest(large).encode()) == large
    assert json.loads(dump_manifest(large))["model"]["pooled_size"] == 1280


def test_engine_hash_covers_every_file(tmp_path: Path) -> None:
    first, same = write_engine(tmp_path / "a.fd"), write_engine(tmp_path / "b.fd")
    other = write_engine(tmp_path / "c.fd", files={"text_encoder.onnx": "0" * 64})
    assert open_engine(first).engine_hash == open_engine(same).engine_hash
    with pytest.raises(EngineDamagedError):
        open_engine(other)
    assert open_engine(other, verify_hashes=False).engine_hash != open_engine(first).engine_hash


def test_moved_engine_opens(engine: Path, tmp_path: Path) -> None:
    assert open_engine(shutil.move(engine, tmp_path / "elsewhere")).entry("text_encoder")


def test_unknown_module_names_those_present(engine: Path) -> None:
    with pytest.raises(InputError, match="no module 'unet'; it has text_encoder"):
        open_engine(engine).open_module("unet")


@pytest.mark.parametrize("threads", [0, 2.5, "2", True])
def test_threads_must_be_a_whole_number_and_positive(engine: Path, threads: Any) -> None:
    with pytest.raises(InputError, match=f"threads is {threads!r}: it must be"):
        open_engine(engine).open_module("text_encoder", threads=threads)


def test_an_engine_is_the_name_of_a_folder() -> None:
    with pytest.raises(InputError, match="engine is of type int: it must be the name of a folder"):
        open_engine(3)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", FILES)
def test_missing_file(engine: Path, name: str) -> None:
    (engine / name).unlink()
    with pytest.raises(EngineDamagedError, match=f"{os.path.basename(name)} is missing"):  # noqa: PTH119
        open_engine(engine)


@pytest.mark.parametrize("name", FILES)
def test_truncated_file(engine: Path, name: str) -> None:
    file = engine / name
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(EngineDamagedError):
        open_engine(engine)


@pytest.mark.parametrize("name", FILES)
def test_flipped_byte_anywhere(engine: Path, name: str) -> None:
    """Every 17th byte and the last: 17 shares no factor with the width of a line or a record."""
    file = engine / name
    good = file.read_bytes()
    for position in {*range(0, len(good), 17), len(good) - 1}:
        file.write_bytes(good[:position] + bytes([good[position] ^ 1]) + good[position + 1 :])
        with pytest.raises(EngineError):
            open_engine(engine)
    file.write_bytes(good)
    open_engine(engine)


def test_white_space_in_the_manifest_counts(engine: Path) -> None:
    file = engine / MANIFEST_NAME
    file.write_bytes(file.read_bytes() + b"\n")
    with pytest.raises(EngineDamagedError, match="changed after the build"):
        open_engine(engine)


def test_without_hashes_sizes_still_count(engine: Path) -> None:
    file = engine / "text_encoder.onnx"
    good = file.read_bytes()
    file.write_bytes(b"x" + good[1:])
    open_engine(engine, verify_hashes=False)
    file.write_bytes(good[:-1])
    with pytest.raises(EngineDamagedError, match=f"have {len(good) - 1} bytes, not {len(good)}"):
        open_engine(engine, verify_hashes=False)


@pytest.mark.parametrize(
    ("version", "words"),
    [
        (FORMAT_VERSION + 1, "newer than the 1 that is read here; update fastdiff"),
        (0, "older than the 1"),
        (-5, "older"),
    ],
)
def test_other_format_version(engine: Path, version: int, words: str) -> None:
    """A newer format may differ in everything else, so the version is looked at first."""
    (engine / MANIFEST_NAME).write_text(json.dumps({"format_version": version, "new": [1]}), encoding="utf-8")
    with pytest.raises(EngineVersionError, match=words):
        open_engine(engine)


def test_other_architecture(engine: Path) -> None:
    rewrite(engine, lambda doc: doc["modules"]["text_encoder"].update(requires={"architecture": "vax"}))
    with pytest.raises(EngineMismatchError, match=f"built for vax, this machine is {platform.machine()}"):
        open_engine(engine)
    assert open_engine(engine, check_machine=False).entry("text_encoder").requires


@pytest.mark.parametrize(("target", "words"), [("abacus", "unknown target"), ("tensorrt", "cannot run here")])
def test_target_that_is_not_here(engine: Path, target: str, words: str) -> None:
    rewrite(engine, lambda doc: doc["modules"]["text_encoder"].update(target=target))
    with pytest.raises(EngineMismatchError, match=words):
        open_engine(engine)


def test_target_that_cannot_run_says_how_to_install(engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = Availability(False, "the package is not installed", "pip install it")
    monkeypatch.setattr(onnxruntime_target, "availability", lambda: missing)
    with pytest.raises(EngineMismatchError, match="the package is not installed; pip install it"):
        open_engine(engine)


def test_target_that_knows_its_machines_refuses_others(engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def mismatch(entry: ModuleEntry) -> str | None:
        return f"{entry.requires['gpu']}, here is B" if entry.requires["gpu"] != "B" else None

    monkeypatch.setattr(onnxruntime_target, "mismatch", mismatch, raising=False)
    rewrite(engine, lambda doc: doc["modules"]["text_encoder"].update(requires={"gpu": "A"}))
    with pytest.raises(EngineMismatchError, match="text_encoder was built for A, here is B; build it here"):
        open_engine(engine)
    rewrite(engine, lambda doc: doc["modules"]["text_encoder"].update(requires={"gpu": "B"}))
    assert open_engine(engine).entry("text_encoder").requires == {"gpu": "B"}


def test_not_an_engine(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="does not exist"):
        open_engine(tmp_path / "nothing.fd")
    (tmp_path / "file").write_text("x")
    with pytest.raises(EngineError, match="is not a folder"):
        open_engine(tmp_path / "file")
    with pytest.raises(EngineDamagedError, match=r"engine\.json is missing"):
        open_engine(tmp_path)
    (tmp_path / MANIFEST_NAME).mkdir()
    with pytest.raises(EngineDamagedError, match="directory"):
        open_engine(tmp_path)


@pytest.mark.parametrize(
    "name", ["../vocab.json", "/etc/passwd", "a/../../b", "", "a\nb", ".hidden", "a\\..\\b"]
)
def test_file_names_stay_inside(engine: Path, name: str) -> None:
    rewrite(engine, lambda doc: doc.update(tokenizer_files={name: "0" * 64}))
    with pytest.raises(EngineDamagedError, match="outside the engine folder"):
        open_engine(engine)


@pytest.mark.parametrize(
    "change",
    [
        {"bytes": "many"},
        {"bytes": True},
        {"bytes": 1.5},
        {"precision": "fp7"},
        {"shapes": {"batch": {"minimum": 1, "maximum": None, "multiple_of": 0}}},
        {"shapes": {}},
        {"inputs": [{"name": "input_ids", "dtype": "int64", "shape": ["0*batch"]}]},
        {"inputs": [{"name": "input_ids", "dtype": "int64", "shape": [-1]}]},
        {"error": {"relative_l2": 10**400}},
        {"files": {"text_encoder.onnx": "ABC"}},
        {"surprise": 1},
    ],
    ids=str,
)
def test_schema_is_checked(engine: Path, change: dict[str, Any]) -> None:
    rewrite(engine, lambda doc: doc["modules"]["text_encoder"].update(change))
    with pytest.raises(EngineDamagedError, match=r"engine\.json"):
        open_engine(engine)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b"\xff\xfe",
        b'{"format_version": "1"}',
        b'{"format_version": true}',
        b'{"format_version": 1, "x": NaN}',
        b'{"format_version": 1' + b"0" * 5000 + b"}",
        b"[" * 100_000,
    ],
    ids=lambda raw: repr(raw[:24]),
)
def test_manifest_of_other_content(raw: bytes) -> None:
    with pytest.raises(EngineError):
        parse_manifest(raw)


def open_or_refuse(folder: Path) -> None:
    try:
        open_engine(folder)
    except EngineError as error:
        message = str(error)
        assert message.startswith(str(folder))
        assert "\n" not in message


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damaged_bytes_never_crash(shared_engine: Path, data: st.DataObject) -> None:
    """Flips, truncations and insertions in any file end in an EngineError or in success."""
    file = shared_engine / data.draw(st.sampled_from(FILES))
    good = file.read_bytes()
    start = data.draw(st.integers(0, len(good)))
    end = data.draw(st.integers(start, min(len(good), start + 40)) | st.just(len(good)))
    try:
        file.write_bytes(good[:start] + data.draw(st.binary(max_size=40)) + good[end:])
        open_or_refuse(shared_engine)
    finally:
        file.write_bytes(good)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=250, deadline=None)
@given(st.data())
def test_mutated_manifests_never_crash(shared_engine: Path, data: st.DataObject) -> None:
    """Any value anywhere in a manifest whose own hash is right: the schema has to catch it."""
    file = shared_engine / MANIFEST_NAME
    good = file.read_bytes()
    document = json.loads(good)
    node: Any = document
    while True:
        key = data.draw(st.sampled_from(sorted(node) if isinstance(node, dict) else range(len(node))))
        if not isinstance(node[key], (dict, list)) or not node[key] or data.draw(st.booleans()):
            break
        node = node[key]
    match data.draw(st.sampled_from(["replace", "remove", "add"])):
        case "replace":
            node[key] = data.draw(JSON)
        case "remove":
            del node[key]
        case "add" if isinstance(node, dict):
            node[data.draw(st.text(max_size=8))] = data.draw(JSON)
        case "add":
            node.append(data.draw(JSON))
    try:
        file.write_bytes(sealed(document))
        open_or_refuse(shared_engine)
    finally:
        file.write_bytes(good)


def test_manifest_rejects_numbers_that_json_lacks() -> None:
    broken = replace(MANIFEST, scheduler={"beta_start": float("nan")})
    with pytest.raises(ValueError, match="Out of range"):
        dump_manifest(broken)
