"use strict";
// The data of the page's map: columns packed by pipeline/product/report/codec.py, read back into typed arrays.

const STEP = 10; // corners are whole multiples of this many millionths of a degree
const CHUNK = 256; // events stand in Z-order: so many in a row are neighbours and are skipped together
const METRES = 0.11132; // of a millionth of a degree of latitude

// Columns by name from base64 of a zlib stream: a line of JSON [[name, bytes], ...], then the columns.
async function unpack(id) {
  const text = atob(document.getElementById(id).textContent.trim()), bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  const raw = new Uint8Array(await new Response(stream).arrayBuffer());
  let at = raw.indexOf(10) + 1;
  const head = JSON.parse(new TextDecoder().decode(raw.subarray(0, at)));
  return Object.fromEntries(head.map(([name, length]) => [name, raw.subarray(at, (at += length))]));
}

// Integers from LEB128: `signed` by zigzag, `running` where each is the difference to the one before.
function integers(bytes, signed = false, running = false) {
  let count = 0, last = 0;
  for (let i = 0; i < bytes.length; i++) count += bytes[i] < 128;
  const out = new Int32Array(count);
  for (let i = 0, at = 0; i < count; i++) {
    let value = 0, factor = 1, byte;
    do { byte = bytes[at++]; value += (byte & 127) * factor; factor *= 128; } while (byte > 127);
    if (signed) value = value % 2 ? -(value + 1) / 2 : value / 2;
    out[i] = last = running ? last + value : value;
  }
  return out;
}

// Rings of rows: row e has rings first[e]..first[e + 1], ring r corners start[r]..start[r + 1]; box by row, in
// millionths of a degree. Corners are steps from the row's origin, or without origins from zero for each ring.
function outlines(data, originX, originY) {
  const counts = integers(data.rings), sizes = integers(data.sizes);
  const x = integers(data.dx, true), y = integers(data.dy, true), n = counts.length;
  const first = new Uint32Array(n + 1), start = new Uint32Array(sizes.length + 1), box = new Int32Array(4 * n);
  for (let e = 0, ring = 0, k = 0; e < n; e++) {
    let px = originX ? originX[e] : 0, py = originY ? originY[e] : 0;
    let west = 2 ** 31 - 1, south = west, east = -west, north = -west;
    for (let r = 0; r < counts[e]; r++, ring++) {
      if (!originX) px = py = 0;
      for (let c = 0; c < sizes[ring]; c++, k++) {
        x[k] = px += STEP * x[k]; y[k] = py += STEP * y[k];
        if (px < west) west = px;
        if (px > east) east = px;
        if (py < south) south = py;
        if (py > north) north = py;
      }
      start[ring + 1] = k;
    }
    first[e + 1] = ring;
    box.set([west, south, east, north], 4 * e);
  }
  return { n, first, start, x, y, box };
}

// Boxes of CHUNK rows each, four numbers: west, south, east, north.
function chunksOf(box) {
  const n = box.length / 4, chunks = new Int32Array(4 * Math.ceil(n / CHUNK));
  for (let c = 0; c * CHUNK < n; c++) {
    const whole = [2 ** 31 - 1, 2 ** 31 - 1, -(2 ** 31), -(2 ** 31)];
    for (let e = c * CHUNK; e < Math.min(n, (c + 1) * CHUNK); e++) {
      for (let k = 0; k < 2; k++) {
        whole[k] = Math.min(whole[k], box[4 * e + k]);
        whole[k + 2] = Math.max(whole[k + 2], box[4 * e + k + 2]);
      }
    }
    chunks.set(whole, 4 * c);
  }
  return chunks;
}

// Whether a place lies inside a row (even-odd rule), and the text of numbers.
function inside(set, row, x, y) {
  let odd = false;
  for (let r = set.first[row]; r < set.first[row + 1]; r++) {
    const a = set.start[r], b = set.start[r + 1];
    for (let i = a, j = b - 1; i < b; j = i++) {
      const yi = set.y[i], yj = set.y[j];
      if (yi > y !== yj > y && x < (set.x[j] - set.x[i]) * (y - yi) / (yj - yi) + set.x[i]) odd = !odd;
    }
  }
  return odd;
}

const figure = (value, digits) => value.toLocaleString("en-US",
  { minimumFractionDigits: digits, maximumFractionDigits: digits }).replaceAll(",", "\u202f");
const dayText = (days) => new Date((days - 1) * 864e5).toISOString().slice(0, 10);
const degrees = (micro) => ((micro / 1e6 + 540) % 360) - 180;
const placeText = (micro, width) => Math.abs(micro / 1e6).toFixed(6).padStart(width, "0");
