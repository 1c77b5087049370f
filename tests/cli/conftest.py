"""What several commands' tests share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.data.samples import encode, noise
from tests.runtime.test_pipeline import toy_model


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of one layer, without maps."""
    return toy_model(tmp_path_factory.mktemp("toy") / "toy.onnx")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder of thirty."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(30):
        (folder / f"{i:02}.png").write_bytes(encode(noise(20, 20, seed=i)))
    return folder
