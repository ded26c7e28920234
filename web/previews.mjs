// The preview pictures of a run: a row for each prompt, step 0 beside the step that the slider is at.

import { openPictures } from "./elements.mjs";
import { t } from "./words.mjs";

export class Previews {
  /** @type {number[]} */
  steps = [];
  /** @type {string[]} */
  prompts = [];
  /** Whether the newest pictures are shown when they come. */
  follows = true;
  /** What is shown, in a word. */
  key = "";

  /** @param {(step: number, prompt: number) => string} address of a picture */
  constructor(address) {
    this.address = address;
    this.element = document.createElement("div");
    this.element.className = "in-graph-lora-previews";
    this.element.style.cssText =
      "display: none; flex-direction: column; flex: 2 1 170px; min-height: 150px; gap: 4px; font: 11px sans-serif;";
    const bar = this.element.appendChild(document.createElement("label"));
    bar.style.cssText = "display: flex; gap: 8px; align-items: center;";
    this.slider = document.createElement("input");
    this.slider.type = "range";
    this.slider.min = "0";
    this.slider.setAttribute("aria-label", t("step of the preview"));
    this.slider.style.flex = "1";
    this.slider.oninput = () => {
      this.follows = Number(this.slider.value) === this.steps.length - 1;
      this.#fill();
    };
    this.title = document.createElement("span");
    bar.append(this.title, this.slider);
    this.grid = this.element.appendChild(document.createElement("div"));
    this.grid.style.cssText = "flex: 1; min-height: 0; overflow: auto; display: flex; flex-direction: column; gap: 4px;";
  }

  /** Whether there are pictures, or will be. */
  get shown() {
    return this.prompts.length > 0;
  }

  show(/** @type {import("./run_state.mjs").RunState} */ run) {
    const key = JSON.stringify([run.status.run, run.previews, run.prompts]);
    if (key === this.key) return;
    this.key = key;
    const at = this.steps[Number(this.slider.value)];
    [this.steps, this.prompts] = [run.previews, run.prompts];
    this.element.style.display = this.shown ? "flex" : "none";
    if (!this.shown) return;
    this.slider.disabled = !this.steps.length;
    if (!this.steps.length) return this.grid.replaceChildren();
    this.slider.max = String(this.steps.length - 1);
    const same = this.steps.indexOf(at);
    this.slider.value = String(this.follows || same < 0 ? this.steps.length - 1 : same);
    this.#fill();
  }

  #fill() {
    const step = this.steps[Number(this.slider.value)];
    const pair = step === 0 || !this.steps.includes(0) ? [step] : [0, step];
    this.title.textContent = pair.map((shown) => t("step {step}", { step: shown })).join(" | ");
    this.prompts.forEach((prompt, i) => this.#row(i, prompt, pair));
    while (this.grid.children.length > this.prompts.length) this.grid.lastElementChild?.remove();
  }

  /** The elements stay, so that nothing jumps while the slider is moved. */
  #row(/** @type {number} */ i, /** @type {string} */ prompt, /** @type {number[]} */ pair) {
    let row = this.grid.children[i];
    if (!row) {
      row = this.grid.appendChild(document.createElement("figure"));
      row.setAttribute("style", "margin: 0; display: flex; flex-direction: column; flex: 1 0 110px; min-height: 0;");
      const pictures = row.appendChild(document.createElement("div"));
      pictures.style.cssText = "display: flex; gap: 4px; flex: 1; min-height: 0;";
      const caption = row.appendChild(document.createElement("figcaption"));
      caption.style.cssText =
        "white-space: nowrap; overflow: hidden; text-overflow: ellipsis; user-select: text; opacity: 0.8;";
    }
    const [pictures, caption] = row.children;
    caption.textContent = prompt;
    caption.setAttribute("title", prompt);
    while (pictures.children.length > pair.length) pictures.lastElementChild?.remove();
    pair.forEach((step, n) => {
      const button = pictures.children[n] ?? pictures.appendChild(pictureButton());
      const image = /** @type {HTMLImageElement} */ (button.firstElementChild);
      image.src = this.address(step, i);
      image.alt = `${prompt}, ${t("step {step}", { step })}`;
      image.title = t("step {step}: click for full size", { step });
      /** @type {HTMLElement} */ (button).onclick = () => this.#enlarge(step, i);
    });
  }

  #enlarge(/** @type {number} */ step, /** @type {number} */ prompt) {
    const rows = this.prompts.map((text, row) =>
      this.steps.map((shown) => ({ url: this.address(shown, row), caption: `${t("step {step}", { step: shown })} · ${text}` })),
    );
    openPictures(rows, prompt, this.steps.indexOf(step));
  }
}

function pictureButton() {
  const button = document.createElement("button");
  button.style.cssText =
    "flex: 1; min-width: 0; padding: 0; border: none; background: none; cursor: zoom-in; height: 100%;";
  const image = button.appendChild(document.createElement("img"));
  image.style.cssText = "width: 100%; height: 100%; object-fit: contain;";
  return button;
}
