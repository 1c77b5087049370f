"""Figures and their bootstrap intervals."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import numpy.typing as npt
import pytest
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    f1_score,
    precision_score,
    recall_score,
)

from biigma_cli.errors import EXIT_DATA, DataError
from biigma_cli.metrics import (
    HEADLINE,
    Ints,
    bootstrap,
    bootstrap_difference,
    confusion_figures,
    confusions,
    evaluate,
)

ABC = ("A", "B", "C")


def ints(*values: int) -> Ints:
    """Class indices."""
    return np.array(values, np.int64)


def sample(
    n: int = 300, classes: int = 5, right: float = 0.6, seed: int = 0
) -> tuple[Ints, Ints, list[str]]:
    """Truth, predictions of which a share is right, and groups of three images."""
    rng = np.random.default_rng(seed)
    truth = rng.choice(classes, n, p=np.arange(classes, 0, -1) / (classes * (classes + 1) / 2))
    guess = rng.integers(0, classes, n)
    predicted = np.where(rng.random(n) < right, truth, guess)
    return truth.astype(np.int64), predicted.astype(np.int64), [f"L{i // 3}" for i in range(n)]


def headline(truth: Ints, predicted: Ints, classes: int) -> dict[str, float]:
    """The figures by way of one confusion matrix, as the bootstrap has them."""
    tables = confusions(truth, predicted, np.zeros_like(truth), 1, classes)
    return {name: float(values[0]) for name, values in confusion_figures(tables).items()}


def expect(truth: Ints, predicted: Ints, *values: float) -> None:
    """Both ways to the headline figures give `values`."""
    wanted = dict(zip(HEADLINE, values, strict=True))
    assert evaluate(truth, predicted, ABC).headline() == pytest.approx(wanted)
    assert headline(truth, predicted, 3) == pytest.approx(wanted)


# --- hand-worked -----------------------------------------------------------------------------


def test_perfect() -> None:
    """All right: all ones and a diagonal confusion matrix."""
    truth = ints(0, 1, 2, 1)
    expect(truth, truth, 1, 1, 1, 1)
    figures = evaluate(truth, truth, ABC)
    assert figures.n == 4
    assert figures.confusion == ((1, 0, 0), (0, 2, 0), (0, 0, 1))
    assert figures.absent == ()


def test_all_wrong() -> None:
    """Nothing right: zeros, without a warning."""
    expect(ints(0, 1, 2), ints(1, 2, 0), 0, 0, 0, 0)


def test_by_hand() -> None:
    """Truth AAAABBC, said AABBBCC: worked out on paper."""
    truth, predicted = ints(0, 0, 0, 0, 1, 1, 2), ints(0, 0, 1, 1, 1, 2, 2)
    expect(
        truth,
        predicted,
        4 / 7,
        (2 / 3 + 2 / 5 + 2 / 3) / 3,
        (1 / 2 + 1 / 2 + 1) / 3,
        (1 + 1 / 3 + 1 / 2) / 3,
    )
    figures = evaluate(truth, predicted, ABC)
    assert figures.confusion == ((2, 2, 0), (0, 1, 1), (0, 0, 1))
    a, b, c = figures.per_class
    assert (a.code, a.support, a.precision, a.recall) == ("A", 4, 1.0, 0.5)
    assert (b.code, b.support, b.recall) == ("B", 2, 0.5)
    assert (c.precision, c.recall) == (0.5, 1.0)
    assert [x.f1 for x in figures.per_class] == pytest.approx([2 / 3, 2 / 5, 2 / 3])


@pytest.mark.parametrize(("predicted", "value"), [(1, 1.0), (0, 0.0)])
def test_one_sample(predicted: int, value: float) -> None:
    """One image: all or nothing; the other classes are absent."""
    expect(ints(1), ints(predicted), value, value, value, value)
    assert evaluate(ints(1), ints(predicted), ABC).absent == ("A", "C")


def test_an_absent_class_is_left_out() -> None:
    """No C in the truth: it counts neither as missed nor as found, though it was said once."""
    truth, predicted = ints(0, 0, 1, 1), ints(0, 2, 1, 1)
    expect(truth, predicted, 3 / 4, (2 / 3 + 1) / 2, 3 / 4, 1)
    figures = evaluate(truth, predicted, ABC)
    assert figures.absent == ("C",)
    assert figures.per_class[2].support == 0
    assert figures.confusion[0] == (1, 0, 1)


def test_a_class_never_predicted() -> None:
    """C is in the truth and never said: precision, recall and F1 are 0 and count."""
    truth, predicted = ints(0, 1, 2, 2), ints(0, 1, 0, 1)
    expect(truth, predicted, 1 / 2, (2 / 3 + 2 / 3 + 0) / 3, 2 / 3, (1 / 2 + 1 / 2 + 0) / 3)
    c = evaluate(truth, predicted, ABC).per_class[2]
    assert (c.support, c.precision, c.recall, c.f1) == (2, 0, 0, 0)


def test_to_dict() -> None:
    """Plain values for JSON, with balanced accuracy under both names."""
    truth, predicted, _ = sample()
    figures = evaluate(truth, predicted, "VWXYZ")
    plain = json.loads(json.dumps(figures.to_dict()))
    assert plain["balanced_accuracy"] == plain["macro_recall"] == figures.macro_recall
    assert plain["per_class"][1] == dataclasses.asdict(figures.per_class[1])
    assert figures.headline() == {name: plain[name] for name in HEADLINE}


@pytest.mark.parametrize("seed", range(8))
def test_agrees_with_scikit_learn(seed: int) -> None:
    """Both ways agree with scikit-learn's own averages where every class is present."""
    classes = 2 + seed
    truth, predicted, _ = sample(200, classes, right=seed / 8, seed=seed)
    assert len(set(truth.tolist())) == classes
    wanted = {
        "accuracy": accuracy_score(truth, predicted),
        "macro_f1": f1_score(truth, predicted, average="macro", zero_division=0),
        "macro_recall": recall_score(truth, predicted, average="macro", zero_division=0),
        "macro_precision": precision_score(truth, predicted, average="macro", zero_division=0),
    }
    assert wanted["macro_recall"] == pytest.approx(balanced_accuracy_score(truth, predicted))
    assert headline(truth, predicted, classes) == pytest.approx(wanted)
    assert evaluate(truth, predicted, "ABCDEFGHI"[:classes]).headline() == pytest.approx(wanted)


