// Text below the widgets of a node. The elements are built as nodes, never from markup, because
// file names and captions are other people's text.

import { blocks } from "./markdown.mjs";

/** Text that can be selected, wraps, and scrolls when it is long. */
export function textBox(height = 160) {
  const box = document.createElement("div");
  box.className = "in-graph-lora-text";
  box.style.cssText =
    "font: 11px/1.4 sans-serif; color: var(--input-text, #ddd); white-space: pre-wrap; overflow: auto;" +
    " overflow-wrap: anywhere; user-select: text;" + ` max-height: ${height}px;`;
  return box;
}

/** Headings, tables and paragraphs of our own Markdown, in the page's language. */
export function fillMarkdown(/** @type {HTMLElement} */ box, /** @type {string} */ text) {
  box.replaceChildren(...blocks(text).map((block) => (block.rows ? table(block.rows) : paragraph(block))));
}

function table(/** @type {import("./markdown.mjs").Cell[][]} */ rows) {
  const element = document.createElement("table");
  element.style.cssText = "border-collapse: collapse; margin: 4px 0; white-space: normal; overflow-wrap: normal;";
  for (const cells of rows) {
    const row = element.insertRow();
    for (const { text, bold } of cells) {
      const cell = row.appendChild(document.createElement(bold ? "th" : "td"));
      cell.textContent = text;
      cell.style.cssText = "padding: 1px 8px 1px 0; text-align: left;";
    }
  }
  return element;
}

function paragraph(/** @type {import("./markdown.mjs").Cell} */ { text, bold }) {
  const element = document.createElement("div");
  element.textContent = text;
  element.style.cssText = `margin: 4px 0; font-weight: ${bold ? "bold" : "normal"};`;
  return element;
}
