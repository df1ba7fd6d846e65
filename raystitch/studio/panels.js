// Everything to the right of the choice, from one state: the drawing, the threshold, the verdict and the steps.

import { thresholdFor } from "./accept.js";
import { returnOf, stitched, totalReturn } from "./compose.js";
import { $, h } from "./dom.js";
import { announcement, emptyVerdict, tallyView, verdictView } from "./results.js";
import { shareButtons } from "./share.js";
import { Stage } from "./stage.js";
import { drawSteps } from "./steps.js";
import { Strip } from "./strip.js";

const EXPLANATION =
  "How large a residual may be. The marks are quantiles of real, recorded steps: " +
  "at q99, one real stretch in a hundred would be refused.";

export class Panels {
  // `on.setDelta(delta)`, `on.select(index)`, `on.request()` -> the request's body, `on.gap()` -> the gap asked for
  constructor(state, on) {
    this.state = state;
    this.on = on;
    this.hover = (step) => this.#hover(step);
    this.strip = new Strip($("strip"), { delta: on.setDelta, select: on.select });
    this.stage = new Stage({ select: on.select, hover: this.hover, progress: (onBridge) => this.#progress(onBridge) });
  }

  setModel(model) {
    this.stage.setModel(model);
  }

  play() {
    this.stage.play();
  }

  // The text for screen readers.
  announce(prefix = "") {
    const { result, judged } = this.state;
    const count = result.candidates.length;
    $("live").textContent = prefix + announcement({ ...this.#facts(), numAccepted: judged.numAccepted, count });
  }

  #facts() {
    const { result, judged, selected } = this.state;
    const [source, target] = [this.state.source.trajectory, this.state.target.trajectory];
    return {
      verdict: judged.verdicts[selected],
      candidate: result.candidates[selected],
      source,
      target,
      totals: [returnOf(source), totalReturn(stitched(result, selected, source, target))],
      inferred: result.inferred ?? [],
      isBest: selected === judged.best,
      attempts: result.candidates.some(({ attempt }) => attempt > 0),
    };
  }

  render() {
    const { model, source, target, result, judged, selected, delta } = this.state;
    if (!model) return;
    const candidates = result?.candidates ?? null;
    const verdicts = judged?.verdicts ?? null;
    const candidate = candidates?.[selected] ?? null;
    const gap = candidate?.gap ?? this.on.gap() ?? Math.round((model.gap_min + model.gap_max) / 2);
    const threshold = candidate ? verdicts[selected].threshold : thresholdFor(delta, gap, model);
    const [left, joined] = [source, target].map((chosen) => chosen?.trajectory.observations);
    this.stage.show({ model, source: left, target: joined, candidates, verdicts, selected, candidate, threshold });
    this.strip.draw({ model, delta, gap, candidates, verdicts, selected, numAccepted: judged?.numAccepted });
    drawSteps($("steps"), candidate, threshold, this.hover);
    this.#hover(null);
    const count = result ? [h("b", { text: judged.numAccepted }), ` of ${candidates.length} candidates accepted`] : [];
    $("accepted-count").replaceChildren(...count);
    $("tally").replaceChildren(
      result ? tallyView(judged.tally, candidates.length) : h("p", { class: "empty", text: EXPLANATION }),
    );
    const verdict = result ? verdictView(this.#facts(), shareButtons(this.state, this.on.request)) : emptyVerdict();
    $("verdict").replaceChildren(...verdict.filter(Boolean));
  }

  // One step of the bridge, in the drawing, among the bars and in words; null for none.
  #hover(step) {
    for (const node of document.querySelectorAll("[data-step]")) {
      node.classList.toggle("hot", node.dataset.step === String(step));
    }
    const candidate = this.state.result?.candidates[this.state.selected];
    $("steps-readout").textContent = candidate ? this.stage.readout(candidate, step) : "";
  }

  #progress(onBridge) {
    for (const bar of document.querySelectorAll(".bar-step")) {
      bar.classList.toggle("ahead", onBridge < Number(bar.dataset.step) + 1);
    }
  }
}
