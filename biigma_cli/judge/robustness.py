"""How far a model's answers hang on what is not the lesion: measured, image by image."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from biigma_cli.data.images import load_part
from biigma_cli.data.manifest import Manifest, Record
from biigma_cli.data.perturb import (
    PERTURBATIONS,
    Answers,
    Effect,
    LesionMasks,
    Measures,
    Perturbation,
    Scene,
    choose_donors,
    choose_images,
    difference,
    effects,
    lesion_masks,
    mean_with_interval,
    perturb,
)
from biigma_cli.data.preprocess import Pixels, map_threads
from biigma_cli.data.splits import check_same_split
from biigma_cli.errors import UsageError
from biigma_cli.judge.candidate import Candidate, Floats, Progress
from biigma_cli.judge.judgement import check_classes, split_of
from biigma_cli.metrics import Figure, score_weight
from biigma_cli.storage import available_cpus

# Images perturbed together: what is held in memory beside the masks, whatever the part's size.
_BATCH = 32
_SHEET_IMAGES = 3


class Change(NamedTuple):
    """Mean absolute difference of a perturbed picture to its own, in levels of 255.

    Attributes:
        inside: over the lesion.
        outside: over the rest.
    """

    inside: float
    outside: float


class Pull(NamedTuple):
    """How far answers go over to the class of the donor of another class's background.

    Attributes:
        answers: share of answers that name the donor's class, after - before.
        probability: mean probability of the donor's class, after - before.
        by_class: donor's class to images and share of unchanged answers.
    """

    answers: Figure
    probability: Figure
    by_class: Mapping[str, tuple[int, float]]


class Outcome(NamedTuple):
    """What the perturbations did to one model.

    Attributes:
        model: its name.
        side: of the pictures, in pixels.
        resize: rule by which they came to be squares.
        accuracy: on the same images, unchanged.
        balanced_accuracy: likewise.
        effects: in the order of `PERTURBATIONS`, by strength.
        pull: towards the donor's class.
        change: of the pictures, by name and strength.
    """

    model: str
    side: int
    resize: str
    accuracy: float
    balanced_accuracy: float
    effects: tuple[Effect, ...]
    pull: Pull
    change: Mapping[tuple[str, int], Change]

    def to_dict(self) -> dict[str, Any]:
        """Plain dict for JSON."""
        return {
            "model": self.model,
            "perturbed_at": {"side": self.side, "resize": self.resize},
            "accuracy": self.accuracy,
            "balanced_accuracy": self.balanced_accuracy,
            "conditions": [
                {
                    **_title(e),
                    **e.to_dict(),
                    "mean_change": self.change[e.name, e.strength]._asdict(),
                }
                for e in self.effects
            ],
            "towards_donor_class": {
                "answers": self.pull.answers.to_dict(),
                "probability": self.pull.probability.to_dict(),
                "by_donor_class": {
                    code: {"images": n, "unchanged": share}
                    for code, (n, share) in self.pull.by_class.items()
                },
            },
        }


@dataclass(frozen=True, kw_only=True)
class Robustness:
    """The result of `judge_robustness`.

    Attributes:
        part: `train`, `val` or `test`.
        ids: images that were perturbed.
        lesions: how many lesions they show.
        usable: images of the part with a usable mask, from which these were chosen.
        missing: images of the part without a mask.
        unusable: images whose mask is empty or leaves next to no background.
        no_donor: images that had no donor, by perturbation; left out of that one.
        donors: donor of each image, by perturbation.
        seed: of the choice, of the perturbations and of the resamples.
        resamples: of the intervals.
        own: the model judged.
        against: a second model over the same pictures.
        differences: first - second, per condition: overall, macro and by class.
    """

    part: str
    ids: tuple[str, ...] = field(repr=False)
    lesions: int
    usable: int
    missing: int
    unusable: int
    no_donor: Mapping[str, int]
    donors: Mapping[str, Mapping[str, str]] = field(repr=False)
    seed: int
    resamples: int
    own: Outcome
    against: Outcome | None = None
    differences: tuple[Mapping[str, Measures], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain dict for JSON."""
        plain: dict[str, Any] = {
            "part": self.part,
            "images": len(self.ids),
            "lesions": self.lesions,
            "usable": self.usable,
            "without_mask": self.missing,
            "unusable_mask": self.unusable,
            "without_donor": dict(self.no_donor),
            "seed": self.seed,
            "resamples": self.resamples,
            **self.own.to_dict(),
        }
        if self.against is not None:
            plain["against"] = self.against.to_dict()
            plain["difference"] = [
                {**_title(e), **{name: m.to_dict() for name, m in apart.items()}}
                for e, apart in zip(self.own.effects, self.differences, strict=True)
            ]
        return plain


