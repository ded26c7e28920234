// The only file that touches ComfyUI's `app` and `api`.

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { advanced, measured, newRun } from "./loss_chart.mjs";
import { fillMarkdown, results, RunPanel, textBox } from "./panel.mjs";

const PROGRESS = "in_graph_lora.progress";

/** Node → its panel and its run. Weak: both go with the node. */
const shown = new WeakMap();

/** The node of ours behind an execution id; in a subgraph the id is "outer:inner". */
function findNode(id, type) {
  let node = null;
  let graph = app.rootGraph ?? app.graph;
  for (const part of String(id).split(":")) {
    node = graph?.getNodeById(Number(part)) ?? graph?.getNodeById(part);
    graph = node?.subgraph;
  }
  return node?.comfyClass === type ? node : null;
}

/** A widget that only shows something: it is never part of the saved values. */
function addPanel(node, name, element, height) {
  const widget = node.addDOMWidget(name, "in_graph_lora", element, {
    serialize: false,
    hideOnZoom: false,
    getMinHeight: () => height,
  });
  widget.serialize = false;
  const [width, needed] = node.computeSize();
  node.setSize([Math.max(node.size[0], width), Math.max(node.size[1], needed)]);
}

function runPanel(node) {
  if (!shown.has(node)) {
    const panel = new RunPanel();
    shown.set(node, { panel, run: null, running: false });
    addPanel(node, "run", panel.element, 130);
  }
  return shown.get(node);
}

function boxOf(node, height) {
  if (!shown.has(node)) {
    const box = textBox(height + 40);
    shown.set(node, box);
    addPanel(node, "text", box, height);
  }
  return shown.get(node);
}

function showText(node, output) {
  if (output?.text) boxOf(node, 120).textContent = output.text.join("\n");
}

function showMarkdown(node, output) {
  if (output?.text) fillMarkdown(boxOf(node, 360), output.text.join("\n"));
}

/** The run after one event of either kind. */
function after(run, event) {
  return "held_out" in event ? measured(run, event) : advanced(run, event);
}

/** What a training sent before this page was opened. */
async function earlier(nodeId) {
  const answer = await api.fetchApi(`/in_graph_lora/progress/${encodeURIComponent(nodeId)}`);
  return answer.ok ? (await answer.json()).progress : [];
}

async function catchUp(state, nodeId, event) {
  const [first] = state.run.points;
  const events = await earlier(nodeId).catch(() => []);
  const missed = events.filter((e) => e.step <= event.step);
  // The run may have gone on meanwhile, or another may have begun.
  if (!missed.length || state.run.points[0] !== first) return;
  const since = state.run.points.filter((p) => p.step > event.step);
  const run = missed.reduce(after, newRun());
  state.run = { ...state.run, points: [...run.points, ...since], heldOut: run.heldOut };
  state.panel.show(state.run, [], state.running);
}

function onProgress({ detail }) {
  const node = findNode(detail.node_id, "TrainLoRA");
  if (!node) return;
  const state = runPanel(node);
  const opened = state.run === null && detail.step > 1;
  state.run = after(state.run ?? newRun(), detail);
  if (opened) catchUp(state, detail.node_id, detail);
  state.running = true;
  state.panel.show(state.run, [], true);
  state.panel.stop.onclick = () =>
    api.fetchApi(`/in_graph_lora/stop/${encodeURIComponent(detail.node_id)}`, { method: "POST" });
  node.setDirtyCanvas?.(true);
}

function onEnded(text) {
  return ({ detail }) => {
    const node = findNode(detail?.node_id, "TrainLoRA");
    const state = node && shown.get(node);
    if (!state?.running) return;
    state.running = false;
    state.panel.show(state.run, [text]);
  };
}

const SHOW = {
  TrainLoRA(node, output) {
    const finished = output?.run?.[0];
    if (!finished) return;
    const state = runPanel(node);
    state.running = false;
    state.panel.show(state.run, results(finished));
  },
  LoadDataset: showText,
  JoinDatasets: showText,
  CaptionImages: showText,
  EditCaptions: showText,
  CheckTrigger: showMarkdown,
  ApplyLoRA: showText,
  LoadRun: showText,
  PlanTraining: showMarkdown,
  DatasetReport: showMarkdown,
  CompareBaseline(node, output) {
    const report = node.outputs?.find((slot) => slot.name === "report");
    if (!report?.links?.length) showText(node, output); // else the connected node shows it
  },
};

app.registerExtension({
  name: "in_graph_lora",
  setup() {
    api.addEventListener(PROGRESS, onProgress);
    api.addEventListener("execution_interrupted", onEnded("Stopped. What was trained is in the run's checkpoints folder."));
    api.addEventListener("execution_error", onEnded("Failed. What was trained before is in the run's checkpoints folder."));
  },
  nodeCreated(node) {
    const show = SHOW[node.comfyClass];
    if (!show) return;
    const before = node.onExecuted;
    node.onExecuted = function (output, ...rest) {
      before?.call(this, output, ...rest);
      show(node, output);
    };
  },
});
