// What is wrong with a node, in a sentence that says what to do. ComfyUI's own words are the last resort.

import { textBox } from "./panel.mjs";

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
      return details.startsWith(`${input} - `) ? details.slice(input.length + 3) : details;
    case "required_input_missing":
      return `${input} is missing; connect a ${wanted}`;
    case "return_type_mismatch":
      return `${input} is connected to an output of type ${info.received_type}; connect a ${wanted}`;
    case "value_smaller_than_min":
      return `${input} is ${info.received_value}; the lowest is ${limits.min}`;
    case "value_bigger_than_max":
      return `${input} is ${info.received_value}; the highest is ${limits.max}`;
    case "value_not_in_list":
      return `${input} is '${info.received_value}', which is not in the list; choose another`;
    default:
      return details ? `${message}: ${details}` : message;
  }
}

/** @param {{exception_type?: string, exception_message?: string}} detail of the event execution_error */
export function executionSentence({ exception_type: type = "", exception_message: message = "" }) {
  const ours = type.includes(".trainer.errors.");
  const text = message.trim() || "it failed without a message; the console of ComfyUI has the trace";
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
