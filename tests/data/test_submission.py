"""Predictions and truth in the ISIC forms: what is read, what is refused, what is written."""

from __future__ import annotations

import re
import stat
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from biigma_cli.data.submission import (
    Matched,
    Predictions,
    Truth,
    binary_tasks,
    by_name,
    common,
    image_id,
    match,
    normalised,
    read_groups,
    read_predictions,
    read_truth,
    submission_text,
    write_submission,
)
from biigma_cli.errors import EXIT_DATA, BiigmaError, DataError
from tests.data.samples import HAM10000, NO_HAM10000

REAL_17 = HAM10000.parent / "isic17" / "ISIC-2017_Validation_Part3_GroundTruth.csv"
REAL_19 = HAM10000.parent / "isic19" / "ISIC_2019_Training_GroundTruth.csv"

PREDICTED = "image,MEL,NV,BCC\nISIC_1,0.7,0.2,0.1\nISIC_2,0.1,0.8,0.1\nISIC_3,0.2,0.2,0.6\n"
LABELLED = "image,MEL,NV,BCC\nISIC_3,0.0,0.0,1.0\nISIC_1,1.0,0.0,0.0\nISIC_2,0.0,1.0,0.0\n"
NAMED = "lesion_id,image_id,dx,age\nL1,ISIC_1,mel,50\nL2,ISIC_2,nv,\n,ISIC_3,bcc,30\n"
PREDICTED_17 = "image_id,melanoma,seborrheic_keratosis\nISIC_1,0.9,0.3\nISIC_2,0.2,0.8\n"
LABELLED_17 = "image_id,melanoma,seborrheic_keratosis\nISIC_1,1.0,0.0\nISIC_2,0.0,0.0\n"


def save(folder: Path, text: str | bytes, name: str = "file.csv") -> Path:
    """A file of that text, newlines as they are."""
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def predicted(folder: Path, text: str | bytes = PREDICTED) -> Predictions:
    """Read it as predictions."""
    return read_predictions(save(folder, text, "predictions.csv"))


def labelled(folder: Path, text: str | bytes = LABELLED) -> Truth:
    """Read it as truth."""
    return read_truth(save(folder, text, "truth.csv"))


def refused(error: pytest.ExceptionInfo[BiigmaError], *words: str) -> None:
    """A data error that says each of `words`, and what to do."""
    assert error.value.exit_code == EXIT_DATA
    assert error.value.fix
    for word in words:
        assert word in error.value.message


# --- predictions -----------------------------------------------------------------------------


def test_predictions(tmp_path: Path) -> None:
    """Ids, codes and scores as they stand."""
    found = predicted(tmp_path)
    assert found.ids == ("ISIC_1", "ISIC_2", "ISIC_3")
    assert found.codes == ("MEL", "NV", "BCC")
    assert found.score_nY.tolist() == [[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6]]
    assert not found.binary


@pytest.mark.parametrize(
    "text",
    [
        b"\xef\xbb\xbf" + PREDICTED.encode(),
        PREDICTED.replace("\n", "\r\n"),
        PREDICTED.replace("\n", "\r"),
        PREDICTED.replace(",", ";"),
        PREDICTED.replace(",", ";").replace(".", ","),
        PREDICTED.replace(",", "\t").replace(".", ","),
        PREDICTED.replace(",", ", "),
        PREDICTED.rstrip("\n"),
        PREDICTED.replace("MEL,NV", "mel,Nv").replace("image", "Image"),
        PREDICTED.replace("image", "image_id").replace("ISIC_2", "ISIC_2.jpg"),
        PREDICTED.replace("ISIC_1,", " ISIC_1.JPG ,").replace("0.7", "7e-1"),
        PREDICTED.replace("\n", ",,\n"),
        "sep=;\n" + PREDICTED.replace(",", ";").replace(".", ","),
        '\ufeff"sep=,"\r\n' + PREDICTED.replace("\n", "\r\n"),
        PREDICTED.replace("ISIC_3", "\n\nISIC_3"),
        re.sub(r"(ISIC_\d)", r'"\1"', PREDICTED),
    ],
    ids=["bom", "crlf", "cr", "semicolon", "decimal comma", "tab", "spaces", "no last newline",
         "case", "jpg", "white space", "empty columns", "excel's line",
         "excel's line, quoted", "empty lines", "quotes"],
)  # fmt: skip
def test_the_same_predictions(tmp_path: Path, text: str | bytes) -> None:
    """What spreadsheets and people do to a file changes nothing."""
    found, plain = predicted(tmp_path, text), predicted(tmp_path, PREDICTED)
    assert (found.ids, found.codes) == (plain.ids, plain.codes)
    assert (found.score_nY == plain.score_nY).all()


