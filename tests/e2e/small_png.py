"""A picture of a page as a small PNG: few colours, one byte per pixel, compressed once and well.

Screens of this project are ink, paper and two colours, so a palette loses nothing that an eye would miss, and no image
library is needed for it.
"""

from __future__ import annotations

import base64
import struct
import zlib

from playwright.sync_api import Page

PALETTES = (256, 128, 64, 32, 16)

REDUCE = """async ([source, colours]) => {
  const image = new Image();
  image.src = "data:image/png;base64," + source;
  await image.decode();
  const canvas = new OffscreenCanvas(image.width, image.height);
  const pen = canvas.getContext("2d");
  pen.drawImage(image, 0, 0);
  const { data } = pen.getImageData(0, 0, image.width, image.height);
  const often = new Map();
  for (let at = 0; at < data.length; at += 4) {
    const colour = (data[at] << 16) | (data[at + 1] << 8) | data[at + 2];
    often.set(colour, (often.get(colour) ?? 0) + 1);
  }
  const palette = [...often].sort((a, b) => b[1] - a[1]).slice(0, colours).map(([colour]) => colour);
  const index = new Map(palette.map((colour, at) => [colour, at]));
  const nearest = (colour) => {
    let best = 0;
    let least = Infinity;
    palette.forEach((other, at) => {
      const [r, g, b] = [16, 8, 0].map((shift) => ((colour >> shift) & 255) - ((other >> shift) & 255));
      const far = 2 * r * r + 4 * g * g + 3 * b * b;
      if (far < least) [best, least] = [at, far];
    });
    index.set(colour, best);
    return best;
  };
  const pixels = new Uint8Array(image.width * image.height);
  for (let at = 0; at < pixels.length; at++) {
    const colour = (data[4 * at] << 16) | (data[4 * at + 1] << 8) | data[4 * at + 2];
    pixels[at] = index.get(colour) ?? nearest(colour);
  }
  let text = "";
  for (let at = 0; at < pixels.length; at += 32768) text += String.fromCharCode(...pixels.subarray(at, at + 32768));
  return { width: image.width, height: image.height, palette, pixels: btoa(text) };
}"""


def small_png(blank: Page, picture: bytes, most_bytes: int) -> bytes:
    """``picture`` (a PNG) with as many of its colours as fit into ``most_bytes``; the smallest tried if none does.

    ``blank`` is an empty page of the browser that does the counting.
    """
    small = picture
    for colours in PALETTES:
        small = _indexed(blank.evaluate(REDUCE, [base64.b64encode(picture).decode(), colours]))
        if len(small) <= most_bytes:
            break
    return small


def _indexed(image: dict[str, object]) -> bytes:
    width, height, palette = image["width"], image["height"], image["palette"]
    assert isinstance(width, int)
    assert isinstance(height, int)
    assert isinstance(palette, list)
    pixels = base64.b64decode(str(image["pixels"]))
    rows = b"".join(b"\0" + pixels[at : at + width] for at in range(0, len(pixels), width))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        _chunk(name, body)
        for name, body in (
            (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)),
            (b"PLTE", b"".join(int(colour).to_bytes(3, "big") for colour in palette)),
            (b"IDAT", zlib.compress(rows, 9)),
            (b"IEND", b""),
        )
    )


def _chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
