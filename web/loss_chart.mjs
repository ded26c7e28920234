// Numbers as they are shown: smoothed losses, times, sizes. Nothing here touches the page.

/** Exponential moving average, corrected for its start; a null stays a gap. weight: 0 (as it is) to below 1. */
export function smoothed(/** @type {(number | null)[]} */ losses, weight = 0.9) {
  let [mean, seen] = [0, 0];
  return losses.map((loss) => {
    if (loss === null) return null;
    mean = weight * mean + (1 - weight) * loss;
    return mean / (1 - weight ** ++seen);
  });
}

/** 75 → "1:15", 3675 → "1:01:15". */
export function clock(/** @type {number} */ seconds) {
  const s = Math.round(seconds);
  const two = (/** @type {number} */ n) => String(n).padStart(2, "0");
  const [hours, minutes] = [Math.floor(s / 3600), Math.floor(s / 60) % 60];
  return hours ? `${hours}:${two(minutes)}:${two(s % 60)}` : `${minutes}:${two(s % 60)}`;
}

/** 6200000000 → "6.2 GB". */
export function gigabytes(/** @type {number} */ bytes) {
  return `${(bytes / 1e9).toFixed(1)} GB`;
}
