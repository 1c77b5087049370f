"""What `biigma predict --prevalence` does to a model's probabilities, where classes are rarer.

    python benchmarks/prevalence.py --val CSV --test CSV [--dataset isic18]

The CSVs are a model's (`biigma eval --predictions-out`). First the validation part, as it is, by
ten-fold cross-validation over lesions: log loss of the probabilities as they are, times the ratio
of the true class shares to the mean probabilities, and as `--prevalence` takes them, by the shares
that they imply. Then the test part, its images weighted by class so that the malignant ones make up
such a share (the classes within either group as in the data), by the prior of the whole validation
part: what is written as the malignant probability on average, log loss, accuracy, and the paired
difference in log loss with 95% intervals over 2,000 resamples of lesions. No figure of the test
part chooses anything.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

from biigma_cli.cli.prevalence import MALIGNANT, whole_shares
from biigma_cli.data.manifest import load_manifest
from biigma_cli.data.submission import read_predictions
from biigma_cli.errors import BiigmaError
from biigma_cli.judge.prevalence import judge_at
from biigma_cli.metrics import at_prevalence, fit_prior, log_probability

SHARES = (None, 0.005, 0.02, 0.1, 0.4)
RESAMPLES = 2000


def read(path: Path, dataset: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Probabilities `(n, Y)`, labels, lesion indices `(n,)`, and which classes are malignant."""
    manifest = load_manifest(dataset)
    records, codes = manifest.by_id(), list(manifest.taxonomy.codes)
    found = read_predictions(path)
    columns = [found.codes.index(code) for code in codes]
    label = np.array([codes.index(records[i].label) for i in found.ids])
    lesions = [records[i].lesion_id or i for i in found.ids]
    malignant = np.array([bool(c.malignant) for c in manifest.taxonomy.classes])
    return found.score_nY[:, columns], label, np.unique(lesions, return_inverse=True)[1], malignant


def losses(proba: np.ndarray, label: np.ndarray) -> np.ndarray:
    """-ln p(true class) of each image."""
    return -log_probability(proba)[np.arange(len(label)), label]


def cross_validated(proba: np.ndarray, label: np.ndarray, lesion: np.ndarray) -> None:
    """Three ways on the validation part, each image by the others' prior."""
    fold = np.random.default_rng(0).integers(0, 10, lesion.max() + 1)[lesion]
    by_mean, by_prior = proba.copy(), proba.copy()
    for k in range(10):
        own, rest = fold == k, fold != k
        prior = fit_prior(label[rest], proba[rest])
        if prior is None:
            sys.exit("a fold lacks a class")
        by_mean[own] = at_prevalence(proba[own], np.array(prior.shares) / proba[rest].mean(0))
        by_prior[own] = at_prevalence(proba[own], prior.weights(prior.shares))
    print(f"validation part, {len(label)} images, cross-validated\n")
    print("| probabilities | log loss | accuracy |\n|---|---|---|")
    for name, p in (
        ("as they are", proba), ("by their mean", by_mean), ("by the implied shares", by_prior)
    ):  # fmt: skip
        print(f"| {name} | {losses(p, label).mean():.3f} | {(p.argmax(1) == label).mean():.3f} |")


def main() -> None:
    """Both tables on stdout."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--val", type=Path, required=True)
    parser.add_argument("--test", type=Path, required=True)
    parser.add_argument("--dataset", default="isic18")
    args = parser.parse_args()
    try:
        proba, label, lesion, _ = read(args.val, args.dataset)
        test, truth, group, malignant = read(args.test, args.dataset)
    except BiigmaError as error:
        sys.exit(f"{error.message}\n{error.fix}")
    cross_validated(proba, label, lesion)
    prior = fit_prior(label, proba)
    if prior is None:
        sys.exit("the validation part lacks a class")
    codes = load_manifest(args.dataset).taxonomy.codes
    print("\nshares of the validation part, and implied: " + ", ".join(
        f"{c} {s:.3f} {q:.3f}" for c, s, q in zip(codes, prior.shares, prior.implied, strict=True)
    ))  # fmt: skip
    print(f"\ntest part, {len(truth)} images, weighted\n")
    print(
        "| malignant | written as malignant, on average: before, after | log loss: before, after "
        "| difference | accuracy: before, after |\n|---|---|---|---|---|"
    )
    for share in SHARES:
        if share is None:
            wanted = np.bincount(truth, minlength=len(codes)) / len(truth)
        else:
            named = {MALIGNANT: share}
            shares = whole_shares(named, codes, malignant.tolist(), prior.shares, args.dataset)
            wanted = np.array(shares)
        found = judge_at(
            wanted.tolist(), truth, test, codes, malignant.tolist(), group.astype(str).tolist(),
            weight_Y=prior.weights(wanted.tolist()), resamples=RESAMPLES,
        )  # fmt: skip
        change = found.difference["log_loss"]
        cells = [
            f"{wanted[malignant].sum():.1%}" + " (as it is)" * (share is None),
            *(
                ", ".join(form.format(figures[name].value) for figures in found.answers.values())
                for name, form in (("malignancy", "{:.1%}"), ("log_loss", "{:.3f}"))
            ),
            f"{change.value:+.3f} ({change.low:+.3f} to {change.high:+.3f})",
            ", ".join(f"{figures['accuracy'].value:.3f}" for figures in found.answers.values()),
        ]
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
