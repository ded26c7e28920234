// Nodes that show the text of their output.

import { fillMarkdown, textBox } from "./panel.mjs";
import { told } from "./words.mjs";

/** @typedef {import("./view.mjs").Host} Host */

/** A box that is put on the node when there is something to show. */
function boxOf(/** @type {Host} */ host, /** @type {number} */ height) {
  /** @type {HTMLElement | null} */
  let box = null;
  return () => {
    if (!box) host.attach((box = textBox(height + 40)), height);
    return box;
  };
}

/** @returns {import("./view.mjs").View} */
export function textView(/** @type {Host} */ host) {
  const box = boxOf(host, 120);
  return {
    executed(output) {
      if (output?.text) box().textContent = told(output.text.join("\n"));
    },
  };
}

/** @returns {import("./view.mjs").View} */
export function markdownView(/** @type {Host} */ host) {
  const box = boxOf(host, 360);
  return {
    executed(output) {
      if (output?.text) fillMarkdown(box(), output.text.join("\n"));
    },
  };
}
