"""How many threads a session gets, so that all that compute are as many as there are cores."""

from __future__ import annotations

from pathlib import Path

import pytest

from biigma_cli.runtime import session
from biigma_cli.runtime.session import Predictor
from tests.conftest import call


@pytest.mark.parametrize(
    ("cores", "callers", "own"), [(1, 1, 1), (1, 2, 1), (2, 1, 2), (2, 2, 1), (8, 2, 7)]
)
def test_callers_count_among_the_threads(
    toy: Path, monkeypatch: pytest.MonkeyPatch, cores: int, callers: int, own: int
) -> None:
    """A session's caller computes with its threads; several callers share them."""
    monkeypatch.setattr(session, "available_cpus", lambda: cores)
    predictor = Predictor(toy, device="cpu", callers=callers)
    assert predictor.session.get_session_options().intra_op_num_threads == own


def test_one_image_gets_all_cores(
    toy: Path, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A single file is not one of several batches at a time."""
    seen = []
    before = Predictor.__init__

    def init(self: Predictor, path: Path, **settings: object) -> None:
        seen.append(settings["callers"])
        before(self, path, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr(Predictor, "__init__", init)
    for paths in ([picture], [picture, picture], [picture.parent]):
        assert call("predict", *paths, "--model", toy, "--device", "cpu").code in (0, 5)
    assert seen == [1, 2, 2]
