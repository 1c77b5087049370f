"""Class lists of the ISIC challenges: their order, full names and which are malignant.

The order is that of the official ground-truth files, and so of every logit, column and metric.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from biigma_cli.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class LesionClass:
    """One diagnosis.

    Attributes:
        code: the challenge's column name, upper case; a user's own label as it is written.
        name: full name for people.
        malignant: malignant or pre-malignant (actinic keratosis counts, as in HAM10000's paper);
            None where nobody has said.
    """

    code: str
    name: str
    malignant: bool | None


@dataclass(frozen=True, kw_only=True)
class Taxonomy:
    """The classes of one data set, in the order of the logits."""

    dataset: str
    title: str
    classes: tuple[LesionClass, ...]

    @property
    def codes(self) -> tuple[str, ...]:
        """Class codes in logit order."""
        return tuple(c.code for c in self.classes)

    def __len__(self) -> int:
        return len(self.classes)

    def index(self, code: str) -> int:
        """Index of a class code, any case. Raises `KeyError` where it is unknown."""
        for known in (code, code.upper()):
            if known in self.codes:
                return self.codes.index(known)
        raise KeyError(code)


def _c(code: str, name: str, *, malignant: bool = False) -> LesionClass:
    return LesionClass(code=code, name=name, malignant=malignant)


MEL = _c("MEL", "melanoma", malignant=True)
NV = _c("NV", "melanocytic nevus")
BCC = _c("BCC", "basal cell carcinoma", malignant=True)
AKIEC = _c("AKIEC", "actinic keratosis / Bowen's disease", malignant=True)
AK = _c("AK", "actinic keratosis", malignant=True)
BKL = _c("BKL", "benign keratosis", malignant=False)
DF = _c("DF", "dermatofibroma")
VASC = _c("VASC", "vascular lesion")
SCC = _c("SCC", "squamous cell carcinoma", malignant=True)
SK = _c("SK", "seborrheic keratosis")

OTHER = LesionClass(code="OTHER", name="any other lesion", malignant=None)

ISIC17 = Taxonomy(dataset="isic17", title="ISIC 2017", classes=(MEL, SK, NV))
# The paper's two binary tasks on ISIC 2017.
ISIC17_MEL = Taxonomy(
    dataset="isic17-mel", title="ISIC 2017, melanoma against the rest", classes=(MEL, OTHER)
)
ISIC17_SK = Taxonomy(
    dataset="isic17-sk",
    title="ISIC 2017, seborrheic keratosis against the rest",
    classes=(SK, OTHER),
)
ISIC18 = Taxonomy(
    dataset="isic18", title="ISIC 2018 / HAM10000", classes=(MEL, NV, BCC, AKIEC, BKL, DF, VASC)
)
ISIC19 = Taxonomy(
    dataset="isic19", title="ISIC 2019", classes=(MEL, NV, BCC, AK, BKL, DF, VASC, SCC)
)
SYNTHETIC = Taxonomy(dataset="synthetic", title="synthetic dermoscopy", classes=ISIC18.classes)

TAXONOMIES = {t.dataset: t for t in (ISIC17, ISIC17_MEL, ISIC17_SK, ISIC18, ISIC19, SYNTHETIC)}

#: Binary task -> the data set whose images it relabels.
DERIVED = {"isic17-mel": "isic17", "isic17-sk": "isic17"}

_KNOWN = {c.code: c for c in (MEL, NV, BCC, AKIEC, AK, BKL, DF, VASC, SCC, SK, OTHER)}


#: Code -> what another challenge calls that lesion, or the wider class it puts it in.
_COUNTERPARTS = {"SK": "BKL", "AK": "AKIEC", "AKIEC": "AK"}


def counterpart(code: str, taxonomy: Taxonomy) -> str | None:
    """The class of `taxonomy` for lesions that another data set calls `code`; None for none.

    Seborrheic keratosis lies within BKL, not the other way round. AK and AKIEC are taken for each
    other, although Bowen's disease is in the second alone.
    """
    for known in (code, _COUNTERPARTS.get(code)):
        if known in taxonomy.codes:
            return known
    return None


def same_diagnosis(labels: Sequence[str]) -> list[tuple[str, ...]]:
    """Labels that mean one diagnosis, such as a code beside its full name; mostly empty.

    Names count in any case, spelling (`naevus`) and number (`nevi`). Actinic keratosis is AK, or
    AKIEC where that alone is a label.
    """
    groups: dict[str, list[str]] = defaultdict(list)
    for label in labels:
        code = label.upper() if label.upper() in _KNOWN else _NAMES.get(_plain(label))
        if code == "AK" and "AK" not in labels and "AKIEC" in labels:
            code = "AKIEC"
        if code is not None:
            groups[code].append(label)
    return [tuple(same) for same in groups.values() if len(same) > 1]


def _plain(name: str) -> str:
    """A diagnosis's full name in one spelling, in the singular."""
    plain = re.sub(r"[\W_]+", " ", name.casefold()).strip()
    plain = plain.replace("naev", "nev").replace("rrhoe", "rrhe")
    plain = re.sub(r"\bnevi\b", "nevus", plain).replace("keratoses", "keratosis")
    return re.sub(r"(?<=oma|ion)s\b", "", plain)


#: Full name, as `_plain` has it -> code.
_NAMES = {
    **{_plain(c.name): code for code, c in _KNOWN.items()},
    # What else people write.
    "malignant melanoma": "MEL",
    "nevus": "NV",
    "benign keratosis like lesion": "BKL",
}


def base_of(dataset: str) -> str:
    """The data set whose images these are: of a binary task the one it relabels."""
    return DERIVED.get(dataset, dataset)


def taxonomy(dataset: str) -> Taxonomy:
    """Taxonomy by data-set name. Raises `UsageError` naming the known ones."""
    if dataset not in TAXONOMIES:
        raise UsageError(
            f"unknown data set {dataset!r}", fix=f"choose one of: {', '.join(TAXONOMIES)}"
        )
    return TAXONOMIES[dataset]


def lesion_class(code: str) -> LesionClass:
    """The class of a code; a user's own label stands for itself."""
    return _KNOWN.get(code) or LesionClass(code=code, name=code, malignant=None)


def custom_taxonomy(dataset: str, codes: tuple[str, ...]) -> Taxonomy:
    """The classes of a user's own data set."""
    return Taxonomy(dataset=dataset, title=dataset, classes=tuple(lesion_class(c) for c in codes))
