"""Text of a file: unpacked and decoded, as price files come (gzip, zip, bzip2, xz; UTF-8, UTF-16, Western European)."""

import bz2
import codecs
import gzip
import io
import lzma
import re
import zipfile
import zlib
from typing import IO, NamedTuple, cast

from pgat_fast.data.csv_file import UnreadableFileError, decode

LARGEST = 1 << 27
"""Largest unpacked file in bytes, 128 MiB: a small packed file can hold any amount of zeros."""

_SIGNATURES = (
    (b"\x1f\x8b", "gzip"),
    (b"PK\x03\x04", "zip"),
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ\x00", "xz"),
)
_NOT_TEXT = (
    (b"\xd0\xcf\x11\xe0", "a spreadsheet"),
    (b"PAR1", "a parquet file"),
    (b"\x89HDF", "an HDF5 file"),
    (b"%PDF", "a PDF document"),
)
_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)
_CONTROL = re.compile(rb"[\x00-\x08\x0e-\x1f]")


class FileText(NamedTuple):
    """The text of a file, and what it was: `gzip`, `UTF-16`; nothing for a plain file in UTF-8."""

    text: str
    forms: tuple[str, ...]


def text_of(content: bytes) -> FileText:
    """Unpack and decode the bytes of a file.

    Raises UnreadableFileError if they are damaged, no text, or empty.
    """
    content, packed = _unpack(content)
    text, encoding = _decode(content)
    return FileText(text, tuple(form for form in (packed, encoding) if form))


def _unpack(content: bytes) -> tuple[bytes, str]:
    """Return the content of a packed file and the format; other content as it is, with an empty name."""
    form = next((name for signature, name in _SIGNATURES if content.startswith(signature)), "")
    if not form:
        return content, ""
    file = io.BytesIO(content)
    try:
        with _open_zip(file) if form == "zip" else _open_stream(file, form) as stream:
            unpacked = stream.read(LARGEST + 1)
    except (OSError, EOFError, ValueError, RuntimeError, zlib.error, lzma.LZMAError, zipfile.BadZipFile) as error:
        raise UnreadableFileError(None, f"the {form} file cannot be unpacked ({error}): download it again") from error
    if len(unpacked) > LARGEST:
        message = f"the {form} file unpacks to more than {LARGEST >> 20} MiB: give the CSV file itself"
        raise UnreadableFileError(None, message)
    return unpacked, form


def _open_stream(file: io.BytesIO, form: str) -> IO[bytes]:
    if form == "gzip":
        return cast(IO[bytes], gzip.open(file))
    return cast(IO[bytes], bz2.open(file) if form == "bzip2" else lzma.open(file))


def _open_zip(file: io.BytesIO) -> IO[bytes]:
    """Open the only file in a zip archive; the hidden files of macOS do not count."""
    archive = zipfile.ZipFile(file)
    names = [name for name in archive.namelist() if not name.endswith("/") and not name.startswith("__MACOSX/")]
    if "[Content_Types].xml" in names:
        raise UnreadableFileError(None, "this is a spreadsheet, no text: save it as CSV")
    if len(names) != 1:
        listed = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
        message = f"the zip file holds {len(names)} files ({listed}): unpack it and name the one with the prices"
        raise UnreadableFileError(None, message)
    return archive.open(names[0])


def _decode(content: bytes) -> tuple[str, str]:
    """Return the text and the name of the encoding, empty for UTF-8."""
    for signature, kind in _NOT_TEXT:
        if content.startswith(signature):
            raise UnreadableFileError(None, f"this is {kind}, no text: save it as CSV")
    encoding = next((name for mark, name in _BYTE_ORDER_MARKS if content.startswith(mark)), "")
    if not encoding:
        # Text in UTF-16 without a mark: every second byte of a digit or a Latin letter is zero.
        sample = content[:4096]
        zeros = [sample[start::2].count(0) / max(1, len(sample) // 2) for start in (0, 1)]
        if max(zeros) > 0.7 and min(zeros) < 0.1:
            encoding = "UTF-16-LE" if zeros[1] > zeros[0] else "UTF-16-BE"
    if encoding:
        try:
            return content.decode(encoding), encoding
        except UnicodeDecodeError as error:
            message = f"byte {error.start} of the file is not {encoding} text: download it again"
            raise UnreadableFileError(None, message) from error
    try:
        return decode(content), ""
    except UnreadableFileError:
        if not content.strip() or _CONTROL.search(content):
            raise
    # Any other bytes are text in this encoding. Names of columns and currency signs may be wrong, digits are not.
    try:
        return content.decode("cp1252"), "Windows-1252"
    except UnicodeDecodeError:
        return content.decode("latin-1"), "Latin-1"
