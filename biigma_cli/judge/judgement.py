"""The figures of a model on one part of a data set."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from biigma_cli.config import DataConfig
from biigma_cli.data.images import Part, load_part
from biigma_cli.data.manifest import Manifest
from biigma_cli.data.splits import Split, check_same_split, make_split, same_split
from biigma_cli.errors import CheckpointMismatch
from biigma_cli.judge import abstention, screening
from biigma_cli.judge.abstention import Abstention, abstentions
from biigma_cli.judge.candidate import Answers, Candidate, Progress
from biigma_cli.judge.prevalence import AtPrevalence, judge_at
from biigma_cli.judge.screening import Malignancy, screen
from biigma_cli.metrics import (
    HEADLINE,
    Assessment,
    Difference,
    Ints,
    assess,
    compare,
    paper_columns,
    score_weight,
)
from biigma_cli.metrics.calibration import wilson
from biigma_cli.runtime.limits import NOTHING_STATED, Stated
from biigma_cli.taxonomy import DERIVED


class Flagged(NamedTuple):
    """What a model's input check takes for no dermoscopy, of images that are.

    Attributes:
        n: images.
        flagged: of them.
        low: lower end of the share's 95% interval (Wilson's, images taken as independent).
        high: its upper end.
        accuracy: of the answers for the images that were not flagged; None where all were.
    """

    n: int
    flagged: int
    low: float
    high: float
    accuracy: float | None

    @property
    def share(self) -> float:
        """Of the images."""
        return self.flagged / self.n

    def to_dict(self) -> dict[str, Any]:
        """As plain values, the share among them."""
        return {**self._asdict(), "share": self.share}


class Rival(NamedTuple):
    """The second model of a judgement, and first minus second over the same images.

    Attributes, where they are not those of `Judgement`:
        difference: first minus second.
    """

    model: str
    temperature: float | None
    assessment: Assessment
    difference: Difference
    chosen: tuple[str, ...] = ()
    caveats: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What a model did on one part.

    Attributes:
        model: its name.
        temperature: T that its probabilities are calibrated with; None where they are as trained.
        views: of each image whose mean probabilities are its answer.
        device: what it ran on, as torch or ONNX Runtime calls it.
        split: that the part is of.
        part: `train`, `val` or `test`.
        ids: the part's images, those that do not count among them.
        label_n: `(n,)` class indices.
        proba_nY: `(n, Y)`.
        lesions: whether any image's lesion is known; else each image stands for its own.
        assessment: the figures.
        against: the second model, if there is one.
        chosen: what of the model was chosen on the validation part, in words.
        caveats: what could not be found out about the images that it was held from.
        flagged: by the model's input check; None where it has none.
        limits: of an exported model, when not to answer and what to call suspicious: those of
            this very part if it is the validation part, else those it states.
        abstention: what not answering does on this part.
        malignancy: malignant against benign, and what calling images suspicious does; None where
            not every class is known to be either, or there are images of one kind alone.
        prevalence: figures where classes have other shares; None where not asked for.
    """

    model: str
    temperature: float | None
    views: int = 1
    device: str = ""
    split: Split
    part: str
    ids: tuple[str, ...]
    label_n: Ints = field(repr=False)
    proba_nY: npt.NDArray[np.float32] = field(repr=False)
    lesions: bool
    assessment: Assessment
    against: Rival | None = None
    chosen: tuple[str, ...] = ()
    caveats: tuple[str, ...] = ()
    flagged: Flagged | None = None
    stated: Stated = NOTHING_STATED
    abstention: tuple[Abstention, ...] = ()
    malignancy: Malignancy | None = None
    prevalence: AtPrevalence | None = None

    @property
    def binary(self) -> bool:
        """Whether it is one of the paper's binary tasks: the first class against the rest."""
        return self.split.dataset in DERIVED

    def to_dict(self) -> dict[str, Any]:
        """All of the part as it is, but images and probabilities, for JSON.

        `assessment` is the whole; counts of answers and the headline's intervals also stand at the
        top, where they have always been.
        """
        own = self.assessment
        plain: dict[str, Any] = {
            "model": self.model,
            "dataset": self.split.dataset,
            "part": self.part,
            "protocol": self.split.title,
            "data_hash": self.split.data_hash,
            "split_hash": self.split.split_hash,
            "temperature": self.temperature,
            "views": self.views,
            "device": self.device,
            "bootstrap": own.bootstrap,
            **own.figures.to_dict(),
            "intervals": {name: own.overall[name].to_dict() for name in HEADLINE},
            "assessment": own.to_dict(),
        }
        if self.flagged is not None:
            plain["input_check"] = self.flagged.to_dict()
        if self.abstention:
            plain["abstention"] = [a.to_dict() for a in self.abstention]
        if self.malignancy is not None:
            plain["malignancy"] = self.malignancy.to_dict()
        if self.binary:
            columns = paper_columns(own)
            plain["paper_columns"] = {name: f.to_dict() for name, f in columns.items()}
        if self.against is not None:
            other = self.against
            plain["against"] = {
                "model": other.model,
                "temperature": other.temperature,
                **other.assessment.figures.headline(),
                "assessment": other.assessment.to_dict(),
                "difference": other.difference.to_dict(),
            }
        return plain


