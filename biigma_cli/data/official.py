"""ISIC 2017, 2018 and 2019 in the challenges' own layout, unzipped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from biigma_cli.data.ham10000 import (
    CITATION,
    EXPECTED_COUNTS,
    METADATA,
    METADATA_NAMES,
    masks_by_id,
)
from biigma_cli.data.manifest import Manifest
from biigma_cli.data.scan import (
    Draft,
    Progress,
    Warn,
    check_images,
    first,
    images_by_stem,
    read_csv,
    refuse_doubles,
    resolved,
    walk_files,
)
from biigma_cli.errors import DataError
from biigma_cli.storage import is_folder
from biigma_cli.taxonomy import taxonomy

CITATION_17 = "ISIC 2017 challenge: Codella et al., arXiv:1710.05006."
CITATION_19 = (
    CITATION + " BCN_20000 (c) Department of Dermatology, Hospital Clinic de Barcelona, "
    "doi:10.1038/s41597-024-03387-w. ISIC 2019."
)


@dataclass(frozen=True, kw_only=True)
class OfficialPart:
    """One part of a challenge.

    Attributes:
        part: `train`, `val` or `test`.
        truth: CSV of the labels.
        counts: published images per class.
        metadata: CSV of age, sex and site, if any.
        groupings: CSV of lesion ids, if any.
    """

    part: str
    truth: str
    counts: dict[str, int]
    metadata: str = ""
    groupings: str = ""


@dataclass(frozen=True, kw_only=True)
class Challenge:
    """A year's data set."""

    dataset: str
    licence: str
    citation: str
    id_column: str
    parts: tuple[OfficialPart, ...]


CHALLENGES = {
    "isic17": Challenge(
        dataset="isic17",
        licence="CC0-1.0",
        citation=CITATION_17,
        id_column="image_id",
        parts=(
            OfficialPart(
                part="train",
                truth="ISIC-2017_Training_Part3_GroundTruth.csv",
                metadata="ISIC-2017_Training_Data_metadata.csv",
                counts={"MEL": 374, "SK": 254, "NV": 1372},
            ),
            OfficialPart(
                part="val",
                truth="ISIC-2017_Validation_Part3_GroundTruth.csv",
                metadata="ISIC-2017_Validation_Data_metadata.csv",
                counts={"MEL": 30, "SK": 42, "NV": 78},
            ),
            OfficialPart(
                part="test",
                truth="ISIC-2017_Test_v2_Part3_GroundTruth.csv",
                metadata="ISIC-2017_Test_v2_Data_metadata.csv",
                counts={"MEL": 117, "SK": 90, "NV": 393},
            ),
        ),
    ),
    "isic18": Challenge(
        dataset="isic18",
        licence="CC-BY-NC-4.0",
        citation=CITATION,
        id_column="image",
        parts=(
            OfficialPart(
                part="train",
                truth="ISIC2018_Task3_Training_GroundTruth.csv",
                groupings="ISIC2018_Task3_Training_LesionGroupings.csv",
                counts=EXPECTED_COUNTS,
            ),
            # Only the total of this part is published with its labels.
            OfficialPart(
                part="val", truth="ISIC2018_Task3_Validation_GroundTruth.csv", counts={"": 193}
            ),
            OfficialPart(
                part="test",
                truth="ISIC2018_Task3_Test_GroundTruth.csv",
                counts={"MEL": 171, "NV": 909, "BCC": 93, "AKIEC": 43, "BKL": 217, "DF": 44,
                        "VASC": 35},
            ),
        ),
    ),
    "isic19": Challenge(
        dataset="isic19",
        licence="CC-BY-NC-4.0",
        citation=CITATION_19,
        id_column="image",
        parts=(
            OfficialPart(
                part="train",
                truth="ISIC_2019_Training_GroundTruth.csv",
                metadata="ISIC_2019_Training_Metadata.csv",
                counts={"MEL": 4522, "NV": 12875, "BCC": 3323, "AK": 867, "BKL": 2624, "DF": 239,
                        "VASC": 253, "SCC": 628},
            ),
            OfficialPart(
                part="test",
                truth="ISIC_2019_Test_GroundTruth.csv",
                metadata="ISIC_2019_Test_Metadata.csv",
                counts={"": 8238},
            ),
        ),
    ),
}  # fmt: skip


def existing_folder(folder: Path) -> Path:
    """`folder`, whole. Raises `DataError` where there is none."""
    folder = resolved(folder, fix="check --from")
    if not is_folder(folder):
        raise DataError(f"no folder at {folder}", fix="check --from")
    return folder


def truth_files(folders: Sequence[Path]) -> dict[str, Path]:
    """Tables below the folders by name; HAM10000's under whichever of its names as `METADATA`."""
    found: dict[str, Path] = {}
    for path in walk_files(folders, (".csv", *(n.lower() for n in METADATA_NAMES))):
        found.setdefault(path.name, path)
    for name in METADATA_NAMES:
        if name in found:
            found.setdefault(METADATA, found[name])
    return found


