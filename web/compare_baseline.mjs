// Compare Baseline: its pictures side by side, and its report as a table.

import { Comparison } from "./comparison.mjs";
import { make } from "./elements.mjs";
import { fillMarkdown } from "./panel.mjs";
import { viewRoute } from "./runs_data.mjs";
import { t } from "./words.mjs";

const HEIGHT = 480;

/** @returns {import("./view.mjs").View} */
export function compareView(/** @type {import("./view.mjs").Host} */ host) {
  /** @type {Comparison | null} */
  let comparison = null;
  const report = make("div", { className: "igl-report" });

  const shown = () => {
    if (!comparison) {
      comparison = new Comparison();
      comparison.element.append(make("details", { open: true }, make("summary", {}, t("Report")), report));
      host.attach(comparison.element, HEIGHT);
    }
    return comparison;
  };

  return {
    executed(output) {
      if (!output?.comparison) return;
      shown().show(output.comparison.map((picture) => ({ ...picture, url: host.url(viewRoute(picture)) })));
      fillMarkdown(report, (output.text ?? []).join("\n\n"));
    },
  };
}
