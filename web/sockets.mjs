// The colour of each of our socket types, bright enough on dark and on light.

export const SOCKETS = {
  TRAIN_DATASET: "#e0a458",
  LORA_ADAPTER: "#c77dff",
  TRAIN_OBJECTIVE: "#ff6b6b",
  TRAIN_OPTIMIZER: "#4dabf7",
  TRAIN_MEMORY: "#8d99ae",
  TRAIN_PREVIEW: "#63c7b2",
  TRAIN_REGULARIZATION: "#e4c1f9",
  IMAGE_FRAMING: "#c0ca33",
  TRAIN_CLIPS: "#ff8fab",
};
