"""Fit and judge what tells whether two pictures show one lesion (`biigma audit --same-lesion`).

    python benchmarks/same_lesion.py [--fit FILE]

On HAM10000 and the lesion-safe split of the model whose trunk it takes. With `--fit` the metric is
fitted to the training part's lesions, and how often different lesions reach a value is counted
among validation pictures and, for what is too rare there, between them and training pictures; else
the shipped metric is judged as it is. Then, on the validation part and on the test part, as if
nobody knew their lesions: pairs found, how many of them are of one lesion, how many of all pairs
of one lesion they are, and pairs of different lesions next to what was to be expected by chance
(on the validation part that is what was counted). Last, what an audit would say of a split by
image: held-out pictures split 80:20, the share of test images whose lesion is in train, as it is
and as the search takes it to be. Intervals: 2,000 resamples of lesions.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from input_check import own_part
from sklearn.metrics import average_precision_score

from biigma_cli.config import ModelConfig
from biigma_cli.core.likeness import LesionMetric, Views, save_metric
from biigma_cli.data.alike import chance_threshold, likenesses
from biigma_cli.data.manifest import Record
from biigma_cli.errors import BiigmaError
from biigma_cli.judge.same_lesion import features, fitted, shipped_metric
from biigma_cli.runtime.session import Predictor, find_model

MODEL, TRUNK, SIDE = "biigma-light-isic18", "mobilenet_v2", 160
SOURCE = "HAM10000"
GRID = np.arange(-0.1, 0.6, 0.005)


def progress(title: str):
    """A line on stderr every thousand pictures."""

    def told(done: int, total: int) -> None:
        if done % 1024 == 0 or done == total:
            print(f"{title}: {done}/{total}", file=sys.stderr)

    return told


def lesions(records: list[Record]) -> np.ndarray:
    """Lesion of each picture; itself where unknown."""
    return np.array([r.lesion_id or r.image_id for r in records])


def reached(
    metric: LesionMetric, held: tuple[np.ndarray, ...], other: tuple[np.ndarray, ...]
) -> tuple[np.ndarray, int]:
    """Pairs of different lesions, held-out against all, that reach each value; and their number."""
    whole, middle, lesion = (np.concatenate(pair) for pair in zip(held, other, strict=True))
    offset = metric.offset(whole, middle)
    above, count = np.zeros(len(GRID)), 0
    for start in range(0, len(held[0]), 256):
        rows = slice(start, min(start + 256, len(held[0])))
        value = likenesses(whole, middle, offset, rows)
        different = np.sort(value[lesion[rows, None] != lesion[None]])
        above += len(different) - np.searchsorted(different, GRID)
        count += len(different)
    return above, count


def chance_table(
    metric: LesionMetric, held: tuple[np.ndarray, ...], train: tuple[np.ndarray, ...]
) -> list[tuple[float, float]]:
    """Share of pairs of different lesions that reach each value, one more counted than seen.

    Among held-out pictures alone each pair comes twice, and what fewer than five pairs reach is
    left to the pairs with training pictures, of which there are fourteen times as many.
    """
    none = tuple(x[:0] for x in held)
    alone, pairs = reached(metric, held, none)
    both, more = reached(metric, held, train)
    share = np.where(alone >= 10, (alone / 2 + 1) / (pairs / 2), 0)
    share = np.maximum(share, (both + 1) / more)
    return [(round(float(t), 3), float(s)) for t, s in zip(GRID, share, strict=True)]


def all_pairs(metric: LesionMetric, whole: np.ndarray, middle: np.ndarray) -> tuple:
    """Likeness of every pair i < j."""
    offset = metric.offset(whole, middle)
    value = likenesses(whole, middle, offset, slice(None))
    i, j = np.triu_indices(len(whole), 1)
    return i, j, value[i, j]


def judge(title: str, metric: LesionMetric, projected: tuple[np.ndarray, ...]) -> dict[str, float]:
    """Print what the search finds among these pictures."""
    whole, middle, lesion = projected
    i, j, value = all_pairs(metric, whole, middle)
    threshold, chance = chance_threshold(metric.stated["chance"], len(whole))
    same, found = lesion[i] == lesion[j], value >= threshold
    partner = np.zeros(len(whole), bool)
    joined = np.zeros(len(whole), bool)
    for side in (i, j):
        partner[side[same]] = True
        joined[side[same & found]] = True
    names, number = np.unique(lesion, return_inverse=True)
    rng = np.random.default_rng(0)
    a, b, hit = number[i[found]], number[j[found]], same[found]
    every = number[i[same]]
    drawn = []
    for _ in range(2000):
        w = np.bincount(rng.integers(0, len(names), len(names)), minlength=len(names))
        pair = np.where(hit, w[a], w[a] * w[b])
        drawn.append((pair[hit].sum() / max(1, pair.sum()), w[a][hit].sum() / w[every].sum()))
    low, high = np.quantile(drawn, (0.025, 0.975), axis=0)
    figures = {
        "images": len(whole),
        "pairs": int(found.sum()),
        "precision": float(hit.mean()),
        "recall": float(hit.sum() / same.sum()),
        "images_with_partner": int(partner.sum()),
        "partner_found": float(joined.sum() / partner.sum()),
        "chance": chance,
        "different": int((~hit).sum()),
        "average_precision": float(average_precision_score(same, value)),
    }
    print(
        f"{title}: {len(whole)} pictures, {same.sum()} pairs of one lesion;"
        f" likeness {threshold:.3f} or more: {found.sum()} pairs\n"
        f"  of one lesion {hit.mean():.1%} ({low[0]:.1%}-{high[0]:.1%}), of all such"
        f" {figures['recall']:.1%} ({low[1]:.1%}-{high[1]:.1%});"
        f" pictures with a partner {partner.sum()}, found {figures['partner_found']:.1%}\n"
        f"  of different lesions {(~hit).sum()}, by chance {chance:.1f};"
        f" average precision {figures['average_precision']:.3f}"
    )
    return figures


def estimate(metric: LesionMetric, projected: tuple[np.ndarray, ...], seeds: int = 20) -> None:
    """Print a split's leak, as it is and as found."""
    whole, middle, lesion = projected
    i, j, value = all_pairs(metric, whole, middle)
    threshold, _ = chance_threshold(metric.stated["chance"], len(whole))
    same, found = lesion[i] == lesion[j], value >= threshold
    rows = []
    for seed in range(seeds):
        test = np.random.default_rng(seed).random(len(whole)) < 0.2
        across = test[i] != test[j]
        shares = []
        for pairs in (same & across, found & across):
            leaked = np.zeros(len(whole), bool)
            leaked[i[pairs]] = leaked[j[pairs]] = True
            shares.append((leaked & test).sum() / test.sum())
        rows.append(shares)
    true, said = np.mean(rows, 0)
    print(
        f"split by image, {len(whole)} held-out pictures, {seeds} times: {true:.1%} of the test"
        f" images have their lesion in train; the search says {said:.1%}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fit", type=Path, metavar="FILE")
    args = parser.parse_args()
    config = ModelConfig(trunk=TRUNK, weights=MODEL)
    predictor = Predictor(find_model(MODEL), device="cpu")
    views = Views(config, torch.device("cpu"))
    held = {}
    for part in ("train", "val", "test"):
        if part == "train" and not args.fit:
            continue
        manifest, records = own_part(predictor, part)
        paths = [manifest.root / r.path for r in records]
        whole, middle, kept = features(views, paths, SIDE, progress=progress(part))
        held[part] = (whole, middle, lesions(records)[kept])
    metric = fitted(config, SIDE, *held["train"]) if args.fit else shipped_metric()
    projected = {
        part: (metric.project(whole), metric.project(middle), lesion)
        for part, (whole, middle, lesion) in held.items()
    }
    if args.fit:
        table = chance_table(metric, projected["val"], projected["train"])
        metric = replace(metric, stated={"source": SOURCE, "chance": table})
    found = {part: judge(part, metric, projected[part]) for part in ("val", "test")}
    both = tuple(np.concatenate(x) for x in zip(projected["val"], projected["test"], strict=True))
    estimate(metric, both)
    if args.fit:
        save_metric(args.fit, replace(metric, stated={**metric.stated, "test": found["test"]}))
        print(f"saved in {args.fit}")


if __name__ == "__main__":
    try:
        main()
    except BiigmaError as error:
        sys.exit(str(error))