def test_agrees_with_scikit_learn_over_present_classes() -> None:
    """With absent classes, the averages are scikit-learn's over the classes in the truth."""
    rng = np.random.default_rng(4)
    truth = rng.choice([0, 2, 5], 80).astype(np.int64)
    predicted = rng.integers(0, 7, 80)
    present = [0, 2, 5]
    figures = evaluate(truth, predicted, "ABCDEFG")
    assert figures.absent == ("B", "D", "E", "G")
    for name, score in (("macro_f1", f1_score), ("macro_precision", precision_score)):
        wanted = score(truth, predicted, labels=present, average="macro", zero_division=0)
        assert getattr(figures, name) == pytest.approx(wanted)
        assert headline(truth, predicted, 7)[name] == pytest.approx(wanted)


# --- bootstrap -------------------------------------------------------------------------------


def test_intervals_contain_the_value() -> None:
    """The value is that of `evaluate`, within an interval of sensible width."""
    truth, predicted, groups = sample()
    figures = evaluate(truth, predicted, "ABCDE").headline()
    for name, interval in bootstrap(truth, predicted, groups, 5, resamples=500).items():
        assert interval.value == pytest.approx(figures[name])
        assert 0 <= interval.low < interval.value < interval.high <= 1
        assert 0.05 < interval.high - interval.low < 0.3


def test_the_interval_of_accuracy_is_the_binomial_one() -> None:
    """Each image its own group: close to the normal approximation of a share."""
    truth, predicted, _ = sample(900)
    groups = [str(i) for i in range(900)]
    interval = bootstrap(truth, predicted, groups, 5, resamples=2000)["accuracy"]
    half = 1.96 * (interval.value * (1 - interval.value) / 900) ** 0.5
    assert interval.low == pytest.approx(interval.value - half, abs=0.006)
    assert interval.high == pytest.approx(interval.value + half, abs=0.006)


