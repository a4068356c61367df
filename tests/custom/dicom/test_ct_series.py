"""Slices become a stack in HU, or the reason why not."""

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.uid import JPEG2000Lossless, RLELossless

from custom.core.rejection import Rejected
from custom.dicom.ct_series import (
    Header,
    check_stack,
    load_stack,
    read_header,
    require_decoders,
)
from tests.ct_samples import CT_CLASS, ROOT, SPACING, affine, chest, save, slice_dataset, write_series


def _slices(paths: list[Path]) -> list[Any]:
    headers = [read_header(p) for p in paths]
    assert all(isinstance(h, Header) and not h.problem for h in headers), headers
    return sorted((s for h in headers for s in h.slices), key=lambda s: s.depth)


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Path], np.ndarray]:
    volume = chest()[:, :, :8]
    return write_series(tmp_path_factory.mktemp("series"), volume), volume


def _world(array: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """The array in RAS+ order, for comparison with the sample."""
    import nibabel as nib

    return np.asarray(nib.as_closest_canonical(nib.Nifti1Image(array.astype(np.float32), matrix)).dataobj)


def test_unordered_files_give_the_volume_and_its_place(series: tuple[list[Path], np.ndarray]) -> None:
    paths, volume = series
    slices = _slices(paths)
    assert [p.name for p in paths] != sorted(p.name for p in paths), "names must not follow the slices"
    matrix, facts = check_stack(slices)
    loaded = load_stack(slices)
    np.testing.assert_array_equal(_world(loaded, matrix), volume)
    corner = matrix @ [volume.shape[0] - 1, volume.shape[1] - 1, 0, 1]
    np.testing.assert_allclose(corner[:3], affine()[:3, 3])
    assert facts == {"native_spacing_mm": [SPACING] * 3, "native_shape": [80, 64, 8]}


def test_missing_slice_names_the_neighbours(tmp_path: Path) -> None:
    paths = write_series(tmp_path, chest()[:, :, :8], skip=(4,))
    with pytest.raises(Rejected, match=rf"missing slices: 10 mm between {paths[3].name} .* and {paths[4].name}"):
        check_stack(_slices(paths))


def test_uneven_spacing(tmp_path: Path) -> None:
    image = chest()[:, :, 0]
    for k, z in enumerate([0.0, 5.0, 11.0, 15.5, 21.0]):
        save(slice_dataset(image, (0, 0, z), "5", k), tmp_path / f"{k}.dcm", CT_CLASS, f"{ROOT}.5.{k}")
    with pytest.raises(Rejected, match=r"not uniform: 4\.5 to 6 mm"):
        check_stack(_slices(sorted(tmp_path.iterdir())))


@pytest.mark.parametrize(
    ("tags", "message"),
    [
        ({"RescaleSlope": None}, "no Rescale Slope"),
        ({"RescaleType": "OD"}, "Rescale Type is 'OD'"),
        ({"ImageOrientationPatient": [1, 0, 0, 0, 0, -1]}, "not axial"),
        ({"ImageOrientationPatient": [2, 0, 0, 0, 2, 0]}, "two unit vectors at a right angle"),
        ({"ImageOrientationPatient": [1, 0, 0, 0.5, 0.866, 0]}, "two unit vectors at a right angle"),
        ({"PixelSpacing": [-5, 5]}, r"Pixel Spacing is \[-5\.0, 5\.0\] in .*: it must be mm above 0"),
        ({"PixelSpacing": [0, 5]}, "it must be mm above 0"),
        ({"RescaleSlope": 0}, "Rescale Slope is 0"),
    ],
)
def test_series_that_are_no_axial_ct_in_hu(tmp_path: Path, tags: dict[str, Any], message: str) -> None:
    with pytest.raises(Rejected, match=message):
        check_stack(_slices(write_series(tmp_path, chest()[:, :, :4], **tags)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"RescaleSlope": "nan"}, r"RescaleSlope \(0028,1053\) is 'nan', not 1 number"),
        ({"RescaleType": "US"}, "slices differ in Rescale Type: none in .*, US in"),
        ({"Rows": 60000, "Columns": 60000}, "slices differ in size"),
        ({"Rows": 32}, "bytes of pixel data, but Rows .* which is wrong"),
    ],
)
def test_one_slice_that_cannot_be(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    """A NaN in one slice passed all checks of a training CT, whose median it does not change."""
    paths = write_series(tmp_path, chest()[:, :, :4], **(change if "Rows" in change and len(change) == 1 else {}))
    dataset = pydicom.dcmread(paths[2])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for keyword, value in change.items():
            setattr(dataset, keyword, value)
        dataset.save_as(paths[2])
    headers = [read_header(path) for path in paths]
    problems = [h.problem for h in headers if isinstance(h, Header) and h.problem]
    with pytest.raises(Rejected, match=message):
        if problems:
            raise Rejected(problems[0])
        stack = _slices(paths)
        check_stack(stack)
        load_stack(stack)


def test_a_series_of_any_size_is_left_out_alone(tmp_path: Path) -> None:
    stack = _slices(write_series(tmp_path, chest()[:, :, :4], Rows=60000, Columns=60000))
    with pytest.raises(Rejected, match="voxels of its series are more than"):
        load_stack(stack)


@pytest.mark.parametrize("spacing", [0.625, 1.25])
def test_rounded_positions_are_on_the_grid(tmp_path: Path, spacing: float) -> None:
    image = chest()[:8, :6, 0]
    for k in range(60):
        z = round(-37.3 + spacing * k, 1)
        save(slice_dataset(image, (0, 0, z), "5", k), tmp_path / f"{k}.dcm", CT_CLASS, f"{ROOT}.5.{k}")
    matrix, facts = check_stack(_slices(sorted(tmp_path.iterdir())))
    assert facts["native_spacing_mm"][2] == pytest.approx(spacing, abs=2e-3)
    np.testing.assert_allclose(matrix[2, 3] + matrix[2, 2] * np.arange(60), -37.3 + spacing * np.arange(60), atol=0.05)


def test_a_slice_beside_the_grid_is_named(tmp_path: Path) -> None:
    image = chest()[:8, :6, 0]
    for k in range(40):
        z = 1.25 * k + 0.3 * (k == 20)
        save(slice_dataset(image, (0, 0, z), "5", k), tmp_path / f"{k}.dcm", CT_CLASS, f"{ROOT}.5.{k}")
    with pytest.raises(Rejected, match=r"not uniform: .*; 20\.dcm is 0\.29 mm off a grid of 1\.25"):
        check_stack(_slices(sorted(tmp_path.iterdir())))


def test_slices_of_different_size(tmp_path: Path) -> None:
    paths = write_series(tmp_path, chest()[:, :, :4])
    save(slice_dataset(chest()[:60, :, 0], (0, 0, 500), "11", 9), tmp_path / "odd.dcm", CT_CLASS, f"{ROOT}.11.99")
    with pytest.raises(Rejected, match=r"differ in size .* odd\.dcm"):
        check_stack(_slices([*paths, tmp_path / "odd.dcm"]))


def test_rescale_and_padding_of_each_file_count(tmp_path: Path) -> None:
    image = np.full((6, 5), 100, dtype=np.int16)
    image[0, 0] = 976  # stored as 2000
    for k in range(3):
        dataset = slice_dataset(image, (0, 0, 5.0 * k), "5", k, RescaleSlope=k + 1, RescaleIntercept=-1024 * (k + 1))
        dataset.PixelPaddingValue = 2000
        save(dataset, tmp_path / f"{k}.dcm", CT_CLASS, f"{ROOT}.5.{k}")
    volume = load_stack(_slices(sorted(tmp_path.iterdir())))
    assert volume[0, 0].tolist() == [-2000.0] * 3
    assert volume[1, 1].tolist() == [100.0, 200.0, 300.0]


@pytest.mark.parametrize("keep", [0.5, 0.97])
def test_truncated_pixels_name_the_file(tmp_path: Path, keep: float) -> None:
    paths = write_series(tmp_path, chest()[:, :, :4])
    content = paths[2].read_bytes()
    paths[2].write_bytes(content[: int(len(content) * keep)])
    slices = _slices(paths)
    with pytest.raises(Rejected, match=rf"{paths[2].name} (cannot be decoded, it is truncated|holds no pixel data)"):
        load_stack(slices)


def test_truncated_header_is_no_dicom_file(tmp_path: Path) -> None:
    path = write_series(tmp_path, chest()[:, :, :2])[0]
    for size in (0, 100, 200, 420):
        path.write_bytes(path.read_bytes()[:size] if size else b"")
        found = read_header(path)
        assert isinstance(found, str) or found.problem, size
        path = write_series(tmp_path, chest()[:, :, :2])[0]


def test_identifiers_that_are_no_uid_are_read_in_silence(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    """Anonymisers write hashes; pydicom warned of each with a line of its own source."""
    path = write_series(tmp_path, chest()[:, :, :1])[0]
    dataset = pydicom.dcmread(path)
    dataset["SeriesInstanceUID"]._value = pydicom.uid.UID("63b4b5296cbcf3c5fcd0e380bf99c7cb", 0)
    dataset.save_as(path)
    found = read_header(path)
    assert not isinstance(found, str) and found.series_uid.startswith("63b4")
    assert not [one for one in recwarn if "Invalid value" in str(one.message)]


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless], ids=["rle", "jpeg2000"])
@pytest.mark.parametrize("keep", [1.0, 0.7])
def test_compressed_series(tmp_path: Path, syntax: str, keep: float) -> None:
    """Compressed slices load, also among native ones; a truncated one is named."""
    volume = chest()[:, :, :3]
    paths = write_series(tmp_path, volume)
    for path in paths[:2]:
        dataset = pydicom.dcmread(path)
        try:
            dataset.compress(syntax, generate_instance_uid=False)
        except (RuntimeError, NotImplementedError, ValueError) as error:
            pytest.skip(f"pydicom {pydicom.__version__} cannot write this syntax here: {error}")
        dataset.save_as(path)
    headers = [read_header(p) for p in paths]
    assert [isinstance(h, Header) and h.compressed for h in headers] == [syntax == JPEG2000Lossless] * 2 + [False]
    content = paths[1].read_bytes()
    paths[1].write_bytes(content[: int(len(content) * keep)])
    slices = _slices(paths)
    if keep < 1:
        with pytest.raises(Rejected, match=rf"{paths[1].name} (cannot be decoded|holds no pixel data)"):
            load_stack(slices)
    else:
        np.testing.assert_array_equal(_world(load_stack(slices), check_stack(slices)[0]), volume)


