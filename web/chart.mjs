// The loss over the steps, drawn by uPlot.

import vendored from "./lib/uplot.mjs";
import { t } from "./words.mjs";

/** Its source has no types. @type {any} */
const uPlot = vendored;
const RATE = 4; // the column of the learning rate

/** One of ComfyUI's colours as it is now, light or dark; of the page, since a chart is made before it is on it. */
function colour(/** @type {string} */ name, /** @type {string} */ otherwise) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim() || otherwise;
}

function ink() {
  return colour("--input-text", "#ddd");
}

function styleSheet() {
  const href = new URL("./lib/uplot.css", import.meta.url).href;
  if (document.querySelector(`link[href="${href}"]`)) return;
  const link = document.createElement("link");
  link.rel = "stylesheet";
  link.href = href;
  document.head.append(link);
}

function labelled(/** @type {string} */ text, /** @type {HTMLElement} */ control) {
  const label = document.createElement("label");
  label.style.cssText = "display: flex; align-items: center; gap: 4px;";
  label.append(text, control);
  return label;
}

export class LossChart {
  /** @type {import("./run_state.mjs").RunState | null} */
  run = null;
  /** @type {any} */
  plot = null;
  /** Which curves are on. The learning rate has other numbers, so it is asked for. */
  visible = [true, true, true, true, false];
  weight = 0.9;
  logarithmic = false;

  constructor() {
    styleSheet();
    this.element = document.createElement("div");
    this.element.className = "in-graph-lora-chart";
    this.element.style.cssText = "display: flex; flex-direction: column; flex: 1 1 220px; min-height: 220px;";
    this.key = this.#controls();
    this.box = this.element.appendChild(document.createElement("div"));
    this.box.style.cssText = "flex: 1 1 0; min-height: 0; position: relative; overflow: hidden;";
    this.observer = new ResizeObserver(() => this.#fit());
    this.observer.observe(this.box);
  }

  #controls() {
    const bar = this.element.appendChild(document.createElement("div"));
    bar.style.cssText = "display: flex; gap: 12px; font: 11px sans-serif; align-items: center; flex-wrap: wrap;";
    const smooth = document.createElement("input");
    Object.assign(smooth, { type: "range", min: "0", max: "0.99", step: "0.01", value: String(this.weight) });
    smooth.style.width = "80px";
    smooth.oninput = () => {
      this.weight = Number(smooth.value);
      this.#draw();
    };
    const log = document.createElement("input");
    log.type = "checkbox";
    log.onchange = () => {
      this.logarithmic = log.checked;
      this.#build();
    };
    bar.append(labelled(t("smoothing"), smooth), labelled(t("log"), log));
    const key = bar.appendChild(document.createElement("span"));
    key.style.opacity = "0.7";
    return key;
  }

  show(/** @type {import("./run_state.mjs").RunState} */ run) {
    this.run = run;
    if (this.plot) this.#draw();
    else this.#build();
    const marks = [...(run.checkpoints.length ? [`▲ ${t("checkpoint")}`] : []), ...(run.previews.length ? [`● ${t("preview")}`] : [])];
    this.key.textContent = marks.join("  ");
  }

