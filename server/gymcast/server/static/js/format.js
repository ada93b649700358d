// Numbers, times and sizes as text. "–" stands for "not known".

const NONE = "–";
const SUFFIXES = [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]];

const known = (value) => typeof value === "number" && Number.isFinite(value);

/** Three significant digits with k, M, G: 12345 -> "12.3k". */
export function short(value) {
  if (!known(value)) return NONE;
  const size = Math.abs(value);
  for (const [unit, suffix] of SUFFIXES) {
    if (size >= unit * 0.9995) return trim(value / unit, 3) + suffix;
  }
  if (size >= 100 || (Number.isInteger(value) && size < 1000)) return String(Math.round(value));
  return trim(value, 3);
}

function trim(value, digits) {
  const size = Math.abs(value);
  const places = Math.max(0, digits - (size < 1 ? 1 : Math.floor(Math.log10(size)) + 1));
  return value.toFixed(places).replace("-", "−");
}

/** Two significant digits for small numbers: -0.00321 -> "−0.0032"; three otherwise. */
export function fine(value) {
  if (!known(value) || value === 0 || Math.abs(value) >= 0.1) return short(value);
  return Math.abs(value) < 1e-5 ? "0" : String(Number(value.toPrecision(2))).replace("-", "−");
}

/** Whole number with thin separators: 1234567 -> "1,234,567". */
export function whole(value) {
  return known(value) ? Math.round(value).toLocaleString("en-US") : NONE;
}

/** Fixed number of decimals with a true minus sign. */
export function fixed(value, places = 2) {
  return known(value) ? value.toFixed(places).replace("-", "−") : NONE;
}

/** 0..100 -> "73.4 %". */
export function percent(value, places = 1) {
  return known(value) ? `${value.toFixed(places)} %` : NONE;
}

/** Seconds as "42 s", "3 min 05 s" or "2 h 10 min". */
export function duration(seconds) {
  if (!known(seconds) || seconds < 0) return NONE;
  const s = Math.round(seconds);
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${String(s % 60).padStart(2, "0")} s`;
  return `${Math.floor(s / 3600)} h ${String(Math.floor((s % 3600) / 60)).padStart(2, "0")} min`;
}

/** Seconds as a clock: 65.2 -> "1:05". */
export function clock(seconds) {
  if (!known(seconds)) return NONE;
  const s = Math.max(0, Math.floor(seconds + 1e-6));
  const minutes = Math.floor(s / 60);
  const rest = String(s % 60).padStart(2, "0");
  return minutes < 60 ? `${minutes}:${rest}` : `${Math.floor(minutes / 60)}:${String(minutes % 60).padStart(2, "0")}:${rest}`;
}

export function bytes(value) {
  if (!known(value)) return NONE;
  if (value < 1024) return `${value} B`;
  if (value < 1024 * 1024) return `${(value / 1024).toFixed(1)} KiB`;
  return `${(value / 1024 / 1024).toFixed(1)} MiB`;
}

/** RFC 3339 -> "just now", "5 min ago", or the date. */
export function ago(text, now = Date.now()) {
  const then = Date.parse(text ?? "");
  if (!Number.isFinite(then)) return NONE;
  const seconds = (now - then) / 1000;
  if (seconds < 45) return "just now";
  if (seconds < 3600) return `${Math.max(1, Math.round(seconds / 60))} min ago`;
  if (seconds < 86400) return `${Math.round(seconds / 3600)} h ago`;
  return new Date(then).toLocaleDateString(undefined, { year: "numeric", month: "short", day: "numeric" });
}

/** RFC 3339 -> "14:05" today, "Nov 20, 14:05" on other days; "" for what is no time. */
export function moment(text, now = new Date()) {
  const then = new Date(text ?? "");
  if (Number.isNaN(then.getTime())) return "";
  const clockTime = then.toLocaleTimeString("en-GB", { hour: "2-digit", minute: "2-digit" });
  const today = then.toDateString() === now.toDateString();
  return today ? clockTime : `${then.toLocaleDateString("en-US", { month: "short", day: "numeric" })}, ${clockTime}`;
}

/** "move_left" -> "move left". */
export function words(name) {
  return String(name ?? "").replaceAll("_", " ");
}
