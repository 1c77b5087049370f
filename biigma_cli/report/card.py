"""A model card in Markdown, made from nothing but an exported model's own metadata."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from biigma_cli.config import PRECISIONS, precision_title
from biigma_cli.core.header import caveats_of
from biigma_cli.metrics import OVERALL, POINTS, TITLES
from biigma_cli.report.tables import (
    ABSTENTION_COLUMNS,
    SCREENING_COLUMNS,
    abstention_cells,
    malignancy_title,
    screening_cells,
)
from biigma_cli.taxonomy import base_of

_SOURCES = {
    "isic17": "several centres of the ISIC archive up to 2017",
    "isic18": "one Austrian and one Australian centre",
    "isic19": "Austria, Australia, Barcelona and New York",
    "synthetic": "a program: no patient is among them",
}

_MEMBER_FIGURES = ("accuracy", "macro_f1", "macro_recall", "log_loss")

_VIEWS = {
    "none": "as it is",
    "standard": "under standard augmentation",
    "strong": "under strong augmentation",
    "painted": "with artefacts painted on",
    "compressed": "as a JPEG of quality 20 to 80",
}

_USE = """\
Research on dermoscopic images, and software that needs a small, checked example of such a model. It
is not for diagnosis, for triage, or for deciding whether a doctor looks at a lesion. Feed it one
dermoscopic image of one lesion, roughly in the middle; its answer is one of {classes} known
classes, never "healthy"."""

_LIMITS = """\
- {other}
- {probabilities}
- The training images come from {sources}. Skin tones, cameras, body sites and diagnoses that are
  rare there are judged worse, by an amount nobody has measured here.
