"""Figures where classes have other shares than on the part."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from sklearn.metrics import log_loss

from biigma_cli.judge.prevalence import AS_JUDGED, CORRECTED, Call, judge_at
from biigma_cli.judge.screening import screen
from biigma_cli.metrics import Figure, at_prevalence
from biigma_cli.report.prevalence import prevalence_title

CODES = ("MEL", "NV", "BCC")
MALIGNANT = (True, False, True)
LIMITS = ((0.95, 0.2), (None, 0.6), (0.99, None))


def drawn(n: int = 300) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64], list[str]]:
    """Labels, probabilities of some skill, and lesions of two images."""
    rng = np.random.default_rng(4)
    label = rng.choice(3, n, p=(0.3, 0.5, 0.2))
    logits = rng.normal(size=(n, 3)) + 1.2 * np.eye(3)[label]
    proba = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return label, proba, [f"L{i // 2}" for i in range(n)]


def value(figure: Figure) -> float:
    """It has one."""
    assert figure.value is not None
    return figure.value


def test_at_the_parts_own_shares() -> None:
    """Every figure is that of the part as it is."""
    label, proba, groups = drawn()
    own = np.bincount(label, minlength=3) / len(label)
    found = judge_at(own, label, proba, CODES, MALIGNANT, groups, limits=LIMITS, resamples=200)
    figures = found.answers[AS_JUDGED]
    assert value(figures["accuracy"]) == pytest.approx((proba.argmax(1) == label).mean())
    assert value(figures["log_loss"]) == pytest.approx(log_loss(label, proba))
    brier = ((proba - np.eye(3)[label]) ** 2).sum(1).mean()
    assert value(figures["brier"]) == pytest.approx(brier)
    assert value(figures["malignancy"]) == pytest.approx((1 - proba[:, 1]).mean())
    assert found.worth == pytest.approx(len(label))
    assert found.malignant == pytest.approx((label != 1).mean())
    assert not found.difference
    plain = screen(LIMITS, label, proba, MALIGNANT, groups, flagged_n=None, resamples=200)
    assert plain is not None
    answer, *limits = found.calls
    assert value(answer.sensitivity) == pytest.approx((proba.argmax(1) != 1)[label != 1].mean())
    for row, known in zip(limits[:2], plain.limits, strict=False):
        assert row.threshold == known.threshold
        for name in ("sensitivity", "specificity", "ppv"):
            here, there = getattr(row, name), getattr(known, name)
            assert value(here) == pytest.approx(value(there))
    called = proba[:, 0] + proba[:, 2] >= 0.2
    assert value(limits[0].npv) == pytest.approx((label == 1)[~called].mean())
    assert value(limits[0].called) == pytest.approx(called.mean())
    assert limits[2].ppv.value is None
    assert limits[2].ppv.why == "no limit promises so much"


def test_as_if_images_came_several_times() -> None:
    """Weighting a class is the same as having its images so many times."""
    label, proba, groups = drawn()
    flagged = np.arange(len(label)) % 11 == 0
    times = np.array([1, 5, 2])[label]
    more = np.repeat(np.arange(len(label)), times)
    shares = np.bincount(label[more], minlength=3) / len(more)
    found = judge_at(
        shares, label, proba, CODES, MALIGNANT, groups, limits=LIMITS[:2],
        weight_Y=np.array([0.2, 3.0, 0.5]), resamples=0,
    )  # fmt: skip
    other = at_prevalence(proba, np.array([0.2, 3.0, 0.5]))
    for kind, p in ((AS_JUDGED, proba), (CORRECTED, other)):
        figures = found.answers[kind]
        assert value(figures["accuracy"]) == pytest.approx((p.argmax(1) == label)[more].mean())
        assert value(figures["log_loss"]) == pytest.approx(log_loss(label[more], p[more]))
        assert value(figures["malignancy"]) == pytest.approx(1 - p[more, 1].mean())
    assert value(found.difference["log_loss"]) == pytest.approx(
        log_loss(label[more], other[more]) - log_loss(label[more], proba[more])
    )
    assert found.worth == pytest.approx(times.sum() ** 2 / (times**2).sum())
    ways = [
        proba.argmax(1) != 1, other.argmax(1) != 1, 1 - proba[:, 1] >= 0.2, 1 - proba[:, 1] >= 0.6
    ]  # fmt: skip
    assert [(c.by, c.probabilities) for c in found.calls] == [
        ("the answer", AS_JUDGED), ("the answer", CORRECTED), ("limit", AS_JUDGED),
        ("limit", AS_JUDGED),
    ]  # fmt: skip
    is_malignant = label != 1
    for call, called in zip(found.calls, ways, strict=True):
        assert value(call.ppv) == pytest.approx(is_malignant[more][called[more]].mean())
        assert value(call.npv) == pytest.approx((~is_malignant)[more][~called[more]].mean())
        assert value(call.sensitivity) == pytest.approx(called[more][is_malignant[more]].mean())
        assert value(call.called) == pytest.approx(called[more].mean())
    # Flagged images are out of the calls, and in the answers.
    less = judge_at(shares, label, proba, CODES, MALIGNANT, groups, flagged_n=flagged, resamples=0)
    assert less.answers[AS_JUDGED] == found.answers[AS_JUDGED]
    called, there = ways[0], ~flagged
    wanted = called[more][(there & is_malignant)[more]].mean()
    assert value(less.calls[0].sensitivity) == pytest.approx(wanted)
    wanted = is_malignant[more][(there & called)[more]].mean()
    assert value(less.calls[0].ppv) == pytest.approx(wanted)


def test_flagged_images_have_no_share_in_the_calls() -> None:
    """At the part's own shares they are those of `screen`, whatever class is flagged most."""
    label, proba, groups = drawn()
    own = np.bincount(label, minlength=3) / len(label)
    flagged = (label == 0) & (np.arange(len(label)) % 2 == 0)
    flagged |= label == 2  # throughout
    found = judge_at(
        own, label, proba, CODES, MALIGNANT, groups, limits=LIMITS[:1], flagged_n=flagged,
        resamples=100,
    )  # fmt: skip
    plain = screen(LIMITS[:1], label, proba, MALIGNANT, groups, flagged_n=flagged, resamples=100)
    assert plain is not None
    for name in ("sensitivity", "specificity", "ppv"):
        here, there = getattr(found.calls[1], name), getattr(plain.limits[0], name)
        assert value(here) == pytest.approx(value(there))
    called = (1 - proba[:, 1] >= 0.2)[~flagged]
    assert value(found.calls[1].called) == pytest.approx(called.mean())
    every = judge_at(
        own, label, proba, CODES, MALIGNANT, groups, flagged_n=label != 1, resamples=100
    )
    assert every.calls == ()


