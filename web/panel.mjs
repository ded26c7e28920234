// Text below the widgets of a node. The elements are built as nodes, never from markup, because
// file names and captions are other people's text.

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
  return line.split(/(?<!\\)\|/).slice(1, -1).map((cell) => cell.trim());
}

/** Text without the backslashes that keep signs in it from being read as Markdown. */
function plain(/** @type {string} */ text) {
  return text.replaceAll("**", "").replace(/\\([\\`*_<>[\]|])/g, "$1");
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
      cell.textContent = plain(text);
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
      element.textContent = plain(part.replace(/^#+ /, ""));
      element.style.cssText = `margin: 4px 0; font-weight: ${heading ? "bold" : "normal"};`;
      return element;
    }),
  );
}
