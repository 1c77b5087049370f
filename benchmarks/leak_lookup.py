"""What a split by image gives away: a lookup that knows no dermatology, mixed into answers.

    python benchmarks/leak_lookup.py --protocol paper --val CSV --test CSV

The lookup finds the training picture that is likest to a picture as one of the same lesion
(features of an ImageNet trunk that has never seen dermoscopy, in a metric fitted to pairs of one
lesion of the training part; no class is looked at), and says what that one's label is. It is mixed
into the answers of networks, the mean of the CSVs given (`biigma eval --predictions-out`; `--val`
and `--test` may be repeated), by `p = (1 - w) p_network + w p_label` with
`w = w_max sigmoid(slope (likeness - offset))`. The three numbers are those of the lowest log loss
on the validation part, where the lookup is among the training part. With `--test` the test part is
judged by them, the lookup being among training and validation part: networks, lookup, both; by
whether the lesion has another picture there. Intervals: 2,000 resamples of lesions. Without a leak
(`--protocol lesion`) there is nothing to look up.
"""

from __future__ import annotations

import argparse
import csv
import sys
from pathlib import Path

import numpy as np
import torch
from same_lesion import lesions, progress
from scipy.optimize import minimize

from biigma_cli.config import DataConfig, ModelConfig
from biigma_cli.core.likeness import Views
from biigma_cli.data.alike import likenesses
from biigma_cli.data.manifest import load_manifest
from biigma_cli.data.splits import make_split
from biigma_cli.errors import BiigmaError
from biigma_cli.judge.same_lesion import features, fitted
from biigma_cli.metrics import assess, compare

TRUNK, SIDE = "efficientnet_lite2", 160


def answers(paths: list[Path], ids: tuple[str, ...], codes: list[str]) -> np.ndarray:
    """Mean probabilities `(n, Y)` of the CSVs, in order of `ids`."""
    found = []
    for path in paths:
        with path.open(newline="") as file:
            rows = {r["image"]: [float(r[c]) for c in codes] for r in csv.DictReader(file)}
        missing = [i for i in ids if i not in rows]
        if missing:
            sys.exit(f"{path} lacks {len(missing)} images, such as {missing[0]}")
        found.append([rows[i] for i in ids])
    mean = np.mean(found, 0)
    return mean / mean.sum(1, keepdims=True)


def mixed(numbers: np.ndarray, network: np.ndarray, looked: np.ndarray, like: np.ndarray):
    """Network and lookup together `(n, Y)`; numbers: slope, offset, logit of the largest weight."""
    slope, offset, top = numbers
    weight = 1 / (1 + np.exp(-top)) / (1 + np.exp(-slope * (like - offset)))
    return (1 - weight)[:, None] * network + weight[:, None] * looked


