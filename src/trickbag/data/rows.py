"""Encoded images in Parquet columns, and copied out of them into one flat file for reading at random."""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from trickbag.data.cache import artifact, load_arrays
from trickbag.errors import DataError


class Rows:
    """Images that are cells of a Parquet column."""

    def __init__(self, files: tuple[Path, ...], column: str) -> None:
        self.files = files
        self.column = column
        self._length = sum(pq.read_metadata(path).num_rows for path in files)
        self._chunks: tuple[np.ndarray, list[Any]] | None = None

    def __len__(self) -> int:
        return int(self._length)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_chunks": None}

    def get(self, index: int) -> memoryview | None:
        """The bytes at ``index``; the first call reads the whole column into memory."""
        if self._chunks is None:
            chunks = [chunk for path in self.files for chunk in _cells(read_columns(path, [self.column]))]
            self._chunks = np.cumsum([0, *map(len, chunks)]), chunks
        starts, chunks = self._chunks
        chunk = int(np.searchsorted(starts, index, side="right")) - 1
        return _cell(chunks[chunk], index - int(starts[chunk]))

    def blocks(self, size: int = 256) -> Iterator[list[memoryview | None]]:
        """All cells in order, in record batches."""
        for path in self.files:
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(size, columns=[self.column]):
                    for array in _cells(pa.table(batch)):
                        yield [_cell(array, i) for i in range(len(array))]

    def sample(self, size: int = 200) -> list[memoryview | None]:
        """The first rows of the first files."""
        files = self.files[:8]
        found: list[memoryview | None] = []
        for path in files:
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(
                    max(1, size // len(files)), row_groups=[0], columns=[self.column]
                ):
                    for array in _cells(pa.table(batch)):
                        found += [_cell(array, i) for i in range(len(array))]
                    break
        return found

    def at_random(self, key: str) -> Blob:
        """The same images, copied once to a flat file in the cache.

        Args:
            key: hash of the images.

        Raises:
            OSError: the cache cannot be written.
        """

        def write(folder: Path) -> None:
            lengths: list[int] = []
            with (folder / "bytes.bin").open("wb") as file:
                for block in self.blocks():
                    lengths += [file.write(cell) if cell is not None else 0 for cell in block]
            np.savez(folder / "index.npz", starts=np.cumsum([0, *lengths]))

        folder = artifact(f"{key}-encoded", write)
        arrays = load_arrays(folder / "index.npz") if folder else None
        if folder is None or arrays is None:
            raise OSError("the cache has been damaged while it was read")
        return Blob(folder / "bytes.bin", arrays["starts"])


class Blob:
    """Encoded images, one after the other in a file."""

    def __init__(self, path: Path, starts: np.ndarray) -> None:
        self.path = path
        self.starts = starts
        self._file = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._file)

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __reduce__(self) -> tuple[type[Blob], tuple[Path, np.ndarray]]:
        return Blob, (self.path, self.starts)

    def get(self, index: int) -> bytes | None:
        """The bytes at ``index``; other threads go on while the disk is read."""
        start, end = self.starts[index : index + 2].tolist()
        return os.pread(self._file, end - start, start) or None

    def blocks(self, size: int = 256) -> Iterator[list[bytes | None]]:
        """All images in order."""
        for start in range(0, len(self), size):
            yield [self.get(index) for index in range(start, min(start + size, len(self)))]

    def sample(self, size: int = 200) -> list[bytes | None]:
        """Evenly spaced images."""
        chosen = np.linspace(0, len(self) - 1, min(size, len(self))).astype(int)
        return [self.get(index) for index in chosen.tolist()]


def read_columns(path: Path, columns: list[str]) -> pa.Table:
    """Some columns of a Parquet file.

    Raises:
        DataError: the file is damaged.
    """
    try:
        with pq.ParquetFile(path) as file:
            return file.read(columns=columns)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"cannot read the columns {columns}: {error}", where=str(path)) from None


def _cells(table: pa.Table) -> list[Any]:
    column = table.column(0)
    if pa.types.is_struct(column.type):
        column = pc.struct_field(column, "bytes")
    return list(column.chunks)


def _cell(array: Any, index: int) -> memoryview | None:
    buffer = array[index].as_buffer()
    return None if buffer is None else memoryview(buffer)
