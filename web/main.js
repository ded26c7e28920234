// The only file that touches ComfyUI's `app` and `api`.

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { captionsView } from "./captions_view.mjs";
import { compareView } from "./compare_baseline.mjs";
import { loadDatasetView } from "./load_dataset.mjs";
import { loadRunView } from "./load_run.mjs";
import { executionSentence, problemBox, validationSentence } from "./problems.mjs";
import { addLora, addSettings } from "./run_to_graph.mjs";
import { RunsPanel } from "./runs_panel.mjs";
import { SOCKETS } from "./sockets.mjs";
import { markdownView, textView } from "./text_node.mjs";
import { toastOf } from "./toasts.mjs";
import { trainView } from "./train_lora.mjs";
import { speak, t } from "./words.mjs";

/** Kind of node → what makes its view. */
const VIEWS = {
  ApplyLoRA: textView,
  CaptionImages: captionsView,
  CheckTrigger: markdownView,
  CompareBaseline: compareView,
  CompareReports: markdownView,
  DatasetReport: markdownView,
  EditCaptions: captionsView,
  EvaluateLoRA: markdownView,
  JoinDatasets: markdownView,
  LoadDataset: loadDatasetView,
  LoadRun: loadRunView,
  PlanTraining: markdownView,
  TrainLoRA: trainView,
  TrainingRecipe: markdownView,
};
const CATEGORY = "In-Graph LoRA";

/**
 * Node → its view. Weak: it goes with the node.
 * @type {WeakMap<object, import("./view.mjs").View>}
 */
const views = new WeakMap();

/**
 * Prompt → the tab that it came from, of those that this page has queued.
 * @type {Map<string, {path: string, workflow: string | undefined}>}
 */
const queued = new Map();

/** Kinds of node that are ours. */
const ours = new Set();

/** Nodes with a sentence on what is wrong. @type {Set<any>} */
const wrong = new Set();

function rootGraph() {
  return app.rootGraph ?? app.graph;
}

/** The node behind an execution id; in a subgraph the id is "outer:inner". */
function findNode(id) {
  let node = null;
  let graph = rootGraph();
  for (const part of String(id).split(":")) {
    node = graph?.getNodeById(Number(part)) ?? graph?.getNodeById(part);
    graph = node?.subgraph;
  }
  return node;
}

/** The inverse of `findNode`. @returns {string} */
function executionId(node, graph = rootGraph()) {
  if (!graph || node.graph === graph) return String(node.id);
  for (const outer of graph.nodes ?? []) {
    const inner = outer.subgraph && executionId(node, outer.subgraph);
    if (inner && findNode(`${outer.id}:${inner}`) === node) return `${outer.id}:${inner}`;
  }
  return "";
}

/** A graph that was never saved or loaded has an id of zeros. */
function named(/** @type {string | undefined} */ id) {
  return id && /[^0-]/.test(id) ? id : undefined;
}

function tab() {
  return app.extensionManager?.workflow?.activeWorkflow?.path ?? "";
}

/**
 * Whether a prompt is that of the workflow in front. Every workflow has a node 4, and copies of a workflow have
 * one id; so this page's own prompts are known by their tab, as long as it is there.
 * @param {string} promptId
 * @param {string} [workflow] the prompt's; undefined where ComfyUI does not say it
 */
function inFront(promptId, workflow) {
  const own = queued.get(promptId);
  const open = app.extensionManager?.workflow?.openWorkflows ?? [];
  if (own && open.some((other) => other.path === own.path)) {
    // While tabs change the graph is there before the tab's path.
    return own.path === tab() && (!own.workflow || own.workflow === rootGraph()?.id);
  }
  if (workflow === undefined) return true;
  return workflow !== "" && workflow === rootGraph()?.id;
}

let attached = 0;

