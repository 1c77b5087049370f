"""`predict --max-error`, and where its limits come from: `export`, `join` and `eval --store`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import onnx
import pytest

from biigma_cli.metrics import Limit, Limits
from biigma_cli.report.card import model_card
from biigma_cli.runtime.session import Predictor
from tests.conftest import call, unsealed
from tests.runtime.test_pipeline import toy_model

PLAIN = Limits(
    images=1000,
    groups=1000,
    rows=(
        Limit(0.5, 600, 600, 0, 0.005),
        Limit(0.36, 800, 800, 80, 0.12),
        Limit(0.0, 1000, 1000, 400, 0.43),
    ),
).to_dict()


def stating(path: Path, **changes: Any) -> Path:
    """A model that states these limits."""
    return toy_model(path, **{"abstention": PLAIN, **changes})


def ask(model: Path, *words: str | Path) -> Any:
    """`biigma predict` on the CPU."""
    return call("predict", "--model", model, "--device", "cpu", *words)


def test_the_limit_is_chosen(tmp_path: Path, pictures: Path) -> None:
    """The same answers as with `--abstain-below` and that limit; what it did is said."""
    model = stating(tmp_path / "m.onnx")
    done = ask(model, pictures, "--max-error", "0.2", "--format", "csv")
    assert done.code == 0, done.err
    assert (
        "can't say below 0.36: of 1000 validation images 80.0% are answered, 10.0% of" in done.err
    )
    assert "at most 0.2 with 95% confidence" in done.err
    same = ask(model, pictures, "--abstain-below", "0.36", "--format", "csv")
    assert done.out.replace("abstain_below=0.36 max_error=0.2", "abstain_below=0.36") == same.out
    assert done.out.count("max_error=0.2") == len(list(pictures.iterdir()))
    assert "can't say" in done.out
    stricter = ask(model, pictures, "--max-error", "0.05", "--format", "csv").out
    assert stricter.count("can't say") > done.out.count("can't say")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--max-error", "0"), "--max-error is 0"),
        (("--max-error", "1"), "such as 0.1"),
        (("--max-error", "nan"), "--max-error is nan"),
        (("--max-error", "0.1", "--abstain-below", "0.5"), "both --abstain-below and --max-error"),
        (("--max-error", "0.1", "--tta"), "not of --tta"),
        (("--max-error", "0.01"), "ask for --max-error 0.02, the next"),
    ],
)
def test_what_cannot_be_promised(
    tmp_path: Path, pictures: Path, words: tuple[str, ...], said: str
) -> None:
    """One message, and nothing is written."""
    target = tmp_path / "a.csv"
    done = ask(stating(tmp_path / "m.onnx"), pictures, *words, "-o", target)
    assert done.code == 2
    assert said in done.err
    assert done.err.count("fix:") == 1
    assert not target.exists()


def test_a_model_without_limits(tmp_path: Path, pictures: Path) -> None:
    """It says how to get them; damaged ones are an error of the file."""
    done = ask(toy_model(tmp_path / "m.onnx"), pictures, "--max-error", "0.1")
    assert done.code == 2
    assert "states no limits" in done.err
    assert "--split val --store" in done.err
    done = ask(
        stating(tmp_path / "d.onnx", abstention={"rows": [[1]]}), pictures, "--max-error", ".1"
    )
    assert done.code == 3
    assert "damaged metadata" in done.err
    assert ask(tmp_path / "d.onnx", pictures).code == 0


def limits_in(path: Path) -> dict[str, Any]:
    """What a file states."""
    found: dict[str, Any] = Predictor(path, device="cpu").info.metadata["abstention"]
    return found


def stripped(source: Path, path: Path, key: str) -> Path:
    """A copy of a model without one of its values, and its card beside it."""
    proto = unsealed(source)
    kept = [e for e in proto.metadata_props if e.key != key]
    assert len(kept) == len(proto.metadata_props) - 1
    del proto.metadata_props[:]
    proto.metadata_props.extend(kept)
    onnx.save(proto, path)
    said = Predictor(path, device="cpu").info.metadata
    card = model_card("m", said, parameters=1, megabytes=1.0, commands=[])
    path.with_suffix(".md").write_text(card, encoding="utf-8")
    return path


def test_stored_by_eval(tiny_onnx: Path, tmp_path: Path) -> None:
    """Judging the validation part finds them anew, as the export had; test keeps them."""
    stated = limits_in(tiny_onnx)
    assert stated["rows"][-1][1] > 0
    path = stripped(tiny_onnx, tmp_path / "m.onnx", "abstention")
    words = ("--model", path, "--store", "--resamples", "40", "--device", "cpu", "--json")
    done = call("eval", *words, "--split", "test")
    assert done.code == 0, done.err
    assert "abstention" not in json.loads(done.out)
    assert "abstention" not in Predictor(path, device="cpu").info.metadata
    done = call("eval", *words, "--split", "val")
    assert done.code == 0, done.err
    assert 'limits of "can\'t say" and of what is suspicious were found on this part' in done.err
    assert limits_in(path) == stated
    done = call("eval", *words, "--split", "test")
    found = json.loads(done.out)["abstention"]
    assert [row["max_error"] for row in found] == [0.05, 0.1, 0.15, 0.2]
    assert limits_in(path) == stated
    text = path.with_suffix(".md").read_text(encoding="utf-8")
    assert text.count("| at most | limit | answered |") == 2
    assert "limits found on this part" in text
    assert "limits found on the validation part" in text


def test_shown_by_eval(tiny_onnx: Path, tmp_path: Path) -> None:
    """On the terminal and on the page; not for eight views, nor for a checkpoint."""
    path = tmp_path / "m.onnx"
    shutil.copy(tiny_onnx, path)
    words = ("eval", "--model", path, "--resamples", "40", "--device", "cpu")
    done = call(*words, "--report", tmp_path / "page")
    assert done.code == 0, done.err
    assert "can't say: answers only from a limit on" in done.out
    assert "AURC (mean error over all coverages)" in done.out
    page = (tmp_path / "page" / "index.html").read_text(encoding="utf-8")
    assert "Answers only from a limit on; missed: malignant" in page
    assert "Error over the share answered: area" in page
    assert "can't say: answers only" not in call(*words, "--tta").out
