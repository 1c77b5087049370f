"""An audit as tables, as one JSON object, and as a self-contained contact sheet in HTML."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from PIL import Image
from rich import box
from rich.table import Table
from rich.text import Text

from biigma_cli.data.alike import AlikePair, AlikeSearch
from biigma_cli.data.audit import (
    NEAR,
    Audit,
    Conflict,
    NearPair,
    ProtocolAudit,
    Shared,
    odd_kinds,
)
from biigma_cli.data.preprocess import load_image
from biigma_cli.data.splits import PARTS
from biigma_cli.errors import ImageError
from biigma_cli.report.html import render_page
from biigma_cli.report.tables import render

FORMAT = "biigma-audit-1"
THUMBNAIL = 208  # pixels of the longer side

_LESIONS = {True: "one", False: "different", None: "unknown"}
_KINDS = {"identical": "identical bytes", "near": "near-duplicates", "lesion": "one lesion"}


def audit_json(audit: Audit) -> dict[str, Any]:
    """Everything found, as plain types."""
    part_of = audit.part_of()

    def parts(ids: Iterable[str]) -> dict[str, list[str | None]]:
        return {name: [where.get(i) for i in ids] for name, where in part_of.items()}

    def pair(p: NearPair | AlikePair, **measured: Any) -> dict[str, Any]:
        return {
            "images": [p.first, p.second],
            **measured,
            "same_lesion": p.same_lesion,
            "same_label": p.same_label,
            "parts": parts((p.first, p.second)),
        }

    return {
        "format": FORMAT,
        "dataset": audit.manifest.dataset,
        "root": str(audit.manifest.root),
        "data_hash": audit.manifest.data_hash,
        "licence": audit.manifest.licence,
        "images": len(audit.manifest.records),
        "lesions": audit.lesions,
        "images_without_lesion_id": audit.without_lesion,
        "classes": {
            code: {"images": n, "lesions": audit.class_lesions[code]}
            for code, n in audit.manifest.class_counts().items()
        },
        "classes_too_small": list(audit.few),
        "protocols": {name: _protocol_json(p, audit) for name, p in audit.protocols.items()},
        "protocols_unavailable": audit.unavailable,
        "identical": [{"images": list(g), "parts": parts(g)} for g in audit.identical],
        "near_duplicates": {
            "threshold": NEAR,
            **_near_counts(audit.near),
            "pairs": [
                pair(p, correlation=round(p.correlation, 4), second_is=p.turn) for p in audit.near
            ],
        },
        "same_lesion": None
        if audit.alike is None
        else {
            "threshold": round(audit.alike.threshold, 4),
            "compared": audit.alike.compared,
            "by_chance": round(audit.alike.by_chance, 2),
            "measured_on": audit.alike.source,
            **_near_counts(audit.alike.pairs),
            "pairs": [pair(p, likeness=round(p.likeness, 4)) for p in audit.alike.pairs],
            "across": {
                name: [[p.first, p.second] for p in audit.alike_across(name)]
                for name in audit.protocols
            },
            "test_lesion_probably_in_train": {
                name: _share_json(audit.alike_in_train(name)) for name in audit.protocols
            },
        },
        "label_conflicts": [
            {
                "kind": c.kind,
                "lesion_id": c.lesion_id or None,
                "images": list(c.images),
                "labels": list(c.labels),
            }
            for c in audit.conflicts
        ],
        "unreadable": [
            {"image": u.image_id, "path": u.path, "error": u.error, "missing": u.missing}
            for u in audit.unreadable
        ],
        "odd": [{"image": o.image_id, "problems": list(o.problems)} for o in audit.odd],
        "metadata_without_image": {k: list(v) for k, v in audit.rows_without_image.items()},
        "images_without_metadata": list(audit.strangers),
    }


def _protocol_json(found: ProtocolAudit, audit: Audit) -> dict[str, Any]:
    return {
        "title": found.split.title,
        "split": found.split.summary(),
        "counts": found.counts,
        "empty_classes": {part: list(codes) for part, codes in found.empty.items()},
        "lesions_across": list(found.lesions_across),
        "test_lesion_in_train": _share_json(found.test_in_train),
        "test_lesion_in_train_or_val": _share_json(found.test_in_rest),
        "val_lesion_in_train": _share_json(found.val_in_train),
        "identical_across": [list(g) for g in found.identical_across],
        "near_across": [[audit.near[n].first, audit.near[n].second] for n in found.near_across],
    }


def _share_json(value: Shared) -> dict[str, Any]:
    return {"images": value.images, "of": value.of, "share": round(value.share, 6)}


def _near_counts(pairs: Sequence[NearPair] | Sequence[AlikePair]) -> dict[str, int]:
    return {
        "count": len(pairs),
        "same_lesion": sum(p.same_lesion is True for p in pairs),
        "different_lesions": sum(p.same_lesion is False for p in pairs),
        "lesion_unknown": sum(p.same_lesion is None for p in pairs),
        "different_labels": sum(not p.same_label for p in pairs),
    }


# --- tables ----------------------------------------------------------------------------------


def audit_text(audit: Audit, *, limit: int, width: int, colour: bool) -> str:
    """The tables, with at most `limit` rows of each kind of finding."""
    manifest = audit.manifest
    items: list[Table | str] = [
        _plain(
            f"data set: {manifest.dataset}, {len(manifest.records)} images of {_lesions(audit)}"
        ),
        _plain(f"images:   {manifest.root}"),
        "",
        _table("findings", ("", "found"), [(a, b) for a, b, _ in _findings(audit)], right=()),
    ]
    if audit.protocols:
        head = ("", *_split_columns(audit))
        items.append(_table("across the parts", head, _split_rows(audit)))
    items += [_plain(f"no {name} split: {why}") for name, why in audit.unavailable.items()]
    items.append(_table("images per class and part", *_class_rows(audit)))
    # What is shown, and the row of each: rows are made of those alone that are shown.
    sections: list[tuple[str, Sequence[str], Sequence[Any], Callable[[Any], Sequence[str]]]] = [
        (
            "identical files",
            ("images", "classes", *_split_columns(audit)),
            audit.identical,
            lambda g: _group_row(audit, g),
        ),
        (
            "near-duplicates, those of different lesions first",
            ("images", "correlation", "second is", "lesions", "classes", *_split_columns(audit)),
            _by_interest(audit.near),
            lambda p: _near_row(audit, p),
        ),
        (
            "probably one lesion, though lesion ids do not say so",
            ("images", "likeness", "lesions", "classes", *_split_columns(audit)),
            _untold(audit.alike),
            lambda p: _alike_row(audit, p),
        ),
        (
            "label conflicts",
            ("kind", "images", "classes", "lesion"),
            audit.conflicts,
            _conflict_row,
        ),
        (
            "unreadable images",
            ("image", "path", "error"),
            audit.unreadable,
            lambda u: (u.image_id, u.path, u.error),
        ),
        (
            "odd images",
            ("image", "what"),
            audit.odd,
            lambda o: (o.image_id, "; ".join(o.problems)),
        ),
        (
            "metadata without image",
            ("file", "rows", "first"),
            list(audit.rows_without_image.items()),
            lambda item: (item[0], str(len(item[1])), ", ".join(item[1][:3])),
        ),
        ("images without metadata", ("path",), audit.strangers, lambda path: (path,)),
    ]
    for title, columns, found, row in sections:
        if found and limit:
            rows = [row(one) for one in found[:limit]]
            shown = f", the first {limit} of {len(found)}" if len(found) > limit else ""
            right = ("correlation", "likeness", "rows")
            items.append(_table(title + shown, columns, rows, right=right))
    return render(*items, width=width, colour=colour)


def _findings(audit: Audit) -> list[tuple[str, str, bool]]:
    """What was looked for, what was found, and whether it is anything to look at."""
    near = _near_counts(audit.near)
    missing = sum(u.missing for u in audit.unreadable)
    rows = sum(map(len, audit.rows_without_image.values()))
    odd = ", ".join(f"{n} {kind}" for kind, n in odd_kinds(audit).items())
    alike = [] if audit.alike is None else [_alike_finding(audit.alike)]
    return [
        ("byte-identical files", _count(audit.identical, "group"), bool(audit.identical)),
        (
            "near-duplicates",
            f"{_pairs_text(near)}; {near['different_labels']} with different labels"
            if audit.near
            else "none",
            bool(near["different_lesions"] or near["different_labels"]),
        ),
        *alike,
        ("label conflicts", _count(audit.conflicts, "conflict"), bool(audit.conflicts)),
        (
            "unreadable images",
            f"{len(audit.unreadable) - missing} damaged, {missing} missing"
            if audit.unreadable
            else "none",
            bool(audit.unreadable),
        ),
        ("odd images", f"{len(audit.odd)}: {odd}" if audit.odd else "none", bool(audit.odd)),
        ("classes with fewer than 3 lesions", ", ".join(audit.few) or "none", bool(audit.few)),
        ("metadata rows without image", f"{rows}" if rows else "none", bool(rows)),
        ("images without metadata", _count(audit.strangers, "file"), bool(audit.strangers)),
    ]


def _pairs_text(counts: dict[str, int]) -> str:
    return (
        f"{counts['count']} pairs: {counts['same_lesion']} of one lesion, "
        f"{counts['different_lesions']} of different lesions, {counts['lesion_unknown']} of unknown"
    )


def _alike_finding(found: AlikeSearch) -> tuple[str, str, bool]:
    near = _near_counts(found.pairs)
    text = (
        f"{_pairs_text(near)}; about {found.by_chance:.0f} by chance, as measured on {found.source}"
        if found.pairs
        else "none"
    )
    return ("probably one lesion", text, near["count"] > near["same_lesion"])


def _split_rows(audit: Audit) -> list[list[str]]:
    """One row per question, one column per protocol."""

    def share(value: Shared) -> str:
        # A zero would claim what nobody can know.
        return f"{value.images} ({value.share:.1%})" if audit.lesions else "no lesion ids"

    found = audit.protocols.values()
    questions = {
        "train / val / test": [
            " / ".join(str(len(p.split.part(part))) for part in PARTS) for p in found
        ],
        "lesions on two sides": [
            str(len(p.lesions_across)) if audit.lesions else "no lesion ids" for p in found
        ],
        "test images whose lesion is in train": [share(p.test_in_train) for p in found],
        "test images whose lesion is in train or val": [share(p.test_in_rest) for p in found],
        "val images whose lesion is in train": [share(p.val_in_train) for p in found],
        "identical files on two sides": [str(len(p.identical_across)) for p in found],
        "near-duplicate pairs on two sides": [str(len(p.near_across)) for p in found],
        **(
            {
                "pairs probably of one lesion on two sides": [
                    str(len(audit.alike_across(name))) for name in audit.protocols
                ],
                "test images probably with their lesion in train": [
                    f"{v.images} ({v.share:.1%})"
                    for v in map(audit.alike_in_train, audit.protocols)
                ],
            }
            if audit.alike is not None
            else {}
        ),
        "classes empty in a part": [
            "; ".join(f"{part}: {', '.join(c)}" for part, c in p.empty.items() if c) or "none"
            for p in found
        ],
    }
    return [[question, *answers] for question, answers in questions.items()]


def _class_rows(audit: Audit) -> tuple[list[str], list[list[str]]]:
    columns = ["class", "images", "lesions", *_split_columns(audit)]
    rows = [
        [
            code,
            str(n),
            str(audit.class_lesions[code]),
            *(
                " / ".join(str(p.counts[part][code]) for part in PARTS)
                for p in audit.protocols.values()
            ),
        ]
        for code, n in audit.manifest.class_counts().items()
    ]
    return columns, rows


def _by_interest(pairs: Iterable[NearPair]) -> list[NearPair]:
    """Different labels first, then different or unknown lesions, then the rest."""
    return sorted(pairs, key=lambda p: (p.same_label, p.same_lesion is True, -p.correlation))


def _untold(found: AlikeSearch | None) -> list[AlikePair]:
    """Pairs that lesion ids do not name already, most alike first."""
    pairs = found.pairs if found is not None else ()
    return [p for p in pairs if p.same_lesion is not True]


def _group_row(audit: Audit, images: Sequence[str]) -> list[str]:
    label = {r.image_id: r.label for r in audit.manifest.records}
    return [", ".join(images), _words(label[i] for i in images), *_parts_of(audit, images)]


def _near_row(audit: Audit, pair: NearPair) -> list[str]:
    images, classes, *parts = _group_row(audit, (pair.first, pair.second))
    lesions = _LESIONS[pair.same_lesion]
    return [images, f"{pair.correlation:.2f}", pair.turn, lesions, classes, *parts]


def _alike_row(audit: Audit, pair: AlikePair) -> list[str]:
    images, classes, *parts = _group_row(audit, (pair.first, pair.second))
    return [images, f"{pair.likeness:.2f}", _LESIONS[pair.same_lesion], classes, *parts]


def _conflict_row(conflict: Conflict) -> list[str]:
    return [
        _KINDS[conflict.kind],
        ", ".join(conflict.images),
        ", ".join(conflict.labels),
        conflict.lesion_id,
    ]


def _parts_of(audit: Audit, images: Sequence[str]) -> list[str]:
    """For each protocol, the parts that hold the images: one word where they agree."""
    return [_words(where.get(i, "no part") for i in images) for where in audit.part_of().values()]


def _split_columns(audit: Audit) -> list[str]:
    return [f"{name} split" for name in audit.protocols]


def _words(words: Iterable[str]) -> str:
    every = list(words)
    return every[0] if len(set(every)) == 1 else " / ".join(every)


def _lesions(audit: Audit) -> str:
    text = f"{audit.lesions} lesions"
    return f"{text}; {audit.without_lesion} have no lesion id" if audit.without_lesion else text


def _count(found: Sequence[Any], unit: str) -> str:
    return f"{len(found)} {unit}{'s' if len(found) != 1 else ''}" if found else "none"


def _table(
    title: str,
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    right: Sequence[str] = ("images", "lesions", "lesion split", "paper split", "official split"),
) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold", justify="right" if column in right else "left")
    for row in rows:
        table.add_row(*(Text(_plain(cell)) for cell in row))
    return table


def _plain(text: str) -> str:
    """Without what would move a terminal's cursor or colour it: names come from anywhere."""
    return "".join(c if c.isprintable() else "\ufffd" for c in text)


