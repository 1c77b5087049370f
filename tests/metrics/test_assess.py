"""All figures of scores, against hand-worked tables, scikit-learn and plain resampling."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import (
    average_precision_score,
    confusion_matrix,
    log_loss,
    recall_score,
    roc_auc_score,
    roc_curve,
)

from biigma_cli.errors import EXIT_DATA, DataError
from biigma_cli.metrics import (
    HEADLINE,
    OVERALL,
    PER_CLASS,
    TITLES,
    Assessment,
    Floats,
    Ints,
    assess,
    bootstrap,
    compare,
    evaluate,
    mean_auc,
    paper_columns,
    score_weight,
)
from biigma_cli.metrics.confusion import resample_weights
from biigma_cli.metrics.ranks import RATES, rank, rank_figures

ABC = ("A", "B", "C")


def ints(*values: int) -> Ints:
    """Class indices."""
    return np.array(values, np.int64)


def sample(
    n: int = 240, classes: int = 4, *, skill: float = 1.5, seed: int = 0
) -> tuple[Ints, Floats, list[str]]:
    """Truth, softmax scores and groups of three images; every class occurs."""
    rng = np.random.default_rng(seed)
    truth = np.r_[np.arange(classes), rng.choice(classes, n - classes, p=_falling(classes))]
    logits = rng.normal(size=(n, classes))
    logits[np.arange(n), truth] += skill
    scores = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return truth.astype(np.int64), scores, [f"L{i // 3}" for i in range(n)]


def _falling(classes: int) -> Floats:
    weights = np.arange(classes, 0, -1.0)
    return weights / weights.sum()


def value(assessed: Assessment, name: str, code: str = "") -> float:
    """A figure that must be there."""
    found = (assessed.per_class[code] if code else assessed.overall)[name].value
    assert found is not None
    return found


# --- hand-worked -----------------------------------------------------------------------------

# Truth AABBCC. The second image ties A and B; the fourth is called C, the rest is right.
TRUTH = ints(0, 0, 1, 1, 2, 2)
SCORES = np.array(
    [
        [0.8, 0.1, 0.1],
        [0.4, 0.4, 0.2],
        [0.1, 0.7, 0.2],
        [0.1, 0.3, 0.6],
        [0.0, 0.1, 0.9],
        [0.2, 0.2, 0.6],
    ]
)


def by_hand() -> Assessment:
    """The table above, without intervals."""
    return assess(TRUTH, SCORES, ABC, resamples=0)


def test_by_hand_overall() -> None:
    """Worked out on paper: the tie counts for accuracy and not for the ISIC score."""
    found = by_hand()
    assert found.ties == 1
    assert value(found, "accuracy") == pytest.approx(5 / 6)
    assert value(found, "macro_recall") == pytest.approx((1 + 1 / 2 + 1) / 3)
    assert value(found, "isic_score") == pytest.approx((1 / 2 + 1 / 2 + 1) / 3)
    assert value(found, "macro_precision") == pytest.approx((1 + 1 + 2 / 3) / 3)
    assert value(found, "macro_f1") == pytest.approx((1 + 2 / 3 + 4 / 5) / 3)
    logs = np.log([0.8, 0.4, 0.7, 0.3, 0.9, 0.6])
    assert value(found, "log_loss") == pytest.approx(-logs.mean())
    squares = [
        0.2**2 + 0.1**2 + 0.1**2, 0.6**2 + 0.4**2 + 0.2**2, 0.1**2 + 0.3**2 + 0.2**2,
        0.1**2 + 0.7**2 + 0.6**2, 0.0**2 + 0.1**2 + 0.1**2, 0.2**2 + 0.2**2 + 0.4**2,
    ]  # fmt: skip
    assert value(found, "brier") == pytest.approx(sum(squares) / 6)
    # Confidences .4 .6 .6 .7 .8 .9; the .6 share a bin, one of them wrong; else each alone, right.
    gaps = [0.6, 1.2 - 1, 0.3, 0.2, 0.1]
    assert value(found, "ece") == pytest.approx(sum(gaps) / 6)
    assert found.figures.confusion == ((2, 0, 0), (0, 1, 1), (0, 0, 2))


def test_by_hand_per_class() -> None:
    """One class against the rest, counted and ranked."""
    found = by_hand()
    assert [value(found, "sensitivity", c) for c in ABC] == [1, 0.5, 1]
    assert [value(found, "specificity", c) for c in ABC] == [1, 1, 0.75]
    assert [value(found, "precision", c) for c in ABC] == pytest.approx([1, 1, 2 / 3])
    assert [value(found, "f1", c) for c in ABC] == pytest.approx([1, 2 / 3, 4 / 5])
    # A: .8 .4 | .2 .1 .1 .0: all pairs in order. B: .7 .3 | .4 .2 .1 .1: 7 of 8 pairs.
    # C: .9 .6 | .6 .2 .2 .1: one tie in 8 pairs.
    assert [value(found, "auc", c) for c in ABC] == pytest.approx([1, 7 / 8, 7.5 / 8])
    # Precision at each step of recall: B 1/1, 2/3; C 1/1, then two at once: 2/3.
    assert [value(found, "ap", c) for c in ABC] == pytest.approx([1, 5 / 6, 5 / 6])
    assert value(found, "macro_auc") == pytest.approx((1 + 7 / 8 + 7.5 / 8) / 3)
    assert value(found, "macro_ap") == pytest.approx((1 + 5 / 6 + 5 / 6) / 3)
    # Above 0.5: A once (right), B once (right), C three times (two right).
    assert [value(found, "sensitivity_at_half", c) for c in ABC] == [0.5, 0.5, 1]
    assert [value(found, "specificity_at_half", c) for c in ABC] == [1, 1, 0.75]
    assert [value(found, "accuracy_at_half", c) for c in ABC] == pytest.approx([5 / 6] * 3)


def test_operating_points_by_hand() -> None:
    """10 negatives and 4 positives; 90% specificity lets one negative through, 95% none."""
    negatives = [0.75, 0.6, *[0.1] * 8]
    positives = [0.9, 0.8, 0.7, 0.5]
    score = np.array(negatives + positives)
    truth = np.array([1] * 10 + [0] * 4, np.int64)
    found = assess(truth, np.stack([score, 1 - score], 1), ("MEL", "OTHER"), resamples=0)
    assert value(found, "sensitivity_at_specificity_90", "MEL") == 3 / 4
    assert value(found, "sensitivity_at_specificity_95", "MEL") == 2 / 4
    # All four are needed for 90% of them, with two false alarms.
    assert value(found, "specificity_at_sensitivity_90", "MEL") == 8 / 10
    assert value(found, "specificity_at_sensitivity_95", "MEL") == 8 / 10


def test_tied_scores_pass_together() -> None:
    """Half of the positives share their score with all negatives: no threshold parts them."""
    score = np.array([0.9, 0.5, 0.5, 0.5, 0.5])
    truth = ints(0, 0, 1, 1, 1)
    found = assess(truth, np.stack([score, 1 - score], 1), ("MEL", "OTHER"), resamples=0)
    assert value(found, "sensitivity_at_specificity_90", "MEL") == 1 / 2
    assert value(found, "specificity_at_sensitivity_90", "MEL") == 0
    assert value(found, "auc", "MEL") == pytest.approx((3 + 1.5) / 6)


def test_all_scores_alike() -> None:
    """Every image a tie: the ISIC score is 0, AUC a half, nothing can be called at 95%."""
    found = assess(TRUTH, np.full((6, 3), 1 / 3), ABC, resamples=50)
    assert value(found, "isic_score") == 0
    assert found.ties == 6
    for code in ABC:
        assert value(found, "auc", code) == 0.5
        assert value(found, "ap", code) == pytest.approx(1 / 3)
        assert value(found, "sensitivity_at_specificity_95", code) == 0
        assert value(found, "specificity_at_sensitivity_95", code) == 0


def test_an_absent_class() -> None:
    """No C: its figures are None and say why, macro figures are over A and B."""
    found = assess(TRUTH[:4], SCORES[:4], ABC, resamples=30)
    assert found.figures.absent == ("C",)
    for name in PER_CLASS:
        figure = found.per_class["C"][name]
        if name in ("specificity", "specificity_at_half", "accuracy_at_half"):
            assert figure.value == pytest.approx(3 / 4)
        else:
            assert (figure.value, figure.low, figure.why) == (None, None, "no image of this class")
    assert value(found, "isic_score") == pytest.approx((1 / 2 + 1 / 2) / 2)
    assert value(found, "macro_recall") == pytest.approx((1 + 1 / 2) / 2)
    macro = (value(found, "auc", "A") + value(found, "auc", "B")) / 2
    assert value(found, "macro_auc") == pytest.approx(macro)


def test_the_official_image_of_no_weight() -> None:
    """It changes no figure, whatever is said of it, and is counted as left out."""
    ids = ["ISIC_0000001", "ISIC_0035068", *"abcde"]
    truth = np.insert(TRUTH, 1, 2)
    scores = np.insert(SCORES, 1, [0, 0, 0], axis=0)
    found = assess(truth, scores, ABC, counted=score_weight(ids), resamples=0)
    assert score_weight(ids).tolist() == [True, False, True, True, True, True, True]
    assert (found.left_out, found.figures.n) == (1, 6)
    assert found.overall == by_hand().overall
    assert found.per_class == by_hand().per_class


def test_scores_that_do_not_sum_to_one() -> None:
    """They rank and answer as before; what needs probabilities says that it does."""
    found = assess(TRUTH, SCORES / 2, ABC, resamples=30)
    for name in OVERALL:
        figure = found.overall[name]
        if name in ("log_loss", "brier", "ece"):
            assert (figure.value, figure.why) == (None, "the scores do not sum to 1")
        else:
            assert figure.value == by_hand().overall[name].value
    rounded = np.round(SCORES / 3 * 3, 3)
    assert assess(TRUTH, rounded, ABC, resamples=0).overall["brier"].value is not None


def test_an_impossible_answer_costs_a_finite_loss() -> None:
    """Probability 0 for the truth is cut off at float64's epsilon, as in scikit-learn."""
    scores = np.array([[1.0, 0.0], [1.0, 0.0]])
    found = assess(ints(0, 1), scores, ("A", "B"), resamples=0)
    assert value(found, "log_loss") == pytest.approx(log_loss([0, 1], scores))
    assert value(found, "brier") == 1.0