- Images are reduced to {side} x {side} pixels; fine structures of large pictures are lost.
- The saliency map shows where the network looked to sample its backgrounds. It is no outline of
  the lesion and no explanation of the answer. The evidence map is an exact account of the logit,
  but each of its positions has seen far more of the picture than its own cell."""

_UNCHECKED = """\
It knows only the classes above. Anything else, a scar, a clinical photograph, a cat, still gets
  one of them, often with a high probability: it has no input check."""
_CHECKED = """\
It knows only the classes above. Pictures of another kind are flagged (`novelty` above 1); a scar,
  a rash or another skin disease under the dermoscope still gets one of its classes."""
_UNCALIBRATED = """\
Its probabilities are not calibrated. They order answers; they are no measure of risk."""
_CALIBRATED = """\
Its probabilities are calibrated for images like those of the validation part, with its share of
  each disease. Where diseases are rarer or commoner they are wrong; they are no measure of risk."""


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
    export = metadata.get("export", {"precision": "fp32"})
    members = metadata.get("members", [])
    classes = list(zip(metadata["classes"], metadata["class_names"], strict=True))
    parts = [
        f"# {name}",
        f"{metadata['disclaimer']} Licence: {metadata['licence']}.",
        "## What it is",
        f"{_networks(metadata)}, {parameters / 1e6:.2f} million parameters, "
        f"{megabytes:.1f} MB as ONNX ({precision_title(export['precision'])}). It names one of "
        f"{len(classes)} diagnoses for a dermoscopic image and gives the saliency map M of the "
        "paper's Eq. 5." + ("" if members else f" {_head(model)}"),
        _table(("class", "diagnosis"), classes),
        *_members(metadata),
        "## Intended use",
        _USE.format(classes=len(classes)),
        "## Data and split",
        f"{metadata['citation']}",
        f"- protocol: {metadata['protocol']}\n"
        f"- data hash: `{split['data_hash']}`\n"
        f"- split hash: `{split['split_hash']}`\n"
        f"- chosen by: {metadata['selection']}"
        + ("" if metadata["epoch"] is None else f" (epoch {metadata['epoch']})")
        + "".join(_extra(extra) for extra in metadata.get("extra", []))
        + "".join(f"\n- not known: {caveat}" for caveat in caveats_of(metadata.get("sources", []))),
        "## Input and output",
        f"- {pre['input']}, side {pre['side']}\n"
        f"- resize: {pre['resize_means']}\n"
        f"- normalisation: {pre['normalisation']}\n"
        "- outputs: `probabilities` (calibrated where the next section says so) and `logits` (as "
        "trained), (batch, classes); `evidence` (batch, classes, rows, columns), what each "
        "position adds to each logit; `saliency` (batch, rows, columns) in (0, 1); `novelty` "
        "(batch), above 1 for what is no dermoscopy; each where it was exported",
        *_precision(export, joined=bool(members)),
        "## Calibration",
        _calibration(metadata.get("calibration")),
        *_input_check(metadata.get("input_check")),
        "## Figures",
        *[_figures(part, values, metadata) for part, values in metadata["metrics"].items()],
        "## Limits",
        _LIMITS.format(
            sources=_sources(metadata),
            side=pre["side"],
            other=_CHECKED if metadata.get("input_check") else _UNCHECKED,
            probabilities=_CALIBRATED if metadata.get("calibration") else _UNCALIBRATED,
        ),
        "## How it was made",
        "```\n" + "\n".join(commands) + "\n```",
        "Versions: " + ", ".join(f"{k} {v}" for k, v in metadata["versions"].items()) + ".",
    ]
    return "\n\n".join(parts) + "\n"


def _sources(metadata: dict[str, Any]) -> str:
    """Where the training images come from."""
    sources = metadata.get("sources") or [metadata, *metadata.get("extra", [])]
    names = [entry["dataset"] for entry in sources]
    bases = dict.fromkeys(base_of(name) for name in names)
    return ", and ".join(_SOURCES.get(base, f"one data set, {base}") for base in bases)


def _extra(found: dict[str, Any]) -> str:
    """Another data set whose training part joined."""
    classes = ", ".join(f"{n} {code}" for code, n in found["classes"].items())
    return (
        f"\n- also trained on {found['images']} images of {found['dataset']} ({classes}), the "
        f"training part of its own split ({found['protocol']}; data hash `{found['data_hash']}`); "
        f"none is validated or tested on. {found['citation']} Licence: {found['licence']}"
    )


def _networks(metadata: dict[str, Any]) -> str:
    """What answers: one network, or several."""
    members = metadata.get("members", [])
    trunks = list(dict.fromkeys(m["model"]["trunk"] for m in members))
    if not members:
        return f"BIIGMA-Net on {metadata['config']['model']['trunk']}"
    return f"The mean of {len(members)} BIIGMA-Nets on {' and '.join(trunks)} in one file"


def _members(metadata: dict[str, Any]) -> list[str]:
    """The networks that were joined, and what each has by itself."""
    if "members" not in metadata:
        return []
    rows = [
        (
            member["name"],
            member["model"]["trunk"],
            precision_title(member["precision"]),
            *(f"{member['validation'][k]:.4f}" for k in _MEMBER_FIGURES),
        )
        for member in metadata["members"]
    ]
    titles = [TITLES[k] for k in _MEMBER_FIGURES]
    return [
        "## Members",
        "Its logits, evidence and saliency are the means of theirs (maps on an even grid where "
        "trunks differ). By themselves, as they were given, they have on the validation part:",
        _table(("network", "trunk", "stored as", *titles), rows),
        "\n".join(f"- {m['name']}, {m['id']}: {_head(m['model'])}" for m in metadata["members"]),
    ]


def _head(model: dict[str, Any]) -> str:
    if not model["mica"]:
        return "Head: global average pooling + linear."
    width = model["projection_channels"] or "as many as the trunk's"
    return (
        f"Heads: {model['heads']}, {width} channels each; independence criterion "
        f"{model['criterion']} ({model['estimator']}, bandwidth {model['bandwidth']})."
    )


def _calibration(found: dict[str, Any] | None) -> str:
    if found is None:
        return "None: `probabilities` is the softmax of `logits`."
    before, after = found["before"], found["after"]
    return "\n\n".join(
        (
            f"`probabilities` is {found['method']}. T = {found['temperature']:.4f}, fitted on the "
            f"{found['n']} images of the validation part, where it did this:",
            _table(
                ("figure", "as trained", "calibrated"),
                [
                    (TITLES[key], f"{before[key]:.4f}", f"{after[key]:.4f}")
                    for key in ("log_loss", "ece")
                ],
            ),
            "It changes no answer.",
        )
    )


def _precision(export: dict[str, Any], *, joined: bool) -> list[str]:
    """What a lower precision costs."""
    found = export.get("accuracy")
    if found is None and export["precision"] == "fp32":
        return []
    if found is None:
        return [
            "## Precision",
            f"What {precision_title(export['precision'])} loses was **not measured**: the "
            "validation images were not on the machine that wrote the file.",
        ]
    parity = export["parity"]
    how = export.get("quantisation")
    told = "" if how is None else f"{how['method']}, {how['train']} training images. "
    rows = [
        (title, *(f"{value:.4f}" for value in found[key]))
        for key, title in (("balanced_accuracy", "balanced accuracy"), ("accuracy", "accuracy"))
    ]
    if export["precision"].endswith("-weights"):
        bits = PRECISIONS[export["precision"]].split()[0]
        told = f"The weights are stored in {bits}; what is computed is computed in float32. "
    against = (
        ("the mean of its members' answers as they were given", "members")
        if joined
        else ("the network in float32", "float32")
    )
    return [
        "## Precision",
        f"{told}On the {found['images']} images of the validation part, against {against[0]}:",
        _table(
            (
                "figure",
                against[1],
                precision_title(export["precision"]) if joined else export["precision"],
            ),
            rows,
        ),
        f"The same decision for {parity['same_decision']} of {parity['images']}; largest "
        f"difference of a probability {parity['max_difference']:.3f}, mean "
        f"{parity['mean_difference']:.4f}.",
    ]


def _input_check(found: dict[str, Any] | None) -> list[str]:
    """How it tells what is no dermoscopy."""
    if found is None:
        return []
    val = found["validation"]
    return [
        "## Input check",
        f"`novelty`: {found['method']}. Fitted on {found['train']['n']} training images, each "
        f"{_views(found['train']['views'])}; the limit is exceeded by {val['false_alarms']:.0%} "
        f"of the {val['n']} validation images and their augmented views. As they are, "
        f"{val['flagged']:.1%} of the validation images are flagged.",
    ]


def _views(names: Sequence[str]) -> str:
    """In words what each image was shown as."""
    told = [_VIEWS.get(name, name) for name in names]
    return ", ".join(told[:-1]) + f" and {told[-1]}" if len(told) > 1 else told[0]


def replace_figures(card: str, part: str, metadata: dict[str, Any]) -> str | None:
    """The card with a part's figures as the metadata now has them; all else stays.

    Where it has none of that part they go behind the others. None where it has no section for
    figures at all.
    """
    section = re.compile(rf"^### {part} part, .*?(?=^##|\Z)", re.MULTILINE | re.DOTALL)
    text = _figures(part, metadata["metrics"][part], metadata) + "\n\n"
    found, n = section.subn(lambda _: text, card, count=1)
    if not n:
        whole = re.compile(r"^## Figures\n.*?(?=^## |\Z)", re.MULTILINE | re.DOTALL)
        found, n = whole.subn(lambda m: m.group().rstrip() + f"\n\n{text}", card, count=1)
    return found if n else None


def _figures(part: str, values: dict[str, Any], metadata: dict[str, Any]) -> str:
    """A part's figures; older records hold the headline alone."""
    whole = values.get("assessment")
    overall = whole["overall"] if whole else values["intervals"]
    headline = [(TITLES[k], *_figure(overall[k])) for k in OVERALL if k in overall]
    per_class = [
        (c["code"], c["support"], f"{c['precision']:.3f}", f"{c['recall']:.3f}", f"{c['f1']:.3f}")
        for c in values["per_class"]
    ]
    codes = [c["code"] for c in values["per_class"]]
    confusion = [(code, *row) for code, row in zip(codes, values["confusion"], strict=True)]
    parts = [
        f"### {part} part, {values['n']} images",
        f"{values['protocol']}; {values['bootstrap']}.",
        _table(("figure", "value", "95% interval"), headline),
        _table(("class", "images", "precision", "recall", "F1"), per_class),
        "Rows are the truth, columns the answer:",
        _table(("", *codes), confusion),
    ]
    calibrated = "calibration" in metadata
    if values.get("judged") == "file":
        parts[1] += f" Measured with this file{', calibrated' if calibrated else ''}."
    else:
        if metadata.get("export", {}).get("precision", "fp32") != "fp32":
            parts[1] += " Of the network in float32, not of this file."
        if whole and calibrated:
            parts[1] += (
                " Of the probabilities as trained: the answers are the same when calibrated, log "
                "loss, Brier score and calibration error are not."
            )
    if values.get("abstention"):
        own = part == "val"
        parts += [
            "Answers only where their probability reaches a limit, so that at most so many are "
            "wrong (`biigma predict --max-error`); limits found on "
            + ("this part" if own else "the validation part")
            + ", where that promise holds with 95% confidence. Missed: malignant images that are "
            "called benign. Intervals are over the same resamples, at 0 and 100% Clopper and "
            "Pearson's:",
            _table(ABSTENTION_COLUMNS, [abstention_cells(a) for a in values["abstention"]]),
        ]
    if values.get("malignancy"):
        parts += _malignancy(values["malignancy"], own=part == "val")
    if part == "val" and "prior" in metadata:
        found = metadata["prior"]
        rows = [
            (code, f"{share:.3f}", f"{implied:.3f}")
            for code, share, implied in zip(codes, found["shares"], found["implied"], strict=True)
        ]
        parts += [
            "Shares of the classes here, and those for which the probabilities would be right on "
            "average (`biigma predict --prevalence` takes them to other shares):",
            _table(("class", "share", "implied"), rows),
        ]
    melanoma = whole["per_class"].get("MEL") if whole else None
    if melanoma and melanoma["support"]:
        rows = [(TITLES[k], *_figure(melanoma[k])) for k in ("auc", "ap", *POINTS)]
        parts += ["Melanoma against the rest:", _table(("figure", "value", "95% interval"), rows)]
    return "\n\n".join(parts)


