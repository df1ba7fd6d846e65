// Seed, number of candidates, gap and cut: their values, bounds and errors.

import { $ } from "./dom.js";

const FIELDS = { "options.seed": "seed", "options.num_candidates": "num", "options.gap": "gap", "options.cut": "cut" };

export class Options {
  constructor(on) {
    for (const id of ["seed", "num", "gap", "cut"]) {
      $(id).addEventListener("input", () => {
        $(`${id}-error`).textContent = "";
        this.#summarise();
        on.change();
      });
    }
  }

  setModel(model, wanted) {
    this.model = model;
    $("num").max = model.limits?.max_candidates ?? 256;
    $("gap").min = model.gap_min;
    $("gap").max = model.gap_max;
    $("gap-hint").textContent = `${model.gap_min} to ${model.gap_max}; empty: found for each candidate`;
    $("seed").value = wanted.seed ?? 0;
    $("num").value = Math.min(wanted.num ?? 16, $("num").max);
    $("gap").value = wanted.gap ?? "";
    $("cut").value = wanted.cut ?? "best";
    this.clear();
    this.#summarise();
  }

  values() {
    const number = (id, otherwise) => (Number.isFinite($(id).valueAsNumber) ? $(id).valueAsNumber : otherwise);
    return { seed: number("seed", 0), num: number("num", 16), gap: number("gap", null), cut: $("cut").value };
  }

  // True if all are within bounds; otherwise shows the error at its field.
  check() {
    const wrong = ["seed", "num", "gap"].filter((id) => !$(id).checkValidity());
    for (const id of wrong) {
      const { min, max } = $(id);
      $(`${id}-error`).textContent = max ? `a whole number from ${min} to ${max}` : `a whole number from ${min} on`;
    }
    if (wrong.length) this.#open(wrong[0]);
    return wrong.length === 0;
  }

  // False for a field that is none of these.
  fail(field, message) {
    const id = FIELDS[field];
    if (!id) return false;
    $(`${id}-error`).textContent = message;
    this.#open(id);
    return true;
  }

  clear() {
    for (const id of Object.values(FIELDS)) $(`${id}-error`).textContent = "";
  }

  #open(id) {
    $("options").open = true;
    $(id).focus();
  }

  #summarise() {
    const { seed, num, gap, cut } = this.values();
    $("options-summary").textContent = [
      `seed ${seed}`,
      `${num} candidates`,
      gap === null ? null : `gap ${gap}`,
      cut === "ends" ? "end to start" : null,
    ]
      .filter(Boolean)
      .join(" · ");
  }
}
