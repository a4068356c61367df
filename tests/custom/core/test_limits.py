"""Files that claim more memory than they can explain are one line of error."""

from __future__ import annotations

import json
import struct
import time
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from custom.core.checkpoints import load_checkpoint
from custom.core.files import read_json, write_json, write_nifti
from custom.core.nifti_files import open_nifti
from custom.core.tensor_files import load_tensors
from custom.data.case import CaseOptions
from custom.dicom.header import read_header
from custom.dicom.opener import decoded_pixels, open_dicom
from custom.geometry import Geometry, VolumeGrid
from custom.models import load_model
from tests.bombs import DX, deflated, dicom_file, element, header, nifti, run_measured

PUBLISHED = Path("bundles/seg_guidance/models/model.pt")


@pytest.mark.parametrize("preamble", [True, False])
def test_a_deflated_bomb_is_not_inflated(preamble: bool, tmp_path: Path) -> None:
    path = tmp_path / "bomb.dcm"
    path.write_bytes(deflated(200, preamble))
    for read in (open_dicom, read_header):
        with pytest.raises(ValueError, match=r"bomb.dcm: a file of .* MB that unpacks to .* FEWVIEW_LIMIT_FACTOR"):
            read(path)


def test_an_honest_deflated_file_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "small.dcm"
    path.write_bytes(deflated(8))
    assert len(open_dicom(path).PixelData) == 8 * 2**20
    path.write_bytes(deflated(72))
    monkeypatch.setenv("FEWVIEW_LIMIT_FACTOR", "2")
    assert len(open_dicom(path).PixelData) == 72 * 2**20
    monkeypatch.setenv("FEWVIEW_LIMIT_FACTOR", "many")
    with pytest.raises(ValueError, match="FEWVIEW_LIMIT_FACTOR is 'many'"):
        open_dicom(path)


def test_items_and_text_without_end(tmp_path: Path) -> None:
    path = tmp_path / "x.dcm"
    path.write_bytes(dicom_file(header() + element(0x40, 0x555, b"SQ", b"\xfe\xff\x00\xe0\0\0\0\0" * 150_000)))
    with pytest.raises(ValueError, match=r"x.dcm: .* sequence items are more than the 100000"):
        open_dicom(path)
    deep = b""
    for _ in range(3000):
        inner = b"\xfe\xff\x00\xe0" + struct.pack("<I", len(deep)) + deep
        deep = struct.pack("<HH2sHI", 0x40, 0x555, b"SQ", 0, len(inner)) + inner
    path.write_bytes(dicom_file(header() + deep))
    with pytest.raises(ValueError, match=r"x.dcm: "):
        read_header(path)


@pytest.mark.parametrize(
    ("syntax", "inside"),
    [
        (b"1.2.840.10008.1.2", True), (b"1.2.840.10008.1.2.1", False), (b"1.2.840.10008.1.2.1", True),
        (b"1.2.840.10008.1.2.1.99", False), (b"1.2.840.10008.1.2.1.99", True),
    ],
)  # fmt: skip
def test_numbers_of_all_elements_together(syntax: bytes, inside: bool, tmp_path: Path) -> None:
    """A number of two bytes takes 160 in memory: 3 MB of them, in elements that are each allowed, in a sequence too."""
    implicit, numbers = syntax == b"1.2.840.10008.1.2", b"\\".join([b"1"] * 25_000) + b" "

    def one(group: int, number: int, kind: bytes, value: bytes) -> bytes:
        if implicit:
            return struct.pack("<HHI", group, number, len(value)) + value
        if kind == b"SQ":
            return struct.pack("<HH2sHI", group, number, kind, 0, len(value)) + value
        return element(group, number, kind, value)

    def file(count: int) -> Path:
        own = b"".join(one(0x18, 0x9000 + k, b"DS", numbers) for k in range(count))
        if implicit:  # the dictionary gives the VR: one element that it knows in every item
            item = one(0x18, 0x1164, b"DS", numbers)
            own = b"".join(b"\xfe\xff\x00\xe0" + struct.pack("<I", len(item)) + item for _ in range(count))
            own = one(0x08, 0x2112, b"SQ", own)
        elif inside:
            own = one(0x08, 0x2112, b"SQ", b"\xfe\xff\x00\xe0" + struct.pack("<I", len(own)) + own)
        body = one(8, 0x16, b"UI", DX + b"\0" * (len(DX) % 2)) + own
        if syntax.endswith(b".99"):
            packer = zlib.compressobj(9, zlib.DEFLATED, -15)
            body = packer.compress(body) + packer.flush()
        path = tmp_path / "x.dcm"
        path.write_bytes(dicom_file(body, syntax))
        return path

    open_dicom(file(20))
    with pytest.raises(ValueError, match=r"x.dcm: .* bytes of numbers are more than the 2097152"):
        open_dicom(file(60))


def test_texts_of_a_file(tmp_path: Path) -> None:
    text = struct.pack("<HH2sHI", 0x40, 0xA160, b"UT", 0, 17 * 2**20) + b"a" * (17 * 2**20)
    (tmp_path / "x.dcm").write_bytes(dicom_file(header() + text))
    with pytest.raises(ValueError, match=r"x.dcm: .* bytes of text are more than the 16777216"):
        open_dicom(tmp_path / "x.dcm")