def judge_robustness(
    candidate: Candidate,
    manifest: Manifest,
    part_name: str,
    *,
    against: Candidate | None = None,
    images: int | None = None,
    seed: int = 0,
    resamples: int = 2000,
    reading: Progress = lambda *_: None,
    perturbing: Progress = lambda *_: None,
    warn: Callable[[str], None] = lambda _: None,
) -> Robustness:
    """Answers to the part's pictures as they are and under every perturbation.

    Pictures are perturbed at the model's own input side, see `data.perturb.kinds`. Each batch is
    read once, perturbed in all ways and judged, so memory does not grow with the part. Two models
    of one side and resize rule see the same pixels; else the same perturbations at their own sides.

    Args:
        against: a second model; paired differences (first - second) are added.
        images: at most so many, whole lesions drawn by the seed; None takes all with a mask.
            Donors of backgrounds come from the whole part in any case.
        resamples: of the bootstrap; 0 gives figures without intervals.
        reading: progress in masks.
        perturbing: progress in pictures answered.

    Raises:
        UsageError: `images` is below 1.
        CheckpointMismatch: as `judge`.
        DataError: no image has a usable mask, masks are not of their picture's size, a file is gone
            or damaged, or a model gives NaN.
    """
    if images is not None and images < 1:
        raise UsageError(f"{images} images for robustness", fix="give 1 or more")
    split = split_of(candidate, manifest)
    models = [candidate]
    if against is not None:
        check_classes(against, manifest)
        check_same_split(split, against.split, source=against.name)
        models.append(against)
    part = split.part(part_name)
    ids = [i for i, counted in zip(part, score_weight(part), strict=True) if counted]
    masks: dict[tuple[int, str], LesionMasks] = {}
    for model in models:
        if _view(model) not in masks:
            side, rule = _view(model)
            masks[side, rule] = lesion_masks(manifest, ids, side, rule=rule, progress=reading)
    first = masks[_view(candidate)]
    everywhere = set(first.ids).intersection(*(m.ids for m in masks.values()))
    by_id = manifest.by_id()
    pool = [by_id[i] for i in first.ids if i in everywhere]
    records = choose_images(pool, images, seed=seed)
    if not records:
        raise UsageError(
            f"no lesion has as few as {images} images", fix="raise --robustness-images"
        )
    donors = _donors(records, pool, first, seed)
    proba: dict[int, dict[tuple[str, int], Floats]] = {}
    change: dict[tuple[int, str], dict[tuple[str, int], Change]] = {}
    steps = 1 + sum(p.strengths for p in PERTURBATIONS.values())
    total, done = len(records) * steps * len(models), 0
    perturbing(0, total)

    def answered(count: int) -> None:
        nonlocal done
        done += count
        perturbing(done, total)

    for view, found in masks.items():
        same = [(k, m) for k, m in enumerate(models) if _view(m) == view]
        answers, change[view] = _answers(
            [m for _, m in same], manifest, records, donors, found, view, seed, answered, warn
        )
        proba |= {k: a for (k, _), a in zip(same, answers, strict=True)}
    outcomes = [
        _outcome(model, manifest, records, donors, proba[k], change[_view(model)], resamples, seed)
        for k, model in enumerate(models)
    ]
    own, other = outcomes[0], outcomes[1] if against is not None else None
    return Robustness(
        part=part_name,
        ids=tuple(r.image_id for r in records),
        lesions=len(set(_groups(records))),
        usable=len(pool),
        missing=len(first.missing),
        unusable=len(ids) - len(first.missing) - len(pool),
        no_donor={name: len(records) - len(given) for name, given in donors.items()},
        donors=donors,
        seed=seed,
        resamples=resamples,
        own=own,
        against=other,
        differences=tuple(difference(a, b) for a, b in zip(own.effects, other.effects, strict=True))
        if other is not None
        else (),
    )


class Example(NamedTuple):
    """One image of the contact sheet.

    Attributes:
        title: id and class.
        scene: the picture as it is, and its lesion.
        pictures: perturbation to its strengths, and `NAME donor` to the donor as it is.
    """

    title: str
    scene: Scene
    pictures: Mapping[str, Sequence[Pixels]]