# --- scikit-learn ----------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.booleans(), st.integers(0, 12), st.integers(0, 3)), min_size=2, max_size=40
    )
)
def test_weighted_ranks_agree_with_scikit_learn(rows: list[tuple[bool, int, int]]) -> None:
    """AUC, AP and operating points, with ties and weights, images of no weight among them."""
    positive = np.array([r[0] for r in rows])
    score = np.array([r[1] / 12 for r in rows])
    weight = np.array([float(r[2]) for r in rows])
    figures = {
        k: float(v[0]) for k, v in rank_figures(rank(score, positive), weight[:, None]).items()
    }
    if not (weight[positive].sum() and weight[~positive].sum()):
        assert all(np.isnan(v) for v in figures.values())
        return
    assert figures["auc"] == pytest.approx(roc_auc_score(positive, score, sample_weight=weight))
    ap = average_precision_score(positive, score, sample_weight=weight)
    assert figures["ap"] == pytest.approx(ap)
    fpr, tpr, _ = roc_curve(positive, score, sample_weight=weight, drop_intermediate=False)
    for rate in RATES:
        best = tpr[1 - fpr >= rate / 100 - 1e-9].max()
        assert figures[f"sensitivity_at_specificity_{rate}"] == pytest.approx(best)
        best = (1 - fpr)[tpr >= rate / 100 - 1e-9].max()
        assert figures[f"specificity_at_sensitivity_{rate}"] == pytest.approx(best)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 6), st.integers(1, 3))
