"""Blocks of bytes out of a piece of a file, unpacked, as far as the file goes.

In: a `Piece` whose file may be compressed. Out: its content in blocks. What breaks off early is
said, not raised. The libraries' own file objects end silently in the middle of a zstd frame, and
lose the last good block of a gzip file. `readers.py` is the caller.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from restomod.prepare.files import open_file
from restomod.prepare.pieces import Piece
from restomod.prepare.records import BROKEN_FILE, UNREADABLE_FILE

BLOCK_BYTES = 1 << 20


def blocks(piece: Piece, broken: list[tuple[str, str]]) -> Iterator[bytes]:
    """Yield a file's content from the byte before `piece.begin` on; add (reason, detail) to
    `broken` if it ends early. Whoever has seen enough stops asking."""
    try:
        with open_file(piece.file.path, max(0, piece.begin - 1)) as file:
            if piece.file.compression:
                yield from _unpacked(file, piece.file.compression, broken)
            else:
                while block := file.read(BLOCK_BYTES):
                    yield block
    except OSError as error:
        broken.append((UNREADABLE_FILE, error.strerror or str(error)))


def _unpacked(file: BinaryIO, compression: str, broken: list[tuple[str, str]]) -> Iterator[bytes]:
    """Yield the content of every gzip member or zstd frame in `file`."""
    new_decoder: Callable[[], Any]
    errors: tuple[type[Exception], ...]
    if compression == ".gz":
        new_decoder, errors = (lambda: zlib.decompressobj(wbits=31)), (zlib.error,)
    else:
        import zstandard

        context = zstandard.ZstdDecompressor(max_window_size=1 << 31)
        new_decoder, errors = context.decompressobj, (zstandard.ZstdError,)
    decoder = new_decoder()
    begun = False
    while data := file.read(1 << 16):
        while data:
            if not begun and compression == ".gz":
                data = data.lstrip(b"\0")  # padding between members is legal
                if not data:
                    break
            begun = True
            try:
                block = decoder.decompress(data)
            except errors as error:
                broken.append((BROKEN_FILE, f"damaged: {error}"))
                return
            if block:
                yield block
            data = b""
            if decoder.eof:
                data, decoder, begun = decoder.unused_data, new_decoder(), False
    if begun:
        broken.append((BROKEN_FILE, "broken off in the middle of the compressed data"))
