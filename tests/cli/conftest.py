"""What several commands' tests share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.runtime.test_pipeline import toy_model


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of one layer, without maps."""
    return toy_model(tmp_path_factory.mktemp("toy") / "toy.onnx")