def test_figures_agree_with_scikit_learn(seed: int, classes: int, decimals: int) -> None:
    """Every figure scikit-learn has, of scores coarse enough to tie."""
    truth, scores, _ = sample(60, classes, seed=seed)
    scores = np.round(scores, decimals)
    codes = "VWXYZU"[:classes]
    found = assess(truth, scores, codes, resamples=0)
    top = scores.max(1, keepdims=True)
    undecided = np.where((scores == top).sum(1) > 1, -1, scores.argmax(1))
    recall = recall_score(truth, undecided, labels=range(classes), average=None, zero_division=0)
    assert value(found, "isic_score") == pytest.approx(recall.mean())
    for c, code in enumerate(codes):
        table = confusion_matrix(truth == c, scores.argmax(1) == c)
        (tn, fp), (fn, tp) = table
        assert value(found, "sensitivity", code) == pytest.approx(tp / (tp + fn))
        assert value(found, "specificity", code) == pytest.approx(tn / (tn + fp))
        (tn, fp), (fn, tp) = confusion_matrix(truth == c, scores[:, c] > 0.5)
        assert value(found, "sensitivity_at_half", code) == pytest.approx(tp / (tp + fn))
        assert value(found, "specificity_at_half", code) == pytest.approx(tn / (tn + fp))
        assert value(found, "accuracy_at_half", code) == pytest.approx((tp + tn) / 60)


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_losses_agree_with_scikit_learn(classes: int) -> None:
    """Log loss; the Brier score of two classes is twice scikit-learn's, which halves it."""
    truth, scores, _ = sample(200, classes)
    found = assess(truth, scores, "ABCDEFG"[:classes], resamples=0)
    assert value(found, "log_loss") == pytest.approx(log_loss(truth, scores))
    brier = float(((scores - np.eye(classes)[truth]) ** 2).sum(1).mean())
    assert value(found, "brier") == pytest.approx(brier)
    if classes > 2:
        macro = roc_auc_score(truth, scores, multi_class="ovr", average="macro")
        assert value(found, "macro_auc") == pytest.approx(macro)


