"""A user's own data set: a folder per class, or a CSV."""

from __future__ import annotations

import difflib
import os
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from biigma_cli.data.ham10000 import MASK
from biigma_cli.data.manifest import Manifest, age_years
from biigma_cli.data.scan import (
    IMAGES,
    OTHER_IMAGES,
    Draft,
    Progress,
    Warn,
    alike_in_case,
    big_lesion,
    check_images,
    composed,
    first,
    known_value,
    read_csv,
    resolved,
    walk_files,
)
from biigma_cli.errors import DataError, UsageError
from biigma_cli.storage import is_file, real_path
from biigma_cli.taxonomy import (
    ISIC17,
    ISIC18,
    ISIC19,
    SYNTHETIC,
    TAXONOMIES,
    lesion_class,
    same_diagnosis,
)

COLUMNS = ("image", "label")
OPTIONAL = ("lesion_id", "patient_id", "split", "mask", "age", "sex", "site")
PARTS = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


def read_custom(
    name: str,
    source: Path,
    *,
    classes: Sequence[str] = (),
    licence: str = "unknown",
    citation: str = "",
    allow_missing: bool = False,
    progress: Progress | None = None,
    warn: Warn | None = None,
) -> Manifest:
    """Read a folder per class, or a CSV, and check that each image opens.

    A folder holds one folder per class, its name the label; or `train`, `val` and `test`, each
    with a folder per class; or a single CSV. A mask lies beside its image, as
    `IMAGE_segmentation.png`. A CSV has the columns `image` (a path relative to the CSV, or a file's
    name; the suffix may be left out) and `label`, and may have `lesion_id`, `patient_id`, `split`
    (train, val, test), `mask`, `age`, `sex` and `site`; the separator may be a comma, semicolon or
    tab. A lesion id such as `unknown` or `nan` is none. Labels that are ISIC codes,
    in any case, become those.

    Args:
        name: to call it; lower case letters, digits, and `.`, `_`, `-`.
        classes: the classes and their order; default: that of the ISIC challenge that has them
            all, else sorted.
        allow_missing: leave rows without an image out, and go without masks that are not there.

    Raises:
        UsageError: a name that is taken or cannot be used, doubled `classes`.
        DataError: nothing there, a wrong column, an unknown or doubtful label, doubles, a missing
            or damaged image.
    """
    check_name(name)
    source = resolved(source, fix="give a folder or a CSV file")
    table = source if source.is_file() else _only_table(source)
    if table is not None:
        root = table.parent
        drafts, missing = _from_csv(table, allow_missing=allow_missing, warn=warn)
    else:
        root = source
        drafts, missing = _from_folders(source, warn=warn), []
    codes = _classes(sorted({d.label for d in drafts}), classes)
    if missing and warn:
        warn(f"{len(missing)} rows have no image; left out: {first(missing)}")
    _refuse_doubles(drafts, table or source)
    if warn:
        _tell_one_diagnosis(codes, table, warn)
        _tell_big_lesions(drafts, warn)
        _tell_odd_ages(drafts, warn)
    return Manifest(
        dataset=name,
        root=root,
        records=check_images(drafts, root, progress=progress),
        licence=licence,
        citation=citation,
        codes=codes,
        missing=len(missing),
    )


def check_name(name: str) -> None:
    """Raise `UsageError` where a data set cannot be called so."""
    if name in TAXONOMIES or name.startswith(f"{SYNTHETIC.dataset}-"):
        raise UsageError(f"{name} is a name of biigma's own", fix="choose another name")
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} cannot be a data set's name",
            fix="use lower case letters, digits, and . _ - (up to 64, a letter or digit first)",
        )


def _only_table(folder: Path) -> Path | None:
    """The folder's CSV where it has one and so is no folder of classes."""
    tables = [p for p in _inside(folder) if p.suffix.lower() == ".csv" and p.is_file()]
    if len(tables) > 1:
        raise DataError(
            f"{folder} holds {len(tables)} CSV files: {first([p.name for p in tables])}",
            fix="name the one to read",
        )
    return tables[0] if tables else None


def _refuse_doubles(drafts: Sequence[Draft], where: Path) -> None:
    """No image twice, by id or by file: with two labels, or in two parts, it would be a leak."""
    by_id: dict[str, Draft] = {}
    by_file: dict[str, Draft] = {}
    for draft in drafts:
        file = real_path(draft.file)
        other = by_id.setdefault(draft.image_id, draft)
        if other is draft:
            other = by_file.setdefault(file, draft)
        if other is not draft:
            both = dict.fromkeys([other.file.name, draft.file.name])
            raise DataError(
                f"{where} names images twice: {draft.image_id} ({' and '.join(both)})",
                fix="remove the doubles" if len(both) == 1 else "remove or rename one of them",
            )


def _tell_one_diagnosis(codes: Sequence[str], table: Path | None, warn: Warn) -> None:
    """A code and its own full name would be learnt as two classes."""
    found = [" and ".join(map(repr, same)) for same in same_diagnosis(codes)]
    if found:
        fix = "give them the same name in the CSV" if table else "put their images in one folder"
        warn(f"classes that seem to be one diagnosis: {', '.join(found)}; if they are, {fix}")