def _malignancy(found: dict[str, Any], *, own: bool) -> list[str]:
    """Malignant against benign."""
    title = malignancy_title(found)
    if not found["limits"]:
        return [f"{title[0].upper()}{title[1:]}."]
    return [
        f"{title[0].upper()}{title[1:]}. Images called suspicious from a limit on, so that at "
        "least such a share of the malignant is (`biigma predict --min-sensitivity`); limits found "
        "on "
        + ("this part" if own else "the validation part")
        + ", where that promise holds with 95% confidence. PPV: of the suspicious those that are "
        "malignant, which falls where malignant lesions are rarer than here. Missed: malignant and "
        "not suspicious. Of 0 and 100% the interval's other end is Clopper and Pearson's:",
        _table(SCREENING_COLUMNS, [screening_cells(row) for row in found["limits"]]),
    ]


def _figure(figure: dict[str, Any]) -> tuple[str, str]:
    """Value and interval, each `-` where there is none."""
    value, low, high = (figure[key] for key in ("value", "low", "high"))
    return (
        "-" if value is None else f"{value:.4f}",
        "-" if low is None else f"{low:.4f} to {high:.4f}",
    )


def _table(header: tuple[str, ...], rows: list[Any]) -> str:
    lines = [header, ("---",) * len(header), *rows]
    return "\n".join("| " + " | ".join(map(_plain, line)) + " |" for line in lines)


def _plain(cell: object) -> str:
    """A cell that neither ends early nor is read as HTML: names of classes may hold anything."""
    text = str(cell).replace("|", "\\|")
    return text.replace("<", "&lt;")
