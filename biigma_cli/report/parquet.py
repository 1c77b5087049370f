"""The CSV of predictions as Parquet: the same rows and columns, with figures as numbers."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from biigma_cli.data.answers import BEFORE, BEHIND
from biigma_cli.errors import BiigmaError, UsageError


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
    # Figures are those of the malignant, of the classes and of novelty, in this order.
    figures = columns[len(BEFORE) - 1 : columns.index(BEHIND[0]) + 1]
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
