// One WebSocket per watched session: reconnects with jitter, resumes where it left off, says when that was impossible.

import { ApiError } from "./api.js";

const FIRST_DELAY_S = 0.5;
const LONGEST_DELAY_S = 15;
const SILENCE_S = 45; // the server pings every 20 s; browsers hide those, so we send our own and expect an answer

// 4401 is not among them: the address of the next connection takes a ticket, for which the visitor signs in first.
const TERMINAL_CODES = {
  4400: "The server refused the connection.",
  4403: "You may not watch this session.",
  4404: "This session does not exist.",
  4409: "This seat is taken.",
  4410: "The session was deleted, or its room has ended.",
};

/**
 * @typedef {object} LiveHandlers
 * @property {(message: {type: string, seq: number, ts: string, data: object}) => void} message one message, in order, once
 * @property {(state: "connecting"|"live"|"reconnecting"|"ended", text: string) => void} state
 * @property {() => void} gap messages were lost: reload the history
 * @property {(count: number) => void} spectators how many watch
 */
export class LiveLink {
  /**
   * @param {(query: object) => Promise<string>} address where to connect, asked each time; may throw ApiError
   * @param {LiveHandlers} handlers
   */
  constructor(address, handlers) {
    this.address = address;
    this.handlers = handlers;
    this.epoch = null;
    this.heads = {}; // type -> last seq handed on
    this.attempts = 0;
    this.closed = false;
    this.timer = 0;
    this.socket = null;
    this.opening = false;
    this.wake = () => this.socket === null && !this.opening && !this.closed && this.#retryNow();
    addEventListener("online", this.wake);
    this.#open();
  }

  close() {
    this.closed = true;
    removeEventListener("online", this.wake);
    clearTimeout(this.timer);
    clearInterval(this.pinger);
    const { socket } = this;
    this.socket = null;
    // Browsers complain in the console about a socket that is closed before it was open.
    if (socket?.readyState === WebSocket.CONNECTING) socket.onopen = () => socket.close();
    else socket?.close();
  }

  /** No reconnecting any more: the session is over. */
  finish(text = "ended") {
    if (this.closed) return;
    this.close();
    this.handlers.state("ended", text);
  }

  #retryNow() {
    clearTimeout(this.timer);
    this.#open();
  }

  async #open() {
    if (this.attempts === 0) this.handlers.state("connecting", "connecting");
    this.opening = true;
    let address;
    try {
      // With resume=1 the server waits for us to say where we stopped before it sends anything else.
      address = await this.address(this.epoch === null ? {} : { resume: "1" });
    } catch (failure) {
      if (!(failure instanceof ApiError)) throw failure;
      // There is no ticket any more, such as for the guest of a room that has ended; asking again changes nothing.
      if (failure.status === 404) this.finish(TERMINAL_CODES[4410]);
      else if (failure.status === 403) this.finish(failure.message);
      else this.#lost(0);
      return;
    } finally {
      this.opening = false;
    }
    if (this.closed) return;
    const socket = new WebSocket(address);
    this.socket = socket;
    socket.onopen = () => {
      this.lastHeard = performance.now();
      this.pinger = setInterval(() => this.#checkPulse(socket), 15_000);
    };
    socket.onmessage = (event) => {
      if (socket !== this.socket) return;
      this.lastHeard = performance.now();
      this.#receive(JSON.parse(event.data));
    };
    socket.onclose = (event) => socket === this.socket && this.#lost(event.code);
  }

  #checkPulse(socket) {
    if (performance.now() - this.lastHeard > SILENCE_S * 1000) {
      // A half-open connection never says so itself.
      socket.onclose = null;
      socket.close();
      this.#lost(1006);
    } else if (socket.readyState === WebSocket.OPEN) {
      socket.send(JSON.stringify({ type: "ping" }));
    }
  }

  #lost(code) {
    clearInterval(this.pinger);
    this.socket = null;
    if (this.closed) return;
    if (code in TERMINAL_CODES) {
      this.finish(TERMINAL_CODES[code]);
      return;
    }
    this.attempts += 1;
    const ceiling = Math.min(LONGEST_DELAY_S, FIRST_DELAY_S * 2 ** (this.attempts - 1));
    const delay = ceiling * (0.5 + Math.random() / 2);
    this.handlers.state("reconnecting", "reconnecting");
    this.timer = setTimeout(() => this.#open(), delay * 1000);
  }

  #receive(message) {
    if (message.type === "batch") {
      for (const part of message.data.messages ?? []) this.#receive(part);
      return;
    }
    if (message.type === "connection_status") {
      this.#status(message);
      return;
    }
    const seen = this.heads[message.type] ?? 0;
    // A snapshot holds one message per graph, all with the number they stand for; graphs merge, so repeats do no harm.
    if (message.seq && (message.seq < seen || (message.seq === seen && message.type !== "graph_update"))) return;
    if (message.seq) this.heads[message.type] = message.seq;
    this.handlers.message(message);
  }

  #status({ epoch, data }) {
    if (typeof data.spectator_count === "number") this.handlers.spectators(data.spectator_count);
    if (data.status === "connected") {
      if (this.epoch !== null) this.socket.send(JSON.stringify({ type: "resume", epoch: this.epoch, seq: this.heads }));
      this.nextEpoch = epoch;
      if (this.epoch === null) this.#joined();
    } else if (data.status === "resumed") {
      if (!data.recovered) this.#lostTrack();
      this.#joined();
    }
  }

  #joined() {
    this.epoch = this.nextEpoch;
    this.attempts = 0;
    this.handlers.state("live", "live");
  }

  #lostTrack() {
    this.heads = {};
    this.handlers.gap();
  }
}
