"""Images on their way into shards: whole, upright, and in a format that every loader decodes."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass

from PIL import Image, ImageOps

from nvlm.data.records import BadRecordError

# Formats that webdataset's loaders decode by extension; others are stored as PNG.
_EXTENSIONS = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png"}  # MPO: a JPEG with more pictures behind
EXTENSIONS = ("jpg", "png")

_ORIENTATION = 0x0112  # EXIF tag; 1 = upright
_START_OF_SCAN, _END_OF_IMAGE = 0xDA, b"\xff\xd9"
# Markers without a length: restarts, start and end of image, and a filler.
_BARE_MARKERS = frozenset([0x01, *range(0xD0, 0xDA), 0xFF])


@dataclass(frozen=True, kw_only=True)
class StorableImage:
    """What a shard stores of an image."""

    data: bytes
    extension: str
    width: int  # pixels, upright
    height: int


def storable(data: bytes) -> StorableImage:
    """What to store for the encoded image ``data``.

    JPEG and PNG go through byte for byte once their structure shows that they are whole: decoding
    each would take ten times as long as copying it. Damage that structure does not show is met,
    and counted, by the loader. Pictures that EXIF turns are stored turned, as PNG: of the readers
    of a shard only some obey EXIF. Grey ones of 16 bits are stored with 8. Raises BadRecordError
    for what is empty, truncated, of no known format, or absurdly large.
    """
    if not data:
        raise BadRecordError("the image file is empty")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd metadata, of which the web is full
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data)) as image:
                return _stored(data, image)
    except Exception as error:  # Pillow's decoders let through what damage makes them raise
        reason = _without_address(str(error)) or type(error).__name__
        raise BadRecordError(reason) from error


def _stored(data: bytes, image: Image.Image) -> StorableImage:
    width, height = image.size
    # Asking a PNG for EXIF decodes it, so it is asked only if it has the chunk.
    may_be_turned = image.format != "PNG" or b"eXIf" in data
    turned = may_be_turned and image.getexif().get(_ORIENTATION, 1) not in (0, 1)
    is_deep = image.mode.startswith("I;16")
    if image.format in _EXTENSIONS and not turned and not is_deep:
        extension = _EXTENSIONS[image.format]
        if extension == "jpg":
            _check_jpeg(data)
        else:
            with Image.open(io.BytesIO(data)) as unread:
                unread.verify()  # checksums of all chunks
        return StorableImage(data=data, extension=extension, width=width, height=height)
    upright = ImageOps.exif_transpose(image)
    if is_deep:  # a conversion would cut off all above 255, which is to say show a white picture
        upright = upright.point(lambda value: value / 256)
    buffer = io.BytesIO()
    upright.convert("RGB").save(buffer, "PNG", compress_level=1)
    return StorableImage(
        data=buffer.getvalue(), extension="png", width=upright.width, height=upright.height
    )


def _check_jpeg(data: bytes) -> None:
    """Raise BadRecordError unless the JPEG file ``data`` has a scan and the scan an end.

    Compressed data never holds the end's marker: 0xFF is followed by 0 in it (ITU T.81, B.1.1.5).
    """
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker in _BARE_MARKERS:
            at += 1 if marker == 0xFF else 2
            continue
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if marker == _START_OF_SCAN:
            if data.rfind(_END_OF_IMAGE, at) >= 0:  # backwards: it is near the end
                return
            break
    raise BadRecordError("the JPEG file is truncated")


def _without_address(message: str) -> str:
    """Pillow's message without the address of the buffer: a report says the same every time."""
    return message.partition(" <_io.")[0]
