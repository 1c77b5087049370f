"""Borders that are left out, and corners that are filled."""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageDraw, ImageOps

from biigma_cli.data import preprocess
from biigma_cli.data.frame import WHOLE, Part, fill_corners, find_frame
from biigma_cli.data.masks import cell_edges, lay_lesion
from biigma_cli.data.preprocess import RESIZE_RULES, decode_image, load_image
from biigma_cli.report.explanation import load_picture
from tests.data.samples import HAM10000, NO_HAM10000, encode, noise, skin

SIDE = 64


def bordered(
    image: Image.Image, left: int, top: int, right: int, bottom: int, colour: str = "black"
) -> Image.Image:
    """With so many pixels more at each side."""
    return ImageOps.expand(image, (left, top, right, bottom), colour)


def round_field(
    image: Image.Image, radius: float, colour: int = 0, soft: float = 0.5
) -> Image.Image:
    """Seen through a circle in the middle, of a radius in pixels; all else of one colour."""
    width, height = image.size
    y, x = np.ogrid[:height, :width]
    beyond = np.hypot(x - (width - 1) / 2, y - (height - 1) / 2) - radius
    inside = 1 / (1 + np.exp(np.clip(beyond / soft, -60, 60)))[..., None]
    mixed = inside * np.asarray(image) + (1 - inside) * colour
    return Image.fromarray(mixed.round().astype(np.uint8))


def apart(one: npt.NDArray[np.uint8], other: npt.NDArray[np.uint8]) -> float:
    """Mean difference of two pictures."""
    return float(np.abs(one.astype(int) - other).mean())


# --- borders ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("colour", "name"),
    [
        ("black", "black"),
        ("white", "white"),
        ("#1a1512", "black"),
        ("#fdfbff", "white"),
        ("#2b2b2b", "plain"),
        ("#d2d2d2", "plain"),
        ("#300000", "plain"),
        ("#1f4e9c", "plain"),
    ],
)
@pytest.mark.parametrize(
    "widths",
    [
        (9, 9, 9, 9),
        (0, 40, 0, 40),
        (50, 0, 50, 0),
        (0, 0, 3, 0),
        (0, 2, 0, 0),
        (2, 0, 0, 0),
        (100, 75, 90, 60),
    ],
    ids=str,
)
def test_what_is_left_is_the_picture(
    widths: tuple[int, int, int, int], colour: str, name: str
) -> None:
    """To the pixel, whichever sides have a border, and how the rest is resized."""
    bare = skin(200, 150)
    framed = bordered(bare, *widths, colour)
    found = find_frame(framed)
    left, top = widths[:2]
    assert found.part.pixels(framed.size) == (left, top, left + 200, top + 150)
    share = 1 - 200 * 150 / (framed.width * framed.height)
    assert found.note == f"a {name} border was left out ({share:.0%} of the picture)"
    for rule in RESIZE_RULES:
        taken = decode_image(encode(framed), SIDE, rule=rule, part=None)
        assert taken.note == found.note
        assert np.array_equal(taken.pixels, load_image(encode(bare), SIDE, rule=rule))


def test_as_data_sets_are_read_a_border_stays() -> None:
    """So that training, evaluation and caches are what they were."""
    content = encode(bordered(skin(200, 150), 30, 30, 30, 30))
    assert decode_image(content, SIDE).part == WHOLE
    assert np.array_equal(decode_image(content, SIDE).pixels, load_image(content, SIDE))
    assert load_image(content, SIDE)[0].max() == 0


@pytest.mark.parametrize("colour", ["black", "#2b2b2b", "#1f4e9c"])
@pytest.mark.parametrize("quality", [30, 60, 95])
def test_borders_that_jpeg_left_ragged(quality: int, colour: str) -> None:
    """Rings about the edge, and a hair across a black one, move it by a few pixels."""
    bare = skin(300, 225)
    framed = bordered(bare, 45, 30, 45, 30, colour)
    if colour == "black":
        ImageDraw.Draw(framed).line((0, 120, 389, 160), "#403020", 2)
    taken = decode_image(encode(framed, "JPEG", quality=quality), SIDE, part=None)
    wanted = (45, 30, 345, 255)
    for edge, at in zip(taken.part.pixels(framed.size), wanted, strict=True):
        assert abs(edge - at) <= 2
    plain = decode_image(encode(bare, "JPEG", quality=quality), SIDE)
    assert np.abs(taken.pixels.astype(int) - plain.pixels).mean() < 4


