from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import artifacts
from pipeline.artifacts import (
    code_digest,
    committed_folder,
    digest,
    file_sha256,
    replace_folder,
    run_lock,
    stamp,
    write_bytes,
    write_json,
)
from pipeline.errors import OutputError

HOLD = """
import sys
from pathlib import Path
from pipeline.artifacts import run_lock
with run_lock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


class Killed(BaseException):
    """A death between two steps."""


def die(*_, **__):
    raise Killed


# ---------------------------------------------------------------------------------------------- digests


def test_a_digest_is_of_the_value_and_not_of_its_order_or_type_of_sequence():
    assert digest({"a": 1, "b": [2, 3]}) == digest({"b": (2, 3), "a": 1})
    assert len(digest(1)) == 64


@pytest.mark.parametrize("other", [{"a": 2}, {"a": "1"}, {"b": 1}, {"a": 1, "b": None}, {"a": [1]}, {"a": 1.5}])
def test_a_digest_tells_values_apart(other):
    assert digest(other) != digest({"a": 1})


def test_sha256_of_a_file_is_the_known_one(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    assert file_sha256(tmp_path / "abc").startswith("ba7816bf8f01cfea414140de5dae2223")


def test_a_stamp_changes_with_the_file(tmp_path):
    path = tmp_path / "scene.tif"
    assert stamp(path) == [str(path)]
    path.write_bytes(b"12")
    first = stamp(path)
    os.utime(path, ns=(1, 1))
    second = stamp(path)
    path.write_bytes(b"123")
    os.utime(path, ns=(1, 1))
    assert len({str(s) for s in (first, second, stamp(path))}) == 3


def copied_code(folder):
    """A copy of the package, and its own `code_digest`."""
    copy = folder / "pipeline"
    shutil.copytree(Path(artifacts.__file__).parent, copy, ignore=shutil.ignore_patterns("__pycache__"))

    def of_copy():
        spec = importlib.util.spec_from_file_location("copied_artifacts", copy / "artifacts.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module.code_digest()

    return copy, of_copy


def test_the_code_digest_is_that_of_the_sources(tmp_path):
    copy, of_copy = copied_code(tmp_path)
    assert of_copy() == code_digest()
    (copy / "README.md").write_text("no code")
    assert of_copy() == code_digest()


@pytest.mark.parametrize("name", ["composite.py", "models/heads.py", "catalog/scene.py", "grid.py", "new_stage.py"])
def test_an_edited_stage_never_meets_an_old_checkpoint(tmp_path, name):
    copy, of_copy = copied_code(tmp_path)
    with (copy / name).open("a") as source:
        source.write("# edited\n")
    assert of_copy() != code_digest()


@pytest.mark.parametrize("name", ["cli.py", "product/report.py", "training/fit.py", "simulate/render.py"])
def test_what_makes_no_pixels_does_not_cost_a_recomputation(tmp_path, name):
    copy, of_copy = copied_code(tmp_path)
    with (copy / name).open("a") as source:
        source.write("# edited\n")
    assert of_copy() == code_digest()


# ---------------------------------------------------------------------------------------------- files


def test_a_file_is_there_whole_or_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "plan.json"
    write_bytes(path, b"old")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", die)
        with pytest.raises(Killed):
            write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
    write_bytes(path, b"new")
    assert path.read_bytes() == b"new"


def test_json_keeps_its_order_and_refuses_what_json_cannot_say(tmp_path):
    path = tmp_path / "run.json"
    write_json(path, {"b": Path("x"), "a": [1.5, None]})
    assert list(json.loads(path.read_text("utf-8")).items()) == [("b", "x"), ("a", [1.5, None])]
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"a": float("nan")})
    assert json.loads(path.read_text("utf-8"))["b"] == "x"


# ---------------------------------------------------------------------------------------------- folders


def test_a_committed_folder_is_there_with_all_its_files(tmp_path):
    final = tmp_path / "blocks" / "r0000c0000-1"
    with committed_folder(final) as folder:
        (folder / "sums").write_text("1")
        (folder / "deep").mkdir()
        (folder / "deep" / "raster").write_text("2")
        assert not final.exists()
    assert sorted(p.name for p in final.rglob("*")) == ["deep", "raster", "sums"]
    assert list(final.parent.iterdir()) == [final]


def test_a_failure_inside_leaves_nothing(tmp_path):
    final = tmp_path / "blocks" / "b"

    def half():
        with committed_folder(final) as folder:
            (folder / "sums").write_text("half")
            raise Killed

    with pytest.raises(Killed):
        half()
    assert list(final.parent.iterdir()) == []


@pytest.mark.parametrize("step", ["_sync", "rename"])
def test_a_failure_between_write_and_rename_leaves_nothing(tmp_path, monkeypatch, step):
    final = tmp_path / "blocks" / "b"
    with monkeypatch.context() as patch:
        patch.setattr(*((artifacts, "_sync", die) if step == "_sync" else (Path, "rename", die)))
        with pytest.raises(Killed), committed_folder(final) as folder:
            (folder / "sums").write_text("whole")
    assert list(final.parent.iterdir()) == []


def test_files_are_on_disk_before_the_folder_has_its_name(tmp_path, monkeypatch):
    final, synced = tmp_path / "b", []
    monkeypatch.setattr(artifacts, "_sync", lambda path: synced.append((path.name, final.exists())))
    with committed_folder(final) as folder:
        (folder / "sums").write_text("1")
    assert ("sums", False) in synced
    assert synced[-1] == (tmp_path.name, True)


KILL = """
import os, signal, sys
from pathlib import Path
from pipeline.artifacts import committed_folder
with committed_folder(Path(sys.argv[1])) as folder:
    (folder / "sums").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_process_leaves_no_final_folder_and_does_not_hinder_the_next(tmp_path, root):
    final = tmp_path / "b"
    killed = subprocess.run([sys.executable, "-c", KILL, str(final)], cwd=root, check=False)
    assert killed.returncode == -9
    assert not final.exists()
    with committed_folder(final) as folder:
        (folder / "sums").write_text("whole")
    assert (final / "sums").read_text() == "whole"


