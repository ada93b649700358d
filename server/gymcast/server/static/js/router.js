// Addresses of the page: #/session/{id}, #/session/{id}/replay/{replay}?t=seconds, #/ratings, #/room/{code} and, for a room
// without a password, #/room/{code}?open

/** @returns {{session: string|null, replay: string|null, t: number|null, room: string|null, open: boolean, ratings: boolean}} */
export function readHash(hash = location.hash) {
  const [path, query] = hash.replace(/^#/, "").split("?");
  const parts = path.split("/").filter(Boolean).map(decode);
  const known = parts[0] === "session" && parts[1];
  const given = new URLSearchParams(query ?? "");
  const seconds = Number.parseFloat(given.get("t") ?? "");
  return {
    session: known ? parts[1] : null,
    replay: known && parts[2] === "replay" && parts[3] ? parts[3] : null,
    t: Number.isFinite(seconds) && seconds >= 0 ? seconds : null,
    room: parts[0] === "room" && parts[1] ? parts[1].toUpperCase() : null,
    open: given.has("open"),
    ratings: parts[0] === "ratings",
  };
}

function decode(part) {
  try {
    return decodeURIComponent(part);
  } catch (failure) {
    // A hand-typed address with a lone "%": taken as it stands.
    if (failure instanceof URIError) return part;
    throw failure;
  }
}

export const sessionHash = (id) => `#/session/${encodeURIComponent(id)}`;

/** Address of a room; `open` says that no password is asked for. */
export const roomHash = (code, open) => `#/room/${encodeURIComponent(code)}${open ? "?open" : ""}`;

/** Address of a replay, which plays from its beginning. */
export const replayLink = (session, replay) => `${sessionHash(session)}/replay/${encodeURIComponent(replay)}`;

/** Address of a moment in a replay, t in seconds. */
export function replayHash(session, replay, t) {
  return `${replayLink(session, replay)}?t=${t.toFixed(1)}`;
}
