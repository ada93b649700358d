// Descriptions: plain text with `code` and **bold**.

import { make } from "../dom.js";

/** `text` as nodes. */
export function rich(text) {
  return text
    .split(/(`[^`]+`|\*\*[^*]+\*\*)/)
    .filter(Boolean)
    .map((part) => {
      if (part.startsWith("`")) return make("code", { text: part.slice(1, -1) });
      if (part.startsWith("**")) return make("b", { text: part.slice(2, -2) });
      return document.createTextNode(part.replaceAll("``", ""));
    });
}
