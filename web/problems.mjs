// What is wrong with a node, in a sentence that says what to do. ComfyUI's own words are the last resort.

import { textBox } from "./panel.mjs";
import { t, told } from "./words.mjs";

/**
 * @param {{type: string, message: string, details: string, extra_info?: any}} error of the server's validation
 * @returns {string}
 */
export function validationSentence(error) {
  const { type, message, details = "", extra_info: info = {} } = error;
  const input = info.input_name ?? details;
  const [kind, limits = {}] = Array.isArray(info.input_config) ? info.input_config : [];
  const wanted = typeof kind === "string" ? kind : "value";
  switch (type) {
    case "custom_validation_failed":
      return told(details.startsWith(`${input} - `) ? details.slice(input.length + 3) : details);
    case "required_input_missing":
      return t("{input} is missing; connect a {wanted}", { input, wanted });
    case "return_type_mismatch":
      return t("{input} is connected to an output of type {type}; connect a {wanted}", { input, type: info.received_type, wanted });
    case "value_smaller_than_min":
      return t("{input} is {value}; the lowest is {min}", { input, value: info.received_value, min: limits.min });
    case "value_bigger_than_max":
      return t("{input} is {value}; the highest is {max}", { input, value: info.received_value, max: limits.max });
    case "value_not_in_list":
      return t("{input} is '{value}', which is not in the list; choose another", { input, value: info.received_value });
    default:
      return details ? `${message}: ${details}` : message;
  }
}

/** @param {{exception_type?: string, exception_message?: string}} detail of the event execution_error */
export function executionSentence({ exception_type: type = "", exception_message: message = "" }) {
  const ours = type.includes(".trainer.errors.");
  const text = told(message.trim()) || t("it failed without a message; the console of ComfyUI has the trace");
  return ours || !type ? text : `${type.split(".").pop()}: ${text}`;
}

/** Sentences on a node, as text that can be selected. */
export function problemBox(/** @type {string[]} */ sentences) {
  const box = textBox(200);
  box.className = "in-graph-lora-problem";
  box.setAttribute("role", "alert");
  box.style.borderLeft = "3px solid var(--error-text, #ff4444)";
  box.style.paddingLeft = "6px";
  box.textContent = sentences.join("\n");
  return box;
}
