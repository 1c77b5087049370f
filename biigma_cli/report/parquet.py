"""The CSV of predictions as Parquet: the same rows and columns, with figures as numbers."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

from biigma_cli.data.answers import BEFORE, BEHIND
from biigma_cli.errors import BiigmaError, DataError, UsageError
from biigma_cli.report.predictions import Conversion, csv_lines

# Rows that are held as text.
_ROWS = 4096


def check_installed() -> None:
    """Raise `UsageError` where Apache Arrow is not installed."""
    if importlib.util.find_spec("pyarrow") is None:
        raise UsageError("Parquet needs Apache Arrow", fix="pip install 'biigma[parquet]'")


def from_csv(source: Path, target: Path) -> None:
    """Write the rows of a CSV of predictions as one Parquet file, flushed to the disk.

    Figures become float64, null where there is an error; texts stay, empty ones too. Memory is
    bounded: a piece of some MiB at a time, a row group each.

    Raises:
        BiigmaError: the CSV is not as `report.predictions.CsvWriter` writes it.
        OSError: the disk is full.
    """
    import pyarrow as pa
    from pyarrow import csv, parquet

    with source.open(encoding="utf-8") as text:
        columns = text.readline().rstrip("\n").split(",")
    figures = _figures(columns)
    kinds = {name: pa.float64() if name in figures else pa.string() for name in columns}
    try:
        pieces = csv.open_csv(
            source,
            csv.ReadOptions(block_size=16 << 20),
            csv.ParseOptions(newlines_in_values=True),
            csv.ConvertOptions(column_types=kinds, null_values=[""], strings_can_be_null=False),
        )
        with target.open("wb") as file, parquet.ParquetWriter(file, pieces.schema) as writer:
            for piece in pieces:
                writer.write_batch(piece)
            writer.close()
            file.flush()
            os.fsync(file.fileno())
    except pa.ArrowInvalid as error:
        raise BiigmaError(f"{source} cannot be made Parquet: {error}") from error


def to_csv(source: Path, target: Path) -> None:
    """Write the rows of such a Parquet file as the CSV that it was made of.

    Raises:
        DataError: it is damaged, or none of predictions.
        OSError: the disk is full.
    """
    import pyarrow as pa
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(source) as file, target.open("w", encoding="utf-8") as text:
            columns = file.schema_arrow.names
            if BEHIND[0] not in columns or tuple(columns[: len(BEFORE)]) != BEFORE:
                raise _foreign(source)
            figures = _figures(columns)
            text.write(csv_lines([columns]))
            for piece in file.iter_batches(_ROWS):
                cells = [_texts(name, piece.column(name).to_pylist(), figures) for name in columns]
                text.write(csv_lines(zip(*cells, strict=True)))
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise _foreign(source) from error


def _foreign(source: Path) -> DataError:
    return DataError(
        f"{source} is no Parquet file of predictions, or damaged", fix="choose another -o"
    )


def _figures(columns: list[str]) -> list[str]:
    """Those of the malignant, of the classes and of novelty, in this order."""
    return columns[len(BEFORE) - 1 : columns.index(BEHIND[0]) + 1]


def _texts(name: str, values: list[Any], figures: list[str]) -> list[str]:
    """A column's cells as the CSV has them."""
    if name not in figures:
        return values
    digits = 3 if name == BEHIND[0] else 6
    return ["" if value is None else f"{value:.{digits}f}" for value in values]


#: Parquet is made of the CSV once that is whole.
PARQUET = Conversion(to=from_csv, back=to_csv)
