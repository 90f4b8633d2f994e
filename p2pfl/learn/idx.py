"""The idx files of MNIST and its kin, plain or gzipped.

Layout: two zero bytes, a type byte, the number of dimensions, each dimension as a big-endian uint32, then the
values, big-endian, last dimension fastest (LeCun, Cortes & Burges, "The MNIST database", file formats).
"""

import gzip
import zlib
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from p2pfl.errors import ConfigError

__all__ = ["read_idx", "read_idx_folder"]

_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
# A header may claim anything; 4 GB is 85 times MNIST's training images, and what a laptop still holds.
_MOST_BYTES = 4 * 10**9

_FILES = {
    "x_train": "train-images-idx3-ubyte",
    "y_train": "train-labels-idx1-ubyte",
    "x_test": "t10k-images-idx3-ubyte",
    "y_test": "t10k-labels-idx1-ubyte",
}


def read_idx(path: Path) -> NDArray[Any]:
    """The array of one idx file; `.gz` is read through gzip, and never more than the header claims.

    Raises ConfigError when the file is missing, cut short, too long or of another format.
    """
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as stream:
            magic = stream.read(4)
            if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in _TYPES or not 1 <= magic[3] <= 4:
                raise ConfigError(f"{path} is not an idx file: it starts with {magic.hex(' ') or 'nothing'}")
            header = stream.read(4 * magic[3])
            if len(header) < 4 * magic[3]:
                raise ConfigError(f"{path} ends inside its header; copy it again")
            shape = tuple(int(size) for size in np.frombuffer(header, ">u4"))
            dtype = np.dtype(_TYPES[magic[2]])
            size = prod(shape) * dtype.itemsize
            if size > _MOST_BYTES:
                raise ConfigError(
                    f"{path} claims {size} bytes of values, more than {_MOST_BYTES}; it is damaged"
                )
            body = stream.read(size + 1)
    except FileNotFoundError as error:
        raise ConfigError(f"{path} does not exist; check the data source") from error
    except (OSError, EOFError, zlib.error) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    if len(body) != size:
        longer = "more" if len(body) > size else str(len(body))
        raise ConfigError(f"{path} has {longer} bytes of values, its header says {size}; copy it again")
    return np.frombuffer(body, dtype).reshape(shape).astype(dtype.newbyteorder("="))


def read_idx_folder(folder: Path) -> dict[str, NDArray[Any]]:
    """x_train, y_train, x_test, y_test of a folder with MNIST's four file names, `.gz` or not.

    Raises ConfigError when a file is missing or images and labels differ in number.
    """
    arrays = {}
    for name, stem in _FILES.items():
        choices = [folder / stem, folder / f"{stem}.gz", folder / stem.replace("-idx", ".idx")]
        path = next((choice for choice in choices if choice.exists()), None)
        if path is None:
            raise ConfigError(
                f"{folder} lacks {stem} or {stem}.gz; an idx source is a folder of MNIST's four files"
            )
        arrays[name] = read_idx(path)
    for side in ("train", "test"):
        x, y = arrays[f"x_{side}"], arrays[f"y_{side}"]
        if y.ndim != 1 or x.ndim < 2 or len(x) != len(y) or not len(x):
            raise ConfigError(f"{folder}: {side} images have shape {x.shape} and labels {y.shape}")
        if y.dtype.kind not in "iu" or int(y.min()) < 0:
            raise ConfigError(
                f"{folder}: {side} labels are {y.dtype} from {y.min()}, expected classes from 0"
            )
    if arrays["x_train"].shape[1:] != arrays["x_test"].shape[1:]:
        raise ConfigError(
            f"{folder}: train images are {arrays['x_train'].shape[1:]},"
            f" test images {arrays['x_test'].shape[1:]}"
        )
    return arrays