def examples(
    result: Robustness, candidate: Candidate, manifest: Manifest, *, count: int = _SHEET_IMAGES
) -> list[Example]:
    """Every perturbation of a few of the images that were judged, of as many classes as may be.

    Of each class the lesion whose size is the most usual is taken; the classes come in order of
    the model's.
    """
    side, rule = _view(candidate)
    records = manifest.by_id()
    masks = lesion_masks(manifest, result.ids, side, rule=rule)
    usual = float(np.median(list(masks.area.values())))
    by_class: dict[str, list[str]] = {code: [] for code in candidate.classes}
    for i in sorted(masks.ids, key=lambda i: (abs(masks.area[i] - usual), i)):
        by_class[records[i].label].append(i)
    # The first of each class, then the second of each.
    turns = range(max(len(found) for found in by_class.values()))
    order = [found[t] for t in turns for found in by_class.values() if t < len(found)]
    made = []
    for image in order[:count]:
        given = {n: d[image] for n, d in result.donors.items() if image in d}
        scenes = _scenes(manifest, [image, *given.values()], side, rule)
        pictures: dict[str, Sequence[Pixels]] = {}
        for name, kind in PERTURBATIONS.items():
            donor = scenes.get(given.get(name, ""))
            if kind.donor and donor is None:
                continue
            pictures[name] = perturb(name, scenes[image], seed=result.seed, donor=donor)
            if donor is not None:
                pictures[f"{name} donor"] = (donor.pixels,)
        made.append(Example(f"{image}, {records[image].label}", scenes[image], pictures))
    return made


def _title(effect: Effect) -> dict[str, Any]:
    kind = PERTURBATIONS[effect.name]
    step = kind.steps[effect.strength - 1]
    return {
        "name": effect.name,
        "title": kind.title,
        "group": kind.group,
        **({"strength": effect.strength, "strength_name": step} if step else {}),
    }


def _view(model: Candidate) -> tuple[int, str]:
    return model.data.side, model.data.resize


def _groups(records: Sequence[Record]) -> list[str]:
    return [r.lesion_id or r.image_id for r in records]


def _donors(
    records: Sequence[Record], pool: Sequence[Record], masks: LesionMasks, seed: int
) -> dict[str, dict[str, str]]:
    return {
        p.name: choose_donors(records, pool, masks.area, same_class=p.donor == "same", seed=seed)
        for p in PERTURBATIONS.values()
        if p.donor
    }


def _scenes(
    manifest: Manifest,
    ids: Sequence[str],
    side: int,
    rule: str,
    masks: LesionMasks | None = None,
) -> dict[str, Scene]:
    """Pictures with their lesions, each once."""
    once = tuple(dict.fromkeys(ids))
    masks = masks or lesion_masks(manifest, once, side, rule=rule)
    pixels = load_part(manifest, once, side, rule=rule).pixels
    return {i: Scene(i, pixels[k], masks[i]) for k, i in enumerate(once)}


def _answers(
    models: Sequence[Candidate],
    manifest: Manifest,
    records: Sequence[Record],
    donors: Mapping[str, Mapping[str, str]],
    masks: LesionMasks,
    view: tuple[int, str],
    seed: int,
    answered: Callable[[int], None],
    warn: Callable[[str], None],
) -> tuple[list[dict[tuple[str, int], Floats]], dict[tuple[str, int], Change]]:
    """Each model's probabilities per condition, `("", 0)` unchanged, and what was changed.

    An image without a donor has a row of zeros there.
    """
    side, rule = view
    n, classes = len(records), len(models[0].classes)
    keys = [("", 0)]
    keys += [(p.name, s + 1) for p in PERTURBATIONS.values() for s in range(p.strengths)]
    proba = [{key: np.zeros((n, classes), np.float32) for key in keys} for _ in models]
    moved = {key: np.zeros(4) for key in keys[1:]}  # inside: sum, pixels; outside: sum, pixels
    # The cache is made once, where it can be; without it each batch is decoded when its turn comes.
    load_part(manifest, [records[0].image_id], side, rule=rule, build=True, warn=warn)

    def run(key: tuple[str, int], rows: Sequence[int], pixels: Pixels) -> None:
        for kept, model in zip(proba, models, strict=True):
            kept[key][rows] = model.run(pixels, lambda *_: None).proba_nY
            answered(len(rows))

    for start in range(0, n, _BATCH):
        batch = [r.image_id for r in records[start : start + _BATCH]]
        given = [d[i] for d in donors.values() for i in batch if i in d]
        scenes = _scenes(manifest, [*batch, *given], side, rule, masks)
        rows = list(range(start, start + len(batch)))
        run(("", 0), rows, np.stack([scenes[i].pixels for i in batch]))
        for kind in PERTURBATIONS.values():
            done_to = [k for k, i in enumerate(batch) if not kind.donor or i in donors[kind.name]]
            if len(done_to) < len(batch):
                answered((len(batch) - len(done_to)) * kind.strengths * len(models))
            if not done_to:
                continue
            steps = _perturbed(kind, [batch[k] for k in done_to], scenes, donors, seed)
            inside = np.stack([scenes[batch[k]].lesion for k in done_to])
            before = np.stack([scenes[batch[k]].pixels for k in done_to])
            for strength, pixels in enumerate(steps, start=1):
                key = (kind.name, strength)
                run(key, [rows[k] for k in done_to], pixels)
                apart = np.abs(pixels.astype(np.int16) - before).mean(3)
                moved[key] += (
                    apart[inside].sum(), inside.sum(), apart[~inside].sum(), (~inside).sum()
                )  # fmt: skip
    return proba, {
        key: Change(float(a / max(b, 1)), float(c / max(d, 1)))
        for key, (a, b, c, d) in moved.items()
    }


