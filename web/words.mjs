// The page's language. The code says English; where there is a catalogue for the language, the page shows its words.

import { HEADS, REPORTS, TERMS } from "./reports_zh.mjs";
import { SENTENCES } from "./sentences_zh.mjs";
import { WORDS } from "./words_zh.mjs";

/** @typedef {Record<string, string>} Words */
/** @type {Record<string, {words: Words, terms: Words, heads: Words, sentences: [string, string][]}>} */
const CATALOGUES = { zh: { words: WORDS, terms: TERMS, heads: HEADS, sentences: [...SENTENCES, ...REPORTS] } };

const LONGEST = 1500; // characters of a line; longer ones are other people's text
let now = "en";
/** @type {{parts: string[], score: number, said: string, asGiven: boolean[]}[] | null} */
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

/** A word of a report, or several with commas between them: "drift (step 5), 3 unrelated"; else a sentence. */
export function term(/** @type {string} */ text) {
  const whole = named(text);
  if (whole !== null) return whole;
  const parts = text.split(", ").map(named);
  return parts.includes(null) ? told(text) : parts.join(", ");
}

/** A term with a number before it, and a value or a candidate behind it; null where it is none. */
function named(/** @type {string} */ text) {
  const terms = CATALOGUES[now]?.terms ?? {};
  if (Object.hasOwn(terms, text)) return terms[text];
  const [, count = "", words] = /^(\d+ )?(.*)$/s.exec(text) ?? [];
  for (let at = words.length; at > 0; at = words.lastIndexOf(" ", at - 1)) {
    const first = words.slice(0, at);
    if (!Object.hasOwn(terms, first)) continue;
    const [, inner] = /^ \((.*)\)$/s.exec(words.slice(at)) ?? [];
    const rest = inner === undefined ? words.slice(at) : ` (${(inner.includes(" ") && terms[inner]) || candidate(inner)})`;
    return count + terms[first] + rest;
  }
  return null;
}

/** A LoRA that is compared: "step 5 × 0.5", "without LoRA", or a name of the user's. */
export function candidate(/** @type {string} */ text) {
  const [, step, at] = /^step (\d+)( × .*)?$/.exec(text) ?? [];
  if (step) return t("step {step}", { step }) + (at ?? "");
  return text === "without LoRA" ? t("without LoRA") : text;
}

/** The head of a column; one that we have not named is a candidate. */
export function head(/** @type {string} */ text) {
  const heads = CATALOGUES[now]?.heads ?? {};
  return Object.hasOwn(heads, text) ? heads[text] : candidate(text);
}

/** What a node shows, in this language where the server has said it in several. @returns {string} */
export function shown(/** @type {any} */ output) {
  return (output[now] ?? output.text).join("\n");
}

const AS = { "=": (/** @type {string} */ value) => value, "#": term, "@": candidate };

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
  for (const { parts, score, said, asGiven } of split()) {
    const given = matched(text, parts);
    if (!given) continue;
    const values = given.map((value, i) => (asGiven[i] ? { score: 0, said: value } : best(value, known)));
    const inner = values.reduce((sum, value) => sum + value.score, 0);
    // "{}: {}" says nothing by itself.
    if ((score > 2 || inner) && score + inner > found.score) {
      found = { score: score + inner, said: put(said, values.map((value) => value.said), given) };
    }
  }
  known.set(text, found);
  return found;
}

/** {0} is said in the page's language, {=0}, {#0} and {@0} are what was given, by AS. */
function put(/** @type {string} */ said, /** @type {string[]} */ values, /** @type {string[]} */ given) {
  return said.replace(/\{([=#@]?)(\d+)\}/g, (_, as, n) => (as ? AS[as](given[n]) : values[n]));
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
    const asGiven = parts.slice(1).map((_, i) => !said.includes(`{${i}}`));
    return { parts, score: parts.join("").length, said, asGiven };
  });
  return sentences;
}
