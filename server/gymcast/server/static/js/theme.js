// Light and dark: the system's preference until the visitor chooses; the choice stays in this browser.

const KEY = "gymcast.theme";
const system = matchMedia("(prefers-color-scheme: dark)");
const listeners = new Set();
const colours = new Map();

/** The theme in force, "light" or "dark". */
export function theme() {
  return document.documentElement.dataset.theme === "dark" ? "dark" : "light";
}

/** Calls `listener(theme)` whenever the theme changes. */
export function onTheme(listener) {
  listeners.add(listener);
}

/** Value of a CSS custom property in the present theme, e.g. cssColour("--series-1"). Kept, since canvases ask often. */
export function cssColour(name) {
  if (!colours.has(name)) colours.set(name, getComputedStyle(document.documentElement).getPropertyValue(name).trim());
  return colours.get(name);
}

function stored() {
  try {
    return localStorage.getItem(KEY);
  } catch (refused) {
    if (refused instanceof DOMException) return null;
    throw refused;
  }
}

function remember(value) {
  try {
    localStorage.setItem(KEY, value);
  } catch (refused) {
    // The choice then holds for this visit only.
    if (!(refused instanceof DOMException)) throw refused;
  }
}

function apply(value) {
  if (value === theme()) return;
  document.documentElement.dataset.theme = value;
  colours.clear();
  for (const listener of listeners) listener(value);
}

/** Connects the toggle button. */
export function initTheme(button) {
  const label = () => button.setAttribute("aria-label", `Switch to the ${theme() === "dark" ? "light" : "dark"} theme`);
  button.addEventListener("click", () => {
    const value = theme() === "dark" ? "light" : "dark";
    remember(value);
    apply(value);
  });
  system.addEventListener("change", () => {
    if (!stored()) apply(system.matches ? "dark" : "light");
  });
  onTheme(label);
  label();
}
