// The page: what is chosen, what was answered, and which parts show it.

import { judgeAll, thresholdFor } from "./accept.js";
import * as api from "./api.js";
import { returnOf, stitched, totalReturn } from "./compose.js";
import { $, h, onWidth } from "./dom.js";
import { readHash, writeHash } from "./link.js";
import { Options } from "./options.js";
import { defaultPair } from "./pick.js";
import { Picker } from "./picker.js";
import { announcement, emptyVerdict, tallyView, verdictView } from "./results.js";
import { shareButtons } from "./share.js";
import { Stage } from "./stage.js";
import { drawSteps } from "./steps.js";
import { Strip } from "./strip.js";

const state = {
  models: [],
  model: null,
  source: null, // {index, trajectory}; index is null for own data
  target: null,
  delta: "q99",
  requested: null, // the delta that the answer was asked for with
  result: null,
  judged: null, // {verdicts, tally, numAccepted, best} at the present delta
  selected: 0,
  follows: true, // the selection is the best candidate, whichever that is
};
const SIDES = ["source", "target"];
let busy = null;

const strip = new Strip($("strip"), { delta: setDelta, select });
const stage = new Stage({ select, hover, progress });
const options = new Options({ change: () => save() });
const pickers = Object.fromEntries(
  SIDES.map((side) => [
    side,
    new Picker($(side), side, { pick, own, problem: report, last: (name) => state[name]?.trajectory ?? lastRun[name] }),
  ]),
);
const lastRun = {};

function notice(message, again) {
  $("notice").hidden = !message;
  $("notice").replaceChildren(
    ...(message
      ? [
          h("span", { text: message }),
          ...(again ? [h("button", { type: "button", text: "Try again", onclick: again })] : []),
        ]
      : []),
  );
}

// An error in words, next to what caused it.
function report(error, side = null) {
  if (error.name === "AbortError") return;
  if (!(error instanceof api.Problem)) throw error;
  if (error.status === 401) {
    askToken();
    return;
  }
  const fields = error.errors.length ? error.errors : [{ field: "", message: error.message }];
  for (const { field, message } of fields) {
    const place =
      SIDES.find((name) => field.startsWith(name)) ??
      (field ? null : (SIDES.find((name) => message.startsWith(`${name}.`) || message.startsWith(`${name}:`)) ?? side));
    const text = field && !message.includes(field) ? `${field}: ${message}` : message;
    if (place) pickers[place].fail(text);
    else if (!options.fail(field, message))
      $("stitch-error").textContent = [
        text,
        error.requestId && error.status >= 500 ? `(request ${error.requestId})` : "",
      ]
        .join(" ")
        .trim();
  }
}

function clearErrors() {
  $("stitch-error").textContent = "";
  options.clear();
  for (const side of SIDES) pickers[side].fail("");
}

// ---- choosing

async function pick(side, index) {
  const { model } = state;
  pickers[side].fail("");
  const asked = Symbol(side);
  lastRun[`${side}-asked`] = asked;
  try {
    const trajectory = await api.episode(model.name, index);
    if (state.model !== model || lastRun[`${side}-asked`] !== asked) return;
    lastRun[side] = trajectory;
    choose(side, { index, trajectory });
  } catch (error) {
    report(error, side);
  }
}

// {side: trajectory | null}
function own(found) {
  for (const [side, trajectory] of Object.entries(found)) {
    lastRun[`${side}-asked`] = null;
    choose(side, trajectory && { index: null, trajectory });
  }
}

function choose(side, chosen) {
  state[side] = chosen;
  pickers[side].setChosen(chosen);
  forget();
}

// An answer belongs to what it was asked for.
function forget() {
  busy?.abort();
  Object.assign(state, { result: null, judged: null, selected: 0, follows: true });
  $("live").textContent = "";
  save();
  render();
}

function save() {
  if (!state.model) return;
  writeHash({
    model: state.model.name,
    source: state.source?.index,
    target: state.target?.index,
    delta: state.delta,
    ...options.values(),
  });
}

