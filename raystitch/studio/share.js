// Ways to take a result out of the page: files, a command, the address.

import { answerFor, csv, curl, download } from "./compose.js";
import * as api from "./api.js";
import { $, h } from "./dom.js";

async function copy(button, text) {
  try {
    await navigator.clipboard.writeText(text);
    const before = button.textContent;
    button.textContent = "Copied";
    setTimeout(() => (button.textContent = before), 1500);
    return true;
  } catch {
    return false; // not allowed, or not a secure page
  }
}

async function showCurl(button, text) {
  if (await copy(button, text)) return;
  $("curl-text").value = text;
  $("curl").showModal();
  $("curl-text").select();
}

export function shareButtons(state, request) {
  const { result, selected, judged, source, target } = state;
  const answer = () =>
    answerFor(result, selected, judged.verdicts, judged.numAccepted, source.trajectory, target.trajectory);
  const name = `stitched-${source.index ?? "own"}-${target.index ?? "own"}-seed${result.seed}`;
  const button = (text, onclick) => h("button", { type: "button", class: "small", text, onclick });
  return [
    button("Download JSON", () => download(`${name}.json`, "application/json", JSON.stringify(answer(), null, 1))),
    button("Download CSV", () => download(`${name}.csv`, "text/csv", csv(answer().trajectory))),
    button("Copy as curl", (event) =>
      showCurl(event.target, curl(api.base, request(), Boolean(api.token.get()))),
    ),
    button("Copy link", (event) => copy(event.target, location.href)),
  ];
}
