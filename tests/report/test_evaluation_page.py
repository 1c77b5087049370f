"""The evaluation report: what stands in it, and how a browser shows it."""

from __future__ import annotations

import base64
import dataclasses
import io
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image

from biigma_cli.cli.evaluate_report import worst_mistakes
from biigma_cli.data.perturb import GROUP_NOTES, GROUPS, PERTURBATIONS
from biigma_cli.metrics import Figure, assess, compare, reliability
from biigma_cli.metrics.localisation import LOCALISATION, RANKED, REFERENCES
from biigma_cli.metrics.subgroups import assess_subgroups
from biigma_cli.report.evaluation import (
    EvaluationReport,
    Mistake,
    evaluation_html,
    mistake_pictures,
    thumbnail_size,
)
from biigma_cli.report.evaluation.page import figure_cell, robustness_tables
from biigma_cli.report.heads import KINDS
from biigma_cli.report.localisation import SAME_ORDER
from biigma_cli.report.overlay import Frame
from biigma_cli.report.pictures import LONGEST
from biigma_cli.storage import content_digest
from tests.conftest import Outcome, call
from tests.data.samples import encode, manifest, noise, oriented, record
from tests.report.browser import Browser, find_browser
from tests.report.pages import Page

CODES = ("MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC")
HOSTILE = '"><script>alert(1)</script>'
LONG = "a_very_long_name_without_any_break_" * 4


