// What a node of ours shows below its widgets. The elements are built as nodes, never from markup, because
// file names and captions are other people's text.

import { paths, summary } from "./loss_chart.mjs";

const SVG = "http://www.w3.org/2000/svg";
const [WIDTH, HEIGHT] = [320, 64];

function line(colour, thickness) {
  const path = document.createElementNS(SVG, "path");
  const look = { fill: "none", stroke: colour, "stroke-width": thickness, "vector-effect": "non-scaling-stroke" };
  for (const [name, value] of Object.entries(look)) path.setAttribute(name, value);
  return path;
}

/** A chart of the loss with a line of text below it. */
export class RunPanel {
  constructor() {
    const chart = document.createElementNS(SVG, "svg");
    chart.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
    chart.setAttribute("preserveAspectRatio", "none");
    chart.style.cssText = `display: block; width: 100%; height: ${HEIGHT}px;`;
    this.chart = chart;
    this.raw = chart.appendChild(line("var(--descrip-text, #999)", 1));
    this.heldOut = chart.appendChild(line("var(--p-orange-400, #e8a33d)", 2));
    this.smooth = chart.appendChild(line("var(--p-primary-color, #5b8def)", 2));
    this.raw.style.opacity = "0.5";
    this.text = textBox();
    this.element = document.createElement("div");
    this.element.className = "in-graph-lora-run";
    this.stop = document.createElement("button");
    this.stop.textContent = "Stop and keep";
    this.stop.title = "End the training after this step and go on with what there is. Run again to continue.";
    this.stop.style.cssText = "display: none; margin: 4px 0; font: 11px sans-serif; cursor: pointer;";
    this.element.append(chart, this.stop, this.text);
    this.show(null, []);
  }

  /** @param {import("./loss_chart.mjs").Run | null} run */
  show(run, /** @type {string[]} */ lines, running = false) {
    this.stop.style.display = running ? "block" : "none";
    this.chart.style.display = run ? "block" : "none";
    const { raw, smooth, heldOut } = run ? paths(run, WIDTH, HEIGHT) : { raw: "", smooth: "", heldOut: "" };
    this.raw.setAttribute("d", raw);
    this.smooth.setAttribute("d", smooth);
    this.heldOut.setAttribute("d", heldOut);
    this.text.textContent = [...(run ? [summary(run)] : []), ...lines].join("\n");
  }
}

/** Text that can be selected, wraps, and scrolls when it is long. */
export function textBox(height = 160) {
  const box = document.createElement("div");
  box.className = "in-graph-lora-text";
  box.style.cssText =
    "font: 11px/1.4 sans-serif; color: var(--input-text, #ddd); white-space: pre-wrap; overflow: auto;" +
    " overflow-wrap: anywhere; user-select: text;" + ` max-height: ${height}px;`;
  return box;
}

function cells(/** @type {string} */ line) {
  return line.split("|").slice(1, -1).map((cell) => cell.trim());
}

function table(/** @type {string[]} */ lines) {
  const element = document.createElement("table");
  element.style.cssText = "border-collapse: collapse; margin: 4px 0; white-space: normal; overflow-wrap: normal;";
  const rows = lines.filter((line) => !/^[|\s:-]+$/.test(line));
  rows.forEach((line, i) => {
    const row = element.insertRow();
    for (const text of cells(line)) {
      const bold = i === 0 || text.startsWith("**");
      const cell = row.appendChild(document.createElement(bold ? "th" : "td"));
      cell.textContent = text.replaceAll("**", "");
      cell.style.cssText = "padding: 1px 8px 1px 0; text-align: left;";
    }
  });
  return element;
}

/** Headings, tables and paragraphs of our own Markdown. */
export function fillMarkdown(/** @type {HTMLElement} */ box, /** @type {string} */ text) {
  box.replaceChildren(
    ...text.split(/\n{2,}/).filter(Boolean).map((part) => {
      if (part.startsWith("|")) return table(part.split("\n"));
      const heading = /^#+ |^\*\*/.test(part);
      const element = document.createElement("div");
      element.textContent = part.replace(/^#+ /, "").replaceAll("**", "");
      element.style.cssText = `margin: 4px 0; font-weight: ${heading ? "bold" : "normal"};`;
      return element;
    }),
  );
}

/** The lines that say where the results of a finished run are, and what it was planned to take. */
export function results(/** @type {{lora_path: string, run_dir: string, plan?: string, notices?: string[]}} */ run) {
  const plan = run.plan ? [run.plan] : [];
  return [`LoRA: ${run.lora_path}`, `Run: ${run.run_dir}`, ...plan, ...(run.notices ?? [])];
}