def test_the_2017_form(tmp_path: Path) -> None:
    """Two questions, told by their columns."""
    found = predicted(tmp_path, PREDICTED_17)
    assert found.binary
    assert found.codes == ("MEL", "SK")


def test_what_float32_makes_of_one(tmp_path: Path) -> None:
    """A millionth beside 0 or 1 is rounding."""
    text = "image,MEL,NV\nISIC_1,1.0000001,-1e-7\nISIC_2,0,1\n"
    np.testing.assert_array_equal(predicted(tmp_path, text).score_nY, [[1, 0], [0, 1]])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (PREDICTED.replace("0.8", "NaN"), ("1 cells", "line 3, NV: 'NaN' is not a number")),
        (PREDICTED.replace("0.8", "inf"), ("line 3, NV: 'inf' is not a number",)),
        (PREDICTED.replace("0.8", "high"), ("line 3, NV: 'high' is not a number",)),
        (PREDICTED.replace("0.8", ""), ("line 3, NV: empty",)),
        (PREDICTED.replace("0.8", "1.5"), ("line 3, NV: 1.5 is outside 0..1",)),
        (PREDICTED.replace("0.8", "1.00001"), ("line 3, NV: 1.00001 is outside 0..1",)),
        (PREDICTED.replace("0.7", "-0.7"), ("line 2, MEL: -0.7 is outside 0..1",)),
        (PREDICTED.replace("0.8,0.1", "0.8"), ("line 3: 3 cells, and 4 columns",)),
        (PREDICTED.replace("0.8,0.1", "0.8,0.1,9"), ("line 3: 5 cells",)),
        (PREDICTED.replace("ISIC_2", ""), ("line 3: no image id",)),
        (PREDICTED.replace("ISIC_2", "ISIC_1"), ("1 images come more than once: ISIC_1",)),
        (PREDICTED.replace("ISIC_2", "ISIC_1.jpg"), ("come more than once: ISIC_1",)),
        (PREDICTED.replace("image,", "file,"), ("no column image", "it has: file, MEL, NV, BCC")),
        (PREDICTED.replace("NV", "mel"), ("the column 'mel' twice",)),
        (PREDICTED.replace(",NV", ","), ("a nameless column",)),
        ("image,MEL\nISIC_1,0.5\n", ("1 columns of scores: MEL",)),
        ("image,MEL,NV\n", ("has no rows",)),
        ("", ("no column image", "it has: nothing")),
        (b"image,MEL,NV\nISIC_1,0.5,\xff\n", ("cannot read",)),
        ('image,MEL,NV\n"ISIC_1,0.5,0.5\n', ("line 2",)),
        ("sep=,\n" + PREDICTED.replace("0.8", "NaN"), ("line 4, NV: 'NaN'",)),
        (PREDICTED.replace("ISIC_2", "ISIC\0_2"), ("line 3: a NUL byte in 'ISIC\\x00_2'",)),
    ],
)
def test_faults_of_predictions(tmp_path: Path, text: str | bytes, words: tuple[str, ...]) -> None:
    """Each is named with its line."""
    with pytest.raises(DataError) as caught:
        predicted(tmp_path, text)
    refused(caught, "predictions.csv", *words)


@pytest.mark.parametrize(
    ("text", "fix"),
    [
        ("image,MEL,NV\na,16.5,83.5\nb,100,0\n", "divide them by 100"),
        ("image_id,melanoma,seborrheic_keratosis\na,80,3\nb,10,12\n", "divide them by 100"),
        ("image,MEL,NV\na,-2.5,3.1\nb,1.2,0.3\n", "softmax"),
        ("image,MEL,NV\na,2.5,3.1\nb,1.2,0.3\n", "softmax"),
        ("image,MEL,NV\na,0.5,x\nb,100,0\n", "must hold a probability"),
    ],
)
def test_what_scores_look_like(tmp_path: Path, text: str, fix: str) -> None:
    """Percent and logits have a remedy of their own."""
    with pytest.raises(DataError, match="no number from 0 to 1") as caught:
        predicted(tmp_path, text)
    assert fix in (caught.value.fix or "")


