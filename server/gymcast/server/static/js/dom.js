// Small helpers for the document. Text from the server only ever goes through textContent.

/** The element with this id; a missing one is a mistake in the page itself. */
export function byId(id) {
  const element = document.getElementById(id);
  if (!element) throw new Error(`the page has no element #${id}`);
  return element;
}

/**
 * A new element. `attributes` may hold `class`, `text`, `dataset` (object), `on` (event handlers) and any attribute;
 * null and false leave an attribute out.
 */
export function make(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** A new SVG element, attributes as in `make`. */
export function makeSvg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "text") element.textContent = value;
    else if (name === "dataset") Object.assign(element.dataset, value);
    else if (name === "on") for (const [event, handler] of Object.entries(value)) element.addEventListener(event, handler);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children);
  return element;
}

/** Sets the text only if it differs, so that screen readers and the layout are left in peace. */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Says something to screen readers without showing it. */
export function announce(text) {
  byId("announcer").textContent = text;
}

/** Puts a text into the clipboard and says so, or that the browser refuses. */
export async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
    notice("copy", "Copied.", "info");
    return true;
  } catch (refused) {
    if (!(refused instanceof DOMException || refused instanceof TypeError)) throw refused;
    notice("copy", "The browser does not allow copying here; please select the text.", "warning");
    return false;
  }
}

const notices = new Map();

/**
 * Shows a message above the page until it is closed or `clearNotice(key)` is called; the same key replaces the text.
 * @param {"error"|"warning"|"info"} kind
 */
export function notice(key, text, kind = "error") {
  clearNotice(key);
  const close = make("button", { type: "button", class: "icon-button", "aria-label": "Close this message", text: "×", on: { click: () => clearNotice(key) } });
  const box = make("div", { class: "notice", dataset: { kind }, role: kind === "error" ? "alert" : "status" }, make("p", { text }), close);
  notices.set(key, box);
  byId("notices").append(box);
  if (kind === "info") setTimeout(() => notices.get(key) === box && clearNotice(key), 4000);
}

export function clearNotice(key) {
  notices.get(key)?.remove();
  notices.delete(key);
}
