"""Small files that would take gigabytes, and the memory that a command takes over one."""

from __future__ import annotations

import gzip
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np

DX, CT = b"1.2.840.10008.5.1.4.1.1.1.1.1", b"1.2.840.10008.5.1.4.1.1.2"
_BLOCK = 1 << 22

#: Starts a command line in a child and prints its exit code and its peak of resident memory in MB.
_MEASURE = """
import resource, subprocess, sys
done = subprocess.run([sys.executable, "-c", "from custom.cli import main; main()", *sys.argv[1:]], capture_output=True)
sys.stderr.write(done.stderr.decode())
print(done.returncode, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024)
"""


def element(group: int, number: int, kind: bytes, value: bytes) -> bytes:
    """Explicit VR little endian."""
    value += (b"\0" if kind in (b"UI", b"OB", b"OW") else b" ") * (len(value) % 2)
    length = (
        struct.pack("<H", len(value)) if kind not in (b"OB", b"OW", b"SQ") else b"\0\0" + struct.pack("<I", len(value))
    )
    return struct.pack("<HH", group, number) + kind + length + value


def dicom_file(body: bytes, syntax: bytes = b"1.2.840.10008.1.2.1", preamble: bool = True, kind: bytes = DX) -> bytes:
    """A DICOM file around encoded elements."""
    meta = element(2, 2, b"UI", kind) + element(2, 3, b"UI", b"1.2.3") + element(2, 0x10, b"UI", syntax)
    head = element(2, 0, b"UL", struct.pack("<I", len(meta))) + meta
    return (b"\0" * 128 + b"DICM" if preamble else b"") + head + body


def header(kind: bytes = DX, modality: bytes = b"DX") -> bytes:
    """The elements that say what an object is."""
    uids = element(0x20, 0xD, b"UI", b"1.2.3.5") + element(0x20, 0xE, b"UI", b"1.2.3.6")
    return (
        element(8, 0x16, b"UI", kind) + element(8, 0x18, b"UI", b"1.2.3.4") + element(8, 0x60, b"CS", modality) + uids
    )


def deflated(megabytes: int, preamble: bool = True, kind: bytes = DX, modality: bytes = b"DX") -> bytes:
    """A DICOM file whose pixel data inflate to so many MB."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    count = megabytes * 2**20 // _BLOCK
    start = header(kind, modality) + struct.pack("<HH2sHI", 0x7FE0, 0x10, b"OW", 0, count * _BLOCK)
    packed = packer.compress(start) + b"".join(packer.compress(b"\0" * _BLOCK) for _ in range(count)) + packer.flush()
    return dicom_file(packed, b"1.2.840.10008.1.2.1.99", preamble, kind)


def nifti(path: Path, megabytes: int, extension: int = 0) -> Path:
    """A NIfTI of zeros; with `extension` one whose header extension claims so many bytes."""
    image = nib.Nifti1Image(np.zeros((2, 2, 2), np.int16), np.eye(4))
    image.set_sform(np.eye(4), 1)
    image.header.set_data_shape((1024, 1024, max(1, megabytes // 2)))
    image.header["vox_offset"] = 352
    if extension:
        image.header.set_data_shape((2, 2, 2))
        image.header["vox_offset"] = 352 + 16
    with gzip.open(path, "wb", 1) as stream:
        stream.write(image.header.binaryblock)
        stream.write(b"\1\0\0\0" + struct.pack("<ii", extension, 6) if extension else b"\0\0\0\0")
        for _ in range(megabytes * 2**20 // _BLOCK):
            stream.write(b"\0" * _BLOCK)
    return path


def run_measured(*words: str | Path) -> tuple[int, int, str]:
    """Exit code, peak memory [MB] and standard error of a command line, in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", _MEASURE, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    code, peak = map(int, done.stdout.split()[-2:])
    return code, peak, done.stderr
