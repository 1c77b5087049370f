"""`biigma models`: the models that ship, and what any exported file says of itself."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from biigma_cli.cli.boundary import boundary, note
from biigma_cli.cli.options import JsonOption
from biigma_cli.config import precision_title

if TYPE_CHECKING:
    from biigma_cli.runtime.session import ModelInfo

_FIGURES = {"accuracy": "accuracy", "macro_f1": "macro-F1", "macro_recall": "balanced accuracy"}


@boundary
def models(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="MODEL...", help="Shipped models or .onnx files.  [default: all that ship]"
        ),
    ] = None,
    json_: JsonOption = False,
) -> None:
    """List models: classes, size, precision, figures, licence.

    Figures are told with their protocol. 'predict', 'explain' and 'eval' take each by its name:
    --model NAME.
    """
    from biigma_cli.errors import ModelFileError, PartialFailure
    from biigma_cli.runtime.session import find_model, shipped_models

    paths = [find_model(name) for name in names] if names else shipped_models()
    found, failures = [], []
    for path in paths:
        try:
            found.append(describe(path))
        except ModelFileError as error:
            if names:
                raise
            failures.append(error)  # one damaged file hides no other
    if not names:
        found.sort(key=lambda model: not model["default"])
    _show(found, json_=json_)
    for failure in failures:
        note(failure.message)
    if failures:
        raise PartialFailure(
            f"{len(failures)} of {len(paths)} models cannot be used", fix=failures[0].fix
        )


def _show(found: list[dict[str, Any]], *, json_: bool) -> None:
    from biigma_cli.runtime.session import DAMAGE, damaged

    if json_:
        import json

        typer.echo(json.dumps(found, indent=2))
        return
    told = []
    for model in found:
        try:
            told.append(_lines(model))
        except DAMAGE as error:
            raise damaged(Path(model["path"]), error) from error
    typer.echo("\n\n".join(told) or "no model ships with this copy")


def describe(path: Path) -> dict[str, Any]:
    """What a model says of itself, as plain values. Raises `ModelFileError`."""
    from biigma_cli.runtime.session import DAMAGE, Predictor, damaged

    predictor = Predictor(path, device="cpu")
    try:
        return _described(predictor.info, predictor.id)
    except DAMAGE as error:
        raise damaged(path, error) from error


def _described(info: ModelInfo, identity: str) -> dict[str, Any]:
    from biigma_cli.runtime.session import DEFAULT_MODEL
    from biigma_cli.storage import models_dir

    path = info.path
    test = info.metadata.get("metrics", {}).get("test")
    check = info.metadata.get("input_check")
    return {
        "name": info.name,
        "id": identity,
        "default": info.name == DEFAULT_MODEL and path.parent == models_dir(),
        "path": str(path),
        "megabytes": round(path.stat().st_size / 1e6, 1),
        "precision": info.precision,
        "members": [member["name"] for member in info.metadata.get("members", [])],
        "classes": dict(zip(info.classes, info.class_names, strict=True)),
        "side": info.side,
        "temperature": info.temperature,
        "input_check": None if check is None else check["validation"],
        "licence": info.metadata["licence"],
        "protocol": info.metadata.get("protocol", ""),
        "sources": list(dict.fromkeys(s["dataset"] for s in info.metadata.get("sources", []))),
        "test": test
        and {
            "n": test["n"],
            "judged": test.get("judged", "network"),
            **{k: test["intervals"][k] for k in _FIGURES},
            "abstention": test.get("abstention", []),
            "malignancy": test.get("malignancy"),
        },
    }


def _lines(model: dict[str, Any]) -> str:
    test, check = model["test"], model["input_check"]
    lines = [
        model["name"] + (" (default)" if model["default"] else ""),
        f"{precision_title(model['precision'])}, {model['megabytes']} MB, "
        f"images of {model['side']} x {model['side']}, {model['licence']}",
        f"classes: {', '.join(model['classes'])}",
        f"trained and judged on: {model['protocol'] or 'not said'}",
    ]
    if model["members"]:
        lines.append(f"the mean of {len(model['members'])} networks: {', '.join(model['members'])}")
    if more := model["sources"][1:]:
        lines.append(f"has also learnt from images of: {', '.join(more)}")
    if test:
        figures = ", ".join(f"{title} {_figure(test[key])}" for key, title in _FIGURES.items())
        own = model["precision"] == "fp32" or test["judged"] == "file"
        float32 = "" if own else ", in float32"
        lines.append(f"test part, {test['n']} images{float32}: {figures}")
    else:
        lines.append("no test figures in the file")
    lines.append(
        "no input check"
        if check is None
        else f"input check: flags {check['flagged']:.1%} of {check['n']} validation images"
    )
    kept = [a for a in (test or {}).get("abstention", []) if a["error"]["value"] is not None]
    if kept:
        told = ", ".join(
            f"{a['max_error']:g}: {a['coverage']['value']:.0%} ({a['error']['value']:.1%})"
            for a in kept
        )
        lines.append(f"answered of the test part (of these wrong) with --max-error {told}")
    told_apart = (test or {}).get("malignancy")
    found = [row for row in (told_apart or {}).get("limits", []) if row["threshold"] is not None]
    if found:
        told = ", ".join(
            f"{row['min_sensitivity']:g}: {row['sensitivity']['value']:.0%} "
            f"({row['specificity']['value']:.0%})"
            for row in found
        )
        lines.append(f"malignant found (benign spared) with --min-sensitivity {told}")
    return "\n  ".join(lines)


def _figure(figure: dict[str, Any]) -> str:
    """With its interval, where it was judged with one."""
    if figure["low"] is None:
        return f"{figure['value']:.3f}"
    return f"{figure['value']:.3f} ({figure['low']:.3f}-{figure['high']:.3f})"
