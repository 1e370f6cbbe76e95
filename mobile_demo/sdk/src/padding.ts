/** Frames padded to size classes, because packet sizes leak text: 32, 64, 128, ... bytes (`padding.py`). */

const SMALLEST_CLASS = 32;
const TAG = (15 << 3) | 2; // field 15, length-delimited

/** `frame`, with a padding field behind it that fills it up to the smallest class that it can be filled up to. */
export function padded(frame: Uint8Array<ArrayBuffer>): Uint8Array<ArrayBuffer> {
  const size = frame.length;
  let target = SMALLEST_CLASS;
  while (target < size || (target > size && filling(target - size) === null)) target *= 2;
  const count = target > size ? filling(target - size) : null;
  if (count === null) return frame;
  const whole = new Uint8Array(target);
  whole.set(frame);
  let at = size;
  whole[at++] = TAG;
  for (let rest = count; ; rest >>>= 7) {
    whole[at++] = rest > 0x7f ? (rest & 0x7f) | 0x80 : rest;
    if (rest <= 0x7f) break;
  }
  return whole;
}

/** How many bytes of padding take `room` bytes with their tag and length; null: no number does. */
function filling(room: number): number | null {
  for (let lengthBytes = 1; lengthBytes < 5; lengthBytes += 1) {
    const count = room - 1 - lengthBytes;
    const bits = count > 0 ? 32 - Math.clz32(count) : 0;
    if (count >= 1 && Math.floor((bits + 6) / 7) === lengthBytes) return count;
  }
  return null;
}
