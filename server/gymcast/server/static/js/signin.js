// The visitor's token: asked for when the server wants one, kept as long as the tab, never part of an address.

import { byId, setText } from "./dom.js";

const KEY = "gymcast-token";

let token = null;
try {
  token = sessionStorage.getItem(KEY);
} catch (refused) {
  // The browser keeps nothing for this page; the token then lives as long as the page.
  if (!(refused instanceof DOMException)) throw refused;
}

/** The token that requests carry; null on a server that asks for none. */
export const heldToken = () => token;

/** Code of the room whose guest the visitor is; null for everybody else. */
export function guestRoom() {
  const claims = /^[^.]+\.([^.]+)\./.exec(token ?? "")?.[1];
  if (!claims) return null;
  try {
    return JSON.parse(atob(claims.replaceAll("-", "+").replaceAll("_", "/"))).room ?? null;
  } catch (failure) {
    // Something that is no token; the server says so.
    if (failure instanceof SyntaxError || failure instanceof DOMException) return null;
    throw failure;
  }
}

/** Use another token from now on; null for none. */
export function keep(value) {
  token = value;
  try {
    if (value === null) sessionStorage.removeItem(KEY);
    else sessionStorage.setItem(KEY, value);
  } catch (refused) {
    if (!(refused instanceof DOMException)) throw refused;
  }
}

/** Whether this page can ask for a token; one that only uses these modules gives its own to `keep`. */
export const canSignIn = () => document.getElementById("sign-in") !== null;

let asking = null;

/**
 * Asks for a token, all callers at once; resolves when there is one. `used` is the token that was refused: if another
 * one is held meanwhile, nobody is asked.
 */
export function signIn(used, reason) {
  if (token !== used) return Promise.resolve();
  asking ??= ask(used === null ? "" : reason).finally(() => {
    asking = null;
  });
  return asking;
}

function ask(reason) {
  const dialog = byId("sign-in");
  const form = byId("sign-in-form");
  const field = byId("sign-in-token");
  setText(byId("sign-in-reason"), reason);
  field.value = "";
  return new Promise((resolve) => {
    const submit = (event) => {
      event.preventDefault();
      const given = field.value.replace(/\s+/g, "");
      if (!given) return;
      form.removeEventListener("submit", submit);
      dialog.removeEventListener("cancel", stay);
      field.value = "";
      keep(given);
      dialog.close();
      resolve();
    };
    const stay = (event) => event.preventDefault(); // without a token there is nothing to show
    form.addEventListener("submit", submit);
    dialog.addEventListener("cancel", stay);
    dialog.showModal();
  });
}