def still_holds(
    figures: dict[str, Any], file: Path, checkpoint: Path, split: dict[str, Any]
) -> bool:
    """Whether figures kept in `file` are those of the present checkpoint, on this split's data.

    Raises `OSError` where one of the files is not there.
    """
    newer = file.stat().st_mtime_ns >= checkpoint.stat().st_mtime_ns
    return newer and same_split(figures, split)


def split_of(candidate: Candidate, manifest: Manifest) -> Split:
    """The candidate's own split, made again from the data here.

    Raises `CheckpointMismatch` where data or split differ from those it was trained with, or where
    the classes do.
    """
    check_classes(candidate, manifest)
    stored = candidate.split
    config = DataConfig(
        dataset=manifest.dataset,
        protocol=stored["protocol"],
        join_duplicates=stored.get("join_duplicates", False),
        test_fraction=stored["test_fraction"],
        val_fraction=stored["val_fraction"],
        split_seed=stored["seed"],
    )
    split = make_split(manifest, config)
    check_same_split(split, stored, source=candidate.name)
    return split


def judge(
    candidate: Candidate,
    manifest: Manifest,
    part_name: str,
    *,
    against: Candidate | None = None,
    shares: Sequence[float] | None = None,
    resamples: int = 2000,
    decoding: Progress = lambda *_: None,
    running: Progress = lambda *_: None,
    resampling: Progress = lambda *_: None,
    warn: Callable[[str], None] = lambda _: None,
) -> Judgement:
    """All figures of a part, with bootstrap intervals by lesion.

    Args:
        against: a second model; paired differences (first - second) are added. It must have been
            trained with the same split, or its test images may be among those it has seen.
        shares: `(Y,)` of the classes, together 1, for figures where they are such; 0 for a class
            of which the part has no image.
        resamples: of the bootstrap; 0 gives figures without intervals.

    Raises:
        CheckpointMismatch: classes, data or split are not those a model was trained with.
        DataError: an image is gone or has changed, the part has images of one class only, or a
            model gives NaN.
    """
    split = split_of(candidate, manifest)
    if against is not None:
        check_classes(against, manifest)
        check_same_split(split, against.split, source=against.name)
    data = candidate.data
    part = load_part(
        manifest, split.part(part_name), data.side, rule=data.resize, build=True,
        progress=decoding, warn=warn,
    )  # fmt: skip

    def run(model: Candidate) -> tuple[Answers, Assessment]:
        pixels = _same_images(part, manifest, data, model.data)
        running(0, len(pixels))
        answers = model.run(pixels, running)
        resampling(0, resamples)
        return answers, assess(
            part.labels, answers.proba_nY, model.classes, groups=part.groups,
            counted=score_weight(part.ids), resamples=resamples, progress=resampling,
        )  # fmt: skip

    answers, own = run(candidate)
    rival = None
    if against is not None:
        _, other = run(against)
        rival = Rival(
            against.name, against.temperature, other, compare(own, other), against.chosen,
            against.caveats,
        )  # fmt: skip
    found, kept, told_apart, rarer = _by_limits(
        candidate, part_name, part, answers, shares, resamples
    )
    records = manifest.by_id()
    return Judgement(
        model=candidate.name,
        temperature=candidate.temperature,
        views=candidate.views,
        device=candidate.device,
        split=split,
        part=part_name,
        ids=part.ids,
        label_n=part.labels,
        proba_nY=answers.proba_nY,
        lesions=any(records[image].lesion_id for image in part.ids),
        assessment=own,
        against=rival,
        chosen=candidate.chosen,
        caveats=candidate.caveats,
        flagged=_flagged(answers, part.labels, score_weight(part.ids)),
        stated=found,
        abstention=kept,
        malignancy=told_apart,
        prevalence=rarer,
    )