@pytest.mark.parametrize(
    ("content", "form"), [(b'{"path": "a"}\n', "JSON"), (b"PAR1\x15\x04\xb0", "Parquet")]
)
def test_other_forms_of_predictions(tmp_path: Path, content: bytes, form: str) -> None:
    """What predict writes beside CSV is told by name."""
    path = tmp_path / "p.csv"
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"is {form}, and CSV is read") as caught:
        read_predictions(path)
    assert "-o FILE.csv" in (caught.value.fix or "")


def test_ten_faults_are_listed_and_the_rest_counted(tmp_path: Path) -> None:
    """25 bad cells: lines 2 to 11 are named."""
    rows = "".join(f"I{i},x,0.5\n" for i in range(25))
    with pytest.raises(DataError) as caught:
        predicted(tmp_path, "image,MEL,NV\n" + rows)
    refused(caught, "25 cells", "line 2,", "line 11,", "and 15 more")
    assert "line 12" not in caught.value.message


def test_lines_are_those_of_the_file(tmp_path: Path) -> None:
    """Empty lines count, as they do in an editor."""
    with pytest.raises(DataError, match="line 5, NV"):
        predicted(tmp_path, PREDICTED.replace("ISIC_2", "\n\nISIC_2").replace("0.8", "?"))


@pytest.mark.parametrize("name", ["gone.csv", ""])
def test_no_such_file(tmp_path: Path, name: str) -> None:
    """Nothing there, or a folder."""
    with pytest.raises(DataError) as caught:
        read_predictions(tmp_path / name)
    refused(caught, str(tmp_path / name))


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("ISIC_1", "ISIC_1"), (" ISIC_1.jpg", "ISIC_1"), ("a.b.JPEG", "a.b"), ("x.jpg.png", "x.jpg"),
     ("e\u0301.tif", "\u00e9"), ("jpg", "jpg"), ("a.dcm", "a"), ("a.gif", "a"), ("a.jfif", "a"),
     ("a.MPO", "a"), ("a.ima", "a")],
)  # fmt: skip
def test_image_id(text: str, wanted: str) -> None:
    """White space and one suffix go; Unicode is composed."""
    assert image_id(text) == wanted


# --- truth -----------------------------------------------------------------------------------


def labels(truth: Truth) -> dict[str, str]:
    """Code by image."""
    return {i: truth.codes[n] for i, n in zip(truth.ids, truth.label_n.tolist(), strict=True)}


WANTED = {"ISIC_1": "MEL", "ISIC_2": "NV", "ISIC_3": "BCC"}


def test_truth_by_column(tmp_path: Path) -> None:
    """The classes are those of the columns."""
    truth = labelled(tmp_path)
    assert labels(truth) == WANTED
    assert truth.codes == ("MEL", "NV", "BCC")
    assert truth.closed
    assert truth.lesions is None
    assert truth.counted.all()


def test_truth_by_name(tmp_path: Path) -> None:
    """HAM10000's metadata: lower-case names, lesions; one without a lesion stands for itself."""
    truth = labelled(tmp_path, NAMED)
    assert labels(truth) == WANTED
    assert truth.codes == ("MEL", "NV", "BCC")
    assert not truth.closed
    assert truth.lesions == ("L1", "L2", "ISIC_3")


@pytest.mark.parametrize("word", ["unknown", " NaN ", "n/a", "NULL", "-", "unk", "?", "#N/A"])
def test_words_for_an_unknown_lesion(tmp_path: Path, word: str) -> None:
    """They are no lesion; where all say so, no lesions are known."""
    truth = labelled(tmp_path, NAMED.replace("L1", word))
    assert truth.lesions == ("ISIC_1", "L2", "ISIC_3")
    nothing = NAMED.replace("L1", word).replace("L2", word)
    assert labelled(tmp_path, nothing).lesions is None
    ids = ("ISIC_2", "ISIC_1")
    groups = save(tmp_path, NAMED.replace("L1", word), "groups.csv")
    assert read_groups(groups, ids) == ("L2", "ISIC_1")
    assert read_groups(save(tmp_path, nothing, "groups.csv"), ids) is None


def test_truth_of_2017(tmp_path: Path) -> None:
    """Neither of the two is a nevus."""
    truth = labelled(tmp_path, LABELLED_17)
    assert labels(truth) == {"ISIC_1": "MEL", "ISIC_2": "NV"}
    assert truth.codes == ("MEL", "SK", "NV")