def test_two_colours() -> None:
    """Black bars in a white frame."""
    framed = bordered(bordered(skin(200, 150), 0, 25, 0, 25), 20, 0, 0, 0, "white")
    found = find_frame(framed)
    assert found.part.pixels(framed.size) == (20, 25, 220, 175)
    assert "a black and white border was left out" in found.note


def test_a_frame_within_a_frame_of_the_other_colour() -> None:
    """Lines are judged within what the other sides have left."""
    framed = bordered(bordered(skin(200, 150), 30, 30, 30, 30, "black"), 20, 20, 20, 20, "white")
    assert find_frame(framed).part.pixels(framed.size) == (50, 50, 250, 200)


def test_grey_bars_in_a_black_frame() -> None:
    """Of several borders on one side all are left out, and the outermost names them."""
    framed = bordered(bordered(skin(200, 150), 0, 25, 0, 10, "#303030"), 20, 20, 20, 20, "black")
    found = find_frame(framed)
    assert found.part.pixels(framed.size) == (20, 45, 220, 195)
    assert found.note.startswith("a black border was left out")


def ramp(low: int, high: int) -> Image.Image:
    """Plain along each row, changing from row to row."""
    rows = np.linspace(low, high, 150).astype(np.uint8)
    return Image.fromarray(np.broadcast_to(rows[:, None, None], (150, 200, 3)).copy())


def plain_edges() -> Image.Image:
    """A lesion on skin of one colour, which it gives way to within a few pixels."""
    y, x = np.ogrid[:150, :200]
    inside = 1 / (1 + np.exp((np.hypot(x - 100, y - 75) - 60) / 2))[..., None]
    colours = inside * np.array([90, 50, 40]) + (1 - inside) * np.array([215, 170, 150])
    return Image.fromarray(colours.astype(np.uint8))


@pytest.mark.parametrize("colour", ["#808080", "#3030a0"])
@pytest.mark.parametrize("size", [(32, 32), (34, 40), (60, 33)])
def test_a_small_picture_in_a_plain_border(size: tuple[int, int], colour: str) -> None:
    """Whatever JPEG mixes, something is left, and the note's share is one."""
    for quality in (10, 40, 90):
        framed = bordered(skin(*size), 11, 9, 11, 9, colour)
        taken = decode_image(encode(framed, "JPEG", quality=quality), SIDE, part=None)
        left, top, right, bottom = taken.part[:4]
        assert 0 <= left < right <= 1
        assert 0 <= top < bottom <= 1
        assert taken.pixels.shape == (SIDE, SIDE, 3)


def uneven(width: int, height: int) -> npt.NDArray[np.uint8]:
    """Of no colour that a border could have."""
    y, x = np.indices((height, width))
    return (60 + 30 * ((x + y) % 2))[..., None].repeat(3, 2).astype(np.uint8)


def test_sides_end_where_they_do_by_themselves() -> None:
    """A side's end is looked for within the borders, not within what other ends leave."""
    inner = uneven(60, 60)
    inner[17:50, :12] = 140  # the left side's end is 12 columns further on
    inner[:17, 20:35] = 140  # without those, too little of the upper lines is something else
    framed = bordered(Image.fromarray(inner), 20, 20, 20, 20, "#808080")
    assert find_frame(framed).part.pixels(framed.size) == (32, 20, 80, 80)


@pytest.mark.parametrize(("width", "left"), [(60, False), (90, True)])
def test_too_little_is_left_behind_mixed_lines(width: int, left: bool) -> None:
    """What JPEG has mixed counts as border, so that the least size holds for what is left."""
    inner = uneven(width, width)
    core = inner[6:-6, 6:-6].copy()
    inner[np.indices((width, width)).sum(0) % 10 > 0] = 140
    inner[6:-6, 6:-6] = core
    canvas = np.full((200, 200, 3), 128, np.uint8)
    canvas[70 : 70 + width, 70 : 70 + width] = inner
    found = find_frame(Image.fromarray(canvas))
    assert found.bare is not left
    wanted = (76, 76, 64 + width, 64 + width) if left else (0, 0, 200, 200)
    assert found.part.pixels((200, 200)) == wanted