def read_official(
    dataset: str,
    folders: Sequence[Path],
    *,
    allow_missing: bool = False,
    progress: Progress | None = None,
    warn: Warn | None = None,
) -> Manifest:
    """Read every part whose ground truth lies below `folders`, and check it.

    Images may lie anywhere below any of the folders. An ISIC 2019 id that ends in `_downsampled`
    is answered by the image without that ending, if need be. Images of the class UNK, which none
    can be trained on, are left out.

    Args:
        allow_missing: take what is there: labelled images that are not are counted in
            `Manifest.missing`.

    Raises:
        DataError: no ground truth, a wrong column, other counts than published, images that are
            missing or damaged.
    """
    challenge = CHALLENGES[dataset]
    folders = [existing_folder(f) for f in folders]
    tables = truth_files(folders)
    here = [p for p in challenge.parts if p.truth in tables]
    if not here:
        raise DataError(
            f"no ground truth of {dataset} below {', '.join(map(str, folders))}",
            fix=f"expected one of: {', '.join(p.truth for p in challenge.parts)}",
        )
    files = images_by_stem(folders)
    masks = masks_by_id(folders)
    drafts: list[Draft] = []
    missing: list[str] = []
    for part in here:
        labels, unknown = _labels(challenge, tables[part.truth])
        if unknown and warn:
            warn(f"{len(unknown)} images of {part.truth} are of the class UNK; left out")
        _check_counts(part, labels, len(unknown), allow_missing=allow_missing)
        lesions = _column(tables.get(part.groupings), "image", "lesion_id")
        extra = _metadata(challenge.id_column, tables.get(part.metadata))
        if part.groupings and not lesions:
            extra = _metadata("image_id", tables.get(METADATA))
        named = lesions or any(facts.get("lesion_id") for facts in extra.values())
        if warn and part.part == "train" and not named:
            source = part.groupings or (part.metadata if dataset == "isic19" else "")
            if source and source not in tables:
                warn(
                    f"no {source}: which images of {part.truth} show one lesion is not known, "
                    "and nothing keeps them on one side of a split"
                )
        for image_id, label in labels.items():
            file = files.get(image_id) or files.get(image_id.removesuffix("_downsampled"))
            if file is None:
                missing.append(image_id)
                continue
            facts = extra.get(image_id, {})
            drafts.append(
                Draft(
                    image_id=image_id,
                    file=file,
                    label=label,
                    lesion_id=lesions.get(image_id) or facts.get("lesion_id", ""),
                    part=part.part,
                    mask=masks.get(image_id),
                    age=facts.get("age", ""),
                    sex=facts.get("sex", ""),
                    site=facts.get("site", ""),
                )
            )
    if missing and not allow_missing:
        raise DataError(
            f"{len(missing)} of {len(missing) + len(drafts)} labelled images of {dataset} are not "
            f"there: {first(missing)}",
            fix="complete the copy (--from may be given several times), or pass --allow-missing",
        )
    if not drafts:
        raise DataError(f"no image of {dataset} lies below {folders[0]}", fix="check --from")
    refuse_doubles((d.image_id for d in drafts), f"the ground truth of {dataset}")
    if missing and warn:
        warn(f"{len(missing)} labelled images are not there; {len(drafts)} are")
    return Manifest(
        dataset=dataset,
        root=folders[0],
        records=check_images(drafts, folders[0], progress=progress),
        licence=challenge.licence,
        citation=challenge.citation,
        missing=len(missing),
    )


def _labels(challenge: Challenge, path: Path) -> tuple[dict[str, str], list[str]]:
    """Label by id, and the ids of the class UNK."""
    if challenge.dataset == "isic17":
        # Two binary questions; an image that is neither is a nevus.
        columns = {"melanoma": "MEL", "seborrheic_keratosis": "SK"}
    else:
        columns = {c: c for c in taxonomy(challenge.dataset).codes}
    key = challenge.id_column
    rows = read_csv(path, (key, *columns), absent="check --from")
    refuse_doubles((r[key] for r in rows), path)
    labels: dict[str, str] = {}
    unknown: list[str] = []
    for row in rows:
        try:
            values = {c: float(row[c]) for c in columns}
            other = float(row.get("UNK") or 0)
        except ValueError as error:
            raise DataError(
                f"{path}, line {row.line}: {error}", fix="get the file again"
            ) from error
        odd = [v for v in (*values.values(), other) if v not in (0, 1)]
        if odd:
            raise DataError(
                f"{path}, line {row.line}: {odd[0]:g} is neither 0 nor 1", fix="get the file again"
            )
        chosen = [code for c, code in columns.items() if values[c]] + ["UNK"] * bool(other)
        if chosen == ["UNK"]:
            unknown.append(row[key])
        elif len(chosen) == 1:
            labels[row[key]] = chosen[0]
        elif not chosen and challenge.dataset == "isic17":
            labels[row[key]] = "NV"
        else:
            raise DataError(
                f"{path}, line {row.line}: {row[key]} is of {len(chosen)} classes",
                fix="exactly one column must be 1",
            )
    return labels, unknown


def _check_counts(
    part: OfficialPart, labels: dict[str, str], unknown: int, *, allow_missing: bool
) -> None:
    counted = Counter(labels.values())
    counted[""] = len(labels) + unknown
    expected = part.counts
    found = {c: counted[c] for c in expected}
    if found != expected and not allow_missing:
        raise DataError(
            f"{part.truth} differs from the published one: found {_show(found)}, "
            f"expected {_show(expected)}",
            fix="get the original file, or pass --allow-missing",
        )


def _show(counts: dict[str, int]) -> str:
    return ", ".join(f"{code or 'images'} {n}" for code, n in counts.items())


def _column(path: Path | None, key: str, value: str) -> dict[str, str]:
    if path is None:
        return {}
    rows = read_csv(path, (key, value), filled=(key,), delimiter=None)
    return {r[key]: r[value] for r in rows}


def _metadata(key: str, path: Path | None) -> dict[str, dict[str, str]]:
    """Age, sex, site and lesion by id, under our own names."""
    if path is None:
        return {}
    names = {
        "age": "age", "age_approx": "age", "age_approximate": "age", "sex": "sex",
        "anatom_site_general": "site", "localization": "site", "lesion_id": "lesion_id",
    }  # fmt: skip
    return {
        row[key]: {
            new: row[old] for old, new in names.items() if row.get(old) and row[old] != "unknown"
        }
        for row in read_csv(path, (key,), delimiter=None)
    }
