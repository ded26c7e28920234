// Load Run: the chosen run's curve, its steps with their pictures, and all runs to choose from.

import { keepEvents, make, openDialog, openPictures } from "./elements.mjs";
import { curveOf, Details, fetchDetail, runList } from "./run_list.mjs";
import { about, bestOf, pictureOf } from "./runs_data.mjs";
import { textBox } from "./panel.mjs";
import { t, told, word } from "./words.mjs";

const HEIGHT = 230;
const ROW_HEIGHT = 64;
const [NEWEST, BEST] = [0, -1];

/** @returns {import("./view.mjs").View} */
export function loadRunView(/** @type {import("./view.mjs").Host} */ host) {
  const curve = make("div", { className: "igl-curve" });
  const said = make("div", { className: "igl-about" });
  const steps = make("div", { className: "igl-steps", role: "listbox", "aria-label": t("Steps with a LoRA") });
  const loaded = textBox(80);
  const choose = make("button", { textContent: t("Choose a run…"), onclick: () => openList() });
  const element = keepEvents(
    make("div", { className: "igl igl-load-run" }, make("div", { className: "igl-buttons" }, choose, said), curve, steps, loaded),
  );
  let attached = false;
  /** @type {import("./runs_data.mjs").Detail | null} */
  let detail = null;
  let asked = 0;

  /** The step that the node will load: that of the widget, or what 0 and -1 mean. */
  function stepMeant() {
    const step = Number(host.value("step"));
    if (!detail) return step;
    if (step === NEWEST) return detail.checkpoints.at(-1)?.step ?? step;
    return step === BEST ? bestOf(detail)?.step ?? step : step;
  }

  function mark() {
    const meant = stepMeant();
    for (const button of steps.children) button.setAttribute("aria-selected", String(Number(button.dataset.step) === meant));
    requestAnimationFrame(() => {
      const chosen = /** @type {HTMLElement | null} */ (steps.querySelector("[aria-selected=true]"));
      if (chosen) steps.scrollLeft = chosen.offsetLeft - steps.offsetLeft - 40;
    });
  }

  function draw() {
    if (!detail) {
      said.textContent = host.value("run") ? t("this run is not there any more") : t("no run yet: Train LoRA makes one");
      curve.replaceChildren();
      steps.replaceChildren();
      return;
    }
    const { id, checkpoints, best: judged, evaluated } = detail;
    said.textContent = about(detail);
    curve.replaceChildren(curveOf(detail, { width: 320, height: 56 }));
    const best = bestOf(detail);
    steps.replaceChildren(
      ...checkpoints.map((checkpoint) => {
        const { step, held_out: loss, pictures } = checkpoint;
        const [file] = pictures;
        const star = checkpoint === best ? " ★" : "";
        return make(
          "button",
          {
            className: "igl-step",
            role: "option",
            "data-step": String(step),
            title: star
              ? t(whyBest(step === judged, evaluated), { step })
              : t("Load step {step}. Double-click for its pictures.", { step }),
            onclick: () => host.set("step", step),
            ondblclick: () => openStep(checkpoint),
          },
          file ? make("img", { src: host.url(pictureOf(id, file)), alt: "", loading: "lazy", draggable: false }) : null,
          make("span", {}, `${step}${star}`),
          typeof loss === "number" ? make("small", {}, loss.toFixed(4)) : null,
        );
      }),
    );
    mark();
  }

  function whyBest(/** @type {boolean} */ decided, /** @type {boolean | undefined} */ evaluated) {
    if (!decided) return word("Load step {step}, the lowest held-out loss. Double-click for its pictures.");
    return evaluated
      ? word("Load step {step}, the best by Evaluate LoRA. Double-click for its pictures.")
      : word("Load step {step}, the best by the judge. Double-click for its pictures.");
  }

  function openStep({ step, pictures }) {
    if (!detail || !pictures.length) return;
    const { id, prompts, before } = detail;
    const at = (file, title, i) => ({ url: host.url(pictureOf(id, file)), caption: `${title} · ${prompts[i] ?? ""}` });
    const pairs = pictures.flatMap((file, i) => [...(before[i] ? [at(before[i], t("without LoRA"), i)] : []), at(file, t("step {step}", { step }), i)]);
    openPictures([pairs], 0, before[0] ? 1 : 0);
  }

  async function update() {
    const ticket = ++asked;
    const run = host.value("run");
    const found = run ? await fetchDetail(host, String(run)) : null;
    if (ticket !== asked) return; // another run was chosen meanwhile
    detail = found;
    if (!attached && detail) {
      attached = true;
      host.attach(element, HEIGHT);
    }
    draw();
  }

  function openList() {
    const list = runList(host, new Details(host), {
      withLora: true,
      rowHeight: ROW_HEIGHT,
      open(run) {
        dialog.close();
        host.set("run", run.id);
        host.set("step", NEWEST);
      },
    });
    const dialog = openDialog(t("Choose a run"), list.element, "igl-choose");
    dialog.addEventListener("close", () => list.dispose());
    list.refresh();
  }

  host.onChange("run", update);
  host.onChange("step", mark);
  // A workflow that is being loaded sets the widgets after the node is made.
  setTimeout(update);
  return {
    executed(output) {
      if (output?.text) loaded.textContent = told(output.text.join("\n"));
    },
    created: update,
    filesChanged: update,
  };
}
