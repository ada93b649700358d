// One episode as the server sent it: its summary and what the bot considered at each decision.

import { short } from "./format.js";

const OUTCOMES = new Map([[1, "won"], [0, "drawn"], [-1, "lost"], ["win", "won"], ["draw", "drawn"], ["loss", "lost"]]);

export class Footage {
  constructor(id, data) {
    this.id = id;
    this.envId = data.env_id;
    this.summary = data.summary ?? {};
    this.duration = data.frames.at(-1)?.t ?? 0;
    this.decisions = [...(data.decisions ?? [])].sort((a, b) => a.step - b.step);
    this.stepSeconds = decisionSeconds(data, this.summary, this.duration, this.decisions);
    this.values = this.decisions.filter((decision) => typeof decision.state_values === "number");
    this.valueRange = this.values.reduce(([low, high], { state_values: v }) => [Math.min(low, v), Math.max(high, v)], [Infinity, -Infinity]);
  }

  /** When a decision begins, s of game time. */
  time(decision) {
    return decision.step * this.stepSeconds;
  }

  /** The decision in force at t seconds, null before the first. */
  decisionAt(t) {
    let low = 0;
    let high = this.decisions.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.time(this.decisions[middle]) <= t + 1e-6) low = middle + 1;
      else high = middle;
    }
    return low ? this.decisions[low - 1] : null;
  }

  /** A line about the episode; `listed` is its entry in the list of replays, if it is there. */
  caption(listed) {
    const parts = [];
    if (listed) parts.push(`episode ${short(listed.episode)}`, `after ${short(listed.timesteps)} samples`);
    const result = OUTCOMES.get(this.summary.outcome);
    if (result) parts.push(result);
    return parts.join(" · ");
  }
}

/** Game seconds between two decisions: as sent, else from the episode's length. */
function decisionSeconds(data, summary, duration, decisions) {
  if (data.decision_seconds > 0) return data.decision_seconds;
  const length = summary.length ?? (decisions.at(-1)?.step ?? 0) + 1;
  const seconds = summary.seconds ?? duration;
  return length > 0 && seconds > 0 ? seconds / length : 0.08;
}