def test_a_black_border_around_plain_skin() -> None:
    """The skin stays, the border goes."""
    for inner in (plain_edges(), ramp(90, 200)):
        framed = bordered(inner, 30, 0, 20, 25)
        found = find_frame(framed)
        assert found.part.pixels(framed.size) == (30, 0, 230, 150)
        assert found.note.startswith("a black border was left out")


def checkerboard() -> Image.Image:
    """Half of each line is black, half white."""
    y, x = np.indices((150, 200)) // 10
    return Image.fromarray(np.where((x + y)[..., None] % 2, 255, 0).repeat(3, 2).astype(np.uint8))


def over_exposed() -> Image.Image:
    """Skin near white, at its edges just not."""
    values = np.asarray(noise(200, 150), np.float32)
    return Image.fromarray((225 + values * 24 / 255).astype(np.uint8))


@pytest.mark.parametrize(
    "image",
    [
        skin(200, 150),
        noise(200, 150),
        checkerboard(),
        over_exposed(),
        Image.new("RGB", (200, 150), "black"),
        Image.new("RGB", (200, 150), "white"),
        Image.new("RGB", (1, 1), "black"),
        Image.new("RGB", (3, 2), "white"),
        Image.new("RGB", (200, 150), "#c08070"),
        ramp(60, 230),
        ramp(230, 40),
        plain_edges(),
        bordered(skin(200, 150), 1, 1, 1, 1),  # too narrow to matter
        bordered(skin(20, 15), 90, 60, 90, 60),  # too little is left
        bordered(skin(40, 150), 130, 0, 130, 0),
    ],
    ids=lambda image: f"{image.size} {image.getpixel((0, 0))}",
)
def test_what_is_no_border(image: Image.Image) -> None:
    """It is taken whole, without a word."""
    found = find_frame(image)
    assert found.part == WHOLE
    assert found.note == ""
    taken = decode_image(encode(image), SIDE, part=None)
    if image.getpixel((0, 0)) != (0, 0, 0) and image.height > 2:
        assert taken.note == ""
        assert np.array_equal(taken.pixels, load_image(encode(image), SIDE))


def test_turned_pictures() -> None:
    """The part is that of the upright picture."""
    framed = bordered(skin(200, 150), 60, 0, 0, 0)
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = framed.transpose(Image.Transpose.ROTATE_90)
    for kind in ("JPEG", "PNG"):
        taken = decode_image(encode(stored, kind, exif=exif, quality=95), SIDE, part=None)
        assert taken.part.pixels(framed.size) == pytest.approx((60, 0, 260, 150), abs=1)


@pytest.mark.parametrize("strict", [True, False])
def test_a_large_jpeg_is_decoded_finely_enough(
    monkeypatch: pytest.MonkeyPatch, *, strict: bool
) -> None:
    """The scale fits what is left, not the picture, which is decoded again where it must be."""
    detail = np.random.default_rng(0).integers(90, 200, (600, 800, 3), dtype=np.uint8)
    bare = Image.fromarray(detail).resize((1200, 900), Image.Resampling.BICUBIC)
    asked = []
    real = preprocess.find_frame

    def spied(image: Image.Image) -> object:
        asked.append(image.size)
        return real(image)

    monkeypatch.setattr(preprocess, "find_frame", spied)
    framed = encode(bordered(bare, 1400, 1050, 1400, 1050), "JPEG", quality=95)
    taken = decode_image(framed, 224, part=None, strict=strict)
    assert asked == [(1000, 750), (2000, 1500)]  # by quarters the part has 300 x 225
    plain = load_image(encode(bare, "JPEG", quality=95), 224)
    with Image.open(io.BytesIO(framed)) as image:
        image.draft("RGB", asked[0])
        coarse = image.crop((350, 262, 650, 488)).resize((224, 224), Image.Resampling.BILINEAR)
    assert apart(taken.pixels, plain) < apart(np.asarray(coarse), plain) / 2
    assert "a black border was left out (91% of the picture)" in taken.note


def test_the_same_part_again() -> None:
    """As `explain` draws it: only what the network saw, in its own shape."""
    bare = skin(200, 150)
    content = encode(bordered(bare, 40, 10, 0, 0))
    part = decode_image(content, SIDE, part=None).part
    picture, size = load_picture(content, part=part)
    assert size == (200, 150)
    assert np.array_equal(picture, np.asarray(bare))


