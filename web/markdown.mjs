// Our own Markdown taken apart, in the page's language. Nothing here touches the page.

import { candidate, head, term, told } from "./words.mjs";

/** @typedef {{text: string, bold: boolean}} Cell */
/** @typedef {(Cell & {rows?: undefined}) | {rows: Cell[][]}} Block */

/** What the cells below a head are, where they are not our words. @type {Record<string, (text: string) => string>} */
const COLUMNS = { prompt: same, file: same, pieces: same, "text encoder": same, setting: same, value: same, there: same, here: same, candidate };

function same(/** @type {string} */ text) {
  return text;
}

/** Text without the signs that Markdown is made of, and the backslashes that keep signs from being read as such. */
function plain(/** @type {string} */ text) {
  return text.replaceAll("**", "").replace(/\\([\\`*_<>[\]|])/g, "$1");
}

/** Headings, tables and paragraphs. @returns {Block[]} */
export function blocks(/** @type {string} */ text) {
  return text.split(/\n{2,}/).filter(Boolean).map((part) => {
    if (part.startsWith("|")) return { rows: table(part.split("\n")) };
    const title = /^#+ (.*)$/.exec(part);
    if (title) return { text: term(plain(title[1])), bold: true };
    return { text: part.split("\n").map(line).join("\n"), bold: part.startsWith("**") };
  });
}

function line(/** @type {string} */ text) {
  const [, mark, rest] = /^((?:#+ |- )?(?:⚠ )?)(.*)$/s.exec(text) ?? ["", "", text];
  return mark.replace(/^#+ /, "") + told(plain(rest));
}

function table(/** @type {string[]} */ lines) {
  const [heads, ...rows] = lines.filter((text) => !/^[|\s:-]+$/.test(text)).map(cells);
  const kinds = heads.map((text) => (Object.hasOwn(COLUMNS, text) ? COLUMNS[text] : term));
  const cell = (/** @type {string} */ text, /** @type {number} */ i) => ({ text: (kinds[i] ?? term)(plain(text)), bold: text.startsWith("**") });
  return [heads.map((text) => ({ text: head(plain(text)), bold: true })), ...rows.map((row) => row.map(cell))];
}

function cells(/** @type {string} */ text) {
  return text.split(/(?<!\\)\|/).slice(1, -1).map((cell) => cell.trim());
}
