"""Class lists of the ISIC challenges: their order, full names and which are malignant.

The order is that of the official ground-truth files, and so of every logit, column and metric.
"""

from __future__ import annotations

from dataclasses import dataclass

from biigma_cli.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class LesionClass:
    """One diagnosis.

    Attributes:
        code: the challenge's column name, upper case.
        name: full name for people.
        malignant: malignant or pre-malignant (actinic keratosis counts, as in HAM10000's paper).
    """

    code: str
    name: str
    malignant: bool


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
        try:
            return self.codes.index(code.upper())
        except ValueError:
            raise KeyError(code) from None


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

ISIC17 = Taxonomy(dataset="isic17", title="ISIC 2017", classes=(MEL, SK, NV))
ISIC18 = Taxonomy(
    dataset="isic18", title="ISIC 2018 / HAM10000", classes=(MEL, NV, BCC, AKIEC, BKL, DF, VASC)
)
ISIC19 = Taxonomy(
    dataset="isic19", title="ISIC 2019", classes=(MEL, NV, BCC, AK, BKL, DF, VASC, SCC)
)

TAXONOMIES = {t.dataset: t for t in (ISIC17, ISIC18, ISIC19)}


def taxonomy(dataset: str) -> Taxonomy:
    """Taxonomy by data-set name. Raises `UsageError` naming the known ones."""
    if dataset not in TAXONOMIES:
        raise UsageError(
            f"unknown data set {dataset!r}", fix=f"choose one of: {', '.join(TAXONOMIES)}"
        )
    return TAXONOMIES[dataset]