def test_enhanced_multiframe_file(tmp_path: Path) -> None:
    """Enhanced CT keeps positions and rescale in functional groups, frames in any order."""
    volume = chest()[:, :, :4]
    order = [2, 0, 3, 1]
    paths = write_series(tmp_path / "single", volume)
    singles = [pydicom.dcmread(paths[k]) for k in order]
    whole = slice_dataset(volume[:, :, 0].T, (0, 0, 0), "21", 1, ImagePositionPatient=None, PixelSpacing=None,
                          ImageOrientationPatient=None, RescaleSlope=None, RescaleIntercept=None)  # fmt: skip
    whole.NumberOfFrames = 4
    whole.PixelData = b"".join(s.PixelData for s in singles)

    def group(sequence: str, **tags: Any) -> tuple[str, pydicom.Sequence]:
        item = pydicom.Dataset()
        for keyword, value in tags.items():
            setattr(item, keyword, value)
        return sequence, pydicom.Sequence([item])

    shared = pydicom.Dataset()
    for keyword, value in (
        group("PixelMeasuresSequence", PixelSpacing=[SPACING, SPACING]),
        group("PlaneOrientationSequence", ImageOrientationPatient=[1, 0, 0, 0, 1, 0]),
        group("PixelValueTransformationSequence", RescaleSlope=1, RescaleIntercept=-1024, RescaleType="HU"),
    ):
        setattr(shared, keyword, value)
    frames = []
    for single in singles:
        frame = pydicom.Dataset()
        setattr(frame, *group("PlanePositionSequence", ImagePositionPatient=single.ImagePositionPatient))
        frames.append(frame)
    whole.SharedFunctionalGroupsSequence = pydicom.Sequence([shared])
    whole.PerFrameFunctionalGroupsSequence = pydicom.Sequence(frames)
    save(whole, tmp_path / "enhanced.dcm", "1.2.840.10008.5.1.4.1.1.2.1", f"{ROOT}.21.1")
    slices = _slices([tmp_path / "enhanced.dcm"])
    np.testing.assert_array_equal(_world(load_stack(slices), check_stack(slices)[0]), volume)
    whole.PerFrameFunctionalGroupsSequence = pydicom.Sequence(frames[:2])
    assert (
        _problem(whole, tmp_path / "few.dcm") == "NumberOfFrames (0028,0008) is 4, 2 frames are described (truncated?)"
    )
    whole.PerFrameFunctionalGroupsSequence, shared.PixelMeasuresSequence = pydicom.Sequence(frames), pydicom.Sequence()
    assert _problem(whole, tmp_path / "empty.dcm").startswith("PixelSpacing (0028,0030) is absent")