def test_weights(tmp_path: Path) -> None:
    """The official image of weight 0, and those whose `score_weight` says so."""
    text = (
        "image,MEL,NV,score_weight,validation_weight\n"
        "ISIC_1,1,0,1.0,0.0\nISIC_2,0,1,0.0,1.0\nISIC_0035068,0,1,1.0,0.0\n"
    )
    truth = labelled(tmp_path, text)
    assert truth.codes == ("MEL", "NV")
    assert truth.counted.tolist() == [True, False, False]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (LABELLED.replace("0.0,1.0,0.0", "0.0,0.0,0.0"), ("line 4", "exactly one class")),
        (LABELLED.replace("0.0,1.0,0.0", "1,1,0"), ("line 4", "exactly one class")),
        (LABELLED.replace("0.0,1.0,0.0", "0.0,0.5,0.5"), ("line 4, NV: 0.5", "neither 0 nor 1")),
        (LABELLED.replace("0.0,1.0,0.0", "0.0,,1"), ("line 4, NV: nothing",)),
        (PREDICTED, ("9 cells that are neither 0 nor 1",)),
        (LABELLED_17.replace("1.0,0.0", "1.0,1.0"), ("line 2", "one class at most")),
        (NAMED.replace("nv", ""), ("no dx in line 3",)),
        ("image_id,dx\nA,benign\nB,Benign\nC,x\n", ("differ in case only: Benign; benign",)),
        (NAMED.replace("ISIC_2", "ISIC_1"), ("come more than once: ISIC_1",)),
        ("image,age\nISIC_1,5\n", ("neither a column dx nor one per class", "age")),
        ("image,MEL,NV,score_weight\nISIC_1,1,0,2\n", ("line 2, score_weight: 2",)),
    ],
)
def test_faults_of_truth(tmp_path: Path, text: str, words: tuple[str, ...]) -> None:
    """Each is named with its line."""
    with pytest.raises(DataError) as caught:
        labelled(tmp_path, text)
    refused(caught, "truth.csv", *words)


@pytest.mark.skipif(not HAM10000.is_dir(), reason=NO_HAM10000)
def test_real_truths() -> None:
    """HAM10000's metadata, the 2017 validation part, and all of 2019 with its empty class."""
    ham = read_truth(HAM10000 / "HAM10000_metadata.csv")
    assert ham.codes == ("MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC")
    assert np.bincount(ham.label_n).tolist() == [1113, 6705, 514, 327, 1099, 115, 142]
    assert ham.lesions is not None
    assert len(set(ham.lesions)) == 7470
    assert np.bincount(read_truth(REAL_17).label_n).tolist() == [30, 42, 78]
    nineteen = read_truth(REAL_19)
    assert nineteen.codes[-1] == "UNK"
    assert np.bincount(nineteen.label_n, minlength=9).tolist() == [
        4522, 12875, 3323, 867, 2624, 239, 253, 628, 0,
    ]  # fmt: skip


# --- both ------------------------------------------------------------------------------------


def joined(folder: Path, predictions: str = PREDICTED, truth: str = LABELLED) -> Matched:
    """Match them."""
    return match(predicted(folder, predictions), labelled(folder, truth))


def test_match(tmp_path: Path) -> None:
    """Rows in the truth's order, columns too, whatever the predictions' are."""
    swapped = "image,BCC,MEL,NV\nISIC_1,0.1,0.7,0.2\nISIC_2,0.1,0.1,0.8\nISIC_3,0.6,0.2,0.2\n"
    for text in (PREDICTED, swapped):
        found = joined(tmp_path, text)
        assert found.ids == ("ISIC_3", "ISIC_1", "ISIC_2")
        assert found.codes == ("MEL", "NV", "BCC")
        assert found.label_n.tolist() == [2, 0, 1]
        assert found.score_nY.tolist() == [[0.2, 0.2, 0.6], [0.7, 0.2, 0.1], [0.1, 0.8, 0.1]]
        assert found.groups is None


def test_own_labels_match_in_any_case(tmp_path: Path) -> None:
    """Labels that are no ISIC codes keep the truth's spelling."""
    found = joined(
        tmp_path, "image,SPITZ,reed\na,0.9,0.1\nb,0.4,0.6\n", "image,label\na,Spitz\nb,Reed\n"
    )
    assert sorted(found.codes) == ["Reed", "Spitz"]
    said = [found.codes[i] for i in found.score_nY.argmax(1)]
    assert said == ["Spitz", "Reed"]


