// The card with the drawing: its view, zoom, candidate and animation.

import { $, h } from "./dom.js";
import { draw } from "./drawing.js";
import * as motion from "./motion.js";
import { legendView } from "./results.js";
import { classOf, format } from "./scale.js";
import { dimensionName } from "./view.js";

const MAX_DIMS = 4;
const LONG = 150; // steps from which the bridge is too small to see in the whole

export class Stage {
  // `on.select(index)`, `on.hover(step | null)`, `on.progress(steps of the bridge shown)`
  constructor(on) {
    this.on = on;
    this.kind = "map";
    this.dims = [];
    this.scene = null;
    this.advance = () => {};
    $("closeup").addEventListener("change", () => this.#redraw());
    $("previous").addEventListener("click", () => this.#step(-1));
    $("next").addEventListener("click", () => this.#step(1));
    $("replay").addEventListener("click", () => this.play());
  }

  setModel(model) {
    const isMaze = model.view.kind === "maze";
    this.kind = "map";
    this.dims = Array.from({ length: Math.min(MAX_DIMS, model.obs_dim) }, (_, dimension) => dimension);
    const view = (value, text) =>
      h(
        "label",
        {},
        h("input", {
          type: "radio",
          name: "view",
          value,
          checked: value === this.kind,
          onchange: () => this.#view(value),
        }),
        h("span", { text }),
      );
    $("views").replaceChildren(view("map", isMaze ? "Maze" : "Two components"), view("time", "Over time"));
    const chip = (dimension) =>
      h(
        "label",
        {},
        h("input", {
          type: "checkbox",
          checked: this.dims.includes(dimension),
          onchange: (event) => this.#dimension(dimension, event.target),
        }),
        h("span", { text: dimensionName(model.view, dimension) }),
      );
    $("dims").replaceChildren(
      h("legend", { class: "visually-hidden", text: "Dimensions" }),
      ...Array.from({ length: model.obs_dim }, (_, dimension) => chip(dimension)),
    );
    $("dims").hidden = true;
    $("closeup").checked = false;
  }

  #view(kind) {
    this.kind = kind;
    $("dims").hidden = kind !== "time";
    if (kind === "time" && this.#isLong()) $("closeup").checked = true;
    this.#redraw();
  }

  #isLong() {
    return Math.max(this.scene?.source?.length ?? 0, this.scene?.target?.length ?? 0) > LONG;
  }

  #dimension(dimension, input) {
    if (input.checked) this.dims = [...this.dims, dimension].sort((a, b) => a - b);
    else if (this.dims.length > 1) this.dims = this.dims.filter((other) => other !== dimension);
    else input.checked = true; // one stays
    this.#redraw();
  }

  #step(by) {
    const count = this.scene.candidates.length;
    this.on.select((this.scene.selected + by + count) % count);
  }

  show(scene) {
    const isNew = scene.candidate && !this.scene?.candidate;
    this.scene = scene;
    if (isNew && this.#isLong()) $("closeup").checked = true;
    this.#redraw();
  }

  #redraw() {
    if (!this.scene) return;
    motion.stop();
    const { scene } = this;
    const { candidate, candidates, threshold } = scene;
    const classes = candidate ? candidate.residuals.map((residual) => classOf(residual, threshold)) : [];
    this.advance = draw($("drawing"), {
      ...scene,
      classes,
      kind: this.kind,
      dims: this.dims,
      closeup: $("closeup").checked,
      onSelect: this.on.select,
      onHover: this.on.hover,
    });
    $("closeup").closest("label").hidden = !candidate;
    $("stepper").hidden = !candidate;
    if (candidate) $("which").textContent = `${scene.selected + 1} of ${candidates.length}`;
    $("legend").replaceChildren(...legendView(Boolean(candidate), threshold));
    this.#advance(Infinity);
  }

  #advance(done) {
    if (!this.scene.candidate) return;
    const { leave, gap, rest } = this.#lengths();
    const total = leave + gap + 1 + rest;
    this.advance(Math.min(done, total));
    this.on.progress(Math.min(done, total) - leave);
  }

  #lengths() {
    const { candidate, target } = this.scene;
    return { leave: candidate.source_step, gap: candidate.gap, rest: target.length - 1 - candidate.target_step };
  }

  play() {
    if (this.scene?.candidate) motion.play(this.#lengths(), (done) => this.#advance(done));
  }

  // One step in numbers; without one, the largest.
  readout(candidate, step) {
    const { threshold } = this.scene;
    const { residuals } = candidate;
    const largest = residuals.indexOf(
      residuals.reduce((one, other) => (other === null || other > one ? other : one), -1),
    );
    const at = step ?? largest;
    const ratio =
      Number.isFinite(threshold) && residuals[at] !== null ? ` = ${format(residuals[at] / threshold)} δ` : "";
    return `${step === null ? "largest, " : ""}step ${at + 1}: ${format(residuals[at])}${ratio}`;
  }
}