/** A widget that only shows something: it is never part of the saved values. */
function attach(node, name, element, height) {
  let widget = node.widgets?.find((w) => w.element === element);
  if (widget?.inGraphLoraHeight === height) return;
  if (!widget) {
    // Nodes 2.0 keeps the element of a node of the same number in another tab where the name is the same.
    widget = node.addDOMWidget(`${name}_${++attached}`, name, element, {
      serialize: false,
      hideOnZoom: false,
      getMinHeight: () => widget.inGraphLoraHeight,
    });
    widget.serialize = false;
  }
  widget.inGraphLoraHeight = height;
  element.style.minHeight = `${height}px`;
  const [width, needed] = node.computeSize();
  node.setSize([Math.max(node.size[0], width), Math.max(node.size[1], needed)]);
  node.setDirtyCanvas?.(true, true);
}

/** Take what `attach` has put on a node off again, and give back its height. */
function detach(node, name) {
  const widget = node.widgets?.find((w) => w.type === name);
  if (!widget) return;
  const before = node.computeSize()[1];
  node.removeWidget(widget);
  const freed = before - node.computeSize()[1];
  node.setSize([node.size[0], Math.max(node.computeSize()[1], node.size[1] - freed)]);
}

/** @returns {import("./view.mjs").Host} */
function hostOf(node) {
  return {
    attach: (element, height) => attach(node, "in_graph_lora", element, height),
    linked: (output) => Boolean(node.outputs?.find((slot) => slot.name === output)?.links?.length),
    fetch: (route, options) => api.fetchApi(route, options),
    url: (route) => api.apiURL(route),
    queue: () => app.queuePrompt(0),
    id: () => executionId(node),
    workflow: () => rootGraph()?.id ?? "",
    inFront,
    value: (name) => {
      const linked = node.inputs?.some((input) => input.widget?.name === name && input.link != null);
      return linked ? undefined : node.widgets?.find((widget) => widget.name === name)?.value;
    },
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

/** The canvas that is open. @returns {import("./run_to_graph.mjs").Canvas} */
function canvasNow() {
  const [x, y, width, height] = app.canvas.ds.visible_area;
  return {
    graph: app.canvas.graph ?? app.graph,
    create: (kind) => LiteGraph.createNode(kind),
    selected: () => Object.values(app.canvas.selected_nodes ?? {}),
    middle: () => [x + width / 2 - 150, y + height / 2 - 150],
    show(node) {
      app.canvas.selectNode?.(node);
      const seen = node.pos[0] > x && node.pos[0] + node.size[0] < x + width;
      if (!seen) app.canvas.centerOnNode?.(node);
    },
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
      url: (route) => api.apiURL(route),
      useLora: async (run) => addLora(canvasNow(), run),
      useSettings: async (detail) => addSettings(canvasNow(), detail),
    });
    element.style.height = "100%";
    element.replaceChildren(runsPanel.element);
  },
  destroy() {
    runsPanel?.dispose();
    runsPanel = null;
  },
};

/** ComfyUI's language is ours. When it is changed, ComfyUI makes all nodes anew. */
function listenToLocale() {
  speak(app.extensionManager?.setting?.get?.("Comfy.Locale"));
  app.ui?.settings?.addEventListener?.("Comfy.Locale.change", (event) => {
    speak(/** @type {CustomEvent} */ (event).detail.value);
    if (runsPanel) RUNS_TAB.render(runsPanel.element.parentElement);
  });
}

/** New LoRA files and runs: every list has them without a press of R, and without its toasts. */
async function onFiles() {
  await (app.reloadNodeDefs?.() ?? app.refreshComboInNodes());
  runsPanel?.refresh();
  for (const node of rootGraph()?.nodes ?? []) views.get(node)?.filesChanged?.();
}

function addStyle() {
  const link = document.createElement("link");
  link.rel = "stylesheet";
  link.href = new URL("./runs.css", import.meta.url).href;
  document.head.append(link);
}

const PROBLEM = "in_graph_lora_problem";

function complain(id, sentences) {
  const node = findNode(id);
  if (!node || !ours.has(node.comfyClass)) return;
  detach(node, PROBLEM);
  attach(node, PROBLEM, problemBox(sentences), 20 + 34 * sentences.length);
  wrong.add(node);
}