def test_classes_only_predicted(tmp_path: Path) -> None:
    """Truth by name need not have every class; by column it must name all."""
    found = joined(tmp_path, truth="image,dx\nISIC_1,bcc\nISIC_2,nv\nISIC_3,nv\n")
    assert found.codes == ("MEL", "NV", "BCC")
    assert found.label_n.tolist() == [2, 1, 1]
    with pytest.raises(DataError) as caught:
        joined(tmp_path, truth="image,MEL,NV\nISIC_1,1,0\nISIC_2,0,1\nISIC_3,0,1\n")
    refused(caught, "columns of no class", "BCC")


@pytest.mark.parametrize("truth", ["image,dx\nISIC_1,mel\nISIC_2,nv\nISIC_3,nv\n", NAMED])
def test_columns_that_are_no_classes(tmp_path: Path, truth: str) -> None:
    """Other figures from 0 to 1 are no probabilities of a class; one that the truth happens to lack
    is told by the rows' sums, however small its share."""
    lines = PREDICTED.splitlines()

    def with_column(name: str, *values: object) -> str:
        return "\n".join([f"{lines[0]},{name}", *map("{},{}".format, lines[1:], values)])

    for values in ((0.5, 0.9, 1), (0, 0, 1)):
        with pytest.raises(DataError) as caught:
            joined(tmp_path, with_column("blurred", *values), truth)
        refused(caught, "predictions.csv", "no class of", "no known diagnosis: blurred")
        assert "delete what is no class" in caught.value.fix
    with pytest.raises(DataError) as caught:
        joined(tmp_path, "image,MEL,NV,BCC,age,sex\n"
               "ISIC_1,1,0,0,0.5,1\nISIC_2,0,1,0,0.3,0\nISIC_3,0,0,1,0,0\n", truth)  # fmt: skip
    refused(caught, "diagnosis: age, sex")
    for spitz in (0.3, 0.004):
        rest = 1 - spitz
        text = (
            f"image,MEL,NV,BCC,Spitz\nISIC_1,{rest},0,0,{spitz}\nISIC_2,0,1,0,0\nISIC_3,0,0,1,0\n"
        )
        assert "Spitz" in joined(tmp_path, text, truth).codes
    for known in ("VASC", "UNK"):
        assert known in joined(tmp_path, with_column(known, 0.5, 0.5, 0.5), truth).codes
    # What a fix of our own asks for.
    assert "Spitz" in joined(tmp_path, with_column("Spitz", 0, 0, 0), truth).codes


def test_classes_never_predicted(tmp_path: Path) -> None:
    """One without an image is left out; one with images must have a column."""
    empty = LABELLED.replace("BCC", "BCC,UNK").replace(".0\n", ".0,0.0\n")
    found = joined(tmp_path, truth=empty)
    assert found.codes == ("MEL", "NV", "BCC")
    assert found.dropped == ("UNK",)
    with pytest.raises(DataError) as caught:
        joined(tmp_path, truth=empty.replace("0.0,1.0,0.0,0.0", "0.0,0.0,0.0,1.0"))
    refused(caught, "no column for UNK (1 images)", "it has: MEL, NV, BCC")


@pytest.mark.parametrize(
    ("ours", "theirs", "wanted"),
    [
        (["a"], ["x/a"], {"a": "x/a"}),
        (["x/a"], ["a"], {"x/a": "a"}),
        (["x\\a", "b"], ["y/a", "b"], {"x\\a": "y/a"}),
        (["a", "b"], ["a", "x/a", "y/b"], {"b": "y/b"}),
        (["a", "x/a"], ["y/a"], {}),
        (["a"], ["x/a", "y/a"], {}),
        (["x/a"], ["x/a", "b"], {}),
        (["a"], ["x/A"], {}),
    ],
)
def test_by_name(
    tmp_path: Path, ours: list[str], theirs: list[str], wanted: dict[str, str]
) -> None:
    """Where nothing but the folder differs, and no other image of either file is called so."""
    predictions = predicted(tmp_path, "image,MEL,NV\n" + "".join(f"{i},0.4,0.6\n" for i in ours))
    truth = labelled(tmp_path, "image,MEL,NV\n" + "".join(f"{i},0,1\n" for i in theirs))
    found, changed = by_name(predictions, truth)
    assert changed == wanted
    assert found.ids == tuple(wanted.get(i, i) for i in ours)
    assert (found.score_nY == predictions.score_nY).all()


