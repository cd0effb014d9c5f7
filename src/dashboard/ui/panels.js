// The page of the cluster: one panel for each part of the view.

import { Charts } from "./charts.js";
import { Table, artifactLink, el, nodeLink, panel, setText } from "./dom.js";
import { ago, bytes, percent, seconds, short, whole } from "./text.js";

const TIERS = ["memory", "disk", "peer", "object"];
const counter = (of, name) => of?.[name] ?? 0;
const hits = (of) => TIERS.reduce((sum, tier) => sum + counter(of, `hits_${tier}`), 0);
const asked = (of) => hits(of) + counter(of, "coalesced") + counter(of, "compiled") + counter(of, "failed");
const values = (of) => counter(of, "resp_hits") + counter(of, "resp_misses");
const tier = (figures, name) => (figures?.tiers ?? []).find((one) => one.name === name);
const artifact = (key) => ({ text: short(key), href: artifactLink(key), class: "key", title: key });

class Tiles {
  constructor() {
    this.tiles = new Map();
    this.element = el("div", { class: "tiles" });
  }

  show(name, value, more, figure) {
    let shown = this.tiles.get(name);
    if (!shown) {
      const [main, rest] = [el("dd", { "data-figure": figure }), el("dd", { class: "more" })];
      this.element.append(el("dl", { class: "tile" }, el("dt", {}, name), main, rest));
      shown = [main, rest];
      this.tiles.set(name, shown);
    }
    setText(shown[0], value);
    setText(shown[1], more);
  }
}

export class Overview {
  constructor() {
    this.tiles = new Tiles();
    this.charts = new Charts();
    const number = (name) => ({ name, number: true });
    this.nodes = new Table("Members of the cluster", [{ name: "Node" }, { name: "State" }, { name: "Role" }, number("Lag"),
      number("Hits"), number("Hit rate"), number("Compiled"), number("Failed"), number("Redis hits"), number("Redis misses"),
      { name: "Version" }, number("Up for"), { name: "Compilers", wrap: true }], "This node knows no member.");
    this.requests = new Table("How requests ended, since each node began to run", [{ name: "Answer" }, number("Requests"), number("Share")], "–");
    this.storage = new Table("Storage of each node by tier", [{ name: "Node" }, { name: "Tier" }, number("Used"), number("Of"), number("Packs"), { name: "State" }], "No node tells of its tiers.");
    this.flights = new Table("Keys that are compiled or waited for", [{ name: "Key" }, { name: "Name", label: true }, { name: "Compiler" },
      { name: "Node" }, { name: "Stage" }, number("Pieces"), number("For")], "Nothing is compiled or waited for.");
    this.leases = new Table("Rights to compile", [{ name: "Key" }, { name: "Node" }, number("Token")], "No lease is held.");
    this.wanted = new Table("Wholes that wait for pieces", [{ name: "Whole" }, { name: "Node" }, { name: "Compiler" }, number("Pieces"), number("Estimate")], "No whole waits for pieces.");
    this.top = new Table("Artifacts by seconds saved", [{ name: "Key" }, { name: "Name", label: true }, { name: "Compiler" }, { name: "Namespace", label: true },
      number("Hits"), number("A compile"), number("Saved"), number("Size")], "No hit was reported yet.");
    this.topNote = el("p", { class: "note" });
    this.misses = new Table("What the cache could not answer", [{ name: "Key" }, { name: "Name", label: true }, { name: "Maker" }, { name: "Node" },
      { name: "When" }, { name: "Reason", wrap: true }], "Nothing was missed since the nodes began to run.");
    this.alerts = new Table("What a person should look at", [{ name: "Alert" }, { name: "Severity" }, { name: "Node" }, { name: "Since" }, { name: "What", wrap: true }], "No alert.");
    this.alerts.element.setAttribute("aria-live", "polite");
    this.decisions = new Table("What the optimizer did or recommends", [{ name: "Decision", wrap: true }, { name: "State" }, { name: "Node" }, { name: "When" }, { name: "Evidence", wrap: true }], "No decision.");
    this.element = el("div", {}, el("h1", { tabindex: "-1" }, "Cluster"), this.tiles.element, el("div", { class: "grid" },
      panel("Alerts", "", this.alerts.element),
      panel("Nodes", "", this.nodes.element),
      ...this.charts.elements,
      panel("Requests", "half", this.requests.element),
      panel("Storage", "half", this.storage.element),
      panel("Under way", "", this.flights.element),
      panel("Leases", "half", this.leases.element),
      panel("Wanted pieces", "half", this.wanted.element),
      panel("Top artifacts", "", this.topNote, this.top.element),
      panel("Recent misses", "", this.misses.element),
      panel("Optimizer", "", this.decisions.element)));
  }

