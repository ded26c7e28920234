// Load Dataset: what it says of the pictures, and their captions to edit.

import { openCaptions } from "./caption_editor.mjs";
import { keepEvents, make } from "./elements.mjs";
import { textBox } from "./panel.mjs";
import { t, told } from "./words.mjs";

const HEIGHT = 150;

/** @returns {import("./view.mjs").View} */
export function datasetView(/** @type {import("./view.mjs").Host} */ host) {
  const text = textBox(HEIGHT);
  const said = make("span", { className: "igl-about", role: "status" });
  const edit = make("button", {
    textContent: t("Edit captions…"),
    title: t("Captions beside their pictures: type, find and replace, tags"),
    onclick: async () => {
      said.textContent = "";
      said.textContent = await openCaptions(host, dataset);
    },
  });
  const element = keepEvents(make("div", { className: "igl" }, make("div", { className: "igl-buttons" }, edit, said), text));
  let dataset = "";

  return {
    executed(output) {
      if (!output?.text) return;
      dataset = output.captions?.[0] ?? "";
      edit.style.display = dataset ? "" : "none";
      said.textContent = "";
      text.textContent = told(output.text.join("\n"));
      host.attach(element, HEIGHT);
    },
  };
}