def many(start: int, stop: int, tail: str) -> str:
    """Rows of many images."""
    return "image,MEL,NV\n" + "".join(f"I{i:02},{tail}\n" for i in range(start, stop))


def test_ids_that_do_not_match(tmp_path: Path) -> None:
    """Ten of each kind are named, the rest counted; what both have can be asked for."""
    predictions = predicted(tmp_path, many(0, 40, "0.4,0.6"))
    truth = labelled(tmp_path, many(25, 52, "1,0"))
    with pytest.raises(DataError) as caught:
        match(predictions, truth)
    refused(caught, "no row for 12 of 27 images", "I40, I41", "I49 and 2 more",
            "does not know 25 of 40", "I00, I01", "I09 and 15 more")  # fmt: skip
    assert "--subset" in caught.value.fix
    found = match(predictions, truth, subset=True)
    assert found.ids == tuple(f"I{i}" for i in range(25, 40))
    kept, left = common(truth, [predictions, predictions])
    assert (kept.ids, left) == (found.ids, 37)


def test_nothing_in_common(tmp_path: Path) -> None:
    """Not even a subset."""
    predictions = predicted(tmp_path, many(0, 5, "0.4,0.6"))
    truth = labelled(tmp_path, many(5, 9, "1,0"))
    with pytest.raises(DataError) as caught:
        match(predictions, truth, subset=True)
    refused(caught, "no image in common", "I00, I01, I02 and 2 more", "I05, I06, I07 and 1 more")
    with pytest.raises(DataError, match=r"no image is in .*truth.csv and in .*predictions.csv"):
        common(truth, [predictions])


def test_an_image_of_no_weight_may_be_missing(tmp_path: Path) -> None:
    """Most copies of the data do not have it."""
    truth = LABELLED + "ISIC_0035068,0.0,1.0,0.0\n"
    assert joined(tmp_path, truth=truth).ids == ("ISIC_3", "ISIC_1", "ISIC_2")
    found = joined(tmp_path, PREDICTED + "ISIC_0035068,0,0,0\n", truth)
    assert found.counted.tolist() == [True, True, True, False]
    assert len(found.unlike_one) == 0
    assert (normalised(found).score_nY[3] == 0).all()


def test_the_two_tasks_of_2017(tmp_path: Path) -> None:
    """Each question against the rest; a nevus is the rest in both."""
    tasks = dict(binary_tasks(joined(tmp_path, PREDICTED_17, LABELLED_17)))
    melanoma, keratosis = tasks["isic17-mel"], tasks["isic17-sk"]
    assert melanoma.codes == ("MEL", "OTHER")
    assert melanoma.label_n.tolist() == [0, 1]
    assert melanoma.score_nY == pytest.approx(np.array([[0.9, 0.1], [0.2, 0.8]]))
    assert keratosis.codes == ("SK", "OTHER")
    assert keratosis.label_n.tolist() == [1, 1]
    assert keratosis.score_nY[:, 0].tolist() == [0.3, 0.8]
    with pytest.raises(DataError) as caught:
        joined(tmp_path, PREDICTED_17, "image,dx\nISIC_1,mel\nISIC_2,nv\n")
    refused(caught, "no class SK")


def test_three_classes_against_the_truth_of_2017(tmp_path: Path) -> None:
    """Predictions by code go with it, too."""
    found = joined(tmp_path, "image,MEL,NV,SK\nISIC_1,0.5,0.3,0.2\nISIC_2,0,1,0\n", LABELLED_17)
    assert found.codes == ("MEL", "SK", "NV")
    assert found.score_nY.tolist() == [[0.5, 0.2, 0.3], [0, 0, 1]]


