// A ZIP file of uncompressed files. Source: PKWARE's APPNOTE, sections 4.3 and 4.4.
const TABLE = Uint32Array.from({ length: 256 }, (_, value) => {
  for (let bit = 0; bit < 8; bit++) value = value & 1 ? 0xedb88320 ^ (value >>> 1) : value >>> 1;
  return value;
});

function checksum(bytes) {
  let value = 0xffffffff;
  for (const byte of bytes) value = TABLE[(value ^ byte) & 255] ^ (value >>> 8);
  return ~value >>> 0;
}

// Little-endian numbers, each with its size in bytes.
function record(...fields) {
  const split = ([size, value]) => Array.from({ length: size }, (_, i) => value / 2 ** (8 * i));
  return Uint8Array.from(fields.flatMap(split));
}

// `files` are [name, bytes]; returns a Blob.
export function zip(files) {
  const parts = [];
  const directory = [];
  let place = 0;
  for (const [name, bytes] of files) {
    const path = new TextEncoder().encode(name);
    const sizes = [[4, checksum(bytes)], [4, bytes.length], [4, bytes.length], [2, path.length], [2, 0]];
    const common = [[2, 20], [2, 0x0800], [2, 0], [2, 0], [2, 0x21], ...sizes]; // version, UTF-8, 1980-01-01
    const header = record([4, 0x04034b50], ...common);
    parts.push(header, path, bytes);
    directory.push(record([4, 0x02014b50], [2, 20], ...common, [2, 0], [2, 0], [2, 0], [4, 0], [4, place]), path);
    place += header.length + path.length + bytes.length;
  }
  const size = directory.reduce((sum, part) => sum + part.length, 0);
  const counts = [[2, files.length], [2, files.length], [4, size], [4, place], [2, 0]];
  const end = record([4, 0x06054b50], [2, 0], [2, 0], ...counts);
  return new Blob([...parts, ...directory, end], { type: "application/zip" });
}
