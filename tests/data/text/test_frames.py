"""bertgpt.data.text.frames: all frames of a compressed file are read, and damage is an error."""

import functools
import gzip
import lzma

import pytest
import zstandard
from source_files import read, write

from bertgpt.data.text import frames
from bertgpt.errors import DataError

FIRST, SECOND = b"First.\n\n", bytes(range(97, 123)) * 4000 + b"\n"
XZ = lzma.compress(FIRST), lzma.compress(SECOND)
ZST = zstandard.compress(FIRST), zstandard.compress(SECOND)
GZ = gzip.compress(FIRST, mtime=0), gzip.compress(SECOND, mtime=0)


@pytest.mark.parametrize("content", [
    XZ[0] + XZ[1], XZ[0] + b"\0" * 8 + XZ[1], XZ[0] + b"\0" * 4000 + XZ[1] + b"\0" * 4],
    ids=["no padding", "between", "between and after"])
def test_all_streams_are_read_with_padding_between_and_after_them(tmp_path, content):
  with frames.open_xz(str(write(tmp_path / "a.xz", content))) as file:
    assert file.read() == FIRST + SECOND


@pytest.mark.parametrize("between", [b"", b"\0" * 3000], ids=["no padding", "between and after"])
def test_all_members_are_read_as_by_gzip(tmp_path, between):
  path = write(tmp_path / "a.gz", GZ[0] + between + GZ[1] + between)
  with frames.open_gzip(str(path)) as file, gzip.open(path) as expected:
    assert file.read() == expected.read() == FIRST + SECOND


def test_many_small_frames_are_read(tmp_path):
  parts = [f"{i}\n".encode() for i in range(3000)]
  quick_xz = functools.partial(lzma.compress, preset=0)  # The default takes 3 ms per stream.
  for ending, compress, opened in ((".xz", quick_xz, frames.open_xz),
                                   (".zst", zstandard.compress, frames.open_zstd),
                                   (".gz", gzip.compress, frames.open_gzip)):
    path = write(tmp_path / f"a{ending}", b"".join(map(compress, parts)))
    with opened(str(path)) as file:
      assert list(file) == parts


def flip(content: bytes, place: int) -> bytes:
  return content[:place] + bytes([content[place] ^ 1]) + content[place + 1:]


DAMAGE = {
    "bit flipped in the magic bytes": ("a.xz", XZ[0] + flip(XZ[1], 1)),
    "bit flipped in a block": ("a.xz", XZ[0] + flip(XZ[1], 20)),
    "bit flipped after padding": ("a.xz", XZ[0] + b"\0" * 8 + flip(XZ[1], 1)),
    "web page after a stream": ("a.xz", XZ[0] + b"<html>502 Bad Gateway</html>"),
    "stream without its last byte": ("a.xz", XZ[0] + XZ[1][:-1]),
    "start of a stream": ("a.xz", XZ[0] + XZ[1][:3]),
    "no stream": ("a.xz", b""),
    "only padding": ("a.xz", b"\0" * 8),
    "padding before a stream": ("a.xz", b"\0" * 8 + XZ[0]),
    "padding before a member": ("a.gz", b"\0" * 8 + GZ[0]),
    "frame without its last byte": ("a.zst", ZST[0] + ZST[1][:-1]),
    "start of a frame": ("a.zst", ZST[0] + ZST[1][:3]),
    "web page after a frame": ("a.zst", ZST[0] + b"<html>"),
    "no frame": ("a.zst", b""),
    "no member": ("a.gz", b""),
    "member without its last byte": ("a.gz", GZ[0] + GZ[1][:-1]),
    "start of a member": ("a.gz", GZ[0] + GZ[1][:3]),
    "bit flipped in a checksum": ("a.gz", GZ[0] + flip(GZ[1], len(GZ[1]) - 6)),
    "web page after a member": ("a.gz", GZ[0] + b"<html>")}


@pytest.mark.parametrize("name, content", DAMAGE.values(), ids=DAMAGE)
def test_damage_and_other_content_are_errors(tmp_path, name, content):
  """Python's lzma would take a damaged start of a later stream for the end of the file."""
  path = write(tmp_path / name, content)
  with pytest.raises(DataError, match=f"{name}: cannot be read"):
    read(f"text:{path}")
