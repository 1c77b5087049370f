"""A model card in Markdown, made from nothing but an exported model's own metadata."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from biigma_cli.report.tables import FIGURE_NAMES

_SOURCES = {
    "isic17": "several centres of the ISIC archive up to 2017",
    "isic18": "one Austrian and one Australian centre",
    "isic19": "Austria, Australia, Barcelona and New York",
    "synthetic": "a program: no patient is among them",
}

_LIMITS = """\
- It knows only the classes above. Anything else, a scar, a clinical photograph, a cat, still gets
  one of them, often with a high probability: it cannot yet say that it does not know.
- Its probabilities are not calibrated. They order answers; they are no measure of risk.
- The training images come from {sources}. Skin tones, cameras, body sites and diagnoses that are
  rare there are judged worse, by an amount nobody has measured here.
- Images are reduced to {side} x {side} pixels; fine structures of large pictures are lost.
- The saliency map shows where the network looked to sample its backgrounds. It is no outline of
  the lesion and no explanation of the answer."""


def model_card(
    name: str,
    metadata: dict[str, Any],
    *,
    parameters: int,
    megabytes: float,
    commands: Sequence[str],
) -> str:
    """The card's text.

    Args:
        name: of the model.
        metadata: decoded metadata of the exported file, as in `runtime.session.ModelInfo`.
        parameters: in the exported network.
        megabytes: size of the file, in 10^6 bytes.
        commands: what made it, in order.
    """
    split = metadata["split"]
    pre = metadata["preprocessing"]
    model = metadata["config"]["model"]
    classes = list(zip(metadata["classes"], metadata["class_names"], strict=True))
    parts = [
        f"# {name}",
        f"{metadata['disclaimer']} Licence: {metadata['licence']}.",
        "## What it is",
        f"BIIGMA-Net on {model['trunk']}, {parameters / 1e6:.2f} million parameters, "
        f"{megabytes:.1f} MB as float32 ONNX. It names one of {len(classes)} diagnoses for a "
        "dermoscopic image and gives the saliency map M of the paper's Eq. 5. "
        f"{_head(model)}",
        _table(("class", "diagnosis"), classes),
        "## Data and split",
        f"{metadata['citation']}",
        f"- protocol: {metadata['protocol']}\n"
        f"- data hash: `{split['data_hash']}`\n"
        f"- split hash: `{split['split_hash']}`\n"
        f"- chosen by: {metadata['selection']} (epoch {metadata['epoch']})",
        "## Input and output",
        f"- {pre['input']}, side {pre['side']}\n"
        f"- resize: {pre['resize_means']}\n"
        f"- normalisation: {pre['normalisation']}\n"
        "- outputs: `probabilities` and `logits` (batch, classes); `saliency` (batch, rows, "
        "columns) in (0, 1)",
        "## Figures",
        *[_figures(part, values) for part, values in metadata["metrics"].items()],
        "## Limits",
        _LIMITS.format(sources=_SOURCES.get(metadata["dataset"], "one data set"), side=pre["side"]),
        "## How it was made",
        "```\n" + "\n".join(commands) + "\n```",
        "Versions: " + ", ".join(f"{k} {v}" for k, v in metadata["versions"].items()) + ".",
    ]
    return "\n\n".join(parts) + "\n"


def _head(model: dict[str, Any]) -> str:
    if not model["mica"]:
        return "Head: global average pooling + linear."
    width = model["projection_channels"] or "as many as the trunk's"
    return (
        f"Heads: {model['heads']}, {width} channels each; independence criterion "
        f"{model['criterion']} ({model['estimator']}, bandwidth {model['bandwidth']})."
    )


def _figures(part: str, values: dict[str, Any]) -> str:
    headline = [
        (FIGURE_NAMES[k], f"{v['value']:.4f}", f"{v['low']:.4f} to {v['high']:.4f}")
        for k, v in values["intervals"].items()
    ]
    per_class = [
        (c["code"], c["support"], f"{c['precision']:.3f}", f"{c['recall']:.3f}", f"{c['f1']:.3f}")
        for c in values["per_class"]
    ]
    codes = [c["code"] for c in values["per_class"]]
    confusion = [(code, *row) for code, row in zip(codes, values["confusion"], strict=True)]
    return "\n\n".join(
        (
            f"### {part} part, {values['n']} images",
            f"{values['protocol']}; {values['bootstrap']}.",
            _table(("figure", "value", "95% interval"), headline),
            _table(("class", "images", "precision", "recall", "F1"), per_class),
            "Rows are the truth, columns the answer:",
            _table(("", *codes), confusion),
        )
    )


def _table(header: tuple[str, ...], rows: list[Any]) -> str:
    lines = [header, ("---",) * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)