def _problem(dataset: pydicom.Dataset, path: Path) -> str:
    save(dataset, path, "1.2.840.10008.5.1.4.1.1.2.1", f"{ROOT}.21.1")
    header = read_header(path)
    assert isinstance(header, Header)
    return header.problem


def test_missing_decoders_name_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"fewview-ct\[dicom\]"):
        require_decoders()


@pytest.mark.parametrize(
    ("tags", "stored"),
    [
        ({"PixelPaddingValue": ("SS", -2000)}, 63536),  # the same bits
        ({"PixelPaddingValue": ("US", 63536)}, 63536),
        ({"PixelPaddingValue": ("US", 4000), "PixelPaddingRangeLimit": ("US", 4095)}, 4050),
        ({"PixelPaddingValue": ("US", 4095), "PixelPaddingRangeLimit": ("US", 4000)}, 4050),
        ({"PixelPaddingValue": ("US", 63536), "BitsStored": ("US", 12), "HighBit": ("US", 11)}, 63536),
    ],
)
def test_padding_is_found_by_its_bits_and_range(tmp_path: Path, tags: dict[str, Any], stored: int) -> None:
    """Each was tissue denser than metal beside the circle of reconstruction."""
    for k in range(3):
        dataset = slice_dataset(np.full((6, 5), 100, np.int16), (0, 0, 5.0 * k), "5", k)
        pixels = np.full((6, 5), 1124, np.uint16)
        pixels[0] = stored
        dataset.PixelData = pixels.tobytes()
        for keyword, (kind, value) in tags.items():
            dataset.add_new(keyword, kind, value)
        save(dataset, tmp_path / f"{k}.dcm", CT_CLASS, f"{ROOT}.5.{k}")
    volume = load_stack(_slices(sorted(tmp_path.iterdir())))
    assert (volume[:, 0] == -2000).all() and (volume[:, 1:] == 100).all()