def _tell_big_lesions(drafts: Sequence[Draft], warn: Warn) -> None:
    """A lesion with a tenth of all images, which goes to one part whole, may be a placeholder.

    So may a patient.
    """
    for what, ids in (
        ("lesion", [d.lesion_id for d in drafts]),
        ("patient", [d.patient_id for d in drafts]),
    ):
        found = big_lesion(ids)
        if found is not None:
            warn(
                f"{what}_id {found[0]!r} has {found[1]} of {len(drafts)} images, which all go to "
                f"one part; if it means that the {what} is unknown, leave the cell empty"
            )


def _tell_odd_ages(drafts: Sequence[Draft], warn: Warn) -> None:
    """What is written as an age and is none counts as unknown wherever ages are told apart."""
    odd = [repr(d.age) for d in drafts if known_value(d.age) and age_years(d.age) is None]
    if odd:
        warn(
            f"{len(odd)} ages are no years from 0 to 130 and count as unknown: "
            f"{first(list(dict.fromkeys(odd)))}"
        )


def _from_csv(
    path: Path, *, allow_missing: bool, warn: Warn | None
) -> tuple[list[Draft], list[str]]:
    rows = read_csv(
        path, COLUMNS, optional=OPTIONAL, delimiter=None, absent="check the path", warn=warn
    )  # fmt: skip
    if not rows:
        raise DataError(f"{path} has no rows", fix="one row per image")
    by_stem: dict[str, list[Path]] | None = None
    drafts: list[Draft] = []
    missing: list[str] = []
    unmasked: list[str] = []
    for row in rows:
        named = row["image"].strip()
        part = (row.get("split") or "").strip().lower()
        if part and part not in PARTS:
            near = difflib.get_close_matches(part, PARTS, n=1)
            raise DataError(
                f"{path}, line {row.line}: unknown split {row['split']!r}",
                fix=f"did you mean {near[0]!r}?" if near else "use train, val or test",
            )
        file = path.parent / named
        if not is_file(file):
            if by_stem is None:
                by_stem = _by_name(path.parent)
            found = by_stem.get(composed(Path(named).name), [])
            if Path(named).name != named:
                found = [p for p in found if _answers(p, path.parent, named)]
            if not found:
                missing.append(named)
                continue
            if len(found) > 1:
                files = first(_below(found, path))
                raise DataError(
                    f"{path}, line {row.line}: {named!r} could be any of {files}",
                    fix="write the path, with its suffix",
                )
            file = found[0]
        mask = path.parent / row["mask"].strip() if (row.get("mask") or "").strip() else None
        if mask is not None and not is_file(mask):
            unmasked.append(row["mask"].strip())
            mask = None
        beside = file.with_name(f"{file.stem}{MASK}.png")
        if mask is None and is_file(beside):
            mask = beside
        drafts.append(
            Draft(
                image_id=composed(
                    Path(named).with_suffix("").as_posix()
                    if Path(named).suffix.lower() in IMAGES
                    else named
                ),
                file=file,
                label=_label(row["label"]),
                part=PARTS.get(part, ""),
                lesion_id=known_value(row.get("lesion_id") or ""),
                patient_id=known_value(row.get("patient_id") or ""),
                mask=mask,
                **{k: (row.get(k) or "").strip() for k in ("age", "sex", "site")},
            )
        )
    if missing and not allow_missing:
        raise DataError(
            f"{len(missing)} of {len(rows)} rows of {path} have no image: {first(missing)}"
            f"{_cased(missing, path.parent)}",
            fix=f"{_slashes(missing)}paths are relative to the CSV; or pass --allow-missing",
        )
    if unmasked and not allow_missing:
        raise DataError(
            f"{len(unmasked)} masks that {path} names are not there: {first(unmasked)}"
            f"{_cased(unmasked, path.parent)}",
            fix=f"{_slashes(unmasked)}paths are relative to the CSV; or pass --allow-missing to go "
            "without them",
        )
    if not drafts:
        raise DataError(
            f"no image of {path} was found{_cased(missing, path.parent)}",
            fix=f"{_slashes(missing)}paths are relative to the CSV",
        )
    return drafts, missing


def _cased(names: Sequence[str], top: Path) -> str:
    """Which of the files that are not there are there in another case, to show."""
    there: dict[str, str] = {}
    for path in walk_files([top], IMAGES):
        below = path.relative_to(top)
        for form in (below, below.with_suffix(""), Path(below.name), Path(below.stem)):
            there.setdefault(composed(form.as_posix()).casefold(), below.as_posix())
    spelt = {n: there.get(composed(Path(n).as_posix()).casefold()) for n in names}
    found = [f"{n} is called {other}" for n, other in spelt.items() if other is not None]
    return f"; names differ in case: {first(found, 3)}" if found else ""


def _slashes(names: Sequence[str]) -> str:
    """The remedy for backslashes where they separate no folders."""
    if os.sep != "/" or not any("\\" in n for n in names):
        return ""
    return "write / in place of \\, which separates folders on Windows alone; "