# --- resamples -------------------------------------------------------------------------------


def repeated(weights_G: Floats, group_n: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
    """Indices of a resample's images, each as often as its group was drawn."""
    return np.repeat(np.arange(len(group_n)), weights_G[group_n].astype(int))


@pytest.mark.parametrize("decimals", [2, 12])
def test_resamples_are_those_of_plain_resampling(decimals: int) -> None:
    """Each draw of each figure is that figure of the drawn images, ties and all."""
    truth, scores, groups = sample(45, 3)
    scores = np.round(scores, decimals)
    found = assess(truth, scores, ABC, groups=groups, resamples=12, seed=3)
    _, group_n = np.unique(groups, return_inverse=True)
    (weights,) = resample_weights(found.groups, 12, 3)
    for r in range(12):
        chosen = repeated(weights[r], group_n)
        assert len(set(truth[chosen].tolist())) == 3
        again = assess(truth[chosen], scores[chosen], ABC, resamples=0)
        for name in OVERALL:
            if (figure := again.overall[name]).value is not None:
                assert found.draws[name][r] == pytest.approx(figure.value), name
        for c, code in enumerate(ABC):
            for name in PER_CLASS:
                drawn = found.draws[name][r, c]
                assert drawn == pytest.approx(again.per_class[code][name].value), name


def test_the_headline_is_that_of_bootstrap() -> None:
    """Values and intervals of the four headline figures are those of the plainer functions."""
    truth, scores, groups = sample()
    answers = scores.argmax(1).astype(np.int64)
    found = assess(truth, scores, "ABCD", groups=groups, resamples=300, seed=5)
    assert found.figures == evaluate(truth, answers, "ABCD")
    for name, plain in bootstrap(truth, answers, groups, 4, resamples=300, seed=5).items():
        figure = found.overall[name]
        assert (figure.low, figure.high) == pytest.approx((plain.low, plain.high))
        assert figure.value == pytest.approx(plain.value)


def test_every_interval_holds_its_value() -> None:
    """Also that of ECE, which resampling by itself moves upwards."""
    truth, scores, groups = sample(900, skill=2.0)
    found = assess(truth, scores, "ABCD", groups=groups, resamples=400)
    figures = [*found.overall.values()]
    figures += [f for per_class in found.per_class.values() for f in per_class.values()]
    assert len(figures) == len(OVERALL) + 4 * len(PER_CLASS)
    for figure in figures:
        assert figure.value is not None
        assert figure.low is not None
        assert figure.high is not None
        assert figure.low <= figure.value <= figure.high
        assert 0 < figure.high - figure.low < 0.5
    assert np.median(found.draws["ece"]) > value(found, "ece")


def test_whole_groups_are_drawn() -> None:
    """Copies of an image under one lesion add no certainty; each for itself they would."""
    truth, scores, _ = sample(80)
    lesions = [str(i) for i in range(80)]
    one = assess(truth, scores, "ABCD", groups=lesions, resamples=200)
    copied = truth.repeat(3), scores.repeat(3, axis=0)
    three = assess(*copied, "ABCD", groups=np.repeat(lesions, 3).tolist(), resamples=200)
    loose = assess(*copied, "ABCD", resamples=200)
    assert (one.grouped, three.grouped, loose.grouped) == (False, True, False)
    assert (three.groups, loose.groups) == (80, 240)
    assert "lesions" in three.bootstrap
    assert "images" in loose.bootstrap

    def width(assessed: Assessment, name: str) -> float:
        figure = assessed.overall[name]
        assert figure.low is not None
        assert figure.high is not None
        return figure.high - figure.low

    for name in ("accuracy", "isic_score", "macro_auc", "log_loss", "brier"):
        assert width(three, name) == pytest.approx(width(one, name))
        assert width(loose, name) < 0.8 * width(one, name)


def test_a_rare_class_is_named() -> None:
    """One image of C: some resamples lack it, and its own interval is over the others."""
    truth, scores, _ = sample(60, 2)
    truth[-1] = 2
    scores = np.c_[scores * 0.9, np.full(60, 0.1)]
    found = assess(truth, scores, ABC, resamples=200)
    assert found.rare == ("C",)
    alike = found.per_class["C"]["specificity"]  # no resample has another value
    assert (alike.value, alike.high) == (1, 1)
    assert alike.low == pytest.approx(0.025 ** (1 / 59), abs=1e-3)
    assert found.per_class["C"]["sensitivity"].high == pytest.approx(0.975)
    assert np.isnan(found.draws["auc"][:, 2]).any()


def test_shares_of_0_and_1_have_an_interval() -> None:
    """Clopper and Pearson's, two-sided, for as many images as its own are worth."""
    truth = ints(*[0] * 12, *[1] * 28)
    lesions = [f"L{i // 2}" for i in range(40)]
    scores = np.eye(3)[truth]
    found = assess(truth, scores, ABC, groups=lesions, resamples=200)

    def low(worth: float) -> object:
        return pytest.approx(0.025 ** (1 / worth))

    assert (found.overall["accuracy"].low, found.overall["accuracy"].high) == (low(20), 1)
    for name, worth in (("sensitivity", 6), ("specificity", 14), ("precision", 6)):
        assert found.per_class["A"][name].low == low(worth)
    assert found.per_class["A"]["sensitivity_at_half"].low == low(6)
    assert found.per_class["A"]["specificity_at_half"].low == low(14)
    assert found.per_class["A"]["accuracy_at_half"].low == low(20)
    # What is no share of images, and what no resample can move, stay.
    assert found.overall["macro_f1"].low == found.per_class["A"]["f1"].low == 1

    # C is never said: of its precision nothing is known.
    truth[-1] = 2
    assessed = assess(truth, scores, ABC, groups=lesions, resamples=200)
    never = assessed.per_class["C"]
    assert (never["precision"].value, never["precision"].low, never["precision"].high) == (0, 0, 1)
    assert never["sensitivity"].high == pytest.approx(0.975)
    # One wrong answer: the resamples speak again.
    drawn = assessed.draws["accuracy"]
    assert assessed.overall["accuracy"].low == np.quantile(drawn, 0.025)
    assert assess(truth, scores, ABC, resamples=0).per_class["C"]["sensitivity"].high is None


def test_too_few_resamples_give_no_interval() -> None:
    """A value without an interval says so."""
    figure = assess(TRUTH, SCORES, ABC, resamples=5).overall["accuracy"]
    assert (figure.low, figure.high) == (None, None)
    assert "too few" in figure.why


def test_progress() -> None:
    """It ends at the number of resamples."""
    seen: list[tuple[int, int]] = []
    assess(TRUTH, SCORES, ABC, resamples=250, progress=lambda *done: seen.append(done))
    assert seen == [(100, 250), (200, 250), (250, 250)]


# --- two models ------------------------------------------------------------------------------


def test_a_model_against_itself() -> None:
    """Nothing differs, in any resample."""
    truth, scores, groups = sample()
    found = assess(truth, scores, "ABCD", groups=groups, resamples=60)
    apart = compare(found, found)
    for name, figure in [*apart.overall.items(), *apart.per_class["B"].items()]:
        end = None if name == "ece" else 0
        assert (figure.value, figure.low, figure.high) == (0, end, end)


def test_a_difference_of_calibration_errors_has_no_interval() -> None:
    """Resampling adds more error where there was less: its percentiles miss the truth.

    A model that is calibrated against one that is too sure by 0.05, so that their errors differ by
    that much in the long run: the interval that others have would hardly ever hold it.
    """
    held = 0
    for seed in range(12):
        rng = np.random.default_rng(seed)
        sure = rng.uniform(0.5, 0.9, 1000)
        truth = (rng.random(1000) > sure).astype(np.int64)  # class 0 is right as often as it says
        scores = [np.stack([p, 1 - p], 1) for p in (sure, sure + 0.05)]
        first, second = (assess(truth, s, "AB", resamples=200, seed=seed) for s in scores)
        figure = compare(first, second).overall["ece"]
        assert (figure.low, figure.high) == (None, None)
        assert "no interval" in figure.why
        assert figure.value == pytest.approx(value(first, "ece") - value(second, "ece"))
        low, high = np.quantile(first.draws["ece"] - second.draws["ece"], (0.025, 0.975))
        held += low <= -0.05 <= high
    assert held < 6


def test_differences_have_a_sign_and_are_paired() -> None:
    """First minus second, far narrower than either interval where few images differ."""
    truth, scores, groups = sample()
    wrong = scores.copy()
    wrong[:3] = scores[:3, ::-1]
    truth[:3] = scores[:3].argmax(1)
    first, second = (
        assess(truth, s, "ABCD", groups=groups, resamples=200) for s in (scores, wrong)
    )
    forth, back = compare(first, second), compare(second, first)
    for name in ("accuracy", "log_loss", "macro_auc"):
        apart, mirrored = forth.overall[name], back.overall[name]
        assert apart.value == pytest.approx(value(first, name) - value(second, name))
        assert apart.value != 0
        assert mirrored.value == pytest.approx(-apart.value)
        assert apart.low is not None
        assert apart.high is not None
        assert mirrored.low == pytest.approx(-apart.high)
        single = first.overall[name]
        assert single.low is not None
        assert single.high is not None
        assert apart.high - apart.low < 0.5 * (single.high - single.low)
    assert json.loads(json.dumps(forth.to_dict()))["overall"]["accuracy"]["value"] > 0


@pytest.mark.parametrize("change", ["truth", "groups", "seed", "resamples", "codes"])
def test_only_the_same_images_are_compared(change: str) -> None:
    """Other labels, groups, draws or classes are refused."""
    truth, scores, groups = sample(30)
    first = assess(truth, scores, "ABCD", groups=groups, resamples=20)
    second = assess(
        np.roll(truth, 1) if change == "truth" else truth,
        scores,
        "ABCE" if change == "codes" else "ABCD",
        groups=None if change == "groups" else groups,
        seed=1 if change == "seed" else 0,
        resamples=21 if change == "resamples" else 20,
    )
    wanted = "different classes" if change == "codes" else "not judged on the same images"
    with pytest.raises(DataError, match=wanted):
        compare(first, second)


def test_what_one_lacks_has_no_difference() -> None:
    """No log loss for one of them: none for the difference, and why."""
    first = assess(TRUTH, SCORES, ABC, resamples=20)
    second = assess(TRUTH, SCORES / 2, ABC, resamples=20)
    apart = compare(first, second).overall
    assert (apart["log_loss"].value, apart["log_loss"].why) == (None, "the scores do not sum to 1")
    assert apart["accuracy"].value == 0


# --- shapes of the answer --------------------------------------------------------------------


def test_to_dict() -> None:
    """Plain JSON without NaN, in the order of the figures."""
    found = assess(TRUTH[:4], SCORES[:4], ABC, resamples=30)
    plain = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert tuple(plain["overall"]) == OVERALL
    assert plain["per_class"]["A"]["support"] == 2
    assert tuple(plain["per_class"]["A"])[1:] == PER_CLASS
    assert plain["per_class"]["C"]["auc"]["value"] is None
    assert plain["classes"] == list(ABC)
    assert plain["absent"] == ["C"]
    assert set(TITLES) == {*OVERALL, *PER_CLASS}


def test_the_papers_columns() -> None:
    """Macro averages; for two classes the positive one's own figures, too."""
    found = by_hand()
    assert set(paper_columns(found)) == {"f1", "accuracy", "recall", "precision"}
    truth, scores, _ = sample(80, 2)
    two = assess(truth, scores, ("MEL", "OTHER"), resamples=0)
    columns = paper_columns(two)
    for name, ours in zip(("accuracy", "f1", "recall", "precision"), HEADLINE, strict=True):
        assert columns[name] == two.overall[ours]
    assert columns["sensitivity"] == two.per_class["MEL"]["sensitivity"]
    assert columns["auc"] == two.per_class["MEL"]["auc"]


def test_mean_auc() -> None:
    """Value and draws are averaged over the tasks."""
    truth, scores, _ = sample(80, 2)
    good = assess(truth, scores, ("MEL", "OTHER"), resamples=100)
    chance = assess(truth, np.full((80, 2), 0.5), ("SK", "OTHER"), resamples=100)
    mean = mean_auc([good, chance])
    auc = good.per_class["MEL"]["auc"]
    assert auc.value is not None
    assert auc.low is not None
    assert mean.value == pytest.approx((auc.value + 0.5) / 2)
    assert mean.low == pytest.approx((auc.low + 0.5) / 2)
    lacking = assess(ints(1, 2), np.full((2, 3), 1 / 3), ABC, resamples=0)
    assert mean_auc([lacking]).value is None


# --- what is refused -------------------------------------------------------------------------


def broken(row: int, score: float) -> Floats:
    """The hand-worked scores with one cell changed."""
    scores = SCORES.copy()
    scores[row, 0] = score
    return scores


@pytest.mark.parametrize(
    ("truth", "scores", "words"),
    [
        (TRUTH, broken(2, np.nan), "1 of 6 rows .* the first, row 2, is NaN"),
        (TRUTH, broken(3, np.inf), "row 3, is outside"),
        (TRUTH, broken(4, -0.1), "row 4, is outside"),
        (TRUTH, broken(5, 1.1), "row 5, is outside"),
        (TRUTH[:5], SCORES, "5 labels, scores of shape"),
        (TRUTH, SCORES[:, :2], "2 scores per image and 3 classes"),
        (TRUTH + 1, SCORES, r"labels name a class outside 0\.\.2"),
        (TRUTH[:0], SCORES[:0], "nothing to evaluate"),
        (TRUTH[:2], SCORES[:2], "all 2 images are of one class, A"),
        (TRUTH[-1:], SCORES[-1:], "all 1 images are of one class, C"),
    ],
)
def test_bad_input(truth: Ints, scores: Floats, words: str) -> None:
    """NaN, scores out of range, shapes, no image, one class only."""
    with pytest.raises(DataError, match=words) as caught:
        assess(truth, scores, ABC)
    assert caught.value.fix
    assert caught.value.exit_code == EXIT_DATA


@pytest.mark.parametrize("groups", [["a"] * 5, []])
def test_groups_must_match(groups: Sequence[str]) -> None:
    """One group per image."""
    with pytest.raises(DataError, match=f"{len(groups)} groups"):
        assess(TRUTH, SCORES, ABC, groups=groups)