def test_compressed_pixels_are_held_to_the_size_of_the_file(tmp_path: Path) -> None:
    size = element(0x28, 0x10, b"US", struct.pack("<H", 60000)) + element(0x28, 0x11, b"US", struct.pack("<H", 60000))
    items = b"\xfe\xff\x00\xe0\0\0\0\0\xfe\xff\x00\xe0\x04\0\0\0\xff\xd8\xff\xd9\xfe\xff\xdd\xe0\0\0\0\0"
    pixels = struct.pack("<HH2sHI", 0x7FE0, 0x10, b"OB", 0, 0xFFFFFFFF) + items
    path = tmp_path / "x.dcm"
    path.write_bytes(dicom_file(header() + size + pixels, b"1.2.840.10008.1.2.4.70"))
    with pytest.raises(ValueError, match=r"x.dcm: a file of .* MB that unpacks to 6866"):
        decoded_pixels(path, open_dicom(path))


def test_nifti_is_held_to_the_size_of_the_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"bomb.nii.gz: a file of .* MB that unpacks to 400 MB"):
        open_nifti(nifti(tmp_path / "bomb.nii.gz", 400))
    with pytest.raises(ValueError, match=r"long.nii.gz: .*extension of 2000000000 bytes"):
        open_nifti(nifti(tmp_path / "long.nii.gz", 0, extension=2_000_000_000))
    cut = tmp_path / "cut.nii"
    write_nifti(cut, np.zeros((8, 8, 8), np.int16), np.eye(4))
    assert open_nifti(cut).shape == (8, 8, 8)
    cut.write_bytes(cut.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"cut.nii: .*1375 bytes, 1376 are needed"):
        open_nifti(cut)


def test_a_network_is_given_no_bomb(tmp_path: Path) -> None:
    """The transform with which every bundle loads volumes; none of their configs has another."""
    from custom.data.transforms import LoadNiftid

    bomb = nifti(tmp_path / "bomb.nii.gz", 700)
    with pytest.raises(ValueError, match=r"bomb.nii.gz: a file of .* unpacks to"):
        LoadNiftid(["image", "label"], allow_missing_keys=True)({"image": str(bomb)})
    configs = list(Path("bundles").rglob("configs/**/*.json"))
    assert len(configs) > 10 and not [path for path in configs if '"LoadImage' in path.read_text()]


def test_json_is_held_to_a_depth(tmp_path: Path) -> None:
    path = tmp_path / "deep.json"
    path.write_text("[" * 100_000 + "]" * 100_000)
    with pytest.raises(ValueError, match=r"deep.json: is not a JSON file: nested 100000 times"):
        read_json(path)
    write_json(path, {"text": "[" * 100})
    assert read_json(path) == {"text": "[" * 100}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"angle_deg": 90, "views": [{"a": 1, "a": 2}]}', "'a' is there twice: which one holds"),
        (f'{{"angle_deg": 1{"0" * 400}}}', "a number of 401 digits"),
    ],
)
def test_json_that_can_be_read_in_two_ways(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(ValueError, match=rf"x\.json: is not a JSON file: {message}"):
        read_json(tmp_path / "x.json")


def test_json_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"angle_deg": 90}', encoding="utf-8-sig")
    assert read_json(tmp_path / "x.json") == {"angle_deg": 90}


def _changed(tmp_path: Path, change: Any) -> Path:
    content = torch.load(PUBLISHED, weights_only=True)
    change(content)
    torch.save(content, tmp_path / "changed.pt")
    return tmp_path / "changed.pt"


def _with_definition(**entries: Any) -> Any:
    def change(content: dict[str, Any]) -> None:
        meta = json.loads(content["meta"])
        meta["network_def"]["unet"].update(entries)
        content["meta"] = json.dumps(meta)

    return change


