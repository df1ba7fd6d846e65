// The choice, as the page's address: #model=default&source=17&target=4&seed=0&delta=q99

import { parseDelta } from "./accept.js";

const whole = (text) => (text !== null && /^\d+$/.test(text) ? Number(text) : null);

export function readHash(hash) {
  const query = new URLSearchParams(hash.replace(/^#/, ""));
  return {
    model: query.get("model"),
    source: whole(query.get("source")),
    target: whole(query.get("target")),
    seed: whole(query.get("seed")),
    gap: whole(query.get("gap")),
    num: whole(query.get("candidates")),
    cut: query.get("cut") === "ends" ? "ends" : null,
    delta: query.has("delta") ? parseDelta(query.get("delta")) : null,
  };
}

// Own data does not fit into an address, so its side is left out.
export function writeHash({ model, source, target, seed, gap, num, cut, delta }) {
  const parts = { model, source, target, seed, delta };
  if (gap !== null) parts.gap = gap;
  if (num !== 16) parts.candidates = num;
  if (cut !== "best") parts.cut = cut;
  const query = new URLSearchParams(Object.entries(parts).filter(([, value]) => value !== null && value !== undefined));
  history.replaceState(null, "", `#${query}`);
}