def test_the_interval_is_of_95_percent() -> None:
    """Two groups, one all right and one all wrong: 0, 1/2 or 1, a quarter, half and quarter."""
    truth, predicted = ints(0, 0, 1, 1), ints(0, 0, 0, 0)
    interval = bootstrap(truth, predicted, ["p", "p", "q", "q"], 2, resamples=400)["accuracy"]
    assert (interval.low, interval.value, interval.high) == (0, 0.5, 1)


def test_whole_groups_are_drawn() -> None:
    """One group of all images cannot vary; copies of images under one lesion add no certainty."""
    truth, predicted, groups = sample(60)
    for interval in bootstrap(truth, predicted, ["same"] * 60, 5, resamples=200).values():
        assert interval.low == pytest.approx(interval.value)
        assert interval.high == pytest.approx(interval.value)
    one = bootstrap(truth, predicted, groups, 5, resamples=200)
    ten = bootstrap(truth.repeat(10), predicted.repeat(10), np.repeat(groups, 10).tolist(), 5,
                    resamples=200)  # fmt: skip
    for name in HEADLINE:
        assert ten[name].low == pytest.approx(one[name].low)
        assert ten[name].high == pytest.approx(one[name].high)
    alone = [str(i) for i in range(600)]
    narrow = bootstrap(truth.repeat(10), predicted.repeat(10), alone, 5, resamples=200)
    wide = one["accuracy"].high - one["accuracy"].low
    assert narrow["accuracy"].high - narrow["accuracy"].low < 0.6 * wide


def test_the_seed_says_everything() -> None:
    """Equal seeds give equal intervals, others do not; the number of resamples is free."""
    truth, predicted, groups = sample()
    one = bootstrap(truth, predicted, groups, 5, resamples=250, seed=1)
    assert bootstrap(truth, predicted, groups, 5, resamples=250, seed=1) == one
    assert bootstrap(truth, predicted, groups, 5, resamples=250, seed=2) != one


def test_a_model_against_itself() -> None:
    """Identical predictions differ by 0 in every resample."""
    truth, predicted, groups = sample()
    for interval in bootstrap_difference(
        truth, predicted, predicted.copy(), groups, 5, resamples=200
    ).values():
        assert (interval.value, interval.low, interval.high) == (0, 0, 0)


def test_the_sign_of_a_difference() -> None:
    """First minus second: positive where the first is better, and mirrored when swapped."""
    truth, good, groups = sample(right=0.9)
    bad = sample(right=0.2)[1]
    better = bootstrap_difference(truth, good, bad, groups, 5, resamples=200)
    worse = bootstrap_difference(truth, bad, good, groups, 5, resamples=200)
    one, two = headline(truth, good, 5), headline(truth, bad, 5)
    for name in HEADLINE:
        assert better[name].value == pytest.approx(one[name] - two[name])
        assert 0 < better[name].low < better[name].value < better[name].high
        assert worse[name].high == pytest.approx(-better[name].low)


def test_differences_are_paired() -> None:
    """Two models that differ in one image: far narrower than the figures themselves."""
    truth, predicted, groups = sample()
    other = predicted.copy()
    other[0] = (other[0] + 1) % 5
    paired = bootstrap_difference(truth, predicted, other, groups, 5, resamples=200)["accuracy"]
    single = bootstrap(truth, predicted, groups, 5, resamples=200)["accuracy"]
    assert paired.high - paired.low < 0.2 * (single.high - single.low)
    assert paired.high > paired.low


# --- what is refused -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("truth", "predicted", "words"),
    [
        (ints(), ints(), "nothing to evaluate"),
        (ints(0, 1), ints(0), "2 labels and 1 predictions"),
        (ints(0, 3), ints(0, 1), r"labels name a class outside 0\.\.2"),
        (ints(0, -1), ints(0, 1), "labels name a class outside"),
        (ints(0, 1), ints(0, 3), "predictions name a class outside"),
        (ints(0, 1), ints(-1, 0), "predictions name a class outside"),
    ],
)
def test_bad_input(truth: npt.NDArray[np.int64], predicted: Ints, words: str) -> None:
    """Empty, unequal and out-of-range input is named."""
    with pytest.raises(DataError, match=words) as caught:
        evaluate(truth, predicted, ABC)
    assert caught.value.fix
    assert caught.value.exit_code == EXIT_DATA