  show(view) {
    this.showTiles(view);
    this.charts.show(view.history);
    this.nodes.show(view.nodes.map((node) => nodeRow(node)));
    this.requests.show(requestRows(view.totals));
    this.storage.show(view.nodes.flatMap((node) => tierRows(node)));
    this.flights.show(view.flights.map((flight) => flightRow(flight)));
    this.leases.show(view.leases.some.map((lease) => ({ id: lease.key, cells: [artifact(lease.key), lease.node, whole(lease.token)] })));
    this.wanted.show(view.wanted.map((list) => ({ id: list.whole, cells: [artifact(list.whole), list.node, list.compiler, whole(list.pieces), seconds(list.seconds)] })));
    this.showTop(view.top);
    this.misses.show(view.misses.map((miss) => missRow(miss, view.at_unix_ms)));
    this.alerts.show(view.alerts.map((alert) => ({ id: `${alert.node} ${alert.name} ${alert.since_unix_ms}`,
      cells: [alert.name, { text: alert.severity, class: severity(alert.severity) }, alert.node, ago(alert.since_unix_ms, view.at_unix_ms), alert.summary] })));
    this.decisions.show(view.decisions.map((decision) => ({ id: `${decision.node} ${decision.id} ${decision.at_unix_ms}`,
      cells: [decision.action, decision.state, decision.node, ago(decision.at_unix_ms, view.at_unix_ms), decision.evidence] })));
  }

  showTiles(view) {
    const { totals } = view;
    const up = view.nodes.filter((node) => node.state === "up").length;
    const stages = (name) => view.flights.filter((flight) => flight.stage === name).length;
    this.tiles.show("Nodes up", `${up} of ${view.nodes.length}`, view.cluster.leader ? `node ${view.cluster.leader} leads` : "no leader", "nodes_up");
    this.tiles.show("Hit rate", percent(hits(totals), asked(totals)), `${whole(hits(totals))} of ${whole(asked(totals))} requests`, "hit_rate");
    this.tiles.show("Redis hit rate", percent(counter(totals, "resp_hits"), values(totals)), `${whole(counter(totals, "resp_hits"))} of ${whole(values(totals))} values`, "resp_hit_rate");
    this.tiles.show("Compiling", whole(stages("compiling")), `${whole(stages("waiting") + stages("acquiring"))} waiting`, "compiling");
    this.tiles.show("Leases held", whole(view.leases.held), `${whole(counter(totals, "resp_waits"))} Redis waits so far`, "leases");
    this.tiles.show("Artifacts", whole(view.cluster.entries), bytes(view.top.bytes), "entries");
    this.tiles.show("Seconds saved", seconds(view.top.seconds_saved), `compiles took ${seconds(view.top.compile_seconds)}`, "seconds_saved");
  }

  showTop(top) {
    setText(this.topNote, top.complete ? `Of all ${whole(top.looked_at)} entries.` : `Of the ${whole(top.looked_at)} entries that were looked at in time.`);
    this.top.show(top.artifacts.map((one) => ({ id: one.key, cells: [artifact(one.key), { text: one.label, title: one.label }, one.compiler,
      one.namespace, whole(one.hits), seconds(one.compile_seconds), seconds(one.seconds_saved), bytes(one.bytes)] })));
  }
}