def test_few_images_of_a_class_are_named() -> None:
    """Their figures hang on what no resample tells."""
    label, proba, groups = drawn()
    kept = (label != 0) | (np.arange(len(label)) < 20)
    found = judge_at(
        (0.5, 0.4, 0.1), label[kept], proba[kept], CODES, MALIGNANT,
        [g for g, k in zip(groups, kept, strict=True) if k], resamples=100,
    )  # fmt: skip
    assert found.few == {"MEL": int((label[:20] == 0).sum())}
    assert f"few images are of MEL ({found.few['MEL']})" in prevalence_title(found.to_dict())
    none = judge_at((0.5, 0.4, 0.1), label, proba, CODES, MALIGNANT, groups, resamples=100)
    assert not none.few
    assert "few images" not in prevalence_title(none.to_dict())


def test_ppv_falls_with_the_share() -> None:
    """By Bayes' rule; its interval holds it, and sensitivity stays what it is."""
    label, proba, groups = drawn()
    own = np.bincount(label, minlength=3) / len(label)
    rows: list[Call] = []
    for share in (0.001, 0.02, 0.2, 0.9):
        shares = np.where([True, False, True], share * own / (own[0] + own[2]), 1 - share)
        found = judge_at(
            shares, label, proba, CODES, MALIGNANT, groups, limits=LIMITS[:1], resamples=300
        )
        rows.append(found.calls[1])
        sens, spec = value(rows[-1].sensitivity), value(rows[-1].specificity)
        assert value(rows[-1].ppv) == pytest.approx(
            share * sens / (share * sens + (1 - share) * (1 - spec))
        )
        for name in ("sensitivity", "specificity", "ppv", "npv", "called"):
            figure = getattr(rows[-1], name)
            assert figure.low < figure.value < figure.high
    assert len({round(value(row.sensitivity), 12) for row in rows}) == 1
    for name, rising in (("ppv", True), ("npv", False)):
        values = [value(getattr(row, name)) for row in rows]
        assert values == sorted(values, reverse=not rising)


