"""A slow twin of docs/key-format.md, sections 2, 3, 7 and 8, and of the views: hashlib, integers and floats only."""

import hashlib
import hmac
import json
import math
import struct

import numpy as np

SPEC = {"scheme": "rmt", "image_shape": [4, 5, 2], "block_size": 2, "noise_level": 25.0}
ID = "00112233445566778899aabbccddeeff"


def twin_subkey(secret, label, expansion="djx1"):
  extracted = hmac.digest(f"djax/{expansion}/salt".encode(), secret, "sha256")
  return hmac.digest(extracted, f"{expansion}|{label}".encode() + b"\x01", "sha256")


def twin_spec_hash(spec):
  text = json.dumps(spec, sort_keys=True, separators=(",", ":"))
  return hashlib.sha256(text.encode()).hexdigest()


def twin_data_set(master, dataset_id=ID, spec=SPEC):
  """The secret of a data set under djx2."""
  return twin_subkey(master, f"data set|{dataset_id}|{twin_spec_hash(spec)}", "djx2")


def twin_block(key, counter, nonce):
  """The ChaCha20 block function of RFC 8439, section 2.3."""
  start = struct.unpack("<16I", b"expand 32-byte k" + key + struct.pack("<I", counter) + nonce)
  x = list(start)
  columns = [(i, i + 4, i + 8, i + 12) for i in range(4)]
  diagonals = [(i, 4 + (i + 1) % 4, 8 + (i + 2) % 4, 12 + (i + 3) % 4) for i in range(4)]
  for a, b, c, d in (columns + diagonals) * 10:
    for add_to, term, turned, bits in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
      x[add_to] = (x[add_to] + x[term]) % 2**32
      mixed = x[turned] ^ x[add_to]
      x[turned] = (mixed << bits | mixed >> (32 - bits)) % 2**32
  return struct.pack("<16I", *((a + b) % 2**32 for a, b in zip(x, start, strict=True)))


def twin_stream(key, length):
  return b"".join(twin_block(key, i, bytes(12)) for i in range(-(-length // 64)))[:length]


def twin_label(purpose, spec, split):
  return f"{purpose}|{twin_spec_hash(spec)[:16]}|{split}"


def twin_record(key, pixels, index, view, count):
  """What is drawn for a record under a subkey."""
  place = struct.pack("<QI", index, view)
  nonce = hashlib.sha256(place + hashlib.sha256(pixels).digest()).digest()[:12]
  stream = b"".join(twin_block(key, i, nonce) for i in range(-(-count // 16)))
  return [(word >> 8) * 2.0**-24 for word in struct.unpack_from(f"<{count}I", stream)]


def twin_uniforms(secret, purpose, spec, split, pixels, index, view, count):
  key = twin_subkey(secret, twin_label(purpose, spec, split))
  return twin_record(key, pixels, index, view, count)


def twin_how(views):
  return f"{views['count']}|{views['crop']}|{1 if views['flip'] else 0}"


def twin_order(secret, role, own_id, split, originals, views, together):
  """docs/format.md, section 1: place by place, the smallest word that is left."""
  name = f"order|{role}|{own_id}" if own_id else f"order|{role}"
  count = originals if together else originals * views
  key = twin_subkey(secret, f"{name}|{split}|{count}", "djx2")
  words = struct.unpack(f"<{count}Q", twin_stream(key, 8 * count))
  order = [place for _, place in sorted(zip(words, range(count), strict=True))]
  if together:
    order = [original * views + view for original in order for view in range(views)]
  return order


def twin_label_permutation(secret, classes, expansion="djx1"):
  key = twin_subkey(secret, f"labels|{classes}", expansion)
  stream = twin_stream(key, 64 * (2 + classes // 4))
  words = iter(struct.unpack(f"<{len(stream) // 8}Q", stream))
  perm = list(range(classes))
  for i in range(classes - 1, 0, -1):
    word = next(words)
    while word >= 2**64 // (i + 1) * (i + 1):
      word = next(words)
    j = word % (i + 1)
    perm[i], perm[j] = perm[j], perm[i]
  return perm


def twin(image, u, crop, flip):
  """docs/format.md, section 3, pixel by pixel."""
  height, width, _ = image.shape
  dy = math.floor(float(u[0]) * (2 * crop + 1)) - crop
  dx = math.floor(float(u[1]) * (2 * crop + 1)) - crop

  def inside(place, size):
    if place < 0:
      return -place
    return place if place < size else size - 1 - (place - (size - 1))

  shifted = [
    [image[inside(y + dy, height), inside(x + dx, width)].tolist() for x in range(width)]
    for y in range(height)
  ]
  if flip and float(u[2]) < 0.5:
    shifted = [row[::-1] for row in shifted]
  return np.array(shifted, image.dtype)
