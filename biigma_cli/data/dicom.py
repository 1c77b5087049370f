"""The first picture of a DICOM file, with pydicom, which is an extra."""

from __future__ import annotations

import importlib
import warnings
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import Image

from biigma_cli.data.jpeg import Checked, check_jpeg, refuse_damaged
from biigma_cli.errors import ImageError

INSTALL = 'pip install "biigma[dicom]"'
_DEFLATED = b"1.2.840.10008.1.2.1.99"
# Baseline and extended.
_JPEG = ("1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51")
_IMPLICIT, _EXPLICIT = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1"
_HEAD = 1 << 14  # bytes within which a file says how it is written
# pydicom's remarks on files that bend the standard: what matters is raised.
warnings.filterwarnings("ignore", category=UserWarning, module="pydicom")


def read_dicom(file: BinaryIO, label: str) -> tuple[Image.Image, str]:
    """Decode the first frame to an 8-bit RGB or grey image, and a note on other frames.

    Colour comes as RGB whatever it is stored as. Grey is windowed as the file says: the window's
    edges are black and white. Without a window, 8 bits are taken as they are and more are stretched
    from their lowest to their highest value. MONOCHROME1 is turned so that high is bright.

    Args:
        file: at its beginning.
        label: what to call it in errors.

    Raises:
        ImageError: pydicom is not installed, or the file is damaged (also where only a part of its
            JPEG data is, see `jpeg.check_jpeg`), holds no picture, is larger
            than `preprocess.MAX_PIXELS`, or is compressed in a way that nothing here decodes.
    """
    from biigma_cli.data import preprocess

    try:
        pydicom = importlib.import_module("pydicom")
        decoders = importlib.import_module("pydicom.pixels")
    except ImportError:
        # The remedy is in the message, too: that is what a batch's error column holds.
        raise ImageError(
            f"{label} is a DICOM file, and pydicom is missing: {INSTALL}", fix=INSTALL
        ) from None
    try:
        head = file.read(_HEAD)
        file.seek(0)
        if _DEFLATED in head:
            # It would be inflated whole, whatever its size, before anything can be checked.
            raise ImageError(
                f"{label} is a deflated DICOM file", fix="save it with another transfer syntax"
            )
        data = pydicom.dcmread(file, force=True)  # that it is one was told by its first bytes
        if "PixelData" not in data:
            raise ImageError(
                f"{label} is a DICOM file without a picture, or cut short", fix="give an image"
            )
        if "TransferSyntaxUID" not in data.file_meta:  # without a preamble there may be none
            implicit, _ = data.original_encoding
            data.file_meta.TransferSyntaxUID = _IMPLICIT if implicit else _EXPLICIT
        frames = int(data.get("NumberOfFrames") or 1)
        if int(data.Rows) * int(data.Columns) > preprocess.MAX_PIXELS:
            raise preprocess.too_large(label)
        values = np.asarray(decoders.pixel_array(data, index=0))
        checked = _check_frame(data, frames)
        refuse_damaged(checked, label)
        colour = int(data.get("SamplesPerPixel", 1)) > 1
        if data.PhotometricInterpretation == "PALETTE COLOR":
            values, colour = decoders.apply_color_lut(values, data), True
        profile = data.get("ICCProfile")
        pixels = _eight_bits(values, data) if colour else _grey(decoders, values, data)
    except ImageError:
        raise
    except Exception as error:
        # Damaged files make pydicom and its decoders raise anything at all.
        why = " ".join(str(error).split()) or type(error).__name__
        raise ImageError(
            f"{label} is a DICOM file that cannot be decoded: {why[:300]}",
            fix="get the file again, or save it as JPEG or PNG",
        ) from error
    notes = (f"the first of {frames} frames" if frames > 1 else "", checked.note)
    image = Image.fromarray(np.ascontiguousarray(pixels))
    if profile:
        image.info["icc_profile"] = profile
    return image, "; ".join(filter(None, notes))


def _check_frame(data: Any, frames: int) -> Checked:
    """What is wrong with the first frame's JPEG data, where it is stored as such."""
    if data.file_meta.TransferSyntaxUID not in _JPEG:
        return Checked()
    encaps = importlib.import_module("pydicom.encaps")
    return check_jpeg(encaps.get_frame(data.PixelData, 0, number_of_frames=frames))


def _eight_bits(values: npt.NDArray[Any], data: Any) -> npt.NDArray[np.uint8]:
    """Colour of up to 16 bits to 8."""
    if values.dtype == np.uint8:
        return values
    bits = 16 if data.PhotometricInterpretation == "PALETTE COLOR" else int(data.BitsStored)
    scaled = values.astype(np.float32) * (255 / (2**bits - 1))
    pixels: npt.NDArray[np.uint8] = np.clip(scaled, 0, 255).round().astype(np.uint8)
    return pixels


def _grey(decoders: Any, values: npt.NDArray[Any], data: Any) -> npt.NDArray[np.uint8]:
    grey = decoders.apply_voi_lut(decoders.apply_modality_lut(values, data), data)
    grey = np.nan_to_num(np.asarray(grey, np.float32))
    low, high, bits, windowed = _range(data)
    if bits > 8 and not windowed:
        low, high = float(grey.min()), float(grey.max())
    grey = (grey - low) * (255 / (high - low)) if high != low else grey * 0
    if data.PhotometricInterpretation == "MONOCHROME1":
        grey = 255 - grey
    pixels: npt.NDArray[np.uint8] = np.clip(grey, 0, 255).round().astype(np.uint8)
    return pixels


def _range(data: Any) -> tuple[float, float, int, bool]:
    """What the darkest and the brightest grey can be, their bits, and whether there is a window.

    It is what `apply_voi_lut` maps to: pydicom keeps it to itself.
    """
    tables = data.get("VOILUTSequence")
    if tables and None not in (tables[0].get("LUTDescriptor"), tables[0].get("LUTData")):
        bits = int(tables[0].LUTDescriptor[2])
        return 0.0, 2.0**bits - 1, bits, True
    windowed = None not in (data.get("WindowCenter"), data.get("WindowWidth"))
    bits = int(data.BitsStored)
    low, high = 0.0, 2.0**bits - 1
    if data.get("ModalityLUTSequence"):
        bits = int(data.ModalityLUTSequence[0].LUTDescriptor[2])
        high = 2.0**bits - 1
        if not windowed:
            return low, high, bits, windowed
    elif data.PixelRepresentation:
        low, high = -(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1
    slope, intercept = data.get("RescaleSlope"), data.get("RescaleIntercept")
    if slope is not None and intercept is not None:
        low, high = (float(slope) * edge + float(intercept) for edge in (low, high))
    if not windowed:
        # With a window and a negative slope, pydicom's black is the higher of the two.
        low, high = sorted((low, high))
    return low, high, bits, windowed
