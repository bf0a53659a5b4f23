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


def read_image(path: Path) -> Any:
    """Return the image of a file as PIL has it, in mode "RGB" and turned as its EXIF data says.

    16-bit numbers are scaled to 8 bits, so that 65,535 becomes 255. Transparent pixels are laid on
    white. Of an animation it is the first frame.

    Raises
    ------
    ValueError
        The file is no image that can be read, or has 32-bit numbers, whose range is not known.
    """
    try:
        with Image.open(path) as image:
            image.load()
            return _colours(ImageOps.exif_transpose(image), image.format, path)
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:  # as PIL raises them
        if getattr(error, "errno", None) is not None:  # the file cannot be opened
            raise
        raise ValueError(f"{path}: is no image that can be read") from error


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