  #build() {
    this.plot?.destroy();
    this.plot = null;
    if (!this.run) return;
    // Functions: uPlot asks them whenever it draws, and the palette may have changed.
    const line = { stroke: () => faint(ink()) };
    const axis = { stroke: ink, grid: line, ticks: line, font: "10px sans-serif" };
    const number = (/** @type {number | null} */ v) => (v === null || v === undefined ? "–" : v.toPrecision(4));
    const few = (plot) => plot.data[0].length < 3; // a line needs two points
    const curve = (label, stroke, width, more = {}) => ({
      ...{ label, stroke, width, points: { show: few }, value: (_, v) => number(v) },
      ...more,
    });
    const options = {
      width: Math.max(this.box.clientWidth, 100),
      height: 100,
      legend: { live: true },
      scales: {
        x: { time: false, range: (plot, min, max) => this.#span(plot, min, max) },
        y: { distr: this.logarithmic ? 3 : 1 },
        rate: {},
      },
      axes: [
        { ...axis, size: 22 },
        { ...axis, size: 46, space: 22, values: (_, ticks) => ticks.map((v) => (v === null ? "" : shortNumber(v))) },
        { ...axis, size: 50, scale: "rate", side: 1, grid: { show: false }, values: (_, ticks) => ticks.map((v) => (v === null ? "" : v.toExponential(0))) },
      ],
      series: [
        { label: t("step"), value: (_, v) => (v === null || v === undefined ? "–" : String(v)) },
        curve(t("loss"), () => faint(ink(), 0.4), 1),
        curve(t("smoothed"), () => colour("--p-primary-color", "#5b8def"), 2),
        curve(t("held-out"), "#e8a33d", 2, { spanGaps: true, points: { show: true, size: 5 } }),
        curve(t("learning rate"), "#4caf7d", 1, { scale: "rate", value: (_, v) => (v ? v.toExponential(2) : "–") }),
      ].map((series, i) => ({ ...series, show: this.visible[i] })),
      hooks: {
        draw: [(plot) => this.#marks(plot)],
        setSeries: [(plot) => (this.visible = plot.series.map((series) => series.show))],
      },
      cursor: {
        drag: { x: true, y: false },
        // The canvas is zoomed by a transform, of which uPlot knows nothing.
        move: (plot, left, top) => {
          const scale = plot.over.getBoundingClientRect().width / plot.over.clientWidth || 1;
          return [left / scale, top / scale];
        },
      },
    };
    this.plot = new uPlot(options, this.#data(), this.box);
    this.plot.root.style.color = "var(--input-text, #ddd)";
    const legend = this.plot.root.querySelector(".u-legend");
    legend.style.cssText = "font: 10px sans-serif; text-align: left;";
    for (const name of legend.querySelectorAll("th")) name.style.fontWeight = "normal";
    this.#fit();
  }

  /** The whole run, unless a part of it is looked at. */
  #span(plot, /** @type {number} */ min, /** @type {number} */ max) {
    const steps = plot.data?.[0] ?? [];
    const all = min <= (steps[0] ?? 0) && max >= (steps.at(-1) ?? 0);
    return all ? [0, Math.max(this.run?.status.steps ?? 0, max, 1)] : [min, max];
  }

  #data() {
    const [steps, ...columns] = this.run?.columns(this.weight) ?? [[]];
    // A logarithm of zero is nowhere.
    const shown = this.logarithmic ? columns.map((c, i) => (i + 1 === RATE ? c : c.map((v) => (v && v > 0 ? v : null)))) : columns;
    return [steps, ...shown];
  }

  #draw() {
    this.plot?.setData(this.#data());
  }

  /** Checkpoints and previews on the axis of the steps. */
  #marks(plot) {
    const { ctx, bbox } = plot;
    const ratio = uPlot.pxRatio ?? devicePixelRatio;
    const bottom = bbox.top + bbox.height;
    const inside = (x) => x >= bbox.left - 1 && x <= bbox.left + bbox.width + 1;
    ctx.save();
    ctx.fillStyle = ink();
    for (const step of this.run?.checkpoints ?? []) {
      const x = plot.valToPos(step, "x", true);
      if (!inside(x)) continue;
      ctx.beginPath();
      ctx.moveTo(x, bottom - 6 * ratio);
      ctx.lineTo(x - 4 * ratio, bottom);
      ctx.lineTo(x + 4 * ratio, bottom);
      ctx.fill();
    }
    ctx.fillStyle = "#c678dd";
    for (const step of this.run?.previews ?? []) {
      const x = plot.valToPos(step, "x", true);
      if (!inside(x)) continue;
      ctx.beginPath();
      ctx.arc(x, bottom - 10 * ratio, 3 * ratio, 0, 2 * Math.PI);
      ctx.fill();
    }
    ctx.restore();
  }

  #fit() {
    const { clientWidth: width, clientHeight: height } = this.box;
    if (!this.plot || width < 20 || height < 20) return;
    const legend = this.plot.root.querySelector(".u-legend")?.offsetHeight ?? 0;
    this.plot.setSize({ width, height: Math.max(60, height - legend) });
  }
}

function faint(/** @type {string} */ of, alpha = 0.15) {
  return `color-mix(in srgb, ${of} ${alpha * 100}%, transparent)`;
}

function shortNumber(/** @type {number} */ value) {
  return value !== 0 && Math.abs(value) < 0.001 ? value.toExponential(0) : String(Number(value.toPrecision(4)));
}
