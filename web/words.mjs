// The page's language. The code says English; where there is a catalogue for the language, the page shows its words.

import { SENTENCES } from "./sentences_zh.mjs";
import { WORDS } from "./words_zh.mjs";

/** @type {Record<string, {words: Record<string, string>, sentences: [string, string][]}>} */
const CATALOGUES = { zh: { words: WORDS, sentences: SENTENCES } };

const LONGEST = 1500; // characters of a line; longer ones are other people's text
let now = "en";
/** @type {{parts: string[], score: number, said: string}[] | null} */
let sentences = null;

/** Speak the language of ComfyUI's setting from now on; English where there is no catalogue. */
export function speak(/** @type {unknown} */ locale) {
  now = typeof locale === "string" && Object.hasOwn(CATALOGUES, locale) ? locale : "en";
  sentences = null;
}

/** Marks a text that is given to `t` later. */
export function word(/** @type {string} */ english) {
  return english;
}

/** A text of this page, with its {values} filled in. */
export function t(/** @type {string} */ english, /** @type {Record<string, any>} */ values = {}) {
  return filled(CATALOGUES[now]?.words[english] ?? english, values);
}

function filled(/** @type {string} */ text, /** @type {Record<string, any>} */ values) {
  return text.replace(/\{(\w+)\}/g, (whole, name) => (Object.hasOwn(values, name) ? String(values[name]) : whole));
}

/** What a node shows, in this language where the server has said it in several. @returns {string} */
export function shown(/** @type {any} */ output) {
  return told((output[now] ?? output.text).join("\n"));
}

/** What the server has said, line by line; what the catalogue does not know stays English. */
export function told(/** @type {string} */ text) {
  if (!CATALOGUES[now]) return text;
  const known = new Map();
  return text.split("\n").map((line) => (line.length > LONGEST ? line : best(line, known).said)).join("\n");
}

/**
 * The sentence that says most of a text by itself and by what is filled in: "skipped: a.png: the file is empty".
 * @param {string} text
 * @param {Map<string, {score: number, said: string}>} known
 * @returns {{score: number, said: string}}
 */
function best(text, known) {
  const before = known.get(text);
  if (before) return before;
  let found = { score: 0, said: text };
  known.set(text, found);
  for (const { parts, score, said } of split()) {
    const values = matched(text, parts)?.map((value) => best(value, known));
    if (!values) continue;
    const inner = values.reduce((sum, value) => sum + value.score, 0);
    // "{}: {}" says nothing by itself.
    if ((score > 2 || inner) && score + inner > found.score) {
      found = { score: score + inner, said: filled(said, values.map((value) => value.said)) };
    }
  }
  known.set(text, found);
  return found;
}

/** What stands between the parts of a sentence; null where the text is another one. Never goes back. */
function matched(/** @type {string} */ text, /** @type {string[]} */ parts) {
  const [first, last] = [parts[0], parts[parts.length - 1]];
  if (parts.length === 1) return text === first ? [] : null;
  if (!text.startsWith(first) || !text.endsWith(last) || text.length < first.length + last.length) return null;
  const end = text.length - last.length;
  const values = [];
  let at = first.length;
  for (const part of parts.slice(1, -1)) {
    const next = text.indexOf(part, at);
    if (next < 0 || next + part.length > end) return null;
    values.push(text.slice(at, next));
    at = next + part.length;
  }
  return [...values, text.slice(at, end)];
}

function split() {
  sentences ??= CATALOGUES[now].sentences.map(([english, said]) => {
    const parts = english.split("{}");
    return { parts, score: parts.join("").length, said };
  });
  return sentences;
}
