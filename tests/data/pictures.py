"""Small pictures and documents as files."""

import io

from PIL import Image


def encoded_image(image_format, mode="RGB", size=(40, 30), **options):
    """A small picture as the bytes of a file."""
    buffer = io.BytesIO()
    Image.linear_gradient("L").resize(size).convert(mode).save(buffer, image_format, **options)
    return buffer.getvalue()


def encoded_pdf(pages, size=(400, 600)):
    """A document whose page n is a picture of brightness 60 * n."""
    buffer = io.BytesIO()
    first, *others = [Image.new("RGB", size, (60 * (n + 1),) * 3) for n in range(pages)]
    first.save(buffer, "PDF", save_all=True, append_images=others)
    return buffer.getvalue()