def _by_limits(
    candidate: Candidate,
    part_name: str,
    part: Part,
    answers: Answers,
    shares: Sequence[float] | None,
    resamples: int,
) -> tuple[Stated, tuple[Abstention, ...], Malignancy | None, AtPrevalence | None]:
    """The limits, and what they do here and where classes have such shares.

    They are found here on the validation part, which they are for; else as the model states them.
    """
    counted = score_weight(part.ids)
    label_n, proba_nY = part.labels[counted], answers.proba_nY[counted]
    groups = [g for g, c in zip(part.groups, counted, strict=True) if c]
    flagged_n = None if answers.novelty_n is None else answers.novelty_n[counted] > 1
    malignant = candidate.malignant
    found = candidate.stated
    if part_name == "val" and candidate.exported and candidate.views == 1:
        found = Stated.find(label_n, proba_nY, malignant, groups, flagged_n=flagged_n)
    kept: tuple[Abstention, ...] = ()
    if found.abstention is not None:
        kept = abstentions(
            abstention.promised(found.abstention), label_n, proba_nY, malignant, groups,
            flagged_n=flagged_n, resamples=resamples,
        )  # fmt: skip
    told_apart = screen(
        screening.promised(found.screening), label_n, proba_nY, malignant, groups,
        flagged_n=flagged_n, resamples=resamples,
    )  # fmt: skip
    rarer = None
    if shares is not None:
        rarer = judge_at(
            shares, label_n, proba_nY, candidate.classes, malignant, groups,
            limits=screening.promised(found.screening),
            weight_Y=None if found.prior is None else found.prior.weights(shares),
            flagged_n=flagged_n, resamples=resamples,
        )  # fmt: skip
    return found, kept, told_apart, rarer


def _flagged(answers: Answers, label_n: Ints, counted_n: npt.NDArray[np.bool_]) -> Flagged | None:
    if answers.novelty_n is None:
        return None
    flagged_n = answers.novelty_n[counted_n] > 1
    n, count = len(flagged_n), int(flagged_n.sum())
    right_n = (answers.proba_nY.argmax(1) == label_n)[counted_n][~flagged_n]
    low, high = wilson(count / n, n)
    return Flagged(n, count, low, high, float(right_n.mean()) if len(right_n) else None)


def check_classes(candidate: Candidate, manifest: Manifest) -> None:
    """Raise `CheckpointMismatch` where the data set has other classes than the model."""
    if candidate.classes != manifest.taxonomy.codes:
        raise CheckpointMismatch(
            f"{candidate.name} has {len(candidate.classes)} classes "
            f"({', '.join(candidate.classes)}), {manifest.dataset} has "
            f"{len(manifest.taxonomy)} ({', '.join(manifest.taxonomy.codes)})",
            fix="judge it on the data set it was trained on",
        )


def _same_images(
    part: Part, manifest: Manifest, first: DataConfig, second: DataConfig
) -> npt.NDArray[np.uint8]:
    if (first.side, first.resize) == (second.side, second.resize):
        return part.pixels
    return load_part(manifest, part.ids, second.side, rule=second.resize, build=True).pixels
