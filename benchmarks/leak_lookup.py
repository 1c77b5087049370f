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
whether the lesion has another picture there. The control is the same networks, images and lookup
with the pictures of one's own lesion hidden from it, fitted anew: what is then left is not the
leak's. Intervals: 2,000 resamples of lesions.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from same_lesion import lesions, progress
from scipy.optimize import minimize
from scipy.special import expit

from biigma_cli.config import DataConfig, ModelConfig
from biigma_cli.core.likeness import Views
from biigma_cli.data.alike import likenesses
from biigma_cli.data.manifest import load_manifest
from biigma_cli.data.splits import make_split
from biigma_cli.data.submission import read_predictions
from biigma_cli.errors import BiigmaError
from biigma_cli.judge.same_lesion import features, fitted
from biigma_cli.metrics import assess, compare

TRUNK, SIDE = "efficientnet_lite2", 160


def answers(paths: list[Path], ids: tuple[str, ...], codes: list[str]) -> np.ndarray:
    """Mean probabilities `(n, Y)` of the CSVs, in order of `ids`."""
    found = []
    for path in paths:
        read = read_predictions(path)
        place = {image: n for n, image in enumerate(read.ids)}
        missing = [i for i in ids if i not in place]
        if missing:
            sys.exit(f"{path} lacks {len(missing)} images, such as {missing[0]}")
        columns = [read.codes.index(c) for c in codes]
        found.append(read.score_nY[[place[i] for i in ids]][:, columns])
    mean = np.mean(found, 0)
    return mean / mean.sum(1, keepdims=True)


def mixed(numbers: np.ndarray, network: np.ndarray, looked: np.ndarray, like: np.ndarray):
    """Network and lookup together `(n, Y)`; numbers: slope, offset, logit of the largest weight."""
    slope, offset, top = numbers
    weight = expit(top) * expit(slope * (like - offset))
    return (1 - weight)[:, None] * network + weight[:, None] * looked


def fit(network: np.ndarray, looked: np.ndarray, like: np.ndarray, label: np.ndarray) -> np.ndarray:
    """The three numbers of the lowest log loss."""

    def loss(numbers: np.ndarray) -> float:
        p = mixed(numbers, network, looked, like)[np.arange(len(label)), label]
        return float(-np.log(np.clip(p, 1e-12, 1)).mean())

    starts = [np.array([s, o, t]) for s in (5.0, 20.0) for o in (0.0, 0.2) for t in (0.0, 2.0)]
    tries = [minimize(loss, s, method="Nelder-Mead", options={"maxiter": 4000}) for s in starts]
    return min(tries, key=lambda t: t.fun).x


def shown(figures, form: str) -> str:
    """The headline figures with their intervals."""
    names = ("accuracy", "macro_f1", "macro_recall", "log_loss")
    found = {n: figures.overall[n] for n in names}
    return ", ".join(
        f"{n} {f.value:{form}} ({f.low:{form}} to {f.high:{form}})"
        for n, f in found.items()
        if f.value is not None and f.low is not None
    )


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
        if str(held["data"]) != manifest.data_hash:
            sys.exit(f"{args.features} is of other images: remove it")
        whole, middle = held["whole"], held["middle"]
    else:
        views = Views(config, torch.device("cpu"))
        paths = [manifest.root / r.path for r in manifest.records]
        whole, middle, kept = features(views, paths, SIDE, progress=progress("features"))
        if len(kept) < len(paths):
            sys.exit("some images cannot be read: see 'biigma audit isic18'")
        if args.features is not None:
            np.savez(args.features, whole=whole, middle=middle, data=manifest.data_hash)
    part = {p: np.array([place[i] for i in split.part(p)]) for p in ("train", "val", "test")}
    train = part["train"]
    metric = fitted(config, SIDE, whole[train], middle[train], lesion[train])
    whole, middle = metric.project(whole), metric.project(middle)
    offset = metric.offset(whole, middle, pool=False)

    def look(asked: np.ndarray, among: np.ndarray, *, hidden: bool):
        """Label (one-hot), likeness and lesion of each one's likest."""
        best, like = [], []
        for rows in np.array_split(asked, max(1, len(asked) // 256)):
            index = np.concatenate([rows, among])
            value = likenesses(
                whole[index], middle[index], offset[index], slice(0, len(rows)), len(rows)
            )
            if hidden:
                value[lesion[rows, None] == lesion[None, among]] = -9
            best.append(among[value.argmax(1)])
            like.append(value.max(1))
        nearest = np.concatenate(best)
        return np.eye(len(codes))[label[nearest]], np.concatenate(like), lesion[nearest]

    def told(name: str, network: np.ndarray, asked: np.ndarray, among: np.ndarray, fitted_to):
        """Print all; the numbers, with the lesion to be seen and hidden."""
        partner = np.isin(lesion[asked], lesion[among])
        print(
            f"{name}: {len(asked)} images, {partner.sum()} whose lesion is among the {len(among)}"
        )
        proba, numbers = {"networks": network}, []
        for n, hidden in enumerate((False, True)):
            which = "lesion hidden" if hidden else "lookup"
            looked, like, whose = look(asked, among, hidden=hidden)
            found = fitted_to[n] if fitted_to else fit(network, looked, like, label[asked])
            numbers.append(found)
            top = expit(found[2])
            print(
                f"  {which}: slope {found[0]:.1f}, offset {found[1]:.3f}, largest weight {top:.2f}"
            )
            if partner.any() and not hidden:
                print(f"  of these {(whose == lesion[asked])[partner].mean():.1%} found")
            proba[f"{which} alone"] = looked
            proba[f"with {which}"] = mixed(found, network, looked, like)
        for where, rows in (("all", slice(None)), ("lesion there", partner), ("not", ~partner)):
            chosen = asked[rows]
            if len(set(label[chosen])) < 2:
                continue
            judged = {
                who: assess(label[chosen], p[rows], codes, groups=list(lesion[chosen]))
                for who, p in proba.items()
            }
            print(f"  {where}, {len(chosen)} images")
            for who, figures in judged.items():
                print(f"    {who:<20} {shown(figures, '.3f')}")
            for who in ("with lookup", "with lesion hidden"):
                step = compare(judged[who], judged["networks"])
                print(f"    {who} - networks: {shown(step, '+.3f')}")
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
