// The only file that touches ComfyUI's `app` and `api`.

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { compareView } from "./compare_baseline.mjs";
import { loadRunView } from "./load_run.mjs";
import { markdownView, textView } from "./text_node.mjs";
import { trainView } from "./train_lora.mjs";

/** Kind of node → what makes its view. */
const VIEWS = {
  ApplyLoRA: textView,
  CaptionImages: textView,
  CompareBaseline: compareView,
  LoadDataset: textView,
  LoadRun: loadRunView,
  PlanTraining: markdownView,
  TrainLoRA: trainView,
};

/**
 * Node → its view. Weak: it goes with the node.
 * @type {WeakMap<object, import("./view.mjs").View>}
 */
const views = new WeakMap();

/** The node behind an execution id; in a subgraph the id is "outer:inner". */
function findNode(id) {
  let node = null;
  let graph = app.rootGraph ?? app.graph;
  for (const part of String(id).split(":")) {
    node = graph?.getNodeById(Number(part)) ?? graph?.getNodeById(part);
    graph = node?.subgraph;
  }
  return node;
}

function viewOf(id) {
  const node = findNode(id);
  return node && views.get(node);
}

/** A widget that only shows something: it is never part of the saved values. */
function attach(node, element, height) {
  const widget = node.addDOMWidget("in_graph_lora", "in_graph_lora", element, {
    serialize: false,
    hideOnZoom: false,
    getMinHeight: () => height,
  });
  widget.serialize = false;
  const [width, needed] = node.computeSize();
  node.setSize([Math.max(node.size[0], width), Math.max(node.size[1], needed)]);
}

/** @returns {import("./view.mjs").Host} */
function hostOf(node) {
  return {
    attach: (element, height) => attach(node, element, height),
    linked: (output) => Boolean(node.outputs?.find((slot) => slot.name === output)?.links?.length),
    fetch: (route, options) => api.fetchApi(route, options),
    id: () => String(node.id),
  };
}

function onEnded(/** @type {"interrupted" | "failed"} */ how) {
  return ({ detail }) => viewOf(detail?.node_id)?.ended?.(how, detail);
}

app.registerExtension({
  name: "in_graph_lora",
  setup() {
    api.addEventListener("in_graph_lora.progress", ({ detail }) => viewOf(detail.node_id)?.progress?.(detail));
    api.addEventListener("execution_interrupted", onEnded("interrupted"));
    api.addEventListener("execution_error", onEnded("failed"));
  },
  nodeCreated(node) {
    const make = VIEWS[node.comfyClass];
    if (!make) return;
    const view = make(hostOf(node));
    views.set(node, view);
    const before = node.onExecuted;
    node.onExecuted = function (output, ...rest) {
      before?.call(this, output, ...rest);
      view.executed?.(output);
    };
  },
});