function forgiven() {
  for (const node of wrong) if (node.graph) detach(node, PROBLEM);
  wrong.clear();
}

/** Sees what the server says to a prompt: its number, and what is wrong with which node. */
function watchQueue() {
  const queuePrompt = api.queuePrompt;
  api.queuePrompt = async function (number, prompt, ...rest) {
    forgiven();
    const from = { path: tab(), workflow: named(prompt?.workflow?.id) };
    try {
      const answer = await queuePrompt.call(this, number, prompt, ...rest);
      if (answer?.prompt_id) queued.set(answer.prompt_id, from);
      showErrors(answer?.node_errors);
      return answer;
    } catch (error) {
      showErrors(/** @type {any} */ (error)?.response?.node_errors);
      throw error;
    }
  };
}

const FIRST = "first_lora";

/** Our templates by name, first_lora first: the server lists them as its disk does. */
function sortTemplates() {
  const listed = api.getWorkflowTemplates;
  if (!listed) return;
  const folder = decodeURIComponent(new URL(".", import.meta.url).pathname).split("/").at(-2) ?? "";
  api.getWorkflowTemplates = async function (...given) {
    const all = await listed.apply(this, given);
    all?.[folder]?.sort?.((a, b) => Number(b === FIRST) - Number(a === FIRST) || a.localeCompare(b));
    return all;
  };
}

function showErrors(errors) {
  for (const [id, node] of Object.entries(errors ?? {})) {
    if (node.errors?.length) complain(id, [...new Set(node.errors.map(validationSentence))]); // one for each input
  }
}

function onProgress({ detail }) {
  const node = findNode(detail.node_id);
  const view = node && inFront(detail.prompt_id, detail.workflow) ? views.get(node) : undefined;
  view?.progress?.(detail);
  const toast = view || queued.has(detail.prompt_id) ? toastOf(detail) : null;
  if (toast) app.extensionManager?.toast?.add(toast);
}

function onExecuted({ detail }) {
  if (!inFront(detail.prompt_id)) return;
  const node = findNode(detail.display_node ?? detail.node);
  if (node) views.get(node)?.executed?.(detail.output);
}

function onError({ detail }) {
  if (inFront(detail?.prompt_id)) complain(detail?.node_id, [executionSentence(detail ?? {})]);
}

/** A palette may have a colour of its own for a type; where it has none, ComfyUI writes an empty one. */
function colourSockets(/** @type {Record<string, string>} */ colours) {
  for (const [type, ours] of Object.entries(SOCKETS)) {
    let own = colours[type];
    const get = () => own || ours;
    const set = (colour) => (own = colour);
    Object.defineProperty(colours, type, { get, set, enumerable: true, configurable: true });
  }
}

api.addEventListener("in_graph_lora.progress", onProgress); // now: it is sent to pages that are still opening

app.registerExtension({
  name: "in_graph_lora",
  setup() {
    addStyle();
    listenToLocale();
    const named = { title: t(RUNS_TAB.title), tooltip: t(RUNS_TAB.tooltip) };
    app.extensionManager?.registerSidebarTab?.({ ...RUNS_TAB, ...named });
    api.addEventListener("in_graph_lora.files", onFiles);
    api.addEventListener("executed", onExecuted);
    api.addEventListener("execution_error", onError);
    watchQueue();
    sortTemplates();
    const style = document.head.appendChild(document.createElement("style"));
    const rules = Object.entries(SOCKETS).map(([type, colour]) => `--color-datatype-${type}: ${colour};`);
    style.textContent = `:root { ${rules.join(" ")} }`;
    colourSockets(app.canvas.default_connection_color_byType);
    colourSockets(window.LGraphCanvas?.link_type_colors ?? {});
  },
  beforeRegisterNodeDef(_type, definition) {
    if (definition.category?.startsWith(CATEGORY)) ours.add(definition.name);
  },
  nodeCreated(node) {
    const make = VIEWS[node.comfyClass];
    if (make) views.set(node, make(hostOf(node)));
  },
  loadedGraphNode(node) {
    views.get(node)?.created?.();
  },
});