async function useModel(model, wanted = {}) {
  busy?.abort();
  Object.assign(state, {
    model,
    source: null,
    target: null,
    result: null,
    judged: null,
    delta: wanted.delta ?? model.delta.default ?? "q99",
  });
  for (const side of SIDES) delete lastRun[side];
  $("model").value = model.name;
  options.setModel(model, wanted);
  stage.setModel(model);
  render();
  try {
    await Promise.all(SIDES.map((side) => pickers[side].setModel(model)));
    if (!model.dataset) return;
    const first = { source: wanted.source, target: wanted.target };
    if (SIDES.some((side) => (first[side] ?? null) === null)) {
      const found = await defaultPair(model);
      for (const side of SIDES) first[side] ??= found[side];
    }
    if (state.model !== model) return;
    await Promise.all(SIDES.map((side) => pick(side, first[side])));
  } catch (error) {
    report(error);
  }
}

// ---- stitching

function request() {
  const side = ({ observations, actions, rewards, terminated }) => ({
    observations,
    actions: actions ?? null,
    rewards: rewards ?? null,
    terminated,
  });
  const { seed, gap, num, cut } = options.values();
  return {
    source: side(state.source.trajectory),
    target: side(state.target.trajectory),
    options: { delta: state.delta, gap, num_candidates: num, return_all: true, seed, cut, model: state.model.name },
  };
}

async function stitch() {
  if (busy || !state.model) return;
  clearErrors();
  const missing = SIDES.filter((side) => !state[side]);
  for (const side of missing) pickers[side].failMissing();
  if (!options.check() || missing.length) return;
  const work = new AbortController();
  busy = work;
  setBusy(true);
  const body = request();
  try {
    const result = await api.stitch(body, work.signal);
    if (busy !== work) return;
    Object.assign(state, { result, requested: body.options.delta, follows: true });
    rejudge();
    save();
    render();
    const { verdict, totals, candidate } = facts();
    $("live").textContent = announcement({
      verdict,
      candidate,
      totals,
      numAccepted: state.judged.numAccepted,
      count: result.candidates.length,
    });
    stage.play();
    if ($("stage").getBoundingClientRect().top > innerHeight * 0.6) $("stage").scrollIntoView({ block: "start" });
  } catch (error) {
    report(error);
  } finally {
    if (busy === work || busy === null) {
      busy = null;
      setBusy(false);
    }
  }
}

function setBusy(isBusy) {
  $("choose").setAttribute("aria-busy", String(isBusy));
  document.body.classList.toggle("busy", isBusy);
  $("stitch-label").textContent = isBusy ? "Stitching…" : "Stitch";
  $("stitch").setAttribute("aria-disabled", String(isBusy));
  $("cancel").hidden = !isBusy;
}

function cancel() {
  busy?.abort();
  $("stitch-error").textContent = "";
  $("live").textContent = "Cancelled.";
  $("stitch").focus();
}

// ---- the answer

function rejudge() {
  const { result, delta, model, requested } = state;
  state.judged = judgeAll(result.candidates, delta, model, requested);
  if (state.follows) state.selected = state.judged.best;
}

function setDelta(delta) {
  state.delta = delta;
  if (state.result) rejudge();
  save();
  render();
}

function select(index) {
  state.selected = index;
  state.follows = index === state.judged.best;
  render();
  const { verdict, totals, candidate } = facts();
  $("live").textContent =
    `Candidate ${index + 1}. ${announcement({ verdict, candidate, totals, numAccepted: state.judged.numAccepted, count: state.result.candidates.length })}`;
}

function facts() {
  const { result, judged, selected } = state;
  const [source, target] = SIDES.map((side) => state[side].trajectory);
  const whole = stitched(result, selected, source, target);
  const before = returnOf(source);
  return {
    verdict: judged.verdicts[selected],
    candidate: result.candidates[selected],
    source,
    target,
    totals: [before, totalReturn(whole)],
    inferred: result.inferred ?? [],
    isBest: selected === judged.best,
    attempts: result.candidates.some(({ attempt }) => attempt > 0),
  };
}