def _from_folders(top: Path, *, warn: Warn | None) -> list[Draft]:
    below = _folders(top)
    parted = [p for p in below if p.name.lower() in PARTS]
    others = [p.name for p in below if p not in parted]
    drafts: list[Draft] = []
    if parted and not others:
        for folder in parted:
            for own in _folders(folder):
                drafts += _class_folder(own, top, PARTS[folder.name.lower()], warn)
    elif len(parted) > 1 or any(_folders(p) for p in parted):
        raise DataError(
            f"{top} holds {', '.join(p.name for p in parted)}, and beside them {first(others)}: "
            "parts, or classes?",
            fix="keep only train, val and test there, each with a folder per class",
        )
    else:
        for own in below:
            drafts += _class_folder(own, top, "", warn)
    if not drafts:
        raise DataError(
            f"no folder of images in {top}",
            fix="make one folder per class, or a CSV with the columns image and label",
        )
    return drafts


def _inside(folder: Path) -> list[Path]:
    """What lies in a folder, hidden things left out."""
    try:
        return sorted(p for p in folder.iterdir() if not p.name.startswith("."))
    except OSError as error:
        raise DataError(
            f"cannot read the folder {folder}: {error.strerror}", fix="change its permissions"
        ) from error


def _folders(folder: Path) -> list[Path]:
    return [p for p in _inside(folder) if p.is_dir()]


def _by_name(folder: Path) -> dict[str, list[Path]]:
    """Image files below a folder, by name with and without suffix."""
    found: dict[str, list[Path]] = defaultdict(list)
    for path in walk_files([folder], IMAGES):
        for name in {path.name, path.stem}:
            found[composed(name)].append(path)
    return found


def _answers(path: Path, top: Path, named: str) -> bool:
    """Whether a file is the one named from `top`, its suffix perhaps left out."""
    below = path.relative_to(top)
    wanted = composed(Path(named).as_posix())
    return wanted in (composed(p.as_posix()) for p in (below, below.with_suffix("")))


def _below(paths: Sequence[Path], table: Path) -> list[str]:
    return [p.relative_to(table.parent).as_posix() for p in paths]


def _class_folder(folder: Path, top: Path, part: str, warn: Warn | None) -> list[Draft]:
    parts = [p.name for p in _folders(folder) if p.name.lower() in PARTS]
    if parts:
        raise DataError(
            f"the class folder {folder} holds {first(parts)}: parts belong above the classes",
            fix=f"make it {parts[0]}/{folder.name} instead of {folder.name}/{parts[0]}",
        )
    every = walk_files([folder], (*IMAGES, *OTHER_IMAGES))
    found = [path for path in every if path.suffix.lower() in IMAGES]
    if warn and (others := [path for path in every if path.suffix.lower() in OTHER_IMAGES]):
        warn(
            f"{len(others)} files of {folder} are left out ({others[0].name}, ...): of a folder "
            f"{', '.join(IMAGES)} are taken; name others in a CSV"
        )
    stems = {path.with_suffix("") for path in found}
    masks = {
        path.with_name(path.stem[: -len(MASK)]): path
        for path in found
        if path.stem.endswith(MASK) and path.with_name(path.stem[: -len(MASK)]) in stems
    }
    taken = set(masks.values())
    found = [path for path in found if path not in taken]
    if not found:
        raise DataError(f"the class folder {folder} holds no image", fix="fill or remove it")
    return [
        Draft(
            image_id=composed(path.relative_to(top).with_suffix("").as_posix()),
            file=path,
            label=_label(folder.name),
            part=part,
            mask=masks.get(path.with_suffix("")),
        )
        for path in found
    ]


def _label(text: str) -> str:
    """A label as it is, or the ISIC code that it is in another case."""
    text = composed(text.strip())
    return text.upper() if lesion_class(text.upper()).malignant is not None else text


def _classes(found: list[str], wanted: Sequence[str]) -> tuple[str, ...]:
    if wanted:
        codes = tuple(_label(c) for c in wanted)
        if len(set(codes)) < max(2, len(codes)):
            raise UsageError(
                f"--classes {','.join(codes)} are not two or more different ones",
                fix="name each class once",
            )
        for label in found:
            if label not in codes:
                near = difflib.get_close_matches(label, codes, n=1)
                raise DataError(
                    f"unknown label {label!r}",
                    fix=f"did you mean {near[0]!r}?" if near else f"known: {', '.join(codes)}",
                )
        empty = [c for c in codes if c not in found]
        if empty:
            raise DataError(f"no image of {', '.join(empty)}", fix="leave the class out")
        return codes
    alike = alike_in_case(found)
    if alike:
        raise DataError(
            f"labels that differ in case only: {', '.join(map(repr, alike))}",
            fix="write them alike",
        )
    if len(found) < 2:
        raise DataError(f"only one class: {', '.join(found)}", fix="two are needed at least")
    for known in (ISIC18, ISIC19, ISIC17):
        if set(found) <= set(known.codes):
            return tuple(sorted(found, key=known.codes.index))
    return tuple(found)
