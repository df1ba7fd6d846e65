// The animation of the stitched trajectory: quickly along the source, step by step over the bridge, then along the
// target.

import { reducedMotion } from "./dom.js";

let frame = 0;

export const stop = () => cancelAnimationFrame(frame);

// Calls `show(done)` until `done` is the whole trajectory; at once if the user prefers less motion.
export function play({ leave, gap, rest }, show, onEnd = () => {}) {
  stop();
  const total = leave + gap + 1 + rest;
  if (reducedMotion() || document.hidden) {
    show(total);
    onEnd();
    return;
  }
  const parts = [
    [leave, leave ? 550 : 0],
    [gap + 1, Math.min(2400, Math.max(1000, 130 * (gap + 1)))],
    [rest, rest ? 600 : 0],
  ];
  const start = performance.now();
  const step = (now) => {
    let time = now - start;
    let done = 0;
    for (const [steps, duration] of parts) {
      const share = duration ? Math.min(1, Math.max(0, time / duration)) : 1;
      done += steps * share;
      time -= duration;
      if (share < 1) break;
    }
    show(done);
    if (done < total) frame = requestAnimationFrame(step);
    else onEnd();
  };
  frame = requestAnimationFrame(step);
}
