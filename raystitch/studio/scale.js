// Numbers as people read them, and the scales of axes and colours.

const SUPERSCRIPTS = "⁰¹²³⁴⁵⁶⁷⁸⁹";

// Three significant digits: 0.0014, 12.3, 4.8·10⁻⁵.
export function format(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  if (!Number.isFinite(value)) return value > 0 ? "∞" : "−∞";
  const size = Math.abs(value);
  if (size !== 0 && (size < 5e-4 || size >= 1e6)) {
    const [mantissa, power] = size.toExponential(1).split("e");
    const digits = mantissa.replace(".0", "");
    const exponent = String(Math.abs(power)).replace(/\d/g, (digit) => SUPERSCRIPTS[digit]);
    return `${value < 0 ? "−" : ""}${digits === "1" ? "" : `${digits}·`}10${power < 0 ? "⁻" : ""}${exponent}`;
  }
  const text = size >= 1000 ? size.toFixed(0) : size.toPrecision(3);
  return (value < 0 ? "−" : "") + (text.includes(".") ? text.replace(/0+$/, "").replace(/\.$/, "") : text);
}

// Returns are compared with each other: two decimals, whole numbers from 1000 on.
export function formatReturn(value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  const text = size >= 1000 ? size.toFixed(0) : size >= 100 ? size.toFixed(1) : size.toFixed(2);
  return value < 0 && Number(text) !== 0 ? `−${text}` : text;
}

// Five colours by residual / delta; c3 and c4 are at or over it. Without a delta (off) there is no colour scale.
export const CLASSES = [
  { name: "c0", label: "below 0.1 δ", below: 0.1 },
  { name: "c1", label: "below 0.5 δ", below: 0.5 },
  { name: "c2", label: "below δ", below: 1 },
  { name: "c3", label: "δ to 2 δ", below: 2 },
  { name: "c4", label: "above 2 δ", below: Infinity },
];

export function classOf(residual, delta) {
  if (residual === null || !Number.isFinite(residual)) return "c4";
  if (!Number.isFinite(delta)) return "c1";
  const ratio = residual / delta;
  return (CLASSES.find(({ below }) => ratio < below) ?? CLASSES[4]).name;
}

export function linear([from, to], [start, end]) {
  const span = to - from || 1;
  return (value) => start + ((value - from) / span) * (end - start);
}

export function logarithmic([from, to], [start, end]) {
  const map = linear([Math.log(from), Math.log(to)], [start, end]);
  const floor = from / 1e3;
  return (value) => map(Math.log(Math.max(value, floor)));
}

// Round numbers within [from, to], about `count` of them.
export function ticks(from, to, count) {
  const raw = (to - from) / count;
  if (!(raw > 0) || !Number.isFinite(raw)) return [from];
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= raw) ?? 10 * power;
  const found = [];
  for (let index = Math.ceil(from / step - 1e-9); index * step <= to + step * 1e-9; index += 1) {
    found.push(Number((index * step).toPrecision(12)));
  }
  return found;
}

// Powers of ten within [from, to]; with few of them, also 2 and 5 times those.
export function logTicks(from, to) {
  const found = [];
  const factors = Math.log10(to / from) < 1.5 ? [1, 2, 5] : [1];
  for (let power = Math.floor(Math.log10(from)); power <= Math.log10(to); power += 1) {
    for (const factor of factors) {
      const value = Number((factor * 10 ** power).toPrecision(3));
      if (value >= from && value <= to) found.push(value);
    }
  }
  return found;
}

export function extent(values) {
  let low = Infinity;
  let high = -Infinity;
  for (const value of values) {
    if (value < low) low = value;
    if (value > high) high = value;
  }
  return [low, high];
}
