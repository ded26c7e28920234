// A run's LoRA or settings as nodes on the canvas.

import { t } from "./words.mjs";

const SOCKETS = {
  LoRAAdapter: "adapter",
  TrainObjective: "objective",
  TrainOptimizer: "optimizer",
  TrainMemory: "memory",
  TrainPreview: "preview",
  PriorPreservation: "regularization",
  TextualInversion: "embedding",
};
const GAP = 40;
const OPTION_WIDTH = 340;

/**
 * The canvas, as far as it is needed here.
 * @typedef {{
 *   graph: any,
 *   create(kind: string): any,
 *   selected(): any[],
 *   middle(): [number, number],
 *   show(node: any): void,
 * }} Canvas
 * middle: of what is seen. show: selects a node and brings it into sight.
 */

/** Where a node of this size lies on no other one: at the middle of what is seen, or to the right of it. */
function freePlace(/** @type {Canvas} */ canvas, [width, height] = [320, 400]) {
  let [x, y] = canvas.middle();
  const nodes = [...canvas.graph.nodes].sort((a, b) => a.pos[0] - b.pos[0]);
  for (const { pos, size } of nodes) {
    const apart = x + width < pos[0] || pos[0] + size[0] < x || y + height < pos[1] || pos[1] + size[1] < y;
    if (!apart) x = pos[0] + size[0] + GAP;
  }
  return /** @type {[number, number]} */ ([x, y]);
}

function add(/** @type {Canvas} */ canvas, kind, [x, y]) {
  const node = canvas.create(kind);
  node.pos = [x, y];
  canvas.graph.add(node);
  return node;
}

function notSetLine(/** @type {string} */ what) {
  return t("Not set: {what}.", { what });
}

/** Set widgets by name; returns the names that were not there or do not take the value. */
export function setWidgets(node, /** @type {Record<string, any>} */ values) {
  return Object.entries(values).flatMap(([name, value]) => {
    const widget = node.widgets?.find((w) => w.name === name);
    const choices = widget?.options?.values;
    if (!widget || (Array.isArray(choices) && !choices.includes(value))) return [`${name} ${value}`];
    widget.value = value;
    widget.callback?.(value);
    return [];
  });
}

/** Train LoRA's place where its option nodes begin at the free one. @returns {[number, number]} */
function besideOptions([x, y]) {
  return [x + OPTION_WIDTH + GAP, y];
}

function inputOf(node, name) {
  return node.inputs?.findIndex((slot) => slot.name === name) ?? -1;
}

function sourceOf(graph, node, input) {
  const link = node.inputs?.[input]?.link;
  const found = link === null || link === undefined ? null : graph.links?.get?.(link) ?? graph.links?.[link];
  return found ? graph.getNodeById(found.origin_id) : null;
}

/** One step of undo. */
function once(canvas, work) {
  canvas.graph.beforeChange?.();
  try {
    return work();
  } finally {
    canvas.graph.afterChange?.();
  }
}

/**
 * An Apply LoRA with the run's file; with Load Run before it where ComfyUI does not list the file.
 * @param {Canvas} canvas
 * @param {import("./runs_data.mjs").Summary} run
 */
export function addLora(canvas, run) {
  return once(canvas, () => {
    const [x, y] = freePlace(canvas, [640 + GAP, 400]);
    const apply = add(canvas, "ApplyLoRA", [x, y]);
    if (run.lora && !setWidgets(apply, { lora_name: run.lora }).length) {
      canvas.show(apply);
      return [t("Apply LoRA with {file} is on the canvas: connect a model.", { file: run.lora })];
    }
    const load = add(canvas, "LoadRun", [x, y]);
    apply.pos = [x + load.size[0] + GAP, y];
    const missing = setWidgets(load, { run: run.id, step: 0 });
    load.connect(0, apply, inputOf(apply, "lora"));
    canvas.show(apply);
    const why = run.lora ? t("{file} is not among ComfyUI's LoRA files", { file: run.lora }) : t("the run has not ended");
    return [t("Load Run and Apply LoRA are on the canvas, since {why}: connect a model.", { why }), ...missing.map(notSetLine)];
  });
}

/**
 * A run's settings in the selected Train LoRA, or in a new one, with the option nodes that they need.
 * @param {Canvas} canvas
 * @param {import("./runs_data.mjs").Detail} detail
 */
export function addSettings(canvas, { id, widgets: { nodes, left } }) {
  const { TrainLoRA: plain, ...options } = nodes;
  if (!plain) return [t("Nothing was set: {what}.", { what: left.join("; ") })];
  return once(canvas, () => {
    const selected = canvas.selected().filter((node) => node.comfyClass === "TrainLoRA");
    const train = selected.length === 1 ? selected[0] : add(canvas, "TrainLoRA", besideOptions(freePlace(canvas, [680 + GAP, 600])));
    const notSet = setWidgets(train, plain).map((what) => `Train LoRA: ${what}`);
    let y = train.pos[1];
    for (const [kind, socket] of Object.entries(SOCKETS)) {
      const input = inputOf(train, socket);
      let node = sourceOf(canvas.graph, train, input);
      const other = node && node.comfyClass !== kind;
      if (other || (node && !options[kind])) {
        notSet.push(
          options[kind]
            ? t("{socket}: what is connected stays, though the run had other settings", { socket })
            : t("{socket}: what is connected stays, though the run had the defaults", { socket }),
        );
        continue;
      }
      if (!options[kind]) continue;
      if (!node) {
        node = add(canvas, kind, [train.pos[0] - OPTION_WIDTH - GAP, y]);
        node.connect(0, train, input);
        y += node.size[1] + GAP;
      }
      notSet.push(...setWidgets(node, options[kind]).map((what) => `${kind}: ${what}`));
    }
    canvas.show(train);
    const done =
      selected.length === 1
        ? t("The settings of {run} are in the selected Train LoRA.", { run: id })
        : t("The settings of {run} are in a new Train LoRA.", { run: id });
    return [done, ...[...notSet, ...left].map(notSetLine)];
  });
}
