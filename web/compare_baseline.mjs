// Compare Baseline: its report.

import { textView } from "./text_node.mjs";

/** @returns {import("./view.mjs").View} */
export function compareView(/** @type {import("./view.mjs").Host} */ host) {
  const text = textView(host);
  return {
    executed(output) {
      if (!host.linked("report")) text.executed?.(output); // else the connected node shows it
    },
  };
}