def test_every_part_has_a_pixel() -> None:
    """At whatever scale."""
    rng = np.random.default_rng(0)
    for _ in range(300):
        low, high = np.sort(rng.random((2, 2)), axis=0)
        part = Part(float(low[0]), float(low[1]), float(high[0]), float(high[1]))
        width, height = (int(n) for n in rng.integers(1, 40, 2))
        left, top, right, bottom = part.pixels((width, height))
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height


# --- corners ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("colour", "soft"), [(0, 0.5), (20, 0.5), (0, 2.5)])
@pytest.mark.parametrize("rule", RESIZE_RULES)
def test_a_round_field(colour: int, soft: float, rule: str) -> None:
    """Cut to the square around it; nothing black or white is left, and the middle is the same."""
    bare = skin(240, 180)
    content = encode(round_field(bare, 80, colour, soft))
    taken = decode_image(content, SIDE, rule=rule, part=None)
    assert taken.part.filled
    edges = taken.part.pixels((240, 180))
    assert edges == pytest.approx((40, 10, 200, 170), abs=2 + 2 * soft)
    assert "a black border was left out" in taken.note
    assert "the corners beside a round field of view were filled (2" in taken.note
    assert taken.pixels.max() < 230
    assert taken.pixels.min() > 60
    plain = load_image(encode(bare.crop(edges)), SIDE, rule=rule)
    middle = np.s_[SIDE // 5 : -SIDE // 5, SIDE // 5 : -SIDE // 5]
    assert apart(taken.pixels[middle], plain[middle]) < 0.5
    kept = load_image(content, SIDE, rule=rule, part=Part(*taken.part[:4]))
    assert apart(taken.pixels, plain) < apart(kept, plain) / 3


def test_a_round_field_that_was_cut_out_already() -> None:
    """No border, but corners."""
    bare = skin(160, 160)
    taken = decode_image(encode(round_field(bare, 80)), SIDE, part=None)
    assert taken.part == WHOLE._replace(filled=True)
    assert taken.note == "the corners beside a round field of view were filled (20%)"
    assert taken.pixels.min() > 60


def test_small_corners_stay() -> None:
    """As the models' own training images have them; unless they are known to be filled."""
    content = encode(round_field(skin(160, 160), 96))
    taken = decode_image(content, SIDE, part=None)
    assert not taken.part.filled
    assert taken.note == ""
    assert np.array_equal(taken.pixels, load_image(content, SIDE))
    assert taken.pixels.min() < 10
    assert load_image(content, SIDE, part=WHOLE._replace(filled=True)).min() > 60


def test_filled_pixels_are_mirrored() -> None:
    """By hand: black in columns, whose values tell where they come from."""
    values = np.arange(100, 200, dtype=np.uint8)[None, :, None].repeat(100, 0).repeat(3, 2)
    black = values.copy()
    black[:, :20] = black[:, 90:] = 0
    filled, share = fill_corners(black)
    assert share == pytest.approx(0.3)
    stays, ends = 22, 88  # what is filled reaches 2.5 pixels beyond the black
    assert filled[50, stays:ends, 0].tolist() == values[50, stays:ends, 0].tolist()
    assert filled[50, :stays, 0].tolist() == [144 - x for x in range(stays)]
    assert filled[50, ends:, 0].tolist() == [100 + 2 * 87 - x for x in range(ends, 100)]


def lesion(width: int, height: int, ink: str, *box: int) -> Image.Image:
    """Skin with an ellipse of another colour, which may reach beyond the edge."""
    image = skin(width, height)
    ImageDraw.Draw(image).ellipse(box, ink)
    return image


@pytest.mark.parametrize(
    "image",
    [
        lesion(200, 150, "#0a0605", 110, 80, 260, 220),  # black, in one corner
        lesion(200, 150, "black", -60, 30, 70, 120),  # at one side
        round_field(lesion(160, 160, "black", -20, -20, 85, 85), 80),  # into the edge of the field
    ],
    ids=["corner", "side", "field"],
)
def test_dark_lesions_stay(image: Image.Image) -> None:
    """What reaches into the picture's edge is not painted over."""
    taken = decode_image(encode(image), SIDE, part=None)
    assert taken.part == WHOLE
    assert np.array_equal(taken.pixels, load_image(encode(image), SIDE))


@pytest.mark.parametrize("soft", [2, 12])
@pytest.mark.parametrize("centre", [(100, 75), (70, 60)])
def test_over_exposed_skin_stays(centre: tuple[int, int], soft: float) -> None:
    """A lesion on white is not cropped to; nor is a round field on white, which looks the same."""
    y, x = np.ogrid[:150, :200]
    beyond = np.hypot(x - centre[0], y - centre[1]) - 55
    inside = 1 / (1 + np.exp(np.clip(beyond / soft, -60, 60)))[..., None]
    pixels = (255 - inside * (255 - np.asarray(skin(200, 150)))).astype(np.uint8)
    taken = decode_image(encode(Image.fromarray(pixels)), SIDE, part=None)
    assert taken.part == WHOLE
    assert taken.note == ""


def test_a_caption_in_a_bar() -> None:
    """It goes with the bar."""
    bare = skin(160, 120)
    framed = bordered(bare, 0, 0, 0, 40)
    ImageDraw.Draw(framed).text((6, 130), "2024-03-05", "white", font_size=14)
    assert find_frame(framed).part.pixels(framed.size) == (0, 0, 160, 120)
    sideways = framed.transpose(Image.Transpose.ROTATE_90)
    assert find_frame(sideways).part.pixels(sideways.size) == (0, 0, 120, 160)


def test_skin_between_bars_is_no_caption() -> None:
    """However narrow, it is what is looked for."""
    framed = Image.new("RGB", (160, 120), "black")
    framed.paste(skin(160, 36), (0, 20))
    assert find_frame(framed).part.pixels(framed.size) == (0, 20, 160, 56)
    framed.paste(skin(160, 10), (0, 100))
    assert find_frame(framed).part.pixels(framed.size) == (0, 20, 160, 110)


@pytest.mark.parametrize(
    "image",
    [
        Image.new("RGB", (90, 60), "black"),
        Image.new("RGB", (90, 60), "white"),
        Image.new("RGB", (1, 1), "black"),
        round_field(skin(200, 150), 20),
        round_field(skin(200, 150), 45),
    ],
    ids=lambda image: str(image.size),
)
def test_what_has_no_field_stays(image: Image.Image) -> None:
    """More black than skin is another kind of picture."""
    pixels = np.asarray(image)
    for known in (False, True):
        filled, share = fill_corners(pixels, known=known)
        assert share == 0
        assert filled is pixels


def test_a_border_around_too_little_is_not_filled_either() -> None:
    """A few pixels of skin in black are no field of view."""
    framed = bordered(skin(28, 28), 4, 4, 4, 4)
    taken = decode_image(encode(framed), SIDE, part=None)
    assert taken.part == WHOLE
    assert np.array_equal(taken.pixels, load_image(encode(framed), SIDE))


def test_a_thin_frame_around_a_round_field() -> None:
    """Filled for the network and for who looks, at whatever scale."""
    framed = round_field(skin(600, 600), 290)
    ImageDraw.Draw(framed).rectangle((0, 0, 599, 599), outline=(60, 60, 60))
    content = encode(framed)
    part = decode_image(content, SIDE, part=None).part
    assert part.filled
    picture, _ = load_picture(content, part=part)
    assert picture[10:40, 10:40].min() > 60


@pytest.mark.parametrize("size", [(4200, 900), (2049, 700)])
def test_a_large_picture(size: tuple[int, int]) -> None:
    """Of its border no more than the lines between those that are looked at may stay."""
    framed = bordered(skin(*size), 700, 0, 300, 500)
    edges = find_frame(framed).part.pixels(framed.size)
    wanted = (700, 0, 700 + size[0], size[1])
    step = -(-max(framed.size) // 2048)
    assert edges == pytest.approx(wanted, abs=step)


def test_a_narrow_field() -> None:
    """Mirrored far beyond it a pixel would be black again; it takes the nearest colour."""
    pixels = np.full((100, 100, 3), 150, np.uint8)
    pixels[:, :40] = 0
    pixels[:, 85:] = 0
    filled, share = fill_corners(pixels)
    assert share == pytest.approx(0.55)
    assert filled.min() == filled.max() == 150


def test_whatever_comes() -> None:
    """Pictures of any size and of black, white and colours anyhow: an answer, of the same shape."""
    for seed in range(60):
        rng = np.random.default_rng(seed)
        tall, wide = rng.integers(1, 70, 2)
        tones = np.array([0, 20, 38, 45, 120, 240, 246, 255], np.uint8)
        rough = tones[rng.integers(0, len(tones), (rng.integers(1, 8), rng.integers(1, 8)))]
        image = Image.fromarray(rough).resize((int(wide), int(tall)), Image.Resampling.NEAREST)
        taken = decode_image(encode(image.convert("RGB")), 24, part=None)
        assert taken.pixels.shape == (24, 24, 3)
        again = load_image(encode(image), 24, part=taken.part)
        assert np.array_equal(again, taken.pixels)


# --- what else an answer may suffer from --------------------------------------------------------


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("rule", RESIZE_RULES)
def test_pictures_without_colours(kind: str, rule: str) -> None:
    """Said of grey ones, in whichever mode, where they are answered; not of those with a tint."""
    grey = skin(200, 150).convert("L")
    words = "it has no colours: more answers are wrong, and fewer malignant lesions are found"
    for image in (grey, grey.convert("RGB")):
        assert (
            decode_image(encode(image, kind), SIDE, rule=rule, part=None, doubts=True).note == words
        )
        assert decode_image(encode(image, kind), SIDE, rule=rule, doubts=True).note == words
        assert decode_image(encode(image, kind), SIDE, rule=rule).note == ""
    tinted = Image.merge("RGB", (grey, grey, grey.point(lambda value: value - 14)))
    assert decode_image(encode(tinted, kind), SIDE, rule=rule, part=None, doubts=True).note == ""
    if rule != "pad":
        flat = Image.new("RGB", (200, 150), (120, 119, 121))
        assert decode_image(encode(flat, kind), SIDE, rule=rule, part=None, doubts=True).note == ""


def test_small_pictures() -> None:
    """Of less than a third of the network's side, as they are shown, without their border."""
    assert decode_image(encode(skin(28, 22)), SIDE, part=None, doubts=True).note == ""
    words = "only 28 x 21 pixels: more answers are wrong for so small a picture"
    assert decode_image(encode(skin(28, 21)), SIDE, part=None, doubts=True).note == words
    assert decode_image(encode(skin(28, 21)), SIDE).note == ""
    framed = bordered(skin(80, 33), 40, 40, 40, 40)
    assert "pixels" not in decode_image(encode(framed), 96, part=None, doubts=True).note
    note = decode_image(encode(framed), 120, part=None, doubts=True).note
    assert note.endswith("; only 80 x 33 pixels: more answers are wrong for so small a picture")


# --- masks -----------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RESIZE_RULES)
@pytest.mark.parametrize("scale", [1, 2])
def test_masks_of_the_whole_picture(rule: str, scale: int) -> None:
    """Over a part they lie as the part's own mask would, whatever stands in the border."""
    rng = np.random.default_rng(0)
    own = rng.random((60, 90)) < 0.4
    whole = np.ones((100, 150), bool)
    whole[30:90, 20:110] = own
    part = Part(20 / 150, 30 / 100, 110 / 150, 90 / 100)
    edges = (cell_edges(7, 32, None), cell_edges(5, 32, 3.0))
    large = whole.repeat(scale, 0).repeat(scale, 1)
    laid = lay_lesion(large, (150, 100), 32, rule, edges, part=part)
    wanted = lay_lesion(own, (90, 60), 32, rule, edges)
    assert laid.cover_hw is not None
    assert wanted.cover_hw is not None
    assert laid.cover_hw == pytest.approx(wanted.cover_hw, abs=1e-6)
    assert np.array_equal(laid.centre_hw, wanted.centre_hw)  # type: ignore[arg-type]


# --- real pictures ---------------------------------------------------------------------------


@pytest.mark.skipif(not HAM10000.is_dir(), reason=NO_HAM10000)
def test_pictures_of_ham10000() -> None:
    """Those that have a border, and of the others no more than a few."""
    files = {path.stem: path for path in HAM10000.rglob("ISIC_*.jpg")}
    for name, wanted in (
        ("ISIC_0029208", (0, 0, 0.88, 1)),
        ("ISIC_0029897", (0.045, 0, 0.94, 1)),
    ):
        assert decode_image(files[name], 160, part=None).part[:4] == pytest.approx(wanted, abs=0.01)
    some = sorted(files.values())[::25]
    touched = [p.stem for p in some if decode_image(p, 160, part=None).part != WHOLE]
    assert len(touched) <= 0.01 * len(some)
