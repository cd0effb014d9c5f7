// The page: which part of it is shown, and what is live.

import { artifactPage } from "./artifact.js";
import { setClass, setText } from "./dom.js";
import { Overview } from "./panels.js";
import { Source } from "./source.js";

const main = document.getElementById("main");
const cluster = document.getElementById("cluster");
const live = document.getElementById("live");
const banner = document.getElementById("banner");
const overview = new Overview();
let view = null;
let shownRoute = null;

function tell(text) {
  banner.hidden = text === null;
  setText(banner, text ?? "");
  setClass(live, text === null ? "live on" : "live off");
  setText(live, text === null ? "live" : "not live");
}

function show(told) {
  view = told;
  const gone = told.nodes.filter((node) => node.state === "gone").length;
  const state = told.cluster.quorum ? "" : "; NO QUORUM: reads only";
  setText(cluster, `Seen by node ${told.answered_by}, term ${told.cluster.term}${gone > 0 ? `; ${gone} gone` : ""}${state}`);
  overview.show(told);
  if (shownRoute === null) route();
}

async function route() {
  const key = location.hash.startsWith("#/artifact/") ? decoded(location.hash.slice(11)) : null;
  const wanted = key ?? "";
  if (wanted === shownRoute) return;
  const first = shownRoute === null;
  shownRoute = wanted;
  const page = key === null ? overview.element : await artifactPage(key, view?.nodes ?? []);
  // Another one may have been asked for meanwhile.
  if (wanted !== shownRoute) return;
  main.replaceChildren(page);
  document.title = key === null ? "Kiln" : `Kiln: artifact ${key.slice(0, 12)}`;
  // A reader who followed a link is told where it led.
  if (!first) page.querySelector("h1").focus();
}

function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

// The address says which page is shown: skipping to its figures leaves it as it is.
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault();
  main.focus();
});
addEventListener("hashchange", route);
new Source(show, tell).start();
