"""Files are whole or absent, and equal content has equal bytes."""

import errno
import json
import math
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from custom.core.files import (
    atomic_file,
    read_json,
    remove_parts,
    sha256_file,
    sha256_files,
    write_bytes,
    write_json,
    write_nifti,
    write_tensors,
)


def test_nifti_round_trip_and_equal_bytes(tmp_path: Path) -> None:
    array = np.arange(24, dtype=np.int16).reshape(2, 3, 4) - 1000
    matrix = np.array([[2.5, 0, 0, -10], [0, 2.5, 0, 20], [0, 0, 2.5, -30.5], [0, 0, 0, 1]])
    write_nifti(tmp_path / "a" / "x.nii.gz", array, matrix)
    time.sleep(1.1)
    write_nifti(tmp_path / "b" / "y.nii.gz", array, matrix)
    assert sha256_file(tmp_path / "a" / "x.nii.gz") == sha256_file(tmp_path / "b" / "y.nii.gz")
    image = nib.load(tmp_path / "a" / "x.nii.gz")
    assert image.get_data_dtype() == np.int16
    np.testing.assert_array_equal(np.asarray(image.dataobj), array)
    np.testing.assert_allclose(image.affine, matrix)
    assert image.header["sform_code"] == image.header["qform_code"] == 1 and image.header.get_xyzt_units()[0] == "mm"


def test_full_disk_keeps_the_old_file_and_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "x.json"
    write_json(target, {"a": 1})
    before = target.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"no space left to write .*x\.json.*free some") as caught:
        write_json(target, {"a": 2})
    assert caught.value.errno == errno.ENOSPC
    assert target.read_bytes() == before
    assert list(tmp_path.iterdir()) == [target]


def test_json_is_valid_despite_nan_and_infinity(tmp_path: Path) -> None:
    content = {"b": [math.inf, -math.inf, 1.5], "a": math.nan, "c": {"d": (1, 2)}}
    path = write_json(tmp_path / "m.json", content, sort_keys=False)
    read = json.loads(path.read_text(), parse_constant=pytest.fail)
    assert read == {"a": None, "b": ["Infinity", "-Infinity", 1.5], "c": {"d": [1, 2]}} and list(read) == [
        "b",
        "a",
        "c",
    ]
    assert list(json.loads(write_json(path, content).read_text())) == ["a", "b", "c"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_json_is_read_in_the_encodings_that_editors_write(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "a.json"
    path.write_bytes('{"file": "schädel.png"}'.encode(encoding))
    assert read_json(path) == {"file": "schädel.png"}
    path.write_bytes(path.read_bytes()[:-3] + b"\xff\xfe\xfa")
    with pytest.raises(ValueError, match=r"a\.json: is not a JSON file"):
        read_json(path)


def test_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = write_json(tmp_path / "m.json", {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    with pytest.raises(ZeroDivisionError), atomic_file(path) as stream:
        stream.write(b"half")
        raise ZeroDivisionError
    assert json.loads(path.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KB."""
    mount = tmp_path / "disk"
    mount.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(mount)], capture_output=True)
    if done.returncode:
        pytest.skip(f"cannot mount a small tmpfs here: {done.stderr.decode().strip()}")
    yield mount
    subprocess.run(["umount", str(mount)], check=True)


def test_really_full_disk(small_disk: Path) -> None:
    noise = np.random.default_rng(0).integers(-1000, 1000, (64, 64, 64)).astype(np.int16)
    with pytest.raises(OSError, match="no space left"):
        write_nifti(small_disk / "ct" / "x.nii.gz", noise, np.eye(4))
    with pytest.raises(OSError, match=r"x\.pt.*(no space left|disk full)|no space left.*x\.pt"):
        write_tensors(small_disk / "x.pt", torch.zeros(10**6))
    assert [p for p in small_disk.rglob("*") if p.is_file()] == []


def test_what_killed_runs_left_of_a_checkpoint_goes(tmp_path: Path) -> None:
    for name in (".a.pt.99.part", ".b.pt.99.part"):
        (tmp_path / name).write_bytes(b"half")
    write_tensors(tmp_path / "a.pt", {})
    assert {path.name for path in tmp_path.iterdir()} == {"a.pt", ".b.pt.99.part"}


def test_equal_tensors_are_equal_files_whatever_their_name(tmp_path: Path) -> None:
    for name in ("a.pt", "b.pt"):
        write_tensors(tmp_path / name, {"x": torch.arange(3)})
    assert sha256_file(tmp_path / "a.pt") == sha256_file(tmp_path / "b.pt")


def test_parts_of_a_killed_run_are_removed(tmp_path: Path) -> None:
    part = tmp_path / "ct" / f".x.nii.gz.{os.getpid()}.part"
    part.parent.mkdir()
    part.write_bytes(b"half")
    write_bytes(tmp_path / "ct" / "whole.bin", b"whole")
    assert remove_parts(tmp_path) == 1
    assert [p.name for p in (tmp_path / "ct").iterdir()] == ["whole.bin"]


def test_hash_of_several_files_does_not_depend_on_names_or_order(tmp_path: Path) -> None:
    a, b, c = (tmp_path / n for n in "abc")
    a.write_bytes(b"1")
    b.write_bytes(b"2")
    c.write_bytes(b"1")
    assert sha256_files([a, b]) == sha256_files([b, c])
    assert sha256_files([a, b]) != sha256_files([a, c])
