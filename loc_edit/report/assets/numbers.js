// Packed numbers come back as arrays; what is not a number is NaN and is shown as a dash.

const STEPS = 4094;
const DIGITS = 'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/';
const DIGIT = new Map([...DIGITS].map((digit, i) => [digit, i]));

/** The numbers of a text of two digits each, or of `[low, high, text]`: see packing.py. */
function unpack(pack) {
  const [low, high, digits] = typeof pack === 'string' ? [0, 1, pack] : pack;
  const found = new Float64Array(digits.length / 2);
  for (let i = 0; i < found.length; i++) {
    const step = 64 * DIGIT.get(digits[2 * i]) + DIGIT.get(digits[2 * i + 1]);
    found[i] = step > STEPS ? NaN : low + ((high - low) * step) / STEPS;
  }
  return found;
}

function isNumber(value) {
  return typeof value === 'number' && Number.isFinite(value);
}

function shown(value, digits = 3) {
  if (!isNumber(value)) return '–';
  const least = 10 ** -digits;
  if (value !== 0 && Math.abs(value) < least / 2) return value < 0 ? `>−${least}` : `<${least}`;
  return value.toFixed(digits).replace('-', '−');
}

/** Where the largest number is; -1 where there is none. */
function largest(values) {
  let best = -1;
  values.forEach((value, i) => {
    if (isNumber(value) && (best < 0 || value > values[best])) best = i;
  });
  return best;
}