# --- HTML ------------------------------------------------------------------------------------


def audit_html(audit: Audit, *, limit: int) -> str:
    """One page that needs nothing else: pictures as data URIs, at most `limit` of each kind.

    Reads each shown image again. Ids and paths are escaped.
    """
    manifest = audit.manifest
    records = manifest.by_id()
    part_of = audit.part_of()

    def card(image_id: str) -> dict[str, Any]:
        record = records[image_id]
        return {
            "id": image_id,
            "label": record.label,
            "lesion": record.lesion_id,
            "parts": [(name, where.get(image_id, "none")) for name, where in part_of.items()],
            **_thumbnail(audit, image_id),
        }

    def group(images: Sequence[str], head: str, notes: Sequence[str]) -> dict[str, Any]:
        return {"head": head, "notes": notes, "cards": [card(i) for i in images[:12]]}

    def notes(images: Sequence[str]) -> list[str]:
        # Only what is wrong: a tag that is always there says nothing.
        split = [name for name, where in part_of.items() if len({where.get(i) for i in images}) > 1]
        labels = {records[i].label for i in images}
        lesions = {records[i].lesion_id for i in images if records[i].lesion_id}
        return [
            *(["different labels"] if len(labels) > 1 else []),
            *(["different lesion ids"] if len(lesions) > 1 else []),
            *(f"on two sides of the {name} split" for name in split),
        ]

    def pair(p: NearPair | AlikePair, head: str) -> dict[str, Any]:
        return group((p.first, p.second), head, notes((p.first, p.second)))

    near = _by_interest(audit.near)
    untold = _untold(audit.alike)
    sections = [
        (
            "Byte-identical files",
            "Different names, the same bytes.",
            len(audit.identical),
            [group(g, f"{len(g)} files", notes(g)) for g in audit.identical[:limit]],
        ),
        (
            "Near-duplicates",
            "One picture or one frame, saved, turned, scaled or lit differently. "
            "Those with different labels or lesion ids come first.",
            len(near),
            [pair(p, f"correlation {p.correlation:.2f}, {p.turn}") for p in near[:limit]],
        ),
        (
            "Probably one lesion",
            "Pictures alike enough to show the same lesion, though lesion ids do not say so, most "
            "alike first. Some are so by chance, or of one sitting: look at them.",
            len(untold),
            [
                pair(p, f"likeness {p.likeness:.2f}, lesion ids {_LESIONS[p.same_lesion]}")
                for p in untold[:limit]
            ],
        ),
        (
            "Label conflicts",
            "Images that should agree on their class and do not.",
            len(audit.conflicts),
            [group(c.images, _KINDS[c.kind], notes(c.images)) for c in audit.conflicts[:limit]],
        ),
        (
            "Unreadable images",
            "Recorded, but missing or damaged.",
            len(audit.unreadable),
            [group((u.image_id,), u.path, [u.error]) for u in audit.unreadable[:limit]],
        ),
        (
            "Odd images",
            "They can be read, but are unlike the others.",
            len(audit.odd),
            [group((o.image_id,), "; ".join(o.problems), []) for o in audit.odd[:limit]],
        ),
    ]
    lists = [
        (f"Rows of {file} without image", ids) for file, ids in audit.rows_without_image.items()
    ]
    if audit.strangers:
        lists.append(("Images without metadata", audit.strangers))
    return render_page(
        "audit.html",
        dataset=manifest.dataset,
        licence=manifest.licence,
        citation=manifest.citation,
        data_hash=manifest.data_hash,
        summary=f"{len(manifest.records)} images of {_lesions(audit)}",
        findings=_findings(audit),
        protocols=_split_columns(audit),
        titles=[p.split.title for p in audit.protocols.values()],
        unavailable=audit.unavailable,
        split_rows=_split_rows(audit),
        classes=_class_rows(audit),
        sections=[s for s in sections if s[2]],
        lists=[(title, len(ids), ids[:limit]) for title, ids in lists],
    )


def _thumbnail(audit: Audit, image_id: str) -> dict[str, Any]:
    """A small JPEG as a data URI, with its size; `source` is None where there is no picture."""
    record = audit.manifest.by_id()[image_id]
    size = audit.sizes.get(image_id)
    if size is None:
        return {"source": None, "width": 0, "height": 0}
    scale = THUMBNAIL / max(size)
    width, height = (max(1, round(s * scale)) for s in size)
    try:
        square = load_image(audit.manifest.root / record.path, THUMBNAIL)
    except ImageError:  # gone since it was audited
        return {"source": None, "width": 0, "height": 0}
    file = io.BytesIO()
    Image.fromarray(square).resize((width, height)).save(file, "JPEG", quality=82)
    coded = base64.b64encode(file.getvalue()).decode()
    return {"source": f"data:image/jpeg;base64,{coded}", "width": width, "height": height}
