# SPDX-License-Identifier: GPL-3.0-or-later
"""Arrays and pictures as text within a page.

Arrays travel as base64 of zlib-compressed little-endian numbers, quantised to 16 bits, pictures as
PNG in data URIs.
"""

from __future__ import annotations

import base64
import io
import zlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from matplotlib.figure import Figure
from PIL import Image

ABSENT = 65535
"""Where a 16-bit number is not known."""


def to_base64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def pack(values: np.ndarray, kind: type) -> str:
    little = np.ascontiguousarray(values, np.dtype(kind).newbyteorder("<"))
    return to_base64(zlib.compress(little.tobytes(), 9))


def pack_16(values: np.ndarray, unit: float) -> str:
    """Multiples of `unit` as 16-bit numbers; `ABSENT` where not finite."""
    finite = np.isfinite(values)
    scaled = np.round(np.where(finite, values, 0) / unit)
    return pack(np.where(finite, np.clip(scaled, 0, ABSENT - 1), ABSENT), np.uint16)


COUNT_STEP = 2.5e-3
"""By which share numbers differ that `pack_counts` tells apart."""


def pack_counts(values: np.ndarray) -> str:
    """Electrons of either sign as 16 bits: to 0.12 %, and to 0.003 near zero; 0 where not finite.

    They are 2 sinh(`COUNT_STEP` n).
    """
    code = np.arcsinh(0.5 * np.nan_to_num(values)) / COUNT_STEP
    return pack(np.round(code), np.int16)


def hex_colour(colour: Sequence[float] | np.ndarray) -> str:
    return "#" + "".join(f"{round(255 * c):02x}" for c in colour[:3])


def figure_uri(picture: Figure) -> str:
    buffer = io.BytesIO()
    picture.savefig(buffer, format="png", dpi=160)
    return image_uri(np.asarray(Image.open(buffer).convert("RGB")))


def image_uri(rgb: UInt8[np.ndarray, "height width 3"]) -> str:
    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, "PNG")
    return "data:image/png;base64," + to_base64(buffer.getvalue())


def grey_png(grey: UInt8[np.ndarray, "height width"]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(grey).save(buffer, "PNG")
    return buffer.getvalue()