const severity = (name) => (["critical", "warning"].includes(name) ? name : null);

function nodeRow(node) {
  const { figures } = node;
  const of = figures?.counters;
  const cell = (name, text) => ({ text: figures ? text : "–", data: { node: node.id, figure: name } });
  const state = { up: "up", gone: "gone", unknown: "unknown" }[node.state] ?? "unknown";
  const silent = state === "gone" && node.silent_ms != null ? ` for ${seconds(Math.round(node.silent_ms / 1000))}` : "";
  return {
    id: node.id, class: `row-${state}`,
    cells: [
      { text: `${node.id}`, href: nodeLink(node.http), title: `gRPC ${node.grpc}` },
      { text: `${state}${silent}`, class: state, title: node.note, data: { node: node.id, figure: "state" } },
      `${figures?.role ?? (node.leader ? "leader" : node.voter ? "voter" : "learner")}${node.leader && figures && figures.role !== "leader" ? " (leads)" : ""}`,
      cell("lag", whole(node.lag)), cell("hits", whole(hits(of))), cell("hit_rate", percent(hits(of), asked(of))),
      cell("compiled", whole(counter(of, "compiled"))), cell("failed", whole(counter(of, "failed"))),
      cell("resp_hits", whole(counter(of, "resp_hits"))), cell("resp_misses", whole(counter(of, "resp_misses"))),
      figures?.version ?? "–", seconds(figures?.uptime_seconds),
      (figures?.compilers ?? []).map((one) => one.compiler).join(", ") || node.note || "–",
    ],
  };
}

function requestRows(totals) {
  const all = asked(totals);
  const row = (id, name, count, of) => ({ id, cells: [name, { text: whole(count), data: { figure: id } }, percent(count, of)] });
  return [
    ...TIERS.map((name) => row(`hits_${name}`, `hit: ${name}`, counter(totals, `hits_${name}`), all)),
    row("coalesced", "waited for another's compile", counter(totals, "coalesced"), all),
    row("compiled", "compiled", counter(totals, "compiled"), all),
    row("failed", "failed", counter(totals, "failed"), all),
    row("resp_hits", "Redis: found", counter(totals, "resp_hits"), values(totals)),
    row("resp_misses", "Redis: not found", counter(totals, "resp_misses"), values(totals)),
  ];
}

function tierRows(node) {
  return ["memory", "disk", "object"].filter((name) => tier(node.figures, name)).map((name) => {
    const one = tier(node.figures, name);
    const data = (figure) => ({ node: node.id, figure: `${name}_${figure}` });
    return { id: `${node.id} ${name}`, cells: [node.id, name,
      { text: bytes(one.bytes), title: `${one.bytes} bytes`, data: { ...data("bytes"), value: one.bytes } },
      one.capacity_bytes ? `${bytes(one.capacity_bytes)} (${percent(one.bytes, one.capacity_bytes)})` : "–",
      { text: whole(one.entries), data: data("entries") },
      one.healthy ? { text: "ok", class: "up" } : { text: "failing", class: "failing" }] };
  });
}

function flightRow(flight) {
  const pieces = flight.pieces > 0 ? `${flight.pieces_over} of ${flight.pieces}` : "–";
  return { id: `${flight.node} ${flight.key}`, cells: [artifact(flight.key), { text: flight.label, title: flight.label }, flight.compiler,
    flight.node, flight.stage, pieces, seconds(flight.seconds)] };
}

function missRow(miss, now) {
  const differences = miss.differences.map((one) => `${one.component}.${one.field}: ${one.ours || "nothing"} against ${one.theirs || "nothing"}`);
  return { id: `${miss.node} ${miss.number}`, cells: [artifact(miss.key), { text: miss.label, title: miss.label }, miss.maker, miss.node,
    ago(miss.at_unix_ms, now), { text: miss.reason || "looking for it…", title: differences.join("\n") }] };
}