@pytest.mark.parametrize(
    ("bits", "high", "shift", "message"),
    [(12, 11, 0, "have bits above High Bit"), (12, 15, 4, ""), (13, 12, 0, ""), (12, 15, 0, "those of the pixels lie")],
)
def test_bits_are_those_that_the_tags_name(tmp_path: Path, bits: int, high: int, shift: int, message: str) -> None:
    """Dense bone above 12 bits came back as lung."""
    hu = chest()[:, :, :2].copy()
    hu[30:50, 30:40] = 3300 if shift == 0 and high != 15 else 500
    for path in write_series(tmp_path, hu, BitsStored=bits, HighBit=high):
        dataset = pydicom.dcmread(path)
        dataset.PixelData = (np.frombuffer(dataset.PixelData, np.uint16) << shift).astype(np.uint16).tobytes()
        dataset.save_as(path)
    slices = _slices(sorted(tmp_path.iterdir()))
    if message:
        with pytest.raises(Rejected, match=rf"^\d\d-11\.dcm: .*{message}"):
            load_stack(slices)
        return
    np.testing.assert_array_equal(_world(load_stack(slices), check_stack(slices)[0]), hu)


def test_a_series_of_small_files_takes_no_gigabytes(tmp_path: Path) -> None:
    slices = _slices(write_series(tmp_path, chest()[:, :, :2]))
    many = [replace(slices[0], shape=(8192, 4096)) for _ in range(8)]
    with pytest.raises(Rejected, match=r"with the other files of its series one of .* that unpacks to 512 MB"):
        load_stack(many)


@pytest.mark.parametrize(("one", "other", "same"), [("Doe^Jane", "DOE^JANE^", True), ("Doe^Jane", "Doe^John", False)])
def test_a_name_may_be_written_in_two_ways(tmp_path: Path, one: str, other: str, same: bool) -> None:
    names = [
        read_header(write_series(tmp_path / str(k), chest()[:, :, :1], PatientName=name)[0])
        for k, name in enumerate((one, other))
    ]
    assert all(isinstance(header, Header) for header in names)
    assert (names[0].person == names[1].person) == same  # type: ignore[union-attr]
