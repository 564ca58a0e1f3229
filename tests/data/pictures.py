"""Small pictures as files."""

import io

from PIL import Image


def encoded_image(image_format, mode="RGB", size=(40, 30)):
    """A small picture as the bytes of a file."""
    buffer = io.BytesIO()
    Image.linear_gradient("L").resize(size).convert(mode).save(buffer, image_format)
    return buffer.getvalue()