def test_rows_that_do_not_sum_to_one(tmp_path: Path) -> None:
    """They are pointed out, and divided when asked; rounding is no fault, a row of 0 is."""
    found = joined(tmp_path, PREDICTED.replace("0.8", "0.3").replace("0.7", "0.698"))
    assert [found.ids[n] for n in found.unlike_one] == ["ISIC_2"]
    assert normalised(found).score_nY.sum(1) == pytest.approx(1)
    assert normalised(found).score_nY[2] == pytest.approx([0.2, 0.6, 0.2])
    assert len(joined(tmp_path, PREDICTED_17, LABELLED_17).unlike_one) == 0
    with pytest.raises(DataError) as caught:
        normalised(joined(tmp_path, PREDICTED.replace("0.1,0.8,0.1", "0,0,0")))
    refused(caught, "1 images have no score but 0: ISIC_2")


# --- lesions ---------------------------------------------------------------------------------


def test_groups(tmp_path: Path) -> None:
    """By id, in the order asked; an empty lesion is the image's own; a file beats the truth."""
    table = save(tmp_path, "image;Lesion_ID\nISIC_1.jpg;L9\nISIC_2;L9\nISIC_3;\nISIC_4;L1\n")
    assert read_groups(table, ["ISIC_3", "ISIC_1", "ISIC_2"]) == ("ISIC_3", "L9", "L9")
    found = match(predicted(tmp_path), labelled(tmp_path, NAMED), groups=table)
    assert found.groups == ("L9", "L9", "ISIC_3")
    assert match(predicted(tmp_path), labelled(tmp_path, NAMED)).groups == ("L1", "L2", "ISIC_3")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("image,lesion_id\nISIC_1,L1\n", ("no row for 1 of 2 images: ISIC_2",)),
        ("image,age\nISIC_1,1\nISIC_2,2\n", ("no column lesion_id", "age")),
        (
            "image,lesion_id\nISIC_1,L1\nISIC_1,L2\nISIC_2,L1\n",
            ("1 images two lesions: ISIC_1",),
        ),
    ],
)
def test_faults_of_groups(tmp_path: Path, text: str, words: tuple[str, ...]) -> None:
    """A missing image, no column, an image of two lesions."""
    table = save(tmp_path, text)
    with pytest.raises(DataError) as caught:
        read_groups(table, ["ISIC_1", "ISIC_2"])
    refused(caught, *words)


# --- writing ---------------------------------------------------------------------------------


def test_submission_text() -> None:
    """The official form, values without ornament; what floating point adds to 1 is cut off."""
    proba = np.array([[0.25, 0.75], [1 + 1e-7, 0]])
    assert submission_text(["a", "b"], proba, ("MEL", "NV")) == "image,MEL,NV\na,0.25,0.75\nb,1,0\n"


@given(st.integers(0, 10_000), st.integers(1, 12), st.integers(2, 8))
@settings(max_examples=20, deadline=None)
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, seed: int, n: int, classes: int
) -> None:
    """Single precision comes back bit by bit."""
    proba = np.random.default_rng(seed).dirichlet(np.full(classes, 0.1), n).astype(np.float32)
    path = tmp_path_factory.mktemp("written") / "out.csv"
    ids, codes = [f"I{i}" for i in range(n)], [f"C{c}" for c in range(classes)]
    write_submission(path, ids, proba, codes)
    found = read_predictions(path)
    assert (list(found.ids), list(found.codes)) == (ids, codes)
    assert (found.score_nY.astype(np.float32) == proba).all()


def test_writing_is_atomic(tmp_path: Path) -> None:
    """Nothing beside the file, which anybody may read; a refusal leaves the old one."""
    path = tmp_path / "new" / "out.csv"
    write_submission(path, ["a"], np.array([[0.5, 0.5]]), ("MEL", "NV"))
    before = path.read_bytes()
    assert [p.name for p in path.parent.iterdir()] == ["out.csv"]
    assert path.stat().st_mode & stat.S_IRUSR
    with pytest.raises(DataError):
        write_submission(path, ["a"], np.array([[np.nan, 0.5]]), ("MEL", "NV"))
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("ids", "proba", "words"),
    [
        (["a"], np.array([[0.5, np.nan]]), "no number from 0 to 1: a"),
        (["a"], np.array([[0.5, 1.1]]), "no number from 0 to 1: a"),
        (["a"], np.array([[0.5]]), "scores of shape"),
        (["a", "a"], np.full((2, 2), 0.5), "come more than once: a"),
    ],
)
def test_what_is_not_written(ids: list[str], proba: np.ndarray, words: str) -> None:
    """NaN, values outside 0..1, shapes, doubles."""
    with pytest.raises(DataError) as caught:
        submission_text(ids, proba, ("MEL", "NV"))
    refused(caught, words)