def test_rates_of_one_have_an_interval() -> None:
    """Nothing missed, nothing called in vain: that is no certainty at any share."""
    label = np.arange(120) % 3
    proba = 0.94 * np.eye(3)[label] + 0.02
    groups = [str(i) for i in range(120)]
    found = judge_at(
        (0.007, 0.99, 0.003), label, proba, CODES, MALIGNANT, groups, limits=[(None, 0.5)],
        resamples=200,
    )  # fmt: skip
    row = found.calls[1]
    for name in ("sensitivity", "specificity", "ppv", "npv"):
        figure = getattr(row, name)
        assert figure.value == 1, name
        assert figure.high == 1
        assert figure.low < 1
    # 40 benign images without a false call still allow 1 in 12, more than all the malignant.
    assert row.specificity.low == pytest.approx(0.025 ** (1 / 40), abs=1e-3)
    assert row.ppv.low is not None
    assert row.ppv.low < 0.12


def test_nothing_called() -> None:
    """No PPV, and why."""
    label, proba, groups = drawn()
    own = np.bincount(label, minlength=3) / len(label)
    found = judge_at(
        own, label, proba, CODES, MALIGNANT, groups, limits=[(None, 1.0)], resamples=200
    )
    row = found.calls[1]
    assert (row.sensitivity.value, row.specificity.value) == (0, 1)
    assert row.sensitivity.high is not None
    assert 0 < row.sensitivity.high < 0.1
    assert row.ppv.why == "none is called malignant"
    assert value(row.npv) == pytest.approx(own[1])
    assert row.npv.high is not None
    assert row.npv.high > own[1] + 0.001
    assert row.called.value == 0
    assert row.called.high is not None
    assert row.called.high > 0


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_one_kind_alone(share: float) -> None:
    """There is nothing to tell apart; answers have their figures."""
    label, proba, groups = drawn()
    found = judge_at((share, 1 - share, 0), label, proba, CODES, MALIGNANT, groups, resamples=100)
    assert found.calls == ()
    kept = label == (0 if share else 1)
    assert value(found.answers[AS_JUDGED]["accuracy"]) == pytest.approx(
        (proba.argmax(1) == label)[kept].mean()
    )


def test_classes_without_images_and_of_unknown_kind() -> None:
    """A share without an image is refused; without known kinds there is no malignancy."""
    label, proba, groups = drawn()
    few = label != 2
    kept = [g for g, there in zip(groups, few, strict=True) if there]
    with pytest.raises(ValueError, match="a class without an image has a share"):
        judge_at((0.1, 0.8, 0.1), label[few], proba[few], CODES, MALIGNANT, kept, resamples=0)
    found = judge_at(
        (0.1, 0.9, 0), label[few], proba[few], CODES, (True, None, None), kept, resamples=50
    )
    assert found.malignant is None
    assert found.calls == ()
    assert set(found.answers[AS_JUDGED]) == {"accuracy", "log_loss", "brier"}
    assert found.to_dict()["shares"] == {"MEL": 0.1, "NV": 0.9, "BCC": 0}
