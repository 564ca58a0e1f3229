"""Images on their way into shards: readable, and in a format that every loader decodes."""

from __future__ import annotations

import io
import warnings

from PIL import Image

# Formats that webdataset's loaders decode by extension; others are stored as PNG.
_EXTENSIONS = {"JPEG": "jpg", "PNG": "png"}
EXTENSIONS = tuple(_EXTENSIONS.values())


class UnreadableImageError(ValueError):
    """An image that is empty, truncated, of no known format, or absurdly large."""


def storable(data: bytes) -> tuple[bytes, str]:
    """The bytes to store for the encoded image ``data``, and their file extension.

    JPEG and PNG go through as they are, after a full decode has shown that they are whole.
    Raises UnreadableImageError.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data)) as image:
                image.load()
                if image.format in _EXTENSIONS:
                    return data, _EXTENSIONS[image.format]
                buffer = io.BytesIO()
                image.convert("RGB").save(buffer, "PNG")
                return buffer.getvalue(), "png"
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UnreadableImageError(str(error)) from error
    except Image.DecompressionBombWarning as warning:
        raise UnreadableImageError(str(warning)) from warning
