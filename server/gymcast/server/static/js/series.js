// The readings of one session in order of time: history first, live readings after it, each once.

const MOST_POINTS = 2400;

const POSITIONS = new Set(["training_time_elapsed", "timesteps", "episode"]);
const LATEST = new Set(["best_reward", "episode"]); // these only grow: the largest of a bucket is its newest

/** Reads an RFC 3339 time as milliseconds since 1970, NaN if it is none. */
export const millis = (text) => Date.parse(text ?? "");

/** One reading as a flat object of numbers: the fields of the metrics message and those of its `extra`. */
export function reading(data) {
  const { extra, timestamp, ...fields } = data;
  const point = { ts: millis(timestamp) };
  for (const [name, value] of Object.entries({ ...fields, ...extra })) {
    if (typeof value === "number") point[name] = value;
  }
  return point;
}

/**
 * One bucket of the history as a reading. A bucket that reaches past `end` (RFC 3339) is still being filled, so its
 * place on the axes is where it begins: the live readings that follow then lie after it.
 */
export function bucket(entry, end) {
  if (!entry.metrics) return reading(entry);
  const open = end !== null && millis(entry.end) > millis(end);
  const point = { ts: millis(entry.timestamp) };
  for (const [name, { min, max, mean }] of Object.entries(entry.metrics)) {
    if (open && POSITIONS.has(name)) point[name] = min;
    else point[name] = LATEST.has(name) ? max : mean;
  }
  return point;
}

export class Series {
  constructor() {
    this.points = [];
  }

  get last() {
    return this.points.at(-1);
  }

  /** Takes over the history; live readings newer than its end stay. */
  setHistory(history) {
    const points = [...history].sort((a, b) => a.ts - b.ts);
    const end = points.at(-1);
    const newer = end ? this.points.filter((point) => point.ts > end.ts) : this.points;
    this.points = points.concat(newer);
  }

  /** Adds a live reading; returns false if it was there already. */
  add(point) {
    if (this.last && point.ts <= this.last.ts) return false;
    this.points.push(point);
    if (this.points.length > MOST_POINTS) this.#thin();
    return true;
  }

  /** The older half loses every second point: a long run stays cheap to draw and its newest part stays exact. */
  #thin() {
    const half = this.points.length >> 1;
    this.points = this.points.filter((_, index) => index >= half || index % 2 === 0);
  }
}