function render() {
  const { model, result, judged, selected, delta } = state;
  if (!model) return;
  const candidate = result?.candidates[selected] ?? null;
  const gap = candidate?.gap ?? options.values().gap ?? Math.round((model.gap_min + model.gap_max) / 2);
  const threshold = candidate ? judged.verdicts[selected].threshold : thresholdFor(delta, gap, model);
  stage.show({
    model,
    source: state.source?.trajectory.observations,
    target: state.target?.trajectory.observations,
    candidates: result?.candidates ?? null,
    verdicts: judged?.verdicts ?? null,
    selected,
    candidate,
    threshold,
  });
  strip.draw({ model, delta, gap, candidates: result?.candidates ?? null, verdicts: judged?.verdicts, selected });
  drawSteps($("steps"), candidate, threshold, hover);
  hover(null);
  $("accepted-count").replaceChildren(
    ...(result ? [h("b", { text: judged.numAccepted }), ` of ${result.candidates.length} candidates accepted`] : []),
  );
  $("tally").replaceChildren(
    result
      ? tallyView(judged.tally, result.candidates.length)
      : h("p", {
          class: "empty",
          text: "How large a residual may be. The marks are quantiles of real, recorded steps: at q99, one real stretch in a hundred would be refused.",
        }),
  );
  $("verdict").replaceChildren(
    ...(result ? verdictView(facts(), shareButtons(state, request)) : emptyVerdict()).filter(Boolean),
  );
}

// One step of the bridge, in the drawing, among the bars and in words.
function hover(step) {
  for (const node of document.querySelectorAll("[data-step]"))
    node.classList.toggle("hot", node.dataset.step === String(step));
  const candidate = state.result?.candidates[state.selected];
  $("steps-readout").textContent = candidate ? stage.readout(candidate, step) : "";
}

function progress(onBridge) {
  for (const bar of document.querySelectorAll(".bar-step"))
    bar.classList.toggle("ahead", onBridge < Number(bar.dataset.step) + 1);
}

// ---- start

function askToken() {
  $("token-hint").textContent = api.token.get()
    ? "The server did not take that token. Please check it."
    : "Kept in this tab only, and forgotten when it is closed.";
  $("token").hidden = false;
  $("token-field").focus();
}

async function boot() {
  notice("");
  try {
    state.models = await api.models();
  } catch (error) {
    if (error.status === 401) askToken();
    else if (error.status === 503) {
      notice("The server is starting. This page goes on by itself.");
      setTimeout(boot, 2000);
    } else notice(error.message, boot);
    return;
  }
  $("token").hidden = true;
  $("main").hidden = false;
  if (!state.models.length) {
    $("main").hidden = true;
    notice("This server has no model. Start it with --stitcher DIR.", boot);
    return;
  }
  $("model").replaceChildren(
    ...state.models.map(({ name, dataset }) =>
      h("option", { value: name, text: dataset ? `${name} (${dataset.ref.split("/").at(-1)})` : name }),
    ),
  );
  $("model-row").hidden = state.models.length < 2;
  const wanted = readHash(location.hash);
  const model = state.models.find(({ name }) => name === wanted.model) ?? state.models[0];
  await useModel(model, model.name === wanted.model || wanted.model === null ? wanted : {});
}

$("choose").addEventListener("submit", (event) => {
  event.preventDefault();
  stitch();
});
$("cancel").addEventListener("click", cancel);
$("model").addEventListener("change", () => useModel(state.models.find(({ name }) => name === $("model").value)));
$("token").addEventListener("submit", (event) => {
  event.preventDefault();
  api.token.set($("token-field").value.trim());
  $("token-field").value = "";
  boot();
});
addEventListener("hashchange", () => boot());
for (const id of ["canvas", "strip"]) onWidth($(id), render);
boot();
