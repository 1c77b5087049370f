"""Published results, each with the protocol it was got by: without it no figure is shown.

Values are copied as published, to the digit, mistakes included. What cannot be is marked
(`Published.impossible`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

# --- Table 1 and other figures of whole models ------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Published:
    """One published result.

    Attributes:
        dataset: that it is of, by our name.
        method: as its authors call it.
        protocol: what was trained on, judged on, and how the model was chosen.
        kind: the split of ours that is of the same kind: `paper`, `official`; "" for none.
        source: where the figures stand.
        accuracy: share of right answers; None where not published, like all that follow.
        macro_f1: macro-averaged.
        macro_recall: macro-averaged, which is balanced accuracy.
        macro_precision: macro-averaged.
        sensitivity: to the first class of a binary task.
        note: what else the reader must know.
    """

    dataset: str
    method: str
    protocol: str
    kind: str
    source: str
    accuracy: float | None = None
    macro_f1: float | None = None
    macro_recall: float | None = None
    macro_precision: float | None = None
    sensitivity: float | None = None
    note: str = ""

    @property
    def highest_f1(self) -> float | None:
        """The most that macro-F1 can be, given macro-recall R and macro-precision P: 2PR / (P + R).

        F1 is a concave function of a class's precision and recall, so its mean over the classes is
        at most that of the means (Opitz and Burst 2019, arXiv:1911.03347).
        """
        if not self.macro_recall or not self.macro_precision:
            return None
        both = self.macro_recall + self.macro_precision
        return 2 * self.macro_recall * self.macro_precision / both

    @property
    def impossible(self) -> bool:
        """Whether its figures cannot all be of the same answers, rounding allowed for."""
        highest = self.highest_f1
        return None not in (highest, self.macro_f1) and self.macro_f1 > highest + 1e-4  # type: ignore[operator]

    @property
    def remark(self) -> str:
        """The note, and what is impossible about the figures."""
        told = [self.note] if self.note else []
        if self.impossible:
            told.append(
                f"impossible: with recall {self.macro_recall:.4f} and precision "
                f"{self.macro_precision:.4f} macro-F1 is at most {self.highest_f1:.4f}, not "
                f"{self.macro_f1:.4f}"
            )
        return "; ".join(told)

    def to_dict(self) -> dict[str, Any]:
        """Plain dict for JSON."""
        return {**asdict(self), "impossible": self.impossible, "remark": self.remark}


_PAPER = "BIIGMA-Net paper, Table 1"
_CITED = "as the BIIGMA-Net paper cites it, which does not say by which protocol"
_RANDOM = (
    "random 80:20 by image (images of a lesion stand on both sides); the released code takes the "
    "best epoch on the test part"
)
_SENSITIVITY = "the cited column recall is taken as the sensitivity to the first class"
_AT_BOUND = (
    "its macro-F1 is that of the averaged recall and precision to four digits: perhaps no mean of "
    "the classes' F1, which can only be lower"
)


def _cited(
    dataset: str,
    method: str,
    f1: float | None,
    accuracy: float,
    recall: float,
    precision: float | None,
) -> Published:
    return Published(
        dataset=dataset, method=method, protocol=_CITED, kind="", source=_PAPER, macro_f1=f1,
        accuracy=accuracy, macro_recall=recall, macro_precision=precision,
    )  # fmt: skip


def _binary(dataset: str, method: str, accuracy: float, sensitivity: float) -> Published:
    return Published(
        dataset=dataset, method=method, protocol=_CITED, kind="", source=_PAPER,
        accuracy=accuracy, sensitivity=sensitivity, note=_SENSITIVITY,
    )  # fmt: skip


def _ours(
    dataset: str, f1: float, accuracy: float, recall: float, precision: float, note: str = ""
) -> Published:
    return Published(
        dataset=dataset, method="BIIGMA-Net (paper)", protocol=_RANDOM, kind="paper",
        source=_PAPER, macro_f1=f1, accuracy=accuracy, macro_recall=recall,
        macro_precision=precision, note=note,
    )  # fmt: skip


#: Table 1 of the paper, with the row of Table 2 that judges ISIC 2017 in three classes, and other
#: figures of the same data sets. The bracketed numbers are the paper's references.
TABLE1: tuple[Published, ...] = (
    Published(
        dataset="isic17", method="BIIGMA-Net (paper)", protocol=f"{_RANDOM}; 2,600 images",
        kind="paper", source="BIIGMA-Net paper, Table 2, best configuration", macro_f1=0.7203,
        accuracy=0.7921, macro_recall=0.7116,
    ),
    _ours("isic17-mel", 0.7933, 0.8486, 0.7675, 0.7001),
    _binary("isic17-mel", "Zhang et al. [24]", 0.8370, 0.5900),
    _binary("isic17-mel", "Ding et al. [7]", 0.8620, 0.6320),
    _binary("isic17-mel", "Wei et al. [19]", 0.8620, 0.6620),
    _ours("isic17-sk", 0.8044, 0.9092, 0.8428, 0.7784),
    _binary("isic17-sk", "Zhang et al. [24]", 0.9080, 0.7780),
    _binary("isic17-sk", "Ding et al. [7]", 0.9280, 0.8330),
    _ours("isic18", 0.8220, 0.8833, 0.8094, 0.8351, _AT_BOUND),
    Published(
        dataset="isic18", method="BIIGMA-Net (the authors' notebook)",
        protocol=f"{_RANDOM}; 3 heads, sigma 2.5", kind="paper",
        source="log of the authors' released notebook, best epoch", accuracy=0.8793,
        macro_f1=0.7887,
    ),
    _cited("isic18", "Li et al. [14]", 0.7494, 0.8594, 0.7335, 0.7777),
    _cited("isic18", "Zhang et al. [25]", 0.7676, 0.8720, 0.7301, 0.8344),
    _cited("isic18", "Wang et al. [18]", 0.7952, 0.8542, 0.8557, 0.7320),
    _cited("isic18", "Xu et al. [21]", 0.7968, 0.8442, 0.8595, 0.7499),
    Published(
        dataset="isic18", method="PanDerm, linear probe (ViT-L foundation model)",
        protocol="HAM_clean: 8,207 / 575 / 1,232 images train / val / test", kind="",
        source="PanDerm", accuracy=0.9237, macro_f1=0.81, macro_recall=0.7966,
    ),
    *(
        Published(
            dataset="isic18", method=f"{team} (challenge, rank {rank})",
            protocol=f"official test part, {data}", kind="official",
            source="leaderboard of the ISIC 2018 challenge, task 3", macro_recall=recall,
        )
        for rank, (team, recall, data) in enumerate(
            (
                ("MetaOptima", 0.885, "external data in training"),
                ("DAISYLab", 0.856, "external data in training"),
                ("Sun Yat-sen University", 0.845, "no external data said"),
            ),
            1,
        )
    ),
    _ours("isic19", 0.8052, 0.8853, 0.8130, 0.7975, _AT_BOUND),
    _cited("isic19", "Li et al. [14]", 0.7513, 0.8475, 0.7189, 0.7981),
    _cited("isic19", "Yao et al. [23]", 0.7508, 0.8410, 0.7483, 0.7581),
    _cited("isic19", "Chu et al. [5]", 0.7920, 0.8820, 0.8700, None),
    _cited("isic19", "Zhang et al. [25]", 0.7946, 0.8611, 0.7657, 0.8322),
    Published(
        dataset="isic19", method="DAISYLab", protocol="5-fold cross-validation, grouped by lesion",
        kind="", source="ISIC 2019 challenge", macro_recall=0.742,
    ),
    Published(
        dataset="isic19", method="DAISYLab (challenge)",
        protocol="official test part, with the unknown class (UNK) that training lacks",
        kind="", source="leaderboard of the ISIC 2019 challenge", macro_recall=0.636,
    ),
)  # fmt: skip


def published_for(dataset: str) -> tuple[Published, ...]:
    """The published results of a data set, in the order they are shown; () where there are none."""
    return tuple(row for row in TABLE1 if row.dataset == dataset)


def comparability(rows: Sequence[Published], protocol: str, part: str) -> str:
    """A line that says how far the rows can be compared with a model of ours.

    Args:
        protocol: ours: `lesion`, `paper` or `official`.
        part: that ours was judged on.
    """
    alike = [row for row in rows if part == "test" and row.kind == protocol]
    if not alike:
        return (
            "Not comparable: each was got by another protocol than ours, on other test images. "
            "Protocols differ by more than methods do."
        )
    names = "; ".join(dict.fromkeys(row.method for row in alike))
    if protocol == "official":
        return (
            f"On the same test images as ours, trained on other data where it is said: {names}. "
            "All others are not comparable: their protocols differ."
        )
    return (
        f"By a split of the same kind, but not the same images and not chosen as ours: {names}. "
        "All others are not comparable: their protocols differ."
    )


# --- Table 2: the ablation --------------------------------------------------------------------


def _table2(*rows: tuple[str, float, float, float]) -> dict[str, dict[str, float]]:
    return {
        name: {"macro_f1": f1, "accuracy": accuracy, "macro_recall": recall}
        for name, f1, accuracy, recall in rows
    }


#: Table 2 of the paper by data set and row, the rows by the names of `biigma ablate`. `full` is its
#: "best configuration"; on ISIC 2019 the paper gives that and its three heads different figures.
TABLE2: dict[str, dict[str, dict[str, float]]] = {
    "isic17": _table2(
        ("baseline", 0.6408, 0.7187, 0.6311),
        ("no-mica", 0.6957, 0.7684, 0.6947),
        ("no-sampling", 0.6994, 0.7633, 0.7984),
        ("no-independence", 0.6860, 0.7450, 0.7094),
        ("heads-1", 0.6896, 0.7600, 0.6956),
        ("heads-2", 0.6943, 0.7733, 0.6872),
        ("heads-3", 0.7203, 0.7921, 0.7116),
        ("heads-4", 0.7153, 0.7867, 0.7160),
        ("sigma-0.5", 0.6700, 0.7400, 0.6908),
        ("sigma-1", 0.6858, 0.7567, 0.6979),
        ("sigma-2", 0.7203, 0.7921, 0.7116),
        ("sigma-4", 0.6579, 0.7381, 0.6606),
        ("cosine", 0.7133, 0.7883, 0.7063),
        ("full", 0.7203, 0.7921, 0.7116),
    ),
    "isic18": _table2(
        ("baseline", 0.7256, 0.8431, 0.7221),
        ("no-mica", 0.7994, 0.8798, 0.7931),
        ("no-sampling", 0.7947, 0.8638, 0.8028),
        ("no-independence", 0.7869, 0.8738, 0.7627),
        ("heads-1", 0.7871, 0.8691, 0.7789),
        ("heads-2", 0.7938, 0.8753, 0.7865),
        ("heads-3", 0.8220, 0.8833, 0.8094),
        ("heads-4", 0.7920, 0.8743, 0.7781),
        ("sigma-0.5", 0.7883, 0.8748, 0.7634),
        ("sigma-1", 0.8220, 0.8833, 0.8094),
        ("sigma-2", 0.7937, 0.8783, 0.7842),
        ("sigma-4", 0.7866, 0.8748, 0.7731),
        ("cosine", 0.7920, 0.8753, 0.7817),
        ("full", 0.8220, 0.8833, 0.8094),
    ),
    "isic19": _table2(
        ("baseline", 0.7178, 0.8022, 0.7334),
        ("no-mica", 0.7945, 0.8722, 0.7802),
        ("no-sampling", 0.7988, 0.8760, 0.8051),
        ("no-independence", 0.7900, 0.8685, 0.7609),
        ("heads-1", 0.7892, 0.8701, 0.7758),
        ("heads-2", 0.7952, 0.8775, 0.7803),
        ("heads-3", 0.8025, 0.8814, 0.8086),
        ("heads-4", 0.7961, 0.8780, 0.7829),
        ("sigma-0.5", 0.7832, 0.8690, 0.7605),
        ("sigma-1", 0.8052, 0.8853, 0.8130),
        ("sigma-2", 0.7904, 0.8731, 0.7760),
        ("sigma-4", 0.7995, 0.8802, 0.7922),
        ("cosine", 0.7941, 0.8726, 0.7779),
        ("full", 0.8052, 0.8853, 0.8130),
    ),
}

#: To stand wherever a value of Table 2 does.
TABLE2_PROTOCOL = (
    f"published in Table 2 of the BIIGMA-Net paper: {_RANDOM}; DenseNet-121 at 224, 100 epochs, "
    "one value each without a spread. Another protocol than ours, on other test images: only the "
    "paper's own differences can be read from it"
)
