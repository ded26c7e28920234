// The only file that touches ComfyUI's `app` and `api`.

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { compareView } from "./compare_baseline.mjs";
import { loadRunView } from "./load_run.mjs";
import { addLora, addSettings } from "./run_to_graph.mjs";
import { RunsPanel } from "./runs_panel.mjs";
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
  node.setDirtyCanvas?.(true); // the classic canvas puts the element in its place when it draws
}

/** @returns {import("./view.mjs").Host} */
function hostOf(node) {
  return {
    attach: (element, height) => attach(node, element, height),
    linked: (output) => Boolean(node.outputs?.find((slot) => slot.name === output)?.links?.length),
    fetch: (route, options) => api.fetchApi(route, options),
    id: () => String(node.id),
    view,
    value: (name) => widgetOf(node, name)?.value,
    set(name, value) {
      const widget = widgetOf(node, name);
      widget.value = value;
      widget.callback?.(value);
    },
    onChange(name, listener) {
      const widget = widgetOf(node, name);
      const before = widget.callback;
      widget.callback = function (...given) {
        before?.apply(this, given);
        listener();
      };
    },
  };
}

function widgetOf(node, name) {
  return node.widgets?.find((widget) => widget.name === name);
}

function view(picture) {
  return api.apiURL(`/view?${new URLSearchParams(picture)}`);
}

/** The canvas that is open. @returns {import("./run_to_graph.mjs").Canvas} */
function canvasNow() {
  const [x, y, width, height] = app.canvas.ds.visible_area;
  return {
    graph: app.canvas.graph ?? app.graph,
    create: (kind) => LiteGraph.createNode(kind),
    selected: () => Object.values(app.canvas.selected_nodes ?? {}),
    middle: () => [x + width / 2 - 150, y + height / 2 - 100],
  };
}

/** The open Runs panel. */
let runsPanel = null;

const RUNS_TAB = {
  id: "in_graph_lora.runs",
  icon: "pi pi-chart-line",
  title: "Training runs",
  tooltip: "Training runs (In-Graph LoRA)",
  type: "custom",
  render(element) {
    runsPanel?.dispose();
    runsPanel = new RunsPanel({
      fetch: (route, options) => api.fetchApi(route, options),
      view,
      useLora: async (run) => addLora(canvasNow(), run),
      useSettings: async (detail) => addSettings(canvasNow(), detail),
    });
    element.replaceChildren(runsPanel.element);
  },
  destroy() {
    runsPanel?.dispose();
    runsPanel = null;
  },
};

/** New LoRA files and runs: every list has them without a press of R, and without its toasts. */
async function onFiles() {
  await (app.reloadNodeDefs?.() ?? app.refreshComboInNodes());
  runsPanel?.refresh();
  for (const node of app.graph?.nodes ?? []) views.get(node)?.filesChanged?.();
}

function addStyle() {
  const link = document.createElement("link");
  link.rel = "stylesheet";
  link.href = new URL("./runs.css", import.meta.url).href;
  document.head.append(link);
}

function onEnded(/** @type {"interrupted" | "failed"} */ how) {
  return ({ detail }) => viewOf(detail?.node_id)?.ended?.(how, detail);
}

app.registerExtension({
  name: "in_graph_lora",
  setup() {
    addStyle();
    app.extensionManager.registerSidebarTab(RUNS_TAB);
    api.addEventListener("in_graph_lora.files", onFiles);
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
    const configured = node.onConfigure;
    node.onConfigure = function (...given) {
      configured?.apply(this, given);
      view.configured?.();
    };
  },
});
