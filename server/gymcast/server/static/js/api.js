// Requests to this server. Every failure becomes an ApiError whose message can be shown as it is.

import { readHash, roomHash } from "./router.js";
import { canSignIn, guestRoom, heldToken, signIn } from "./signin.js";

export class ApiError extends Error {
  /** @param {number} status HTTP status, 0 when there was no answer. */
  constructor(message, status) {
    super(message);
    this.name = "ApiError";
    this.status = status;
  }
}

/** GET of a JSON document. Throws ApiError; an abort through `signal` stays an AbortError. */
export const getJson = (path, signal) => exchange(path, { signal, headers: { Accept: "application/json" } });

/** POST of a JSON document, answered with another. Throws as getJson does. */
export const postJson = (path, body, signal) =>
  exchange(path, { method: "POST", body: JSON.stringify(body), signal, headers: { "Content-Type": "application/json" } });

async function exchange(path, options) {
  const response = await send(path, options);
  if (!response.ok) throw new ApiError(await problemText(response), response.status);
  try {
    return await response.json();
  } catch (failure) {
    if (failure.name === "AbortError") throw failure;
    throw new ApiError(`The answer of ${path} is not valid JSON.`, response.status);
  }
}

/** The answer, after the visitor has signed in where the server asks for it. */
async function send(path, options) {
  for (;;) {
    const token = heldToken();
    const headers = token === null ? options.headers : { ...options.headers, Authorization: `Bearer ${token}` };
    let response;
    try {
      response = await fetch(path, { ...options, headers });
    } catch (failure) {
      if (failure.name === "AbortError") throw failure;
      throw new ApiError("The server does not answer.", 0);
    }
    if (response.status !== 401 && !seesNothing(response)) return response;
    if (guestRoom() !== null) {
      // A guest does not sign in: back to the door of the room.
      if (readHash().room === null) location.replace(roomHash(guestRoom(), false));
      throw new ApiError("Your time in this room is over; you may join it again.", 401);
    }
    const reason = await problemText(response);
    if (!canSignIn()) throw new ApiError(reason, response.status);
    await signIn(token, reason);
    options.signal?.throwIfAborted();
  }
}

/** Whether the token is good, but not for looking: with it there is nothing to show. */
const seesNothing = (response) =>
  response.status === 403 && (response.headers.get("WWW-Authenticate") ?? "").includes('scope="read"');

/** Address of a session's live connection; on a server that asks for tokens with a ticket that opens it once. */
export async function socketAddress(id, query = {}) {
  const address = new URL(paths.socket(id));
  for (const [name, value] of Object.entries(query)) address.searchParams.set(name, value);
  if (heldToken() !== null) {
    const { ticket } = await postJson("/api/tickets", { session_id: id });
    address.searchParams.set("ticket", ticket);
  }
  return address.href;
}

async function problemText(response) {
  const text = await response.text();
  try {
    const problem = JSON.parse(text);
    return [problem.title, problem.detail].filter(Boolean).join(": ") || `Error ${response.status}`;
  } catch (failure) {
    if (failure instanceof SyntaxError) return `Error ${response.status}`;
    throw failure;
  }
}

const session = (id) => `/api/training/sessions/${encodeURIComponent(id)}`;

export const paths = {
  sessions: (cursor) => `/api/training/sessions?limit=100${cursor ? `&cursor=${encodeURIComponent(cursor)}` : ""}`,
  session,
  history: (id, points) => `${session(id)}/history?points=${points}`,
  replays: (id) => `${session(id)}/replays?limit=100`,
  logged: (id, choice, cursor) => {
    const query = new URLSearchParams({ kind: "logged", limit: "20", order: choice.order });
    if (choice.outcome) query.set("outcome", choice.outcome);
    if (cursor) query.set("cursor", cursor);
    return `${session(id)}/replays?${query}`;
  },
  checkpoints: (id) => `${session(id)}/checkpoints?limit=20`,
  errors: (id) => `${session(id)}/errors?limit=20`,
  evaluations: (id) => `${session(id)}/evaluations?limit=50`,
  frames: (replayId) => `/api/replays/${encodeURIComponent(replayId)}/frames`,
  envs: () => "/api/envs",
  ratings: () => "/api/ratings",
  rooms: () => "/api/rooms",
  room: (code) => `/api/rooms/${encodeURIComponent(code)}`,
  socket: (id) => `${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/ws/${encodeURIComponent(id)}`,
};