def fit(network: np.ndarray, looked: np.ndarray, like: np.ndarray, label: np.ndarray) -> np.ndarray:
    """The three numbers of the lowest log loss."""

    def loss(numbers: np.ndarray) -> float:
        p = mixed(numbers, network, looked, like)[np.arange(len(label)), label]
        return float(-np.log(np.clip(p, 1e-12, 1)).mean())

    starts = [np.array([s, o, t]) for s in (5.0, 20.0) for o in (0.0, 0.2) for t in (0.0, 2.0)]
    tries = [minimize(loss, s, method="Nelder-Mead", options={"maxiter": 4000}) for s in starts]
    return min(tries, key=lambda t: t.fun).x


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--protocol", choices=("paper", "lesion"), required=True)
    parser.add_argument("--join-duplicates", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--val", type=Path, action="append", required=True, metavar="CSV")
    parser.add_argument("--test", type=Path, action="append", default=[], metavar="CSV")
    parser.add_argument("--features", type=Path, metavar="NPZ", help="kept there, or taken from it")
    args = parser.parse_args()
    manifest = load_manifest("isic18")
    split = make_split(
        manifest, DataConfig(protocol=args.protocol, join_duplicates=args.join_duplicates)
    )
    codes = list(manifest.taxonomy.codes)
    place = {r.image_id: n for n, r in enumerate(manifest.records)}
    label = np.array([codes.index(r.label) for r in manifest.records])
    lesion = lesions(manifest.records)
    config = ModelConfig(trunk=TRUNK, weights="imagenet")
    if args.features is not None and args.features.exists():
        held = np.load(args.features)
        whole, middle = held["whole"], held["middle"]
    else:
        views = Views(config, torch.device("cpu"))
        paths = [manifest.root / r.path for r in manifest.records]
        whole, middle = features(views, paths, SIDE, progress=progress("features"))
        if args.features is not None:
            np.savez(args.features, whole=whole, middle=middle)
    part = {p: np.array([place[i] for i in split.part(p)]) for p in ("train", "val", "test")}
    train = part["train"]
    metric = fitted(config, SIDE, whole[train], middle[train], lesion[train])
    whole, middle = metric.project(whole), metric.project(middle)
    offset = metric.offset(whole, middle, pool=False)

    def look(asked: np.ndarray, among: np.ndarray):
        """Label (one-hot), likeness and lesion of each one's likest."""
        best, like = [], []
        for rows in np.array_split(asked, max(1, len(asked) // 256)):
            index = np.concatenate([rows, among])
            value = likenesses(
                whole[index], middle[index], offset[index], slice(0, len(rows)), len(rows)
            )
            best.append(among[value.argmax(1)])
            like.append(value.max(1))
        nearest = np.concatenate(best)
        return np.eye(len(codes))[label[nearest]], np.concatenate(like), lesion[nearest]

    def told(name: str, network: np.ndarray, asked: np.ndarray, among: np.ndarray, numbers):
        looked, like, whose = look(asked, among)
        partner = np.isin(lesion[asked], lesion[among])
        print(
            f"{name}: {len(asked)} images, {partner.sum()} whose lesion is among the"
            f" {len(among)}; of these {(whose == lesion[asked])[partner].mean():.1%} found"
            if partner.any()
            else f"{name}: {len(asked)} images, none whose lesion is among the {len(among)}"
        )
        if numbers is None:
            numbers = fit(network, looked, like, label[asked])
            top = 1 / (1 + np.exp(-numbers[2]))
            print(
                f"fitted: slope {numbers[0]:.1f}, offset {numbers[1]:.3f}, largest weight {top:.2f}"
            )
        both = mixed(numbers, network, looked, like)
        found = {}
        for who, proba in (("networks", network), ("lookup alone", looked), ("both", both)):
            for where, rows in (("", slice(None)), ("lesion there", partner), ("not", ~partner)):
                chosen = asked[rows]
                if len(set(label[chosen])) < 2:
                    continue
                judged = assess(label[chosen], proba[rows], codes, groups=list(lesion[chosen]))
                found[who, where] = judged
                shown = [
                    f"{n} {f.value:.3f} ({f.low:.3f}-{f.high:.3f})"
                    for n in ("accuracy", "macro_f1", "balanced_accuracy", "log_loss")
                    if (f := judged.overall[n]).value is not None and f.low is not None
                ]
                print(f"  {who:<13}{where:<13}{len(chosen):5}  {', '.join(shown)}")
        step = compare(found["both", ""], found["networks", ""])
        print(
            "  both - networks: "
            + ", ".join(
                f"{n} {f.value:+.3f} ({f.low:+.3f} to {f.high:+.3f})"
                for n in ("accuracy", "macro_f1", "balanced_accuracy", "log_loss")
                if (f := step.overall[n]).value is not None and f.low is not None
            )
        )
        return numbers

    network = answers(args.val, split.part("val"), codes)
    numbers = told("val", network, part["val"], train, None)
    if args.test:
        network = answers(args.test, split.part("test"), codes)
        among = np.concatenate([train, part["val"]])
        told("test", network, part["test"], among, numbers)


if __name__ == "__main__":
    try:
        main()
    except BiigmaError as error:
        sys.exit(str(error))
