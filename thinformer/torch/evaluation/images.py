"""Images of files, of any mode of PIL, as the 8-bit colours that models take."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N")
WIDE = ("I", "F")  # 32 bits, of any range
READ_AS_WIDE = ("PNG", "PPM")  # formats of 16 bits at most, which PIL may read into mode "I"
LARGEST = 2**16 - 1
DEPTH_AT = 24  # the byte of a PNG that says how many bits a sample has


def read_image(path: Path) -> Any:
    """Return the image of a file as PIL has it, in mode "RGB" and turned as its EXIF data says.

    16-bit numbers are scaled to 8 bits, so that 65,535 becomes 255. Transparent pixels are laid on
    white. Of an animation it is the first frame.

    Raises
    ------
    ValueError
        The file is no image that can be read, or has 32-bit numbers, whose range is not known, or
        is a PNG of 16-bit colours, one of which stands for transparency.
    """
    try:
        with Image.open(path) as opened:
            opened.load()
            file_format, image = opened.format, ImageOps.exif_transpose(opened)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # as PIL does
        if getattr(error, "errno", None) is not None:  # the file cannot be opened
            raise
        raise ValueError(f"{path}: is no image that can be read") from error
    if file_format == "PNG" and "transparency" in image.info:
        _scale_transparency(image, path)
    return _colours(image, file_format, path)


def _scale_transparency(image: Any, path: Path) -> None:
    """Scale the transparent value of a PNG as PIL scaled the pixels: it has the file's bits."""
    with open(path, "rb") as file:
        depth = file.read(DEPTH_AT + 1)[DEPTH_AT]
    if image.mode == "RGB" and depth == 16:
        raise ValueError(
            f"{path}: is a PNG of 16-bit colours, one of which stands for transparency (tRNS); PIL "
            f"reads 8 bits of them, which do not tell it from others; save it with an alpha "
            f"channel (RGBA)"
        )
    if image.mode == "L":
        image.info["transparency"] *= 255 // (2**depth - 1)


def _colours(image: Any, file_format: str | None, path: Path) -> Any:
    """The pixels of an image in mode "RGB", transparent ones on white."""
    mode = image.mode
    if mode in SIXTEEN_BITS or (mode == "I" and file_format in READ_AS_WIDE):
        image = _eight_bits(image)
    elif mode in WIDE:
        numbers = "floating" if mode == "F" else "32-bit integer"
        raise ValueError(
            f"{path}: is an image of mode {mode!r}, {numbers} numbers of which no range is known; "
            f"scale them, and save 8 bits (mode L or RGB) or 16 bits (mode I;16)"
        )
    elif mode == "La":  # which PIL converts to nothing else
        image = image.convert("LA")
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def _eight_bits(image: Any) -> Any:
    """An image of 16 bits as one of 8, "LA" where one of its values stands for transparency."""
    # PIL has unsigned numbers of either order of bytes here, or numbers of 32 bits
    values = np.asarray(image).astype(np.int64)
    grey = Image.fromarray(np.rint(values * (255 / LARGEST)).astype(np.uint8))
    transparent = image.info.get("transparency")
    if transparent is None:
        return grey
    alpha = Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8))
    return Image.merge("LA", (grey, alpha))