def _perturbed(
    kind: Perturbation,
    ids: Sequence[str],
    scenes: Mapping[str, Scene],
    donors: Mapping[str, Mapping[str, str]],
    seed: int,
) -> list[Pixels]:
    """The batch's pictures, `(b, side, side, 3)` for each strength."""

    def one(image: str) -> tuple[Pixels, ...]:
        donor = scenes[donors[kind.name][image]] if kind.donor else None
        return perturb(kind.name, scenes[image], seed=seed, donor=donor)

    made = list(map_threads(one, ids, threads=available_cpus()))
    return [np.stack(step) for step in zip(*made, strict=True)]


def _outcome(
    model: Candidate,
    manifest: Manifest,
    records: Sequence[Record],
    donors: Mapping[str, Mapping[str, str]],
    proba: Mapping[tuple[str, int], Floats],
    change: Mapping[tuple[str, int], Change],
    resamples: int,
    seed: int,
) -> Outcome:
    codes, groups = model.classes, _groups(records)
    label_n = np.array([codes.index(r.label) for r in records], np.int64)
    before = proba["", 0]
    after = []
    for (name, strength), found in proba.items():
        if name:
            given = donors.get(name)
            there = [given is None or r.image_id in given for r in records]
            after.append(Answers(name, strength, np.array(there, np.bool_), found))
    made = effects(
        label_n, before, after, codes, groups=groups, resamples=resamples, seed=seed
    )  # fmt: skip
    right = before.argmax(1) == label_n
    other = next(p.name for p in PERTURBATIONS.values() if p.donor == "other")
    return Outcome(
        model=model.name,
        side=model.data.side,
        resize=model.data.resize,
        accuracy=float(right.mean()),
        balanced_accuracy=float(np.mean([right[label_n == c].mean() for c in np.unique(label_n)])),
        effects=tuple(made),
        pull=_pull(manifest, records, donors[other], codes, before, proba[other, 1], groups,
                   resamples, seed),
        change=change,
    )  # fmt: skip


def _pull(
    manifest: Manifest,
    records: Sequence[Record],
    given: Mapping[str, str],
    codes: Sequence[str],
    before: Floats,
    after: Floats,
    groups: Sequence[str],
    resamples: int,
    seed: int,
) -> Pull:
    by_id = manifest.by_id()
    rows = np.array([k for k, r in enumerate(records) if r.image_id in given], np.intp)
    labels = [by_id[given[records[k].image_id]].label for k in rows]
    donor_n = np.array([codes.index(code) for code in labels], np.intp)
    was, now = before[rows].argmax(1), after[rows].argmax(1)
    answers = (now == donor_n).astype(np.float64) - (was == donor_n)
    each = np.arange(len(rows))
    probability = after[rows][each, donor_n].astype(np.float64) - before[rows][each, donor_n]
    chosen = [groups[k] for k in rows]
    counts = Counter(labels)
    return Pull(
        mean_with_interval(answers, chosen, resamples=resamples, seed=seed),
        mean_with_interval(probability, chosen, resamples=resamples, seed=seed),
        {
            code: (counts[code], float((was == now)[donor_n == codes.index(code)].mean()))
            for code in codes
            if counts[code]
        },
    )