def test_a_checkpoint_takes_no_more_memory_than_its_file(tmp_path: Path) -> None:
    def stretch(content: dict[str, Any]) -> None:
        content["model"] = {"weight": torch.zeros(1).expand(10**10)}

    with pytest.raises(ValueError, match=r"changed.pt: 4e\+10 bytes of tensors are more"):
        load_checkpoint(_changed(tmp_path, stretch))
    bomb = tmp_path / "bomb.pt"
    with zipfile.ZipFile(PUBLISHED) as source, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as target:
        for member in source.infolist():
            target.writestr(member.filename, source.read(member))
        target.writestr("archive/data/999", b"\0" * 2**25)
    with pytest.raises(ValueError, match=r"bomb.pt: its members claim"):
        load_checkpoint(bomb)
    with zipfile.ZipFile(bomb, "w") as target:
        target.writestr("archive/data.pkl", b"\x80\x02cbuiltins\nbytearray\nJ\xff\xff\xff\x7f\x85R.")
    with pytest.raises(ValueError, match=r"bomb.pt: calls builtins bytearray"):
        load_tensors(bomb)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"channels": [4096, 8192, 16384]}, "another architecture|more parameters"),
        ({"num_res_units": 100_000}, "more parameters"),
        ({"channels": [10**12]}, "the number 1000000000000"),
        ({"channels": json.loads("[" * 200 + "]" * 200)}, "nested"),
    ],
)
def test_a_definition_of_any_size_takes_no_memory(entries: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        load_checkpoint(_changed(tmp_path, _with_definition(**entries))).network()


def test_weights_that_are_no_numbers_are_named(tmp_path: Path) -> None:
    def poison(content: dict[str, Any]) -> None:
        name = [key for key, value in content["model"].items() if value.is_floating_point()][-1]
        content["model"][name].view(-1)[0] = float("nan")

    with pytest.raises(ValueError, match=r"changed.pt: the weights \S+ hold NaN or infinity"):
        load_model(_changed(tmp_path, poison), "cpu")


def test_a_grid_of_any_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"grid: 1e\+15 voxels are more"):
        VolumeGrid((100_000,) * 3, (0.003,) * 3)
    with pytest.raises(ValueError, match=r"detector: 1e\+10 pixels are more"):
        Geometry.from_angles([0.0], detector_shape=(100_000, 100_000), pixel_mm=0.01)
    with pytest.raises(ValueError, match=r"--size: 1e\+15 voxels of the cube are more"):
        CaseOptions(size=100_000)


@pytest.fixture(scope="module")
def imports_mb() -> int:
    """What the software itself takes, with the optional packages that are here: pandas and others come with MONAI."""
    return run_measured("evaluate", "missing.nii.gz", "missing.nii.gz", "--output", "out")[1]


@pytest.mark.parametrize("verb", ["prepare", "evaluate", "reconstruct"])
def test_a_command_under_a_bomb(verb: str, tmp_path: Path, imports_mb: int) -> None:
    source = tmp_path / "input"
    source.mkdir()
    if verb == "evaluate":
        bomb = nifti(source / "bomb.nii.gz", 700)
        words: list[str | Path] = [verb, bomb, bomb, "--output", tmp_path / "out"]
    else:
        bomb = source / "bomb.dcm"
        bomb.write_bytes(deflated(1000, preamble=verb == "prepare", kind=DX))
        words = (
            [verb, source, tmp_path / "out", "--workers", "1"] if verb == "prepare" else [verb, bomb, "--output", "o"]
        )
    code, peak, said = run_measured(*words)
    assert code == 2 and peak < imports_mb + 50, (code, peak, imports_mb)
    assert "bomb" in said.splitlines()[-1] and said.splitlines()[-1].startswith("error: "), said


def test_tensors_before_an_archive_are_refused(tmp_path: Path) -> None:
    """torch reads from the beginning, zipfile from the end: what is checked must be what is loaded."""
    torch.save({"a": torch.zeros(2)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    torch.save({"a": torch.zeros(2)}, tmp_path / "new.pt")
    both = (tmp_path / "old.pt").read_bytes() + (tmp_path / "new.pt").read_bytes()
    (tmp_path / "both.pt").write_bytes(both)
    (tmp_path / "twice.pt").write_bytes((tmp_path / "new.pt").read_bytes() * 2)
    for name in ("both.pt", "twice.pt", "old.pt"):
        with pytest.raises(ValueError, match=name):
            load_tensors(tmp_path / name)


@pytest.mark.parametrize("kind", ["list", "dict", "within itself"])
def test_a_few_lists_that_name_each_other_are_not_a_billion_values(kind: str, tmp_path: Path) -> None:
    content: Any = [torch.zeros(1)]
    for _ in range(60):
        content = {"a": content, "b": content} if kind == "dict" else [content, content]
    if kind == "within itself":
        content = [1]
        content.append(content)
    torch.save({"model": content}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=r"x.pt: .* values are more than the 1048576"):
        load_tensors(tmp_path / "x.pt")


@pytest.mark.parametrize("operation", [b"]", b"}", b"(", b"K\x07"])
def test_a_pickle_of_many_small_things_is_not_unpacked(operation: bytes, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
        archive.writestr("x/data.pkl", b"\x80\x02(" + operation * 2_200_000 + b"l.")
    with pytest.raises(ValueError, match=r"x.pt: .* operations of its pickle are more than the 2097152"):
        load_tensors(tmp_path / "x.pt")


@pytest.mark.parametrize(
    "content",
    [
        '{"a": "' + '\\"' * 200_000,
        '{"a": "' + "x" * 2_000_000,
        "{" + ",".join(f'"{number}": 1' for number in range(100_000)) + ',"z": 1, "z": 2}',
    ],
)
def test_json_takes_time_with_its_length_alone(tmp_path: Path, content: str) -> None:
    """Each took minutes, and a few MB hours: time grew with the square."""
    (tmp_path / "x.json").write_text(content)
    start = time.process_time()
    with pytest.raises(ValueError, match=r"x\.json: is not a JSON file"):
        read_json(tmp_path / "x.json")
    assert time.process_time() - start < 5
