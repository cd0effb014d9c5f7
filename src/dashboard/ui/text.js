// Numbers and times as people read them.

const NUMBER = new Intl.NumberFormat("en");
const UNITS = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];

export const whole = (number) => NUMBER.format(number ?? 0);

export function rate(number) {
  if (number == null) return "–";
  return number >= 100 ? whole(Math.round(number)) : number.toFixed(number >= 10 ? 1 : 2);
}

export function percent(part, all) {
  return all > 0 ? `${((100 * part) / all).toFixed(1)} %` : "–";
}

export function bytes(number) {
  let unit = 0;
  let left = number ?? 0;
  while (left >= 1024 && unit < UNITS.length - 1) {
    left /= 1024;
    unit += 1;
  }
  return `${unit === 0 ? left : left.toFixed(left < 10 ? 2 : 1)} ${UNITS[unit]}`;
}

export function seconds(number) {
  if (number == null) return "–";
  if (number < 0.001) return `${Math.round(number * 1e6)} µs`;
  if (number < 1) return `${(number * 1e3).toFixed(1)} ms`;
  if (number < 120) return `${number.toFixed(1)} s`;
  if (number < 7200) return `${(number / 60).toFixed(1)} min`;
  return number < 172800 ? `${(number / 3600).toFixed(1)} h` : `${(number / 86400).toFixed(1)} d`;
}

export const millis = (number) => (number == null ? "–" : seconds(number / 1000));

export function ago(then, now) {
  const passed = Math.max(0, now - then) / 1000;
  if (passed < 1) return "now";
  return passed < 120 ? `${Math.round(passed)} s ago` : `${seconds(passed)} ago`;
}

export const when = (unixMs) => (unixMs ? new Date(unixMs).toLocaleString() : "–");

export const short = (key) => String(key).slice(0, 12);
