// Nodes that write captions: the captions as the node has left them, and the button that edits them by hand.

import { openCaptions } from "./caption_editor.mjs";
import { keepEvents, make } from "./elements.mjs";
import { textBox } from "./panel.mjs";
import { t, told } from "./words.mjs";

const HEIGHT = 150;

/** @typedef {import("./view.mjs").Host} Host */

/**
 * A button that opens the captions of the node's dataset; hidden until the node has run.
 * said: where it is told why it cannot. take: what the node has given.
 */
export function captionsButton(/** @type {Host} */ host) {
  let dataset = ""; // the server's id of it
  const said = make("span", { className: "igl-about", role: "status" });
  const button = make("button", {
    textContent: t("Edit captions…"),
    title: t("Captions beside their pictures: type, find and replace, tags"),
    onclick: async () => {
      said.textContent = "";
      said.textContent = await openCaptions(host, dataset, afterwards(host));
    },
  });
  button.style.display = "none";
  return {
    button,
    said,
    take(/** @type {{captions?: string[]}} */ output) {
      dataset = output.captions?.[0] ?? "";
      button.style.display = dataset ? "" : "none";
      said.textContent = "";
    },
  };
}

/** What the next run makes of captions that were edited. */
function afterwards(/** @type {Host} */ host) {
  const wish = host.value("on_existing");
  if (wish === undefined || wish === "keep") return t("All saved. Run uses the new captions.");
  return t("All saved. on_existing is {wish}, so Run changes them again; choose keep.", { wish });
}

/** The lines that are ours in the page's language; captions and names as they are. */
export function saidWithCaptions(/** @type {{text: string[], told?: number[]}} */ { text, told: [ours = 0] = [] }) {
  return [...text.slice(0, ours).map(told), ...text.slice(ours)].join("\n");
}

/** @returns {import("./view.mjs").View} */
export function captionsView(/** @type {Host} */ host) {
  const { button, said, take } = captionsButton(host);
  const box = textBox(4 * HEIGHT);
  const buttons = make("div", { className: "igl-buttons" }, button, said);
  const element = keepEvents(make("div", { className: "igl igl-captions-node" }, buttons, box));
  return {
    executed(output) {
      if (!output?.text) return;
      take(output);
      box.textContent = saidWithCaptions(output);
      host.attach(element, HEIGHT);
    },
  };
}
