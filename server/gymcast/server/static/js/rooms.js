// Rooms: making one for the session that is shown, joining one by its code, being a guest in it.

import { ApiError, getJson, paths, postJson } from "./api.js";
import { announce, byId, copyText, make, setText } from "./dom.js";
import { moment } from "./format.js";
import { readHash, roomHash, sessionHash } from "./router.js";
import { guestRoom, heldToken, keep } from "./signin.js";

export class Rooms {
  /** @param {object} page see main.js */
  constructor(page) {
    this.page = page;
    this.tokenBefore = null; // what the visitor was before joining a room
    this.#initSharing();
    byId("join-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#join(byId("join-password").value || null);
    });
    byId("guest-leave").addEventListener("click", () => this.#leave());
    this.#showGuest();
  }

  /** Shows the door of the room `code`, or leads a guest without an address to the room's session; false if neither. */
  show(code, open) {
    const guest = guestRoom();
    if (code === null && guest === null) return false;
    if (guest !== null && (code === null || code === guest)) {
      this.#enter(guest);
      return true;
    }
    this.#showDoor(code, "");
    if (open) this.#join(null);
    return true;
  }

  #showDoor(code, error) {
    this.page.close();
    byId("join").hidden = false;
    setText(byId("join-code"), code);
    setText(byId("join-error"), error);
    byId("join-password").value = "";
    byId("join-password").focus();
    document.title = `Room ${code} – gymcast`;
  }

  async #join(password) {
    const { room } = readHash();
    const button = byId("join-form").querySelector("button");
    button.disabled = true;
    setText(byId("join-error"), "");
    try {
      const joined = await postJson(`${paths.room(room)}/join`, password === null ? {} : { password });
      if (guestRoom() === null) this.tokenBefore = heldToken();
      keep(joined.token);
      this.#showGuest();
      this.page.close();
      location.replace(sessionHash(joined.session_id));
    } catch (failure) {
      if (!(failure instanceof ApiError)) throw failure;
      setText(byId("join-error"), failure.status === 404 ? "The password is wrong, or this room has ended." : failure.message);
      byId("join-password").select();
    } finally {
      button.disabled = false;
    }
  }

  /** To the session of the room whose guest the visitor is. */
  async #enter(code) {
    try {
      const room = await getJson(paths.room(code));
      location.replace(sessionHash(room.session_id));
    } catch (failure) {
      if (!(failure instanceof ApiError)) throw failure;
      this.#becomeHost();
      this.#showDoor(code, failure.status === 404 ? "This room has ended." : failure.message);
    }
  }

  #leave() {
    this.#becomeHost();
    history.replaceState(null, "", "#/");
    this.page.restart();
    announce("You have left the room.");
  }

  #becomeHost() {
    keep(this.tokenBefore);
    this.tokenBefore = null;
    this.#showGuest();
  }

  #showGuest() {
    const code = guestRoom();
    document.body.toggleAttribute("data-guest", code !== null);
    byId("guest").hidden = code === null;
    setText(byId("guest-room"), code ?? "");
  }

  #initSharing() {
    const dialog = byId("room-dialog");
    const form = byId("room-form");
    byId("room-open").addEventListener("click", () => {
      setText(byId("room-dialog-title"), "Share this session");
      setText(byId("room-error"), "");
      form.hidden = false;
      byId("room-made").hidden = true;
      dialog.showModal();
    });
    byId("room-close").addEventListener("click", () => dialog.close());
    dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
    form.addEventListener("change", () => this.#protection());
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#make(form.querySelector("[type=submit]"));
    });
    this.#protection();
  }

  /** What the visitor chose about the password; shows the field for one of their own. */
  #protection() {
    const chosen = document.querySelector("[name=room-protection]:checked").value;
    const own = byId("room-own");
    own.hidden = chosen !== "own";
    own.required = chosen === "own";
    own.disabled = chosen !== "own"; // a hidden field that is invalid would hold the form up
    return chosen;
  }

  async #make(button) {
    const chosen = this.#protection();
    const wanted = { session_id: this.page.watch.id, password_protected: chosen !== "none" };
    if (chosen === "own") wanted.password = byId("room-own").value;
    if (byId("room-viewers").value) wanted.max_spectators = Number(byId("room-viewers").value);
    wanted.expires_in = byId("room-ends").value ? Number(byId("room-ends").value) : null;
    button.disabled = true;
    setText(byId("room-error"), "");
    try {
      showMade(await postJson(paths.rooms(), wanted));
    } catch (failure) {
      if (!(failure instanceof ApiError)) throw failure;
      setText(byId("room-error"), failure.message);
    } finally {
      button.disabled = false;
    }
  }
}

function showMade(room) {
  const link = new URL(roomHash(room.code, !room.password_protected), location.href).href;
  setText(byId("room-dialog-title"), "The room is open");
  setText(byId("made-code"), room.code);
  const facts = [fact("Link", link)];
  if (room.password !== null) facts.push(fact("Password", room.password));
  byId("made-facts").replaceChildren(...facts);
  const notes = [
    room.password === null ? "Whoever has the link can watch." : "The password is shown only now: copy it before you close this.",
    room.max_spectators === null ? "" : `${room.max_spectators} at a time.`,
    room.expires_at === null ? "It stays open until it is closed." : `It ends ${moment(room.expires_at)}.`,
  ];
  setText(byId("made-note"), notes.filter(Boolean).join(" "));
  byId("room-form").hidden = true;
  byId("room-made").hidden = false;
  byId("made-facts").querySelector("button").focus();
}

function fact(name, value) {
  const copy = make("button", { type: "button", class: "ghost-button", "aria-label": `Copy the ${name.toLowerCase()}`, text: "Copy" });
  copy.addEventListener("click", async () => {
    if (await copyText(value)) setText(copy, "Copied");
  });
  return make("div", { class: "made-fact" }, make("dt", { text: name }), make("dd", {}, make("code", { text: value }), copy));
}