def made(codes: tuple[str, ...] = CODES, **changes: Any) -> EvaluationReport:
    """A report of 140 images with hostile and long names."""
    rng = np.random.default_rng(0)
    classes = len(codes)
    label = np.arange(140) % classes
    proba = rng.dirichlet(np.ones(classes), 140)
    proba[np.arange(140), label] += 0.3
    proba /= proba.sum(1, keepdims=True)
    groups = [str(i // 2) for i in range(140)]
    own = assess(label, proba, codes, groups=groups, resamples=50)
    pixels = rng.integers(0, 255, (8, 8, 3)).astype(np.uint8)
    pictures = mistake_pictures(
        pixels, Frame((8, 8), 8, "squash"), image_id=HOSTILE, truth="NV", answer="MEL",
        contrast_hw=rng.normal(0, 1, (3, 3)), saliency={"plain": rng.random((3, 3))},
    )  # fmt: skip
    mistake = Mistake(
        image_id=HOSTILE, lesion_id=LONG, truth="NV", answer="MEL", p_truth=0.1, p_answer=0.8,
        pictures=pictures,
    )  # fmt: skip
    known: dict[str, Any] = {
        "model": f"{LONG}/weights/best.safetensors", "probabilities": "as trained",
        "dataset": "isic18", "part": "test", "protocol": "lesion", "title": "our own protocol",
        "binary": False, "assessment": own, "label_n": label, "proba_nY": proba,
        "reliability": {name: reliability(label, proba) for name in ("As trained", HOSTILE)},
        "subgroups": assess_subgroups(
            label, proba.argmax(1), codes, {"sex": ["female"] * 130 + ["unknown"] * 10},
            groups=groups, asked=codes[0], resamples=50,
        ),
        "asked": codes[0], "absent": ("site",), "mistakes": [mistake] * 4,
        "provenance": {"data hash": "d" * 64, "split hash": "s" * 64, "command": LONG * 3},
        "licence": "CC-BY-NC-4.0", "citation": "<i>Nobody</i> & others",
    }  # fmt: skip
    return EvaluationReport(**{**known, **changes})


@pytest.fixture(scope="module")
def report() -> EvaluationReport:
    """With every section there is."""
    figure = {"value": 0.5, "low": 0.25, "high": 0.75}
    figures = dict.fromkeys(LOCALISATION, figure)
    map_ = {"overall": figures, "over_centre": figures, "without_energy": 0}
    measures = dict.fromkeys(("unchanged", "accuracy_drop", "p_true_shift"), figure)
    first = made()
    return made(
        against=(HOSTILE, compare(first.assessment, first.assessment)),
        saliency={
            "images": 12,
            "maps": {
                **dict.fromkeys(("answer", "standardised", *REFERENCES), map_),
                "plain": {**map_, "without_energy": 3},
            },
        },
        robustness={
            "images": 11,
            "lesions": 10,
            "conditions": [
                {
                    "name": kind.name,
                    "title": HOSTILE if kind.name == "ruler" else kind.title,
                    "group": kind.group,
                    **({"strength_name": step} if step else {}),
                    "overall": measures,
                    "unchanged_by_chance": 0.125,
                    "per_class": {"MEL": measures, HOSTILE: measures},
                }
                for kind in PERTURBATIONS.values()
                for step in kind.steps
            ],
            "against": {"model": "runs/other/weights/best.safetensors"},
            "difference": [
                {"title": kind.title, **({"strength_name": s} if s else {}), "overall": measures}
                for kind in PERTURBATIONS.values()
                for s in kind.steps
            ],
            "towards_donor_class": {"answers": figure, "probability": figure},
        },
        heads={**likeness("own"), "against": likeness("other")},
    )


def likeness(name: str) -> dict[str, Any]:
    """What is said of two heads."""
    means = {"pooled": 0.21, "positions": 0.32, "chance": 0.1}
    matrix = [[1.0, 0.21], [0.21, 1.0]]
    return {
        "model": f"runs/{name}/{name}.safetensors", "images": 9, "pooled": matrix,
        "positions": matrix, "mean_between_heads": means,
    }  # fmt: skip


@pytest.fixture(scope="module")
def html(report: EvaluationReport) -> str:
    """Its page."""
    return evaluation_html(report)


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    """The same, parsed."""
    return Page(html)


# --- what stands in it -----------------------------------------------------------------------


def test_whole_and_self_contained(html: str, page: Page) -> None:
    """Tags match, nothing is fetched, nothing runs, nothing hostile got through."""
    assert html.startswith("<!doctype html>")
    assert page.open == []
    assert page.all("script") == []
    assert "<i>Nobody</i> & others" in page.text
    for _, attributes in page.tags:
        for name in ("src", "href", "xlink:href"):
            value = attributes.get(name) or "#"
            assert value.startswith(("#", "data:")), value
        assert not any(name.startswith("on") for name in attributes)
    for address in re.findall(r"url\(([^)]*)\)", html):
        assert address.startswith("#")
    assert "@import" not in html


def test_ids_are_unique_and_found(html: str, page: Page) -> None:
    """Figures do not take each other's clips, and every link leads somewhere."""
    ids = Counter(a["id"] for _, a in page.tags if a.get("id"))
    assert max(ids.values()) == 1
    used = {
        a[k][1:]
        for _, a in page.tags
        for k in ("href", "xlink:href")
        if (a.get(k) or "")[:1] == "#"
    }
    used |= set(re.findall(r"url\(#([^)]*)\)", html))
    used |= {a["aria-labelledby"] for _, a in page.tags if a.get("aria-labelledby")}
    assert used <= set(ids)


def test_for_a_screen_reader(page: Page) -> None:
    """Landmarks, headings in order, captions, scopes, words for pictures."""
    names = [name for name, _ in page.tags]
    for landmark in ("header", "nav", "main", "footer"):
        assert names.count(landmark) == 1
    levels = [int(name[1]) for name in names if re.fullmatch(r"h\d", name)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b - a <= 1 for a, b in itertools.pairwise(levels))
    assert names.count("table") == names.count("caption")
    assert all(a.get("scope") in ("row", "col") for a in page.all("th"))
    assert all(a.get("alt") for a in page.all("img"))
    for svg in page.all("svg"):
        assert svg["role"] == "img"
        assert len(svg["aria-label"] or "") > 40
    wide = [a for a in page.all("div") if "wide" in (a.get("class") or "")]
    assert len(wide) == names.count("table")
    assert all(a["tabindex"] == "0" and a["role"] == "region" and a["aria-label"] for a in wide)
    assert page.all("html")[0]["lang"] == "en"


def test_what_it_shows(page: Page, report: EvaluationReport) -> None:
    """Figures with intervals, published results with protocols, counts and shares, hashes."""
    text = " ".join(page.text.split())
    own = report.assessment
    accuracy = own.overall["accuracy"]
    for words in (
        f"{accuracy.value:.4f}", f"{accuracy.low:.4f} to {accuracy.high:.4f}", "our own protocol",
        "random 80:20 by image", "Not comparable", "impossible", "MEL at 80.0%", "d" * 64, "s" * 64,
        "less a Gaussian at the centre", "11 images of 10 lesions", "accuracy drop",
        "sex: unknown", "fewer than 10 lesions", "for any image of the part: site", "pointing",
        "0.250 to 0.750", "not a medical device", "AUC", "evidence, up to", "M, plain",
    ):  # fmt: skip
        assert words in text, words
    counts = own.figures.confusion[0]
    assert f"{counts[0]}{100 * counts[0] / sum(counts):.1f}%" in text.replace(" ", "")
    # A ROC and a PR curve for each class, a diagram for each of the two, error over coverage.
    assert len(page.all("svg")) == 2 * 7 + 2 + 1
    wrong = int((report.proba_nY.argmax(1) != report.label_n).sum())
    assert f"{wrong} of 140 images were answered wrong" in text


def rows_of(html: str, caption: str) -> dict[str, list[str]]:
    """Cells of the table with that caption, in words, by row."""
    table = next(t for t in html.split("<table>")[1:] if f"<caption>{caption}" in t)
    body = table.split("<tbody>")[1].split("</tbody>")[0]
    rows = [
        [re.sub(r"<[^>]*>", " ", cell).strip() for cell in re.split(r"</t[hd]>", row)[:-1]]
        for row in body.split("</tr>")[:-1]
    ]
    return {head: cells for head, *cells in rows}


def test_saliency_as_in_the_terminal(html: str, page: Page) -> None:
    """The mask knows of the image, equal figures stand once, references are no results."""
    text = " ".join(page.text.split())
    assert "a uniform map know nothing of the image, and the mask itself is what" in text
    assert "M, plain: 3 images without a positive value have no share of energy" in text
    assert text.count("without a positive value") == 1
    assert SAME_ORDER in text
    overall = rows_of(html, "Maps against the masks")
    apart = rows_of(html, "The same, less a Gaussian")
    own = {"evidence, answer", "M, plain", "M, standardised"}
    assert set(overall) == own | {"(centre prior)", "(uniform)", "(mask itself)"}
    assert set(apart) == own
    for rows in (overall, apart):
        cells = dict(zip(LOCALISATION, rows["M, standardised"], strict=True))
        assert {name for name, cell in cells.items() if cell == "as plain"} == set(RANKED)
        assert "as plain" not in rows["M, plain"]


def test_robustness_says_what_is_changed(html: str, page: Page) -> None:
    """A true note for each group; chance beside the control, the pull beside the backgrounds."""
    text = " ".join(page.text.split())
    assert "ll but the lesion" not in text
    places = []
    for group, title in GROUPS.items():
        caption = f"{title.capitalize()}: 11 images of 10 lesions"
        places += [text.index(caption), text.index(GROUP_NOTES[group])]
        assert f"<caption>{group}:" not in html
    assert places == sorted(places)
    assert "hair lies over the lesion as well" in GROUP_NOTES["painted"]
    assert "here answers should change" in text
    assert "50.0% of the answers stay; 12.5% would if" in text
    assert "changes by +0.500 (+0.250 to +0.750), its mean probability by +0.500" in text


def test_all_that_the_terminal_says(html: str) -> None:
    """Differences to the second model, unchanged answers by class, and the heads."""
    apart = rows_of(html, "Minus other/weights/best.safetensors, paired differences")
    steps = sum(len(kind.steps) for kind in PERTURBATIONS.values())
    assert len(apart) == steps
    assert all(cells[0].startswith("+0.500") for cells in apart.values())
    by_class = rows_of(html, "Unchanged answers by true class, at the strongest")
    assert len(by_class) == len(PERTURBATIONS)
    assert all(len(cells) == 2 for cells in by_class.values())
    for name in ("own", "other"):
        for what in KINDS.values():
            rows = rows_of(html, f"{name}.safetensors, 9 images: {what}")
            assert rows == {"1": ["1.000", "0.210"], "2": ["0.210", "1.000"]}
    assert html.count("Off the diagonal: 0.210; 0.100 with channels in random order.") == 2


def test_robustness_without_donors(report: EvaluationReport) -> None:
    """No word of a pull that nobody could measure."""
    nothing = {"value": None, "low": None, "high": None, "why": "no image"}
    robustness = dict(report.robustness or {})
    robustness["towards_donor_class"] = {"answers": nothing, "probability": nothing}
    tables = robustness_tables(robustness)
    assert [len(t.notes) for t in tables] == [1, 1, 1, 2, 0, 0]


def test_colours_come_from_the_page(html: str) -> None:
    """A figure with a colour of its own would not suit dark."""
    svgs = re.findall(r"<svg.*?</svg>", html, flags=re.S)
    assert svgs
    for svg in svgs:
        assert not re.findall(r"(?:fill|stroke): *#[0-9a-f]{3,6}", svg, flags=re.I)
        assert "<style" not in svg
        assert "var(--quiet)" in svg


def test_pictures() -> None:
    """JPEG, and no map where the model shows none; maps lie where the network looked."""
    assert thumbnail_size((600, 450)) == (LONGEST, round(LONGEST * 3 / 4))
    assert thumbnail_size((1, 20_000)) == (1, LONGEST)
    grey = np.full((100, 100, 3), 128, np.uint8)
    frame = Frame((100, 100), 160, "squash", 0.5)
    (only,) = mistake_pictures(grey, frame, image_id="a", truth="NV", answer="MEL")
    assert base64.b64decode(only.source.partition(",")[2])[:2] == b"\xff\xd8"
    evidence = np.zeros((5, 5))
    evidence[2, 3] = 1
    _, map_ = mistake_pictures(
        grey, frame, image_id="a", truth="NV", answer="MEL", contrast_hw=evidence
    )
    drawn = Image.open(io.BytesIO(base64.b64decode(map_.source.partition(",")[2])))
    red = np.asarray(drawn, np.float64)[..., 0] - np.asarray(drawn, np.float64)[..., 2]
    y, x = (float(a.mean()) for a in np.nonzero(red > 0.9 * red.max()))
    assert (x, y) == pytest.approx((60, 40), abs=3)  # 96.5 and 64.5 of 160
    flat = mistake_pictures(
        grey, frame, image_id="a", truth="NV", answer="MEL", contrast_hw=np.zeros((2, 2))
    )
    assert len(flat) == 2


def test_binary_task_and_no_intervals() -> None:
    """One class has curves, ours has a sensitivity beside the published; nothing is made up."""
    text = evaluation_html(
        made(("MEL", "OTHER"), dataset="isic17-mel", binary=True, mistakes=(), subgroups=())
    )
    found = Page(text)
    assert len(found.all("svg")) == 2 + 2 + 1
    assert "sensitivity to MEL" in found.text
    assert "at most 0.7323, not 0.7933" in found.text


def test_data_set_without_published_results() -> None:
    """No such section."""
    found = Page(evaluation_html(made(dataset="own", mistakes=(), subgroups=(), absent=())))
    assert "published" not in {a.get("id") for _, a in found.tags}
    assert "Not comparable" not in found.text


@pytest.mark.parametrize("value", [6, 9, "6"])
def test_pictures_lie_as_decoded(tmp_path: Path, value: int | str) -> None:
    """Whatever stands in the orientation tag."""
    stored = encode(noise(60, 40), "JPEG", exif=oriented(value))
    (tmp_path / "P0.jpg").write_bytes(stored)
    own = dataclasses.replace(record("P0", "NV"), digest=content_digest(stored))
    judged = SimpleNamespace(
        ids=("P0",), label_n=np.array([1]), proba_nY=np.array([[0.9, 0.1]]),
        assessment=SimpleNamespace(codes=("MEL", "NV")),
    )  # fmt: skip
    candidate = SimpleNamespace(
        data=SimpleNamespace(side=16, resize="squash"), trunk="light",
        maps=lambda *_: SimpleNamespace(evidence_nYhw=None, saliency={}),
    )  # fmt: skip
    (mistake,) = worst_mistakes(
        cast(Any, judged), cast(Any, candidate), manifest([own], root=tmp_path)
    )
    content = base64.b64decode(mistake.pictures[0].source.partition(",")[2])
    width, height = Image.open(io.BytesIO(content)).size
    assert (width > height) == (value != 6)


def test_cells() -> None:
    """A reason where there is no value."""
    assert figure_cell(Figure(value=None, why="none")) == ("-", "none")
    assert figure_cell(Figure(value=0.5), signed=True) == ("+0.5000", "")


# --- in a browser ----------------------------------------------------------------------------

# Text and what lies behind it: the lowest contrast that the page's words have.
CONTRAST = """(() => {
  const parse = (text) => {
    const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
    canvas.fillStyle = text; canvas.fillRect(0, 0, 1, 1);
    return canvas.getImageData(0, 0, 1, 1).data;
  };
  const light = ([r, g, b]) => {
    const part = (v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
    return 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b);
  };
  const seen = new Map();
  const words = 'p, a, th, td, dd, dt, li, h1, h2, h3, small, span, figcaption, svg text';
  for (const node of document.querySelectorAll(words)) {
    if (!node.textContent.trim() || node.className === 'skip') continue;
    const style = getComputedStyle(node);
    let back = node;
    const clear = (e) => parse(getComputedStyle(e).backgroundColor)[3] < 255;
    while (back && clear(back)) back = back.parentElement;
    const ink = node.closest('svg') ? style.fill : style.color;
    seen.set(`${ink} on ${getComputedStyle(back || document.body).backgroundColor}`, node.tagName);
  }
  return [...seen.keys()].map((key) => {
    const [a, b] = key.split(' on ').map((c) => light(parse(c)));
    return [key, (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05)];
  });
})()"""

STATE = """(() => ({
  scroll: document.documentElement.scrollWidth,
  width: document.documentElement.clientWidth,
  broken: [...document.images].filter((i) => !i.complete || !i.naturalWidth).length,
  images: document.images.length,
  flat: [...document.querySelectorAll('svg.plot')]
    .filter((s) => s.getBoundingClientRect().width < 180).length,
  outside: [...document.querySelectorAll('body *')].filter((e) => !e.closest('.wide, .skip, svg')
    && e.getBoundingClientRect().right > document.documentElement.clientWidth + 1).length,
  page: getComputedStyle(document.body).backgroundColor,
}))()"""

FOCUS = """(() => {
  const found = [];
  for (const node of document.querySelectorAll('a[href], [tabindex="0"]')) {
    node.focus({focusVisible: true});
    if (document.activeElement !== node || getComputedStyle(node).outlineStyle === 'none') {
      found.push(node.outerHTML.slice(0, 80));
    }
  }
  return found;
})()"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """One for all checks."""
    program = find_browser()
    if program is None:
        pytest.skip("no chromium on this machine")
    with Browser(program, tmp_path_factory.mktemp("profile")) as opened:
        yield opened


def test_in_a_browser(browser: Browser, html: str, tmp_path: Path) -> None:
    """Both schemes, a wide screen and a phone: no error, no missing picture, no sideways scroll."""
    path = tmp_path / "index.html"
    path.write_text(html, encoding="utf-8")
    colours = set()
    for width in (1200, 390):
        for dark in (False, True):
            browser.open(path, width=width, dark=dark)
            state = browser.evaluate(STATE)
            assert state["scroll"] <= state["width"], (width, state)
            assert state["width"] >= width - 20
            assert (state["broken"], state["flat"], state["outside"]) == (0, 0, 0), state
            assert state["images"] == 4 * 3
            colours.add(state["page"])
            faint = [c for c in browser.evaluate(CONTRAST) if c[1] < 4.5]
            assert faint == [], (width, dark)
            said = [
                e for e in browser.events
                if e.get("method") in (
                    "Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded",
                    "Network.loadingFailed",
                )
            ]  # fmt: skip
            assert said == []
            asked = [
                e["params"]["request"]["url"]
                for e in browser.events
                if e.get("method") == "Network.requestWillBeSent"
            ]
            assert all(url.startswith(("file:", "data:")) for url in asked)
    assert len(colours) == 2
    assert browser.evaluate(FOCUS) == []


def test_the_browser_would_tell(browser: Browser, tmp_path: Path) -> None:
    """The checks above can fail: a bad page is seen to be one."""
    path = tmp_path / "bad.html"
    path.write_text(
        '<meta name="viewport" content="width=device-width"><p style="width: 900px">wide</p>'
        '<p style="color: #ccc; background: #fff">faint</p>'
        '<img src="data:image/png;base64,AAAA"><script>console.error("no"); nowhere()</script>'
    )
    browser.open(path, width=390)
    state = browser.evaluate(STATE)
    assert state["scroll"] > 390
    assert state["broken"] == 1
    assert min(contrast for _, contrast in browser.evaluate(CONTRAST)) < 4.5
    methods = {e.get("method") for e in browser.events}
    assert {"Runtime.exceptionThrown", "Runtime.consoleAPICalled"} <= methods


# --- the command -----------------------------------------------------------------------------

FAST = ("--resamples", "40", "--device", "cpu")


@pytest.fixture(scope="module")
def written(tiny_onnx: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    """A report by the command, and what it said."""
    folder = tmp_path_factory.mktemp("r") / "new" / "report"
    done = call("eval", "--model", tiny_onnx, "--report", folder, "--subgroups", *FAST)
    assert done.code == 0, done.err
    return folder, done


def test_command_writes_one_page(written: tuple[Path, Outcome], tiny_onnx: Path) -> None:
    """One file, under 5 MB, with maps of the mistakes and the hashes, and no folder of anyone's."""
    folder, done = written
    assert [p.name for p in folder.iterdir()] == ["index.html"]
    assert f"saved in {folder / 'index.html'}" in done.err
    text = (folder / "index.html").read_text(encoding="utf-8")
    assert len(text) < 5e6
    found = Page(text)
    assert found.open == []
    assert "Calibrated, T = " in found.text
    assert str(tiny_onnx.parent) not in text
    plain = json.loads(call("eval", "--model", tiny_onnx, "--json", *FAST).out)
    assert plain["data_hash"] in found.text
    assert plain["split_hash"] in found.text
    assert plain["published"]["rows"][0]["method"] == "BIIGMA-Net (paper)"
    assert "Not comparable" in plain["published"]["comparability"]
    assert plain["subgroups"]["absent"] == ["sex", "age", "site"]
    assert any(sum(row) != row[i] for i, row in enumerate(plain["confusion"]))
    captions = {c.split(",")[0] for c in re.findall(r"<figcaption>([^<]*)", text)}
    assert {"image", "evidence"} <= captions


def test_command_says_it_in_the_terminal(written: tuple[Path, Outcome]) -> None:
    """Published results come with their protocols, after ours; what nobody told apart is named."""
    out = written[1].out
    flat = " ".join(out.split())
    assert flat.index("published results, each with its protocol") < flat.index("random 80:20")
    assert "Not comparable" in flat
    assert "does not say: sex, age, site" in flat


def test_an_earlier_report_is_replaced(
    written: tuple[Path, Outcome], tiny_onnx: Path, tmp_path: Path
) -> None:
    """As a whole."""
    folder = tmp_path / "report"
    folder.mkdir()
    old = (written[0] / "index.html").read_text(encoding="utf-8")
    (folder / "index.html").write_text(old + "<!-- old -->", encoding="utf-8")
    done = call("eval", "--model", tiny_onnx, "--report", folder, *FAST)
    assert done.code == 0, done.err
    assert "<!-- old -->" not in (folder / "index.html").read_text(encoding="utf-8")
    assert [p.name for p in folder.iterdir()] == ["index.html"]


@pytest.mark.parametrize("kind", ["stranger", "other page", "file"])
def test_other_folders_are_refused(tiny_run: Path, tmp_path: Path, kind: str) -> None:
    """Before the work, and nothing in them is touched."""
    folder = tmp_path / "mine"
    if kind == "file":
        folder.write_text("x")
    else:
        folder.mkdir()
        name = "notes.txt" if kind == "stranger" else "index.html"
        (folder / name).write_text("<!doctype html><title>mine</title>")
    before = sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("*"))
    done = call("eval", "--run", tiny_run, "--report", folder, *FAST)
    assert done.code == 2
    assert done.out == ""
    assert done.err.count("fix:") == 1
    assert "Traceback" not in done.err
    assert sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("*")) == before