def test_a_folder_that_is_there_already_is_kept(tmp_path):
    for text in ("first", "second"):
        with committed_folder(tmp_path / "b") as folder:
            (folder / "sums").write_text(text)
    assert (tmp_path / "b" / "sums").read_text() == "first"
    assert list(tmp_path.iterdir()) == [tmp_path / "b"]


def folder_of(path, text):
    path.mkdir()
    (path / "run.json").write_text(text)
    return path


def test_a_product_takes_the_place_of_the_one_before(tmp_path):
    final = tmp_path / "product"
    for text in ("first", "second"):
        replace_folder(folder_of(tmp_path / "new", text), final)
        assert (final / "run.json").read_text() == text
        assert list(tmp_path.iterdir()) == [final]


def test_a_product_whose_files_cannot_be_synced_does_not_touch_the_one_before(tmp_path, monkeypatch):
    final = folder_of(tmp_path / "product", "first")
    new = folder_of(tmp_path / "new", "second")
    with monkeypatch.context() as patch:
        patch.setattr(artifacts, "_sync", die)
        with pytest.raises(Killed):
            replace_folder(new, final)
    assert (final / "run.json").read_text() == "first"


# ---------------------------------------------------------------------------------------------- the lock


def test_a_second_run_is_refused_and_a_third_waits_for_nobody(tmp_path, root):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "work")],
        cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(OutputError, match="in use by another run"), run_lock(tmp_path / "work"):
            pass
        holder.kill()  # the system lets go of what a dead process held
        holder.wait(10)
        with run_lock(tmp_path / "work"):
            pass
    finally:
        holder.kill()
        holder.communicate()


def test_the_lock_is_let_go_after_a_failure(tmp_path):
    with pytest.raises(Killed), run_lock(tmp_path / "work"):
        raise Killed
    with run_lock(tmp_path / "work"):
        assert (tmp_path / "work").is_dir()


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"file/work: cannot be written"), run_lock(tmp_path / "file" / "work"):
        pass
