"""The page of `biigma predict --report`: pictures with their answers, the most malignant first.

What it holds while images come is bounded: counts, the pictures that are shown, and some errors.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from biigma_cli.data.preprocess import shown
from biigma_cli.report.html import Cell, PageTable, render_page
from biigma_cli.report.pictures import EVIDENCE, SALIENCY, Picture, colour_bar
from biigma_cli.report.predictions import DISCLAIMER, Labels, Prediction, Provenance

GENERATOR = "biigma predict --report"
#: Pictures shown where no other number is asked for.
SHOWN = 500
#: Errors listed; all are counted.
LISTED = 500


@dataclass(frozen=True, kw_only=True)
class Case:
    """An image that is shown: its answer, the picture itself and then the maps on it."""

    prediction: Prediction
    pictures: tuple[Picture, ...] = field(repr=False)


class Bar(NamedTuple):
    """One class's probability, to draw."""

    code: str
    name: str
    probability: float
    malignant: bool


class _Ranked(NamedTuple):
    """In a heap the least malignant is on top, of equals the last that came."""

    malignancy: float
    order: int
    case: Case


class PredictionPage:
    """Gathers answers for the page.

    Args:
        most: pictures to show; the least malignant give way.
        earlier: answers of an interrupted run that is gone on with, by label; "" are errors.
    """

    def __init__(
        self, labels: Labels, *, most: int = SHOWN, earlier: Mapping[str, int] | None = None
    ) -> None:
        self.labels = labels
        self.most = most
        self.earlier = Counter(earlier or {})
        self.counts = Counter(self.earlier)
        #: Images that are suspicious, and that are not, where a limit was asked for.
        self.suspicious: Counter[bool] = Counter()
        self.errors: list[Prediction] = []
        self._heap: list[_Ranked] = []
        self._order = 0

    def add(self, item: Prediction, pictures: Callable[[], Sequence[Picture]]) -> None:
        """One more; `pictures` are made only of what is to be shown, as far as is known by now."""
        self.counts[item.label] += 1
        if item.error:
            if len(self.errors) < LISTED:
                self.errors.append(item)
            return
        if item.suspicious is not None:
            self.suspicious[item.suspicious] += 1
        self._order -= 1
        place = (malignancy(item), self._order)
        if len(self._heap) < self.most:
            heapq.heappush(self._heap, _Ranked(*place, _case(item, pictures)))
        elif self._heap and place > self._heap[0][:2]:
            heapq.heapreplace(self._heap, _Ranked(*place, _case(item, pictures)))

    def cases(self) -> list[Case]:
        """Those to show: the most malignant first, of equals the first that came."""
        return [ranked.case for ranked in sorted(self._heap, key=lambda r: (-r[0], -r[1]))]

    def html(
        self, made: Provenance, *, facts: Mapping[str, str], notes: Sequence[str], topk: int
    ) -> str:
        """The page's text. Names, wherever from, are escaped.

        Args:
            facts: what else there is to say of the model and the run.
            notes: what the reader must know.
            topk: classes whose probability is shown.
        """
        cases = self.cases()
        counts = {label: n for label, n in self.counts.items() if label and n}
        failed = self.counts[""]
        answered = sum(counts.values())
        known = None not in self.labels.malignant
        return render_page(
            "predictions.html",
            generator=GENERATOR,
            files=answered + failed,
            model=shown(made.model),
            disclaimer=DISCLAIMER,
            notes=notes,
            tiles=self._tiles(counts, answered, failed),
            summary=self._summary(counts, answered),
            cases=[self._told(case, topk) for case in cases],
            known=known,
            left_out=answered - self._earlier_answered() - len(cases),
            earlier=sum(self.earlier.values()),
            earlier_answered=self._earlier_answered(),
            bars=[
                bar
                for bar, there in (
                    ((colour_bar(EVIDENCE), "against the class", "for the class"), "evidence"),
                    ((colour_bar(SALIENCY), "M = 0", "M = 1"), "M"),
                )
                if any(p.caption.startswith(there) for c in cases for p in c.pictures)
            ],
            errors=[(shown(e.path), e.error) for e in self.errors],
            failed=failed,
            earlier_failed=self.earlier[""],
            facts={
                "model": shown(made.model),
                "execution provider": made.provider,
                "biigma": made.version,
                **facts,
            },
        )

    def _earlier_answered(self) -> int:
        return sum(self.earlier.values()) - self.earlier[""]

    def _tiles(
        self, counts: Mapping[str, int], answered: int, failed: int
    ) -> list[tuple[str, Cell]]:
        tiles = [("answered", Cell(f"{answered:,}"))]
        codes = [c for c, m in zip(self.labels.codes, self.labels.malignant, strict=True) if m]
        if None not in self.labels.malignant:
            count = sum(counts.get(code, 0) for code in codes)
            tiles.append(
                ("malignant or pre-malignant", Cell(f"{count:,}", _share(count, answered)))
            )
        if self.suspicious:
            # Of an earlier run's answers only the labels are known.
            earlier = ", in this run" if self.earlier else ""
            count, of = self.suspicious[True], self.suspicious.total()
            tiles.append(("suspicious" + earlier, Cell(f"{count:,}", f"of {of:,} judged")))
        for label in sorted(set(counts) - set(self.labels.codes)):
            tiles.append((label, Cell(f"{counts[label]:,}", _share(counts[label], answered))))
        tiles.append(("could not be read", Cell(f"{failed:,}")))
        return tiles

    def _summary(self, counts: Mapping[str, int], answered: int) -> PageTable:
        malignant = dict(zip(self.labels.codes, self.labels.malignant, strict=True))
        others = sorted(set(counts) - set(self.labels.codes))
        rows = []
        for label in (*self.labels.codes, *others):
            count = counts.get(label, 0)
            name = self.labels.name(label) or ""
            if malignant.get(label):
                name += ", malignant or pre-malignant"
            share = f"{count / answered:.1%}" if answered else "-"
            rows.append(
                [Cell(label, name if name != label else ""), Cell(f"{count:,}"), Cell(share)]
            )
        return PageTable(
            caption="Images by answer", columns=("answer", "images", "share"), rows=rows
        )

    def _told(self, case: Case, topk: int) -> dict[str, object]:
        """A case as the template takes it."""
        item = case.prediction
        malignant = dict(zip(self.labels.codes, self.labels.malignant, strict=True))
        best, probability = item.top(1)[0]
        return {
            "path": shown(item.path),
            "label": item.label,
            "best": best,
            "full": self.labels.name(best) if self.labels.name(best) != best else "",
            "probability": f"{probability:.1%}",
            "open": item.label != best,
            "malignant": None if item.malignant is None else f"{item.malignant:.1%}",
            "suspicious": bool(item.suspicious),
            "flagged": item.label == best and bool(malignant[best]),
            "note": item.note,
            "bars": [
                Bar(code, self.labels.name(code) or code, p, bool(malignant[code]))
                for code, p in item.top(topk)
            ],
            "pictures": case.pictures,
        }


def malignancy(item: Prediction) -> float:
    """What answers are sorted by: the malignant classes' probability, else the answer's."""
    return item.top(1)[0][1] if item.malignant is None else item.malignant


def _case(item: Prediction, pictures: Callable[[], Sequence[Picture]]) -> Case:
    return Case(prediction=item, pictures=tuple(pictures()))


def _share(count: int, of: int) -> str:
    return f"{count / of:.1%} of them" if of else ""
