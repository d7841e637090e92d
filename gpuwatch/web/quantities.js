// Numbers as people read them. A value that is not there is a dash; NaN and infinities arrive as strings and stay words.

export const MISSING = "–";

/** The number behind a value of the daemon, which writes what JSON has no number for as "nan", "inf" and "-inf". */
export function numeric(value) {
  if (typeof value !== "string") return value ?? null;
  return { nan: NaN, inf: Infinity, "-inf": -Infinity }[value] ?? NaN;
}

/** Three significant digits: 0.00123, 12.3, 1.2e+6. */
export function number(value) {
  value = numeric(value);
  if (value === null) return MISSING;
  if (Number.isNaN(value)) return "NaN";
  if (!Number.isFinite(value)) return value > 0 ? "∞" : "−∞";
  const size = Math.abs(value);
  if (Number.isInteger(value) && size < 1e6) return String(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e6)) return value.toExponential(2).replace(/\.?0+e/, "e");
  return String(Number(value.toPrecision(3)));
}

export const whole = (value) => (value === null || value === undefined ? MISSING : Math.round(value).toLocaleString("en"));

export const percent = (ratio) => (ratio === null || ratio === undefined ? MISSING : `${Math.round(100 * ratio)} %`);

export function bytes(value) {
  if (value === null || value === undefined) return MISSING;
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (Math.abs(value) >= 1000 && unit < units.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return `${unit && Math.abs(value) < 100 ? value.toFixed(1) : Math.round(value)} ${units[unit]}`;
}

/** 40.0 of 79.6 GiB: a part and its whole in the unit of the whole. */
export function bytesOf(part, size) {
  const told = bytes(size);
  if (!size || part === null || part === undefined) return bytes(part);
  const [digits, unit] = told.split(" ");
  const scale = size / Number(digits);
  return `${digits.includes(".") ? (part / scale).toFixed(1) : Math.round(part / scale)} of ${digits} ${unit}`;
}

/** A span of time: 12 ms, 3.4 s, 5 min, 2 h. */
export function duration(seconds) {
  seconds = numeric(seconds);
  if (seconds === null || Number.isNaN(seconds)) return MISSING;
  if (seconds < 1e-3) return `${number(seconds * 1e6)} µs`;
  if (seconds < 1) return `${number(seconds * 1e3)} ms`;
  if (seconds < 120) return `${number(seconds)} s`;
  if (seconds < 7200) return `${Math.round(seconds / 60)} min`;
  return seconds < 172800 ? `${number(seconds / 3600)} h` : `${Math.round(seconds / 86400)} days`;
}

export const clock = (seconds) => new Date(1000 * seconds).toLocaleTimeString("en-GB");

/** A number of things with its noun: 1 rank, 8 ranks. */
export const many = (count, noun) => `${whole(count)} ${noun}${count === 1 ? "" : "s"}`;
